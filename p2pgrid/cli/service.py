"""`p2pgrid service`: a unit that systemd runs a node by, printed or put in its place.

What it forbids is what neither a node nor a task needs. It leaves alone what tasks of some people do need: devices
(GPUs), memory that is both writable and executable (compilers at run time), namespaces (containers).
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from p2pgrid.cli.output import emit, talk
from p2pgrid.cli.verb import Family, Setting, Verb
from p2pgrid.core.errors import GridError, NotFound

UNIT = "p2pgrid"
SYSTEM_PATH = "/etc/systemd/system/p2pgrid.service"
USER_PATH = "~/.config/systemd/user/p2pgrid.service"
STATE = "/var/lib/p2pgrid"
RUNTIME = "/run/p2pgrid"
ROOT = 0

_ALWAYS = """\
Type=notify
NotifyAccess=main
WatchdogSec=30
Restart=on-failure
RestartSec=2
# What was given is wrong, and starting again would not help: p2pgrid says what in the journal.
RestartPreventExitStatus=2
# A task that takes too much memory is killed, not the node.
OOMPolicy=continue
KillMode=mixed
TimeoutStopSec=20
# Memory limits of tasks are groups below this one.
Delegate=yes
LimitNOFILE=65536
UMask=0077
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
"""
_SYSTEM_ONLY = """\
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
KeyringMode=private
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
"""


@click.group("service", cls=Family, example="p2pgrid service print")
def service(**_: object) -> None:
    """Run a node as a service of this machine."""


@service.command(
    "print", cls=Verb, dir_help=f"Where the node keeps its things (default: {STATE}).",
    example=f"p2pgrid service print | sudo tee {SYSTEM_PATH}\np2pgrid service print -- --slots 4 --join @FILE",
)  # fmt: skip
@click.option("--user", "for_user", is_flag=True, help="For `systemctl --user`: runs while you are logged in.")
@click.option("--run-as", metavar="USER", help="Who the node and its tasks run as (default: you; root: a fresh user).")
@click.argument("flags", metavar="[-- FLAGS OF p2pgrid node]", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def print_(setting: Setting, for_user: bool, run_as: str | None, flags: tuple[str, ...]) -> None:  # noqa: FBT001 - click
    """Print a systemd unit for a node with this interpreter."""
    if for_user and run_as:
        raise click.UsageError("--user and --run-as exclude each other")
    path = USER_PATH if for_user else SYSTEM_PATH
    unit = user_unit(flags, setting.dir) if for_user else system_unit(flags, setting.dir, _who(run_as))
    if setting.json:
        emit({"unit": unit, "path": path})
        return
    click.echo(unit, nl=False)
    if sys.stdout.isatty():
        ctl = "systemctl --user" if for_user else "sudo systemctl"
        talk(f"as {path}, then: {ctl} daemon-reload && {ctl} enable --now p2pgrid")


@service.command(
    "install", cls=Verb, dir_help=f"Where the node keeps its things (default: {STATE}).",
    example="sudo p2pgrid service install --run-as $USER\np2pgrid service install --user -- --slots 4 --join @FILE",
)  # fmt: skip
@click.option("--user", "for_user", is_flag=True, help="For `systemctl --user`: runs while you are logged in.")
@click.option("--run-as", metavar="USER", help="Who the node and its tasks run as (default: a fresh user).")
@click.argument("flags", metavar="[-- FLAGS OF p2pgrid node]", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def install(setting: Setting, for_user: bool, run_as: str | None, flags: tuple[str, ...]) -> None:  # noqa: FBT001 - click
    """Write the unit that `print` shows, and have systemd start the node now and with the machine."""
    if for_user and run_as:
        raise click.UsageError("--user and --run-as exclude each other")
    path = _path(for_user=for_user)
    _may_write(path, for_user=for_user)
    unit = user_unit(flags, setting.dir) if for_user else system_unit(flags, setting.dir, _who(run_as))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(unit, encoding="utf-8")
    _systemctl("daemon-reload", for_user=for_user)
    _systemctl("enable", "--now", UNIT, for_user=for_user)
    if setting.json:
        emit({"unit": unit, "path": str(path)})
        return
    talk(f"runs as {path}, now and from the next start of the machine on; p2pgrid status --wait")


@service.command("uninstall", cls=Verb, example="sudo p2pgrid service uninstall\np2pgrid service uninstall --user")
@click.option("--user", "for_user", is_flag=True, help="The one of `systemctl --user`.")
@click.pass_obj
def uninstall(setting: Setting, for_user: bool) -> None:  # noqa: FBT001 - click
    """Stop the node that `install` has started, and remove its unit; what it keeps stays on disk."""
    path = _path(for_user=for_user)
    _may_write(path, for_user=for_user)
    if not path.exists():
        raise NotFound(f"no unit at {path}", next="p2pgrid service install")
    _systemctl("disable", "--now", UNIT, for_user=for_user)
    path.unlink()
    _systemctl("daemon-reload", for_user=for_user)
    if setting.json:
        emit({"removed": str(path)})
        return
    talk(f"stopped, and {path} removed; the node's directory is as it was")


def _path(*, for_user: bool) -> Path:
    if not for_user:
        return Path(SYSTEM_PATH)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user" / f"{UNIT}.service"


def _may_write(path: Path, *, for_user: bool) -> None:
    if not for_user and os.geteuid() != ROOT:
        raise GridError(
            f"only root may write {path}", code="not-authorized", next="sudo, or --user for your own systemd"
        )


def _systemctl(*words: str, for_user: bool) -> None:
    """Have systemd do something. Raises GridError with its own word where it does not."""
    command = ["systemctl", *(["--user"] if for_user else []), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise GridError("there is no systemd here", code="no-systemd", next="p2pgrid node") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [f"it ended with {done.returncode}"]
        raise GridError(f"{' '.join(command)}: {said[0]}", code="no-systemd", next=f"journalctl -u {UNIT}")


def _who(run_as: str | None) -> str:
    """Return the user's name; empty for one that systemd makes up."""
    if run_as is None:
        return "" if os.geteuid() == ROOT else pwd.getpwuid(os.geteuid()).pw_name
    try:
        return pwd.getpwnam(run_as).pw_name
    except KeyError as error:
        raise click.UsageError(f"--run-as: there is no user {run_as!r} here") from error


