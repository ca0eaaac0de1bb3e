"""`p2pgrid invite`, `join`, `leave`, `promote`, `revoke`: who belongs to the grid.

An invite is a secret until it expires: it is printed alone on stdout, and never put into a message, a report or the
arguments of another process.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from p2pgrid.cli.link import open_link
from p2pgrid.cli.output import clip, count, emit, plain, talk, warn, when
from p2pgrid.cli.reading import text, texts, whole
from p2pgrid.cli.verb import Setting, Verb
from p2pgrid.core.errors import GridError
from p2pgrid.core.locate import default_dirs
from p2pgrid.core.units import parse_duration

JOIN_WITHIN_S = 60.0
"""A node that joins dials every address of the invite before it gives up."""
TEXT_BYTES_MAX = 64 * 1024
"""More is no invite; a wrong `@file` is not read to its end."""
FILE_NAME_MAX = 256
"""No file system that we know allows longer names."""
YEAR_MAX = 9999
SHOWN_IN_PS = "an invite among the arguments can be read by every user of this machine (ps): - or @FILE keep it to you"
ALL_ROLES = "submit,work,admin"
DEFAULT_EXPIRES = "7d"

node_argument = click.argument("target", metavar="NODE")


def _roles(_: click.Context, __: click.Parameter, value: str) -> str:
    """Refuse what is no list of roles."""
    from p2pgrid.core.chains import parse_roles, role_names

    try:
        return ",".join(role_names(parse_roles(value)))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _duration(_: click.Context, __: click.Parameter, value: str) -> float:
    try:
        seconds = parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    if seconds < 1:
        raise click.BadParameter("at least a second is wanted")
    return seconds


def _moment(_: click.Context, __: click.Parameter, value: str | None) -> int:
    """Return a date, or a duration from now on, as Unix seconds; 0 for none. A date without an offset is UTC."""
    if value is None:
        return 0
    try:
        at = datetime.fromisoformat(value)
        moment = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        try:
            moment = time.time() + parse_duration(value)
        except ValueError:
            raise click.BadParameter(f"{value!r} is neither a date nor a duration, like 2030-12-31 or 90d") from None
    if moment <= time.time():
        raise click.BadParameter(f"{value} is over")
    return math.ceil(moment)


def _request(setting: Setting, verb: str, *, within_s: float | None = None, **arguments: Any) -> dict[str, Any]:
    with open_link(setting.dir, f"p2pgrid {verb}") as link:
        return link.ask(verb, within_s=within_s, **arguments)


# ---- invite ----------------------------------------------------------------------------------------------------------


@click.command("invite", cls=Verb, example="p2pgrid invite > invite.txt\np2pgrid invite --roles work --expires 1h")
@click.option(
    "--roles", default=ALL_ROLES, show_default=True, callback=_roles, metavar="ROLES",
    help="What who joins may do: some of submit,work,admin,observe.",
)  # fmt: skip
@click.option(
    "--expires", default=DEFAULT_EXPIRES, show_default=True, callback=_duration, metavar="TIME",
    help="How long it lets machines in.",
)  # fmt: skip
@click.option(
    "--member-until", default=None, callback=_moment, metavar="DATE|TIME",
    help="When the membership of who joins by it ends (default: never).",
)  # fmt: skip
@click.pass_obj
def invite(setting: Setting, roles: str, expires: float, member_until: int) -> None:
    """Print a string by which machines join this grid, and nothing else on stdout."""
    found = _request(setting, "invite", roles=roles, expires=expires, member_until=member_until)
    string = text(found.get("invite"))
    if not string:
        raise GridError("the node gave no invite", code="version-mismatch", next="p2pgrid --version on both sides")
    granted = _granted(found.get("roles"), roles)
    # The node counts in grid time; its own word is better than our clock.
    until = when(found.get("join_until")) or when(time.time() + expires)
    key = text(found.get("key"))
    if setting.json:
        emit({
            "invite": string,
            "key": key or None,
            "roles": granted.split(","),
            "join_until": until,
            "member_until": when(found.get("member_until") or member_until or None),
            "addresses": texts(found.get("addresses")),
            "warnings": texts(found.get("warnings")),
        })  # fmt: skip
        return
    click.echo(plain(string))
    for line in _warning(granted, until, key):
        talk(line)
    for warning in texts(found.get("warnings")):
        warn(warning)


def _granted(told: object, asked: str) -> str:
    """Return the roles as `submit,work`, as the node tells them, if it does."""
    return ",".join(texts(told)) or text(told, asked)


def _warning(roles: str, until: str | None, key: str) -> list[str]:
    powers = set(roles.split(","))
    can = "run code on every node with the work role" if powers & {"submit", "admin"} else (
        "read the code and the data of tasks" if "work" in powers else "see what this grid works on")  # fmt: skip
    return [
        plain(f"warning: whoever holds this can {can}; it lets machines in until {until}, as {roles}"),
        " join     p2pgrid join -    and paste it; or p2pgrid join @FILE",
        plain(
            f" close    p2pgrid revoke {key}" if key else " close    p2pgrid grid show lists invites; p2pgrid revoke ID"
        ),
    ]


# ---- join, leave -----------------------------------------------------------------------------------------------------


@click.command("join", cls=Verb, example="p2pgrid join -\np2pgrid join @invite.txt")
@click.argument("invite", nargs=-1, envvar="P2PGRID_JOIN", metavar="STRING|-|@FILE")
@click.option("--leave", is_flag=True, help="Leave the grid this node is in, although it has other members.")
@click.pass_context
def join(ctx: click.Context, invite: tuple[str, ...], *, leave: bool) -> None:
    """Join the grid of an invite: the string, - for stdin, @FILE, or $P2PGRID_JOIN.

    A running node moves at once and its jobs go on; where none runs, the next `p2pgrid node` is in the grid.
    """
    setting: Setting = ctx.obj
    string = read_text(invite)
    typed = ctx.get_parameter_source("invite") is ParameterSource.COMMANDLINE
    shown = [SHOWN_IN_PS] if typed and not invite[0].startswith(("-", "@")) else []
    if shown and not setting.json:
        warn(SHOWN_IN_PS)
    found = _join(setting, string, leave=leave)
    warnings = texts(found.get("warnings"))
    grid, name, reached = text(found.get("grid")), text(found.get("name")), whole(found.get("reached"))
    joined, running = found.get("joined") is not False, found.get("running") is not False
    if setting.json:
        told = {"grid": grid or None, "id": text(found.get("id")) or None, "name": name or None, "joined": joined}
        emit(told | {"reached": reached, "running": running, "warnings": shown + warnings})
        return
    if not joined:
        click.echo(plain(f"node {name} was in grid {grid} already"))
    elif running:
        answered = f"{count(reached, 'member')} answered" if reached else "no member answers yet, it keeps trying"
        click.echo(plain(f"node {name} joined grid {grid}: {answered}"))
    else:
        click.echo(plain(f"node {name} is a member of grid {grid}"))
    if not running:
        click.echo(f"now: p2pgrid node{f' --dir {setting.dir}' if setting.dir else ''}")
    for warning in warnings:
        warn(warning)


def read_text(words: Sequence[str]) -> str:
    """Return an invite that was given as a string, `-` or `@file`.

    Raises:
        GridError: none was given, also on stdin, or the file cannot be read.
    """
    given = "".join(words)  # a string that was pasted with the line breaks of a mail is many words
    if not given:
        raise GridError(
            "no invite was given", code="usage", next="p2pgrid join -, then paste it; or p2pgrid join @FILE"
        )
    if given == "-":
        if sys.stdin.isatty():
            talk("paste the invite, then Enter:")
            pasted = sys.stdin.readline(TEXT_BYTES_MAX).strip()
        else:
            pasted = sys.stdin.read(TEXT_BYTES_MAX).strip()
        if not pasted:
            raise GridError(
                "nothing came on stdin: there is no invite", code="usage",
                next="make one at a member (p2pgrid invite), then p2pgrid join - and paste it",
            )  # fmt: skip
        return pasted
    if given.startswith("@"):
        return read_file(Path(given[1:]))
    if len(given) < FILE_NAME_MAX and not given.startswith("p2pgrid-") and Path(given).is_file():
        raise GridError(f"{given} is a file, not an invite", code="usage", next=f"p2pgrid join @{given} reads it")
    return given


def read_file(path: Path, usage: str = "p2pgrid join @FILE, or - for stdin") -> str:
    """Return the text in a small file. Raises GridError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(TEXT_BYTES_MAX).decode(errors="replace").strip()
    except OSError as error:
        raise GridError(f"{path} cannot be read: {error.strerror or error}", code="usage", next=usage) from error


