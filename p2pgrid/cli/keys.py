"""`p2pgrid grid show`, `export`, `recover`: the keys of the grid, and how they outlive every machine."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click

from p2pgrid.cli.link import open_link
from p2pgrid.cli.membership import named, read_file
from p2pgrid.cli.output import count, emit, plain, talk, warn
from p2pgrid.cli.reading import jsonable, text, texts
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
    """Show the grid's keys; export one to a file, and get the grid back by it."""


@grid.command("show", cls=Verb, example="p2pgrid grid show")
@click.pass_obj
def show(setting: Setting) -> None:
    """Show who may sign for this grid: admins, invites that are open, what was revoked."""
    with open_link(setting.dir, "p2pgrid grid show") as link:
        found = link.ask("grid")
    lists = {key: _entries(found.get(key)) for key in ("admins", "members", "invites", "revoked")}
    warnings = texts(found.get("warnings"))
    if setting.json:
        emit({"id": text(found.get("id")) or None, "name": text(found.get("name")) or None, **lists,
              "warnings": warnings})  # fmt: skip
        return
    click.echo(plain(f"grid {text(found.get('name'))}   {count(len(lists['members']), 'member')}"))
    for key, entries in lists.items():
        for number, entry in enumerate(entries):
            click.echo(plain(f" {key if number == 0 else '':<8} {_described(entry)}"))
    click.echo(plain(f" {'id':<8} {text(found.get('id'))}"))
    for warning in warnings:
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
@click.pass_obj
def recover(setting: Setting, file: Path, passphrase_file: str | None) -> None:
    """Make this node an admin by a file that `grid export` wrote."""
    sealed = read_file(file, "p2pgrid grid recover FILE, where FILE is what p2pgrid grid export wrote")
    with open_link(setting.dir, "p2pgrid grid recover") as link:
        passphrase = _passphrase(passphrase_file, twice=False)
        found = link.ask("recover", text=sealed, passphrase=passphrase)
    roles = texts(found.get("roles")) or [role for role in text(found.get("roles")).split(",") if role]
    if setting.json:
        emit({"roles": roles})
    else:
        click.echo(plain(f"this node may now: {','.join(roles)}"))


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


def _entries(value: object) -> list[Any]:
    """Return what is listed: objects as they are, bare ids as objects."""
    listed = value if isinstance(value, list) else []
    return [
        jsonable(one) if isinstance(one, dict) else named(one)[0]
        for one in listed
        if isinstance(one, dict) or named(one)
    ]


def _described(entry: dict[str, Any]) -> str:
    """Return an object as people read it: its name and id, then whatever else is said of it."""
    head = f"{entry['name']} ({entry.get('id')})" if entry.get("name") else str(entry.get("id", ""))
    rest = ", ".join(f"{key} {_value(value)}" for key, value in entry.items() if key not in ("id", "name") and value)
    return f"{head}   {rest}" if rest else head


def _value(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
