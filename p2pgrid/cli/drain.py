"""`p2pgrid drain`: a node takes no more work and hands over what it has, so that it can be switched off."""

from __future__ import annotations

import time
from typing import Any

import click

from p2pgrid.cli.link import Link, open_link
from p2pgrid.cli.output import count, emit, plain, talk
from p2pgrid.cli.reading import text, whole
from p2pgrid.cli.verb import Setting, Verb
from p2pgrid.core.errors import GridError, NodeGone
from p2pgrid.core.units import parse_duration

LOOK_S = 0.5


def _deadline(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    try:
        seconds = parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    if seconds <= 0:
        raise click.BadParameter("more than nothing is wanted")
    return seconds


@click.command(
    "drain", cls=Verb, example="p2pgrid drain --stop\np2pgrid drain heron --deadline 10m\np2pgrid drain --off"
)
@click.argument("target", metavar="[NODE]", required=False, default="")
@click.option("--off", is_flag=True, help="Take work again.")
@click.option("--stop", is_flag=True, help="End the node once it is drained, or at the deadline.")
@click.option(
    "--deadline",
    default=None,
    callback=_deadline,
    metavar="TIME",
    help="How long to wait (default: as long as it takes).",
)
@click.pass_obj
def drain(setting: Setting, target: str, *, off: bool, stop: bool, deadline: float | None) -> None:
    """Let a node take no more work, and hand over jobs, copies and ranges to others; wait until it has none left."""
    if off and (stop or deadline is not None):
        raise click.UsageError("--off goes with neither --stop nor --deadline")
    with open_link(setting.dir, "p2pgrid drain") as link:
        who: dict[str, Any] = {"target": target} if target else {}
        state = link.ask("drain", off=off, stop=stop, deadline=deadline, **who)
        name = plain(text(state.get("name"), target))
        if off:
            _say(setting, state, f"node {name} takes work again")
            return
        ended = _wait(setting, link, who, state, stop=stop, deadline=deadline)
        if ended is None:
            _say(setting, {**state, "stopped": True}, f"node {name} is drained and has ended")
        elif ended.get("drained") and not (ended.get("alone") and whole(ended.get("serves"))):
            next_ = "it can be switched off: p2pgrid stop" if not target else "p2pgrid drain NODE --off takes it back"
            _say(setting, ended, f"node {name} is drained; {next_}")
        else:
            jobs = count(whole(ended.get("serves")), "job")
            _say(
                setting, ended, f"node {name} is the only one here, and keeps {jobs}; p2pgrid drain --off takes it back"
            )


def _wait(
    setting: Setting, link: Link, who: dict[str, Any], state: dict[str, Any], *, stop: bool, deadline: float | None
) -> dict[str, Any] | None:
    """Return how it stands at last; None: the node has ended. Raises GridError when the time is over."""
    until = None if deadline is None else time.monotonic() + deadline
    told = ""
    while True:
        if state.get("drained") and not stop:
            return state
        if state.get("alone") and not whole(state.get("running")) and not stop:
            return state
        left = _left(state)
        if left != told and not setting.json:
            talk(f"draining {plain(text(state.get('name')))}: {left}")
            told = left
        if until is not None and time.monotonic() > until and not stop:
            raise GridError(f"not drained in time: {left}", code="timed-out", next="p2pgrid drain goes on waiting")
        time.sleep(LOOK_S)
        try:
            state = link.ask("drain", look=True, **who)
        except NodeGone:
            return None
        except GridError as error:
            if stop and who and error.code in ("timed-out", "not-found"):
                return None  # it has left the grid
            raise


def _left(state: dict[str, Any]) -> str:
    copies = whole(state.get("copies"))
    parts = [
        count(whole(state.get("running")), "task"),
        count(whole(state.get("owed")), "unconfirmed result"),
        f"{count(whole(state.get('serves')), 'job')} and {copies} {'copy' if copies == 1 else 'copies'} to hand over",
    ]
    return ", ".join(parts)


def _say(setting: Setting, state: dict[str, Any], line: str) -> None:
    if setting.json:
        keys = ("id", "name", "draining", "drained", "running", "owed", "serves", "copies", "alone")
        emit({"drain": {key: state.get(key) for key in keys} | {"stopped": bool(state.get("stopped"))}})
    else:
        talk(line)