def _join(setting: Setting, string: str, *, leave: bool) -> dict[str, Any]:
    """Ask the node of this machine, or be it for a moment. A node that a program started for itself is not meant."""
    from p2pgrid.cli.offline import check_invite, join_offline, running_or_locked

    places = None if setting.dir is not None else default_dirs()
    with running_or_locked(setting.dir, places, lambda: check_invite(string)) as place:
        if isinstance(place, Path):
            return join_offline(place, string, leave=leave)
        return place.ask("join", invite=string, leave=leave, within_s=JOIN_WITHIN_S)


@click.command("leave", cls=Verb, example="p2pgrid leave")
@click.pass_obj
def leave(setting: Setting) -> None:
    """Leave the grid: this node founds one of its own, and its jobs go on there."""
    found = _request(setting, "leave", within_s=JOIN_WITHIN_S)
    left, grid = text(found.get("left")), text(found.get("grid"))
    if setting.json:
        emit({"left": left or None, "grid": grid or None})
    else:
        click.echo(plain(f"left grid {left}; this node is the only member of grid {grid} now"))


# ---- promote, revoke -------------------------------------------------------------------------------------------------


@click.command("promote", cls=Verb, example="p2pgrid promote quiet-fox\np2pgrid promote 12D3KooWN2rv --roles work")
@node_argument
@click.option(
    "--roles", default=ALL_ROLES, show_default=True, callback=_roles, metavar="ROLES",
    help="What it shall be able to do besides: some of submit,work,admin,observe.",
)  # fmt: skip
@click.pass_obj
def promote(setting: Setting, target: str, roles: str) -> None:
    """Give a node more roles; works within seconds, without a restart."""
    found = _request(setting, "promote", target=target, roles=roles)
    granted = _granted(found.get("roles"), roles)
    if setting.json:
        emit(
            {"id": text(found.get("id")) or None, "name": text(found.get("name")) or None, "roles": granted.split(",")}
        )
    else:
        click.echo(plain(f"node {text(found.get('name'), target)} may now: {granted}"))


