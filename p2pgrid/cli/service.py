"""`p2pgrid service print`: a unit that systemd runs a node by.

What it forbids is what neither a node nor a task needs. It leaves alone what tasks of some people do need: devices
(GPUs), memory that is both writable and executable (compilers at run time), namespaces (containers).
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from p2pgrid.cli.output import emit, talk
from p2pgrid.cli.verb import Family, NotYet, Setting, Verb

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


@service.command("install", cls=Verb, example="p2pgrid service print")
def install() -> None:
    """Comes later: until then print the unit and put it in its place."""
    raise NotYet("service install", "", next=f"p2pgrid service print | sudo tee {SYSTEM_PATH}")


@service.command("uninstall", cls=Verb, example="sudo systemctl disable --now p2pgrid")
def uninstall() -> None:
    """Comes later: until then disable the unit and remove it."""
    raise NotYet("service uninstall", "", next="sudo systemctl disable --now p2pgrid")


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
