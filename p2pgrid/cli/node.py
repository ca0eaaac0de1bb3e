"""`p2pgrid node`, `status`, `stop`: the daemon of this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from p2pgrid.cli.link import Link, open_link
from p2pgrid.cli.output import count, emit, plain, talk, warn
from p2pgrid.cli.pid_one import stand_aside
from p2pgrid.cli.reading import jsonable, mapping, number, text, texts, whole
from p2pgrid.cli.verb import NotYet, Setting, Verb
from p2pgrid.core.errors import GridError, NodeGone, NoNode
from p2pgrid.core.units import format_size

F = TypeVar("F", bound=Callable[..., Any])

WAIT_S = 60.0
POLL_S = 0.1
STOP_S = 30.0
"""How long `stop` waits: a node ends within its grace + 5 s."""
REAP_S = 3.0

UNTIL = " until    its last program and job end: a program has started it for its folder; p2pgrid node: one that stays"
LATER_FLAGS = {
    "--worker-user": "",
}


def _flag(name: str, text: str, **attributes: Any) -> Callable[[F], F]:
    """Make a flag whose environment variable `NodeConfig` reads itself: one place knows lists and units."""
    return click.option(name, default=None, allow_from_autoenv=False, help=text, **attributes)


@click.command(
    "node",
    cls=Verb,
    example="p2pgrid node --slots 4 --resource gpu=1\np2pgrid node --join @invite.txt",
    later=LATER_FLAGS,
)
@_flag("--name", "Its name, kept for later starts (default: two words drawn from its key).")
@_flag("--slots", "Tasks at once (default: one per cpu, as memory allows).", metavar="N")
@_flag(
    "--python",
    "An interpreter tasks run in; may be repeated (default: that of the active environment).",
    multiple=True,
    metavar="PATH",
)
@_flag("--resource", "Something tasks can ask for; may be repeated.", multiple=True, metavar="K=V")
@_flag("--tag", "A label that where= can name; may be repeated.", multiple=True, metavar="K=V")
@_flag("--quota", "What its directory may take, like 20GB.", metavar="SIZE")
@_flag("--grace", "What running tasks get when it stops (default: 2s).", metavar="TIME")
@_flag(
    "--listen",
    "Where others reach it: a multiaddr or HOST:PORT; may be repeated (default: port 9471 of every address).",
    multiple=True,
    metavar="ADDR",
)
@_flag("--advertise", "The addresses others are told, instead of those of this machine.", multiple=True, metavar="ADDR")
@_flag("--join", "An invite: the text, - for stdin or @FILE (also $P2PGRID_JOIN).", metavar="INVITE")
@_flag("--no-work", "Run no tasks here.", is_flag=True)
@_flag("--no-keep", "Keep no jobs for others.", is_flag=True)
@_flag("--no-mdns", "Neither announce this node on the LAN nor look for others there.", is_flag=True)
@_flag(
    "--no-speculate", "Never run the last tasks of its jobs a second time, not even those at slow nodes.", is_flag=True
)
@_flag("--open-dht", "Answer questions to the DHT of those who are no members, and nothing else.", is_flag=True)
@_flag("--ephemeral", "Remove the directory at the end.", is_flag=True)
@_flag("--preset", "local, lan, wan or edge (default: lan).", metavar="NAME")
@_flag("--debug", "Keep what helps to find a bug.", is_flag=True)
@_flag("--log-level", "info or warning (default: info).", metavar="LEVEL")
@click.pass_obj
def node(setting: Setting, /, **flags: Any) -> int:
    """Run the node of this machine until Ctrl-C.

    Prints `ready ID NAME` on stdout, all talk on stderr. Every flag is also read from P2PGRID_NODE_<FLAG>.
    """
    stand_aside()
    for flag, milestone in LATER_FLAGS.items():
        name = f"P2PGRID_NODE_{flag[2:].replace('-', '_').upper()}"
        if os.environ.get(name):
            raise NotYet(f"{flag} (${name})", milestone, next=f"unset {name}")
    from p2pgrid.node.config import from_flags

    given = {name: value for name, value in flags.items() if value or value == ""}
    if given.get("join") and given["join"] != "-" and not given["join"].startswith("@"):
        talk("warning: everybody on this machine sees an invite typed here (ps); use --join - or --join @FILE")
    typed = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    place = {} if setting.dir is None else {"dir": setting.dir}
    config = from_flags({**typed, **place, "json": setting.json or None})
    # Only now, for trio and the worker pool take longer to import than a wrong flag takes to tell.
    from p2pgrid.node.daemon import serve

    return serve(config)


@click.command("status", cls=Verb, example="p2pgrid status\np2pgrid status --wait && python program.py")
@click.option(
    "--wait", is_flag=False, flag_value=1, default=None, type=click.IntRange(1), metavar="[N]",
    help="Wait until the node is ready, or N members are alive; exit 6 after 60 s.",
)  # fmt: skip
@click.pass_obj
def status(setting: Setting, wait: int | None) -> None:
    """Show this node and its grid."""
    found = _ask(setting) if wait is None else _wait(setting, wait)
    if setting.json:
        emit({key: jsonable(found.get(key, default)) for key, default in _STATUS.items()})
        return
    click.echo(_status_text(found))
    for warning in texts(found.get("warnings")):
        warn(warning)


_STATUS: dict[str, Any] = {
    "node": {}, "grid": {}, "jobs": {}, "objects": {}, "warnings": [], "network": {}, "process": {},
}  # fmt: skip


def _ask(setting: Setting) -> dict[str, Any]:
    with open_link(setting.dir, "p2pgrid status") as link:
        answer = link.ask("status")
        answer["node"] = {**mapping(answer.get("node")), "dir": str(link.dir)}
        return answer


def _wait(setting: Setting, members: int) -> dict[str, Any]:
    """Ask until the node answers and sees that many members."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            found = _ask(setting)
            alive = whole(mapping(found.get("grid")).get("nodes"))
            if alive >= members:
                return found
            seen = f"only {alive} of {count(members, 'member')} alive"
        except (NoNode, NodeGone) as error:
            seen = error.message
        if time.monotonic() >= deadline:
            raise GridError(
                f"{seen} after {WAIT_S:g} s",
                code="timed-out",
                next="p2pgrid node starts one here" if "no node" in seen else "p2pgrid status",
            )
        time.sleep(POLL_S)


