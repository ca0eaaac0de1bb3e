"""`p2pgrid demo`: one node, two workers, one picture; a worker is killed under it, and nobody can tell from the result.

    act 1   a real node, in a process and directory of its own
    act 2   the picture, its rows as tasks
    act 3   at 40 % one worker process gets SIGKILL
    act 4   the same picture rendered serially, here: equal to the last byte, or the demo fails
    act 5   what to type next

However it ends, no process of it is left: the node is stopped, and being *embedded* it ends by itself even if this
process is killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

import click

from p2pgrid.cli.link import Link, open_link
from p2pgrid.cli.output import count, emit
from p2pgrid.cli.verb import Setting, Verb
from p2pgrid.core.errors import ExitCode, GridError

if TYPE_CHECKING:
    from p2pgrid.cli.canvas import Lines, Picture
    from p2pgrid.cli.julia import Scene

SLOTS = 2
KILL_AT = 0.4
START_S = 5.0
POLL_S = 0.02
NODE_NAME = "otter"
SIDE_MIN, SIDE_MAX = 16, 8192
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FILES = ("julia.png", "who-made-what.png")

Made = tuple[int, int, int, bytes]
"""Row, pid of the worker that made it, attempt, RGB bytes."""


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
    dir_help="Not looked at: the node of the demo lives in a directory of its own.",
)
@click.option("--seed", type=int, default=None, help="Which picture, and which worker dies (default: drawn).")
@click.option("--no-input", is_flag=True, help="Ask nothing (nothing is asked yet).")
@click.option("--size", callback=_size, default="1600x1200", metavar="WxH", show_default=True, help="Of the picture.")
@click.pass_obj
def demo(setting: Setting, seed: int | None, no_input: bool, size: tuple[int, int]) -> int:  # noqa: FBT001 - click's
    """Watch a Julia set being rendered by tasks while a worker is killed."""
    from p2pgrid.cli import julia

    seed = random.SystemRandom().randrange(1000) if seed is None else seed
    if not os.access(".", os.W_OK):
        raise _unwritable("this folder", "it is not yours to write to")
    rng = random.Random(seed)
    scene = julia.Scene(*size, rng.choice(julia.CONSTANTS))
    out = sys.stderr if setting.json else sys.stdout
    # Outside the `with`s, so that a signal finds all of them to leave.
    with _interruptible():
        told = {"seed": seed, **_play(scene, seed, rng, out)}
    if setting.json:
        emit(told)
    return ExitCode.DONE if told["identical"] else ExitCode.FAILED


@dataclass
class Tally:
    """What came in: rows, who made them, and how the kill went."""

    height: int
    rows: dict[int, bytes] = field(default_factory=dict)
    maker: dict[int, int] = field(default_factory=dict)
    workers: list[int] = field(default_factory=list)
    again: list[int] = field(default_factory=list)
    first_attempt: int | None = None
    killed: int | None = None
    killed_at: float = 0.0
    back_s: float | None = None

    def add(self, made: Made) -> int:
        """Take a row in; return the number of the worker that made it, counted as they show up."""
        y, pid, attempt, rgb = made
        assert y not in self.rows, f"row {y} came twice"
        if pid not in self.workers:
            self.workers.append(pid)
        self.rows[y], self.maker[y] = rgb, pid
        if self.first_attempt is None:
            self.first_attempt = attempt
        if attempt > self.first_attempt:
            self.again.append(y)
            if self.back_s is None and self.killed is not None:
                self.back_s = time.monotonic() - self.killed_at
        return self.workers.index(pid)

    @property
    def due(self) -> bool:
        """Whether it is time to kill."""
        return self.killed is None and len(self.rows) >= KILL_AT * self.height

    def picture(self) -> bytes:
        """Return all rows."""
        return b"".join(self.rows[y] for y in range(self.height))


def make_row(scene: Scene, y: int) -> Made:
    """Render a row, and say who did."""
    from p2pgrid.cli.julia import row
    from p2pgrid.core.current import current

    here = current()
    return y, os.getpid(), here.attempt if here is not None else 0, row(scene, y)


def _play(scene: Scene, seed: int, rng: random.Random, out: TextIO) -> dict[str, Any]:
    from p2pgrid.client.grid import Grid
    from p2pgrid.client.localgrid import LocalGrid

    def say(text: str) -> None:
        print(text, file=out, flush=True)

    with LocalGrid(nodes=1, slots=SLOTS, name=NODE_NAME, embedded=True) as local:
        place = local.nodes[0].dir
        with open_link(place, "p2pgrid demo") as link, Grid(place, embedded=False) as grid:
            name = link.welcome["name"]
            pids = ", ".join(str(worker["pid"]) for worker in _workers(link, SLOTS))
            say(f"1  one node, one program            node {name} {link.welcome['pid']}, workers {pids}")
            say("   broker 0 · head 0 · scheduler 0 · config files 0 · addresses typed 0")
            began = time.monotonic()
            results = grid.imap_unordered(partial(make_row, scene), range(scene.height))
            what = f"Julia set {scene.width} × {scene.height} (--seed {seed})"
            say(f"2  {what}, rows as tasks, given to {name}  →  job {results.id}")
            tally = _watch(results, link, scene, rng, out)
            grid_s = time.monotonic() - began
    makers = count(len(tally.workers), "worker")
    say(f"4  collected: {count(len(tally.rows), 'row')} from {makers}; now serially, to compare")
    return _judge(scene, tally, grid_s, say)


def _watch(results: Iterator[Made], link: Link, scene: Scene, rng: random.Random, out: TextIO) -> Tally:
    from p2pgrid.cli.canvas import canvas

    tally = Tally(scene.height)
    shown: Lines | Picture
    with canvas(scene.width, scene.height, out) as shown:
        for made in results:
            number = tally.add(made)
            shown.add(made[0], made[3], number)
            if tally.due:
                shown.say(_kill_one(tally, link, rng))
    if tally.back_s is not None:
        print(f"   its row was there {tally.back_s:.2f} s later, made by another worker", file=out, flush=True)
    return tally


def _workers(link: Link, wanted: int) -> list[dict[str, Any]]:
    """Return the workers that have a process, and wait a moment for those that are about to have one."""
    deadline = time.monotonic() + START_S
    while True:
        found = [one for one in link.ask("workers")["workers"] if one.get("pid")]
        if len(found) >= wanted or time.monotonic() > deadline:
            return found
        time.sleep(POLL_S)


def _kill_one(tally: Tally, link: Link, rng: random.Random) -> str:
    """Kill a worker process that has a row in its hands."""
    workers = _workers(link, 1)
    busy = [one for one in workers if one.get("index") is not None] or workers
    tally.killed_at = time.monotonic()
    if not busy:
        tally.killed = 0
        return "3  no worker was there to be killed"
    victim = rng.choice(busy)
    tally.killed = int(victim["pid"])
    os.kill(tally.killed, signal.SIGKILL)
    percent = len(tally.rows) * 100 // tally.height
    row = f", a worker with row {victim['index']} in its hands" if victim.get("index") is not None else ", a worker"
    return f"3  {percent} %  kill -9 {tally.killed}{row}"


def _judge(scene: Scene, tally: Tally, grid_s: float, say: Callable[[str], None]) -> dict[str, Any]:
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
    again = count(len(tally.again), "row") + " re-run"
    say(f"   every row once · sha256 {ours[:12]}… {verdict} · {again}")
    ideal = serial_s / SLOTS / grid_s
    say(f"   {grid_s:.1f} s with {count(SLOTS, 'worker')}, {serial_s:.1f} s serially: {ideal:.0%} of ideal")
    makers = b"".join(tinted(tally.rows[y], hue(tally.workers.index(tally.maker[y]))) for y in range(scene.height))
    for name, data in zip(FILES, (picture, makers), strict=True):
        try:
            Path(name).write_bytes(png(scene.width, scene.height, data))
        except OSError as error:
            raise _unwritable(name, error.strerror) from error
    say(f"   {', '.join(FILES)}")
    say("5  now you:  p2pgrid node      and in Python:  import p2pgrid as pg; pg.Grid().map(f, xs)")
    return {
        "identical": identical, "sha256": ours, "rows": len(tally.rows), "rerun": len(tally.again),
        "workers": len(tally.workers), "killed": tally.killed or None, "noticed": tally.back_s,
        "duration": grid_s, "serial": serial_s, "files": list(FILES),
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