@click.command("revoke", cls=Verb, example="p2pgrid revoke quiet-fox\np2pgrid revoke 0a1b2c3d4e5f --with-admitted")
@click.argument("target", metavar="NODE|INVITE")
@click.option("--with-admitted", is_flag=True, help="Also undo what it let in.")
@click.pass_obj
def revoke(setting: Setting, target: str, *, with_admitted: bool) -> None:
    """Shut a node out, or close an invite; asks nothing. What it let in stays, and is listed."""
    found = _request(setting, "revoke", target=target, with_admitted=with_admitted)
    lists = {key: named(found.get(key)) for key in ("revoked", "kept", "cut")}
    if setting.json:
        emit(lists | {"warnings": texts(found.get("warnings"))})
        return
    shut, kept, cut = lists["revoked"], lists["kept"], lists["cut"]
    click.echo(plain(f"revoked  {_listed(shut) or clip(target, 60)}"))
    if kept:
        click.echo(plain(f" keeps   {_listed(kept)}: let in by it; --with-admitted undoes that too"))
    if cut:
        click.echo(plain(f" cut     {_listed(cut)}"))
    for warning in texts(found.get("warnings")):
        warn(warning)


def named(value: object) -> list[dict[str, Any]]:
    """Return who a node names, as `{"id", "name"}`: it gives objects or bare ids, one or a list."""
    items = value if isinstance(value, list) else [value]
    found = []
    for item in items:
        match item:
            case {"id": str(one), **rest}:
                found.append({"id": one, "name": text(rest.get("name")) or None})
            case str(one) if one:
                found.append({"id": one, "name": None})
    return found


def _listed(those: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"{one['name']} ({one['id']})" if one["name"] else one["id"] for one in those)
