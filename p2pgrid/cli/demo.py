"""`p2pgrid demo`: five nodes, one picture; a node is killed under it, and nobody can tell from the result.

    act 1   five real nodes, each a process with a directory of its own, joined by one invite
    act 2   the picture, its rows as tasks, given to one of them
    act 3   at 50 % another one gets SIGKILL: whichever the person watching names, or the dice
    act 4   the same picture rendered serially, here: equal to the last byte, or the demo fails
    act 5   what to type next

However it ends, no process of it is left: `LocalGrid` ends the nodes, also if this process is killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import click

from p2pgrid.cli.choice import can_ask, pressed
from p2pgrid.cli.output import count, emit
from p2pgrid.cli.verb import Setting, Verb
from p2pgrid.core.errors import ExitCode, GridError

if TYPE_CHECKING:
    from p2pgrid.cli.canvas import Lines, Picture
    from p2pgrid.cli.julia import Scene
    from p2pgrid.client.localgrid import LocalGrid
    from p2pgrid.client.results import Results

NAMES = ("otter", "wren", "heron", "fox", "lynx")
"""The first one takes the job; their first letters are the keys by which the person watching names one."""
KILL_AT, KILL_BY = 0.5, 0.9
"""Parts of the picture: from the first on the victim dies as soon as it is seen at work, at the second in any case."""
TURN_S = 3.0
AHEAD = 5
"""Where somebody is asked, a fifth of the rows is given out ahead: meanwhile the grid goes on, and not to the end."""
SIDE_MIN, SIDE_MAX = 16, 8192
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FILES = ("julia.png", "who-made-what.png")


class Made(NamedTuple):
    """A row, as its task returns it."""

    y: int
    node: str
    pid: int
    attempt: int
    rgb: bytes


def _size(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, int]:
    """Read `WxH`."""
    width, _, height = value.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise click.BadParameter(f"{value!r} is not WxH, like 1600x1200", ctx, param)
    size = int(width), int(height)
    if not SIDE_MIN <= min(size) <= max(size) <= SIDE_MAX:
        raise click.BadParameter(f"{value!r}: {SIDE_MIN} to {SIDE_MAX} pixels a side", ctx, param)
    return size


@click.command(
    "demo",
    cls=Verb,
    example="p2pgrid demo\np2pgrid demo --seed 7 --no-input",
    dir_help="Not looked at: the nodes of the demo live in directories of their own.",
)
@click.option(
    "--seed", type=int, default=None, help="Which picture, and which node dies if nobody says (default: drawn)."
)
@click.option("--no-input", is_flag=True, help="Ask nothing.")
@click.option("--size", callback=_size, default="1200x900", metavar="WxH", show_default=True, help="Of the picture.")
@click.pass_obj
def demo(setting: Setting, seed: int | None, no_input: bool, size: tuple[int, int]) -> int:  # noqa: FBT001 - click's
    """Watch five nodes render a Julia set, and kill one of them."""
    from p2pgrid.cli import julia

    seed = random.SystemRandom().randrange(1000) if seed is None else seed
    if not os.access(".", os.W_OK):
        raise _unwritable("this folder", "it is not yours to write to")
    rng = random.Random(seed)
    scene = julia.Scene(*size, rng.choice(julia.CONSTANTS))
    show = Show(
        sys.stderr if setting.json else sys.stdout, seed, rng.choice(NAMES[1:]), silent=no_input or setting.json
    )
    # Outside the `with`s, so that a signal finds all of them to leave.
    with _interruptible():
        told = {"seed": seed, **_play(scene, show)}
    if setting.json:
        emit(told)
    return ExitCode.DONE if told["identical"] else ExitCode.FAILED


@dataclass(frozen=True)
class Show:
    """How it is shown, and who dies if nobody says."""

    out: TextIO
    seed: int
    victim: str
    silent: bool

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=self.out, flush=True)


@dataclass
class Tally:
    """What came in: rows, who made them, and how the kill went."""

    height: int
    rows: dict[int, Made] = field(default_factory=dict)
    again: int = 0
    first_attempt: int | None = None
    killed: tuple[str, int] | None = None
    killed_at: float = 0.0
    noticed_s: float | None = None

    def add(self, made: Made) -> None:
        """Take a row in."""
        assert made.y not in self.rows, f"row {made.y} came twice"
        self.rows[made.y] = made
        if self.first_attempt is None:
            self.first_attempt = made.attempt
        if made.attempt > self.first_attempt:
            self.again += 1
            if self.noticed_s is None and self.killed is not None:
                self.noticed_s = time.monotonic() - self.killed_at

    @property
    def part(self) -> float:
        """How much of the picture is there."""
        return len(self.rows) / self.height

    def by_node(self) -> dict[str, int]:
        """Return how many rows each node made."""
        made = Counter(row.node for row in self.rows.values())
        return {name: made[name] for name in NAMES}

    def picture(self) -> bytes:
        """Return all rows."""
        return b"".join(self.rows[y].rgb for y in range(self.height))


def make_row(scene: Scene, y: int) -> Made:
    """Render a row, and say who did."""
    from p2pgrid.cli.julia import row
    from p2pgrid.core.current import current

    here = current()
    assert here is not None
    return Made(y, here.node, os.getpid(), here.attempt, row(scene, y))


class Rows:
    """The numbers of the rows, one after the other, and how many were given out."""

    def __init__(self, height: int) -> None:
        self._height = height
        self.given = 0

    def __iter__(self) -> Iterator[int]:
        while self.given < self._height:
            self.given += 1
            yield self.given - 1


@dataclass
class Turn:
    """Act 3: whose turn it is to die, and when."""

    local: LocalGrid
    rows: Rows
    asks: bool
    victim: str
    is_named: bool = False
    after: int = 0
    """A row at least this far down, made by the victim, shows that it is at work and has more rows in its hands."""

    def come(self, made: Made, tally: Tally, shown: Lines | Picture) -> None:
        """Look whether it is time to ask, or to kill."""
        if tally.killed is not None or tally.part < KILL_AT:
            return
        if not self.is_named:
            self.is_named = True
            if self.asks:
                self._ask(tally, shown)
        elif (made.node == self.victim and made.y >= self.after) or tally.part >= KILL_BY:
            node = next(one for one in self.local.nodes if one.name == self.victim)
            tally.killed = node.name, node.pid or 0
            tally.killed_at = time.monotonic()
            node.kill()
            shown.say(f"3  {tally.part:.0%}  kill -9 {tally.killed[1]}: {node.name} is dead")

    def _ask(self, tally: Tally, shown: Lines | Picture) -> None:
        keys = {name[0]: name for name in NAMES[1:]}
        names = " ".join(f"[{name[0]}]{name[1:]}" for name in keys.values())
        shown.say(f"   {tally.part:.0%}  your turn: {names} ? ({TURN_S:g} s, then random)")
        self.victim = keys[pressed("".join(keys), TURN_S) or self.victim[0]]
        # The grid went on meanwhile with what it was given; by now it may have nothing left to do.
        self.after = self.rows.given


def _play(scene: Scene, show: Show) -> dict[str, Any]:
    from p2pgrid.cli.canvas import canvas
    from p2pgrid.client.localgrid import LocalGrid

    shown = canvas(scene.width, scene.height, show.out, NAMES)
    asks = not show.silent and shown.watched and can_ask()
    began = time.monotonic()
    with LocalGrid(nodes=len(NAMES), slots=1, name=list(NAMES)) as local:
        joined_s = time.monotonic() - began
        show.say(f"1  five nodes, one program            {' · '.join(f'{one.name} {one.pid}' for one in local.nodes)}")
        show.say("   broker 0 · head 0 · scheduler 0 · config files 0 · addresses typed 0")
        show.say(f"   joined by one invite, {joined_s:.1f} s after the first process began")
        rows = Rows(scene.height)
        ahead = max(scene.height // AHEAD, len(NAMES)) if asks else scene.height
        began = time.monotonic()
        results = local.grid(0).imap_unordered(partial(make_row, scene), rows, buffersize=ahead)
        what = f"Julia set {scene.width} × {scene.height} (--seed {show.seed})"
        show.say(f"2  {what}, rows as tasks, given to {NAMES[0]}  →  job {results.id}")
        tally = _watch(results, Turn(local, rows, asks, show.victim), shown, scene.height)
        grid_s = time.monotonic() - began
    if tally.noticed_s is not None:
        show.say(f"   noticed in {tally.noticed_s:.2f} s: so long until the first of its rows came from another node")
    show.say(f"   rows per node: {_shares(tally)}")
    show.say(f"4  collected at {NAMES[0]}: {count(len(tally.rows), 'row')}; now serially, to compare")
    return _judge(scene, tally, grid_s, show, asked=asks)


def _watch(results: Results, turn: Turn, shown: Lines | Picture, height: int) -> Tally:
    """Show rows as they come."""
    tally = Tally(height)
    with shown:
        for made in results:
            tally.add(made)
            shown.add(made.y, made.rgb, NAMES.index(made.node))
            turn.come(made, tally, shown)
    return tally


def _shares(tally: Tally) -> str:
    dead = tally.killed[0] if tally.killed is not None else ""
    return ", ".join(f"{name}{' †' if name == dead else ''} {made}" for name, made in tally.by_node().items())


def _judge(scene: Scene, tally: Tally, grid_s: float, show: Show, *, asked: bool) -> dict[str, Any]:
    """Render it all again, serially, and compare; write the pictures."""
    from p2pgrid.cli.canvas import hue, tinted
    from p2pgrid.cli.julia import row
    from p2pgrid.cli.png import png

    picture = tally.picture()
    began = time.monotonic()
    serial = b"".join(row(scene, y) for y in range(scene.height))
    serial_s = time.monotonic() - began
    ours, theirs = (hashlib.sha256(data).hexdigest() for data in (picture, serial))
    identical = ours == theirs and len(tally.rows) == scene.height
    verdict = "= serial render   IDENTICAL" if identical else f"≠ serial render {theirs[:12]}…   DIFFERENT"
    show.say(f"   every row once · sha256 {ours[:12]}… {verdict} · {count(tally.again, 'row')} re-run")
    cores = min(len(NAMES), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    # While somebody thought the grid may have stood still: then the comparison says nothing.
    ideal = "" if asked else f": {serial_s / cores / grid_s:.0%} of ideal"
    show.say(f"   {grid_s:.1f} s with {count(cores, 'core')}, {serial_s:.1f} s serially{ideal}")
    makers = b"".join(tinted(made.rgb, hue(NAMES.index(made.node))) for _, made in sorted(tally.rows.items()))
    for name, data in zip(FILES, (picture, makers), strict=True):
        try:
            Path(name).write_bytes(png(scene.width, scene.height, data))
        except OSError as error:
            raise _unwritable(name, error.strerror) from error
    show.say(f"   {', '.join(FILES)}")
    show.say("5  now you:  p2pgrid node      another machine:  p2pgrid invite, and there  p2pgrid node --join -")
    victim, killed = tally.killed or (None, None)
    return {
        "identical": identical, "sha256": ours, "rows": len(tally.rows), "rerun": tally.again,
        "workers": len({(made.node, made.pid) for made in tally.rows.values()}), "nodes": tally.by_node(),
        "victim": victim, "killed": killed, "noticed": tally.noticed_s, "duration": grid_s, "serial": serial_s,
        "files": list(FILES),
    }  # fmt: skip


def _unwritable(what: str, why: str | None) -> GridError:
    return GridError(
        f"{what} cannot be written: {why}", code="directory-unusable", next="p2pgrid demo, in a folder of your own"
    )


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Turn the first signal that asks us to end into KeyboardInterrupt; more must not disturb the clearing up."""

    def interrupt(number: int, _: FrameType | None) -> None:
        for one in SIGNALS:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    # What is ignored (nohup) stays so.
    before = {one: signal.signal(one, interrupt) for one in SIGNALS if signal.getsignal(one) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
