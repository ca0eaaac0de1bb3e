"""`p2pgrid grid show`, `export`, `recover`: the keys of the grid, and how they outlive every machine."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import click

from p2pgrid.cli.link import open_link
from p2pgrid.cli.membership import JOIN_WITHIN_S, read_file
from p2pgrid.cli.output import count, emit, plain, talk, warn, when
from p2pgrid.cli.reading import rows, text, texts, whole
from p2pgrid.cli.verb import Family, Setting, Verb
from p2pgrid.core.errors import GridError

PASSPHRASE_BYTES_MAX = 8192

FILE = click.Path(path_type=Path, dir_okay=False)

passphrase_option = click.option(
    "--passphrase-file", default=None, metavar="F|-",
    help="Take the passphrase from the first line of a file, or of stdin.",
)  # fmt: skip


@click.group("grid", cls=Family, example="p2pgrid grid show\np2pgrid grid export admin.key")
def grid(**_: Any) -> None:
    """Show the grid's keys, export one to a file, get the grid back by it."""


@grid.command("show", cls=Verb, example="p2pgrid grid show")
@click.pass_obj
def show(setting: Setting) -> None:
    """Show who may sign for this grid: admins, invites that are open, what was revoked."""
    with open_link(setting.dir, "p2pgrid grid show") as link:
        found = link.ask("grid")
    told = _grid_json(found)
    if setting.json:
        emit(told)
        return
    mine = ",".join(told["roles"]) or "none"
    waits = "; no admin has signed it yet" if told["provisional"] else ""
    lines = [
        f"grid {told['name']}   {count(told['members'], 'member')}",
        f" {'roles':<9}{mine}{waits}   (of this node)",
    ]
    lines += _listed("admins", [(_who(one), one["status"]) for one in told["admins"]])
    lines += _listed("invites", [(one["key"], _invite(one)) for one in told["invites"] if one["open"]])
    lines += _listed("exported", [(one["key"], _exported(one)) for one in told["exported"] if not one["revoked"]])
    lines += _listed("revoked", [(_who(one), f"at {one['at']} by {one['by']}") for one in told["revoked"]])
    lines.append(f" {'id':<9}{told['id']}")
    click.echo("\n".join(map(plain, lines)))
    for warning in told["warnings"]:
        warn(warning)


@grid.command("export", cls=Verb, example="p2pgrid grid export admin.key")
@click.argument("file", type=FILE)
@passphrase_option
@click.pass_obj
def export(setting: Setting, file: Path, passphrase_file: str | None) -> None:
    """Write a fresh admin key to a file, under a passphrase. Keep both, apart: they bring the grid back."""
    with open_link(setting.dir, "p2pgrid grid export") as link, _fresh(file) as out:
        passphrase = _passphrase(passphrase_file, twice=True)
        found = link.ask("export", passphrase=passphrase)
        sealed = text(found.get("text"))
        if not sealed:
            raise GridError("the node gave no key", code="version-mismatch", next="p2pgrid --version on both sides")
        out.write(f"{sealed}\n")
        out.flush()
        os.fsync(out.fileno())
    key = text(found.get("key"))
    if setting.json:
        emit({"file": str(file), "key": key or None})
        return
    talk(f"an admin key of this grid is in {plain(file)}")
    talk(" use      p2pgrid grid recover FILE makes a node an admin by it and the passphrase")
    talk(plain(f" close    p2pgrid revoke {key}" if key else " close    p2pgrid grid show lists it; p2pgrid revoke ID"))


@grid.command("recover", cls=Verb, example="p2pgrid grid recover admin.key")
@click.argument("file", type=FILE)
@passphrase_option
@click.option("--leave", is_flag=True, help="Leave the grid this node is in, although it has other members.")
@click.pass_obj
def recover(setting: Setting, file: Path, passphrase_file: str | None, *, leave: bool) -> None:
    """Make this node an admin by a file that `grid export` wrote, in the grid of the file."""
    sealed = read_file(file, "p2pgrid grid recover FILE, where FILE is what p2pgrid grid export wrote")
    with open_link(setting.dir, "p2pgrid grid recover") as link:
        passphrase = _passphrase(passphrase_file, twice=False)
        found = link.ask("recover", text=sealed, passphrase=passphrase, leave=leave, within_s=JOIN_WITHIN_S)
    roles = texts(found.get("roles")) or [role for role in text(found.get("roles")).split(",") if role]
    name = text(found.get("grid"))
    if setting.json:
        emit({"roles": roles, "grid": name or None})
    else:
        click.echo(plain(f"this node may now{f' in grid {name}' if name else ''}: {','.join(roles)}"))