def _status_text(found: dict[str, Any]) -> str:
    node, grid, jobs, network, process = (
        mapping(found.get(key)) for key in ("node", "grid", "jobs", "network", "process")
    )
    costs = [f"pid {process.get('pid', '?')}"]
    costs += [f"{format_size(number(process['rss']))} of memory"] if process.get("rss") else []
    costs += [f"{process['fds']} open files"] if process.get("fds") else []
    size = f"{count(whole(grid.get('nodes'), 1), 'node')}, {count(whole(grid.get('slots')), 'slot')}"
    runs = f"{whole(node.get('busy'))} of {count(whole(node.get('slots')), 'slot')} busy"
    where = "revoked from grid" if grid.get("revoked") is True else "grid"
    addresses = [address.partition("/p2p/")[0] for address in texts(network.get("addresses"))]
    reachable = text(network.get("reachable")) or "not yet known"
    lines = [
        f"node {node.get('name')}   {where} {grid.get('name')}: {size}",
        f" runs     {runs}; Python {node.get('python')}",
        f" jobs     {jobs.get('open', 0)} open of {jobs.get('all', 0)}",
    ]
    lines += [f" listens  {' '.join(addresses)}   reachable: {reachable}"] if addresses else []
    others = texts(network.get("other_grids"))
    lines += [f" lan      other grids here: {', '.join(others)}"] if others else []
    lines += _objects_text(mapping(found.get("objects")))
    lines += [
        f" keeps    {node.get('dir')}",
        *([UNTIL] if node.get("embedded") is True else []),
        f" process  {', '.join(costs)}; p2pgrid {node.get('version')}",
        f" id       {node.get('id')}",
    ]
    lines += [f" grid id  {grid['id']}"] if text(grid.get("id")) else []
    return "\n".join(plain(line) for line in lines)


def _objects_text(held: dict[str, Any]) -> list[str]:
    if not held.get("count"):
        return []
    size, quota, used = (format_size(number(held.get(key))) for key in ("bytes", "quota", "arena_used"))
    return [f" objects  {whole(held['count'])}, {size} of {quota}; {used} in memory"]


@click.command("stop", cls=Verb, example="p2pgrid stop")
@click.pass_obj
def stop(setting: Setting) -> None:
    """End the node; its jobs wait in the journal until it is started again."""
    with open_link(setting.dir, "p2pgrid stop") as link:
        name = link.welcome.get("name")
        link.ask("stop")
        if not link.wait_closed(STOP_S) or not _ended(link):
            raise GridError(
                f"node {name} still runs after {STOP_S:g} s",
                code="timed-out",
                next=f"kill {link.welcome.get('pid', 'PID')}; nothing that was promised is lost",
            )
        if setting.json:
            emit({"stopped": {"id": link.welcome.get("id"), "name": name}})
        else:
            talk(f"stopped node {plain(name)}; p2pgrid node --dir {link.dir} continues its jobs")


def _ended(link: Link) -> bool:
    """Wait until the process is gone, so that the next `p2pgrid node` finds the directory free."""
    pid = link.welcome.get("pid")
    deadline = time.monotonic() + REAP_S
    while isinstance(pid, int) and _lives(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S / 5)
    return True


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except (OSError, IndexError):  # no /proc here: that it takes signals is all we can know
        return not Path("/proc/self").exists()
    return state != "Z"  # a zombie holds nothing any more