def system_unit(flags: Sequence[str], directory: Path | None, user: str) -> str:
    """Return a unit of the machine; `user` empty: one that systemd makes up."""
    place = str(STATE if directory is None else directory.absolute())
    # Programs of that user look at /run/p2pgrid: the file that says where the node is, and its socket.
    lines = [
        f"ExecStartPre=/bin/ln -sfn {_word(f'{place}/node.json')} {RUNTIME}/node.json",
        f"ExecStart={_command(['--dir', place, *flags])}",
        f"User={user}" if user else "DynamicUser=yes",
        "RuntimeDirectory=p2pgrid",
        f"Environment=XDG_RUNTIME_DIR={RUNTIME}",
        "StateDirectory=p2pgrid\nStateDirectoryMode=0700" if directory is None else f"ReadWritePaths={_word(place)}",
    ]
    return _unit(lines, _ALWAYS + _SYSTEM_ONLY, "multi-user.target")


def user_unit(flags: Sequence[str], directory: Path | None) -> str:
    """Return a unit of one user: their own directory, where their programs look anyway."""
    place = [] if directory is None else ["--dir", str(directory.absolute())]
    return _unit([f"ExecStart={_command([*place, *flags])}"], _ALWAYS, "default.target")


def _unit(lines: Iterable[str], rules: str, target: str) -> str:
    head = "[Unit]\nDescription=p2pgrid node\nAfter=network-online.target\nWants=network-online.target\n"
    return f"{head}\n[Service]\n{chr(10).join(lines)}\n{rules}\n[Install]\nWantedBy={target}\n"


def _command(words: Sequence[str]) -> str:
    return " ".join(map(_word, [sys.executable, "-m", "p2pgrid", "node", *words]))


def _word(word: str) -> str:
    """Return a word as systemd reads it: no specifier, no variable, in quotes where it needs them."""
    if not word.isprintable():
        raise click.UsageError(f"{word!r} cannot stand in a unit")
    plain = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$").replace('"', '\\"')
    return plain if plain and not set(plain) & set(" '\";#") else f'"{plain}"'