@contextlib.contextmanager
def _fresh(path: Path) -> Iterator[IO[str]]:
    """Yield a new file that only its owner can read; it is gone again if there is no key to write into it.

    It is made before the key: a key that lies nowhere could not be used, but would have to be revoked.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        why = "is there already; it may hold a key" if isinstance(error, FileExistsError) else (
            f"cannot be written: {error.strerror or error}")  # fmt: skip
        raise GridError(f"{path} {why}", code="usage", next="name another file") from error
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as out:
            yield out
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _passphrase(file: str | None, *, twice: bool) -> str:
    """Return the passphrase: typed, twice if a mistake would only be noticed when it is too late; or from a file."""
    if file is None and sys.stdin.isatty():
        return str(click.prompt("Passphrase", hide_input=True, confirmation_prompt=twice, err=True))
    if file is None:
        raise GridError(
            "no passphrase was given", code="usage", next="run it on a terminal, or add --passphrase-file F"
        )
    if file == "-":
        line = sys.stdin.readline(PASSPHRASE_BYTES_MAX)
    else:
        try:
            with Path(file).open(encoding="utf-8") as source:
                line = source.readline(PASSPHRASE_BYTES_MAX)
        except (OSError, UnicodeDecodeError) as error:
            raise GridError(
                f"{file} cannot be read: {error}", code="usage", next="--passphrase-file F, or -"
            ) from error
    line = line.rstrip("\r\n")
    if not line:
        raise GridError("the passphrase is empty", code="usage", next="write it into the first line")
    return line


def _grid_json(found: dict[str, Any]) -> dict[str, Any]:
    """Return the grid as `--json` shows it."""
    return {
        "id": text(found.get("id")) or None,
        "name": text(found.get("name")) or None,
        "roles": texts(found.get("roles")),
        "provisional": bool(found.get("provisional")),
        "members": whole(found.get("members")),
        "admins": [
            {
                "id": text(one.get("id")) or None,
                "name": text(one.get("name")) or None,
                "status": text(one.get("status")),
            }
            for one in rows(found.get("admins"))
        ],
        "invites": [
            {
                "key": text(one.get("key")),
                "roles": texts(one.get("roles")),
                "join_until": when(one.get("join_until")),
                "open": bool(one.get("open")),
            }
            for one in rows(found.get("invites"))
        ],
        "exported": [
            {
                "key": text(one.get("key")),
                "signed_at": when(one.get("signed_at")),
                "revoked": bool(one.get("revoked")),
            }
            for one in rows(found.get("exported"))
        ],
        "revoked": [
            {
                "key": text(one.get("key")),
                "id": text(one.get("id")) or None,
                "name": text(one.get("name")) or None,
                "at": when(one.get("at")),
                "by": text(one.get("by")) or None,
            }
            for one in rows(found.get("revoked"))
        ],
        "warnings": texts(found.get("warnings")),
    }


def _listed(title: str, entries: Sequence[tuple[str, str]]) -> list[str]:
    """Return a line per entry; the first has the title."""
    return [f" {title if number == 0 else '':<9}{head}   {rest}" for number, (head, rest) in enumerate(entries)]


def _who(one: dict[str, Any]) -> str:
    known = one["id"] or one.get("key") or ""
    return f"{one['name']} ({known})" if one["name"] else known


def _invite(one: dict[str, Any]) -> str:
    return f"{','.join(one['roles'])}, until {one['join_until']}; close it: p2pgrid revoke {one['key']}"


def _exported(one: dict[str, Any]) -> str:
    return f"an admin key in a file, of {one['signed_at']}; close it: p2pgrid revoke {one['key']}"
