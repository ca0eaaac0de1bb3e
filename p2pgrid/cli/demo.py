"""`p2pgrid demo`: five nodes, one picture; whoever asked for it is killed, who took it, one more, and nobody can tell.

    act 1   five real nodes, each a process with a directory of its own, joined by one invite
    act 2   the picture, its rows as tasks, given to one of them by a program of its own
    act 3   SIGKILL of that program at 25 %, of the node that took the job at 35 %, at 50 % of whichever node the
            person watching names, or the dice; a new node joins
    act 4   `p2pgrid result` at a node that never saw the program; the same picture rendered serially, here: equal to
            the last byte, or the demo fails
    act 5   what to type next

However it ends, no process of it is left: `LocalGrid` ends the nodes, also if this process is killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

import click

from p2pgrid.cli.choice import can_ask, pressed
from p2pgrid.cli.output import count, emit
from p2pgrid.cli.verb import Setting, Verb
from p2pgrid.core.errors import ExitCode, GridError

if TYPE_CHECKING:
    from p2pgrid.cli.canvas import Lines, Picture
    from p2pgrid.cli.demo_program import Made, Program
    from p2pgrid.cli.julia import Scene
    from p2pgrid.client.localgrid import LocalGrid
    from p2pgrid.client.localnode import LocalNode

NAMES = ("otter", "wren", "heron", "fox", "lynx")
"""The first one takes the job, the third hands it over; the others may be named by their first letter, to die."""
TAKES, TELLS, JOINS = "otter", "heron", "badger"
MAY_DIE = tuple(name for name in NAMES if name not in {TAKES, TELLS})
PROGRAM_AT, OWNER_AT, TURN_AT, JOIN_AT, KILL_BY = 0.25, 0.35, 0.5, 0.55, 0.9
"""Parts of the picture. From `TURN_AT` on a node dies as soon as it is seen at work, at `KILL_BY` in any case."""
TURN_S = 3.0
INVITE_S, READ_S = 20.0, 120.0
POLL_S = 0.02
SIDE_MIN, SIDE_MAX = 16, 8192
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FILES = ("julia.png", "who-made-what.png")


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
    """Watch five nodes render a Julia set, and kill who asked for it, who took it, and one more."""
    from p2pgrid.cli import julia

    seed = random.SystemRandom().randrange(1000) if seed is None else seed
    if not os.access(".", os.W_OK):
        raise _unwritable("this folder", "it is not yours to write to")
    rng = random.Random(seed)
    scene = julia.Scene(*size, rng.choice(julia.CONSTANTS))
    show = Show(sys.stderr if setting.json else sys.stdout, seed, rng.choice(MAY_DIE), silent=no_input or setting.json)
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
    """What came in: rows and who made them."""

    height: int
    rows: dict[int, Made] = field(default_factory=dict)

    def add(self, made: Made) -> None:
        """Take a row in."""
        assert made.y not in self.rows, f"row {made.y} came twice"
        self.rows[made.y] = made

    @property
    def part(self) -> float:
        """How much of the picture is there."""
        return len(self.rows) / self.height

    def by_node(self) -> dict[str, int]:
        """Return how many rows each node made."""
        made = Counter(row.node for row in self.rows.values())
        return {name: made[name] for name in (*NAMES, JOINS)}


class Death:
    """A node that got SIGKILL, and how long it took until the node that tells knew."""

    def __init__(self, node: LocalNode, teller: LocalNode) -> None:
        self.name, self.pid, self._id = node.name, node.pid or 0, node.id
        self.noticed_s: float | None = None
        self._teller = teller
        node.kill()
        self._killed_s = time.monotonic()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while self.noticed_s is None and time.monotonic() < self._killed_s + READ_S:
            members = self._teller.members()
            if members and not any(one.id == self._id and one.status == "alive" and one.connected for one in members):
                self.noticed_s = time.monotonic() - self._killed_s
            time.sleep(POLL_S)


@dataclass
class Harm:
    """Act 3: who dies when, and who joins."""

    local: LocalGrid
    program: Program
    invite: str
    asks: bool
    victim: str
    deaths: list[Death] = field(default_factory=list)
    joined: LocalNode | None = None
    program_is_dead: bool = False
    is_named: bool = False

    def come(self, made: Made, tally: Tally, shown: Lines | Picture) -> None:
        """A row has come: look whether it is time for something."""
        part = f"{tally.part:.0%}"
        if not self.program_is_dead and tally.part >= PROGRAM_AT:
            self.program_is_dead = True
            self.program.kill()
            shown.say(f"3  {part}  kill -9 {self.program.pid}: the program that asked is dead")
        elif not self.deaths and tally.part >= OWNER_AT:
            self._kill(TAKES)
            shown.say(f"   {part}  kill -9 {self.deaths[0].pid}: {TAKES}, the node that took the job, is dead")
        elif not self.is_named and tally.part >= TURN_AT:
            self.is_named = True
            if self.asks:
                self._ask(part, shown)
        elif self.joined is None and tally.part >= JOIN_AT:
            self.joined = self.local.add(JOINS, self.invite)
            shown.say(f"   {part}  {JOINS} {self.joined.pid} joins, by an invite of {TELLS}")
        elif len(self.deaths) == 1 and self.is_named and (made.node == self.victim or tally.part >= KILL_BY):
            self._kill(self.victim)
            shown.say(f"   {part}  kill -9 {self.deaths[1].pid}: {self.victim} is dead")

    def _kill(self, name: str) -> None:
        node, teller = (next(one for one in self.local.nodes if one.name == each) for each in (name, TELLS))
        self.deaths.append(Death(node, teller))

    def _ask(self, part: str, shown: Lines | Picture) -> None:
        keys = {name[0]: name for name in MAY_DIE}
        names = " ".join(f"[{name[0]}]{name[1:]}" for name in keys.values())
        shown.say(f"   {part}  your turn: {names} ? ({TURN_S:g} s, then random)")
        self.victim = keys[pressed("".join(keys), TURN_S) or self.victim[0]]


def _play(scene: Scene, show: Show) -> dict[str, Any]:
    from p2pgrid.cli.canvas import canvas
    from p2pgrid.cli.demo_program import Program
    from p2pgrid.client.localgrid import LocalGrid

    shown = canvas(scene.width, scene.height, show.out, (*NAMES, JOINS))
    asks = not show.silent and shown.watched and can_ask()
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        local = stack.enter_context(LocalGrid(nodes=len(NAMES), slots=1, name=list(NAMES)))
        joined_s = time.monotonic() - began
        show.say(f"1  five nodes, one program            {' · '.join(f'{one.name} {one.pid}' for one in local.nodes)}")
        show.say("   broker 0 · head 0 · scheduler 0 · config files 0 · addresses typed 0")
        show.say(f"   joined by one invite, {joined_s:.1f} s after the first process began")
        takes, tells = (next(node for node in local.nodes if node.name == name) for name in (TAKES, TELLS))
        invite = _invite(tells)
        began = time.monotonic()
        program = stack.enter_context(Program(takes.dir, scene))
        what = f"Julia set {scene.width} × {scene.height} (--seed {show.seed})"
        show.say(f"2  {what}, rows as tasks, given to {TAKES} by program {program.pid}  →  job {program.job}")
        harm = Harm(local, program, invite, asks, show.victim)
        tally = _watch(local, harm, shown, scene.height)
        grid_s = time.monotonic() - began
        for death in harm.deaths:
            noticed = "" if death.noticed_s is None else f": {TELLS} noticed in {death.noticed_s:.1f} s"
            show.say(f"   {death.name} †{noticed}")
        show.say(f"   rows per node: {_shares(tally, harm)}")
        show.say(f"4  collected at {TELLS}, which never saw the program:   p2pgrid result {program.job}")
        rows, again = _collected(tells, program.job)
    return _judge(scene, tally, harm, rows, again, grid_s, show)


def _invite(node: LocalNode) -> str:
    """Return an invite of a node that joined a moment ago itself: an admin may still have to sign that it may."""
    deadline = time.monotonic() + INVITE_S
    while True:
        try:
            return node.invite()
        except GridError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)


def _watch(local: LocalGrid, harm: Harm, shown: Lines | Picture, height: int) -> Tally:
    """Show rows as they come to a node that has nothing to do with the program."""
    from p2pgrid.cli.demo_program import Made

    tally = Tally(height)
    job = local.grid(NAMES.index(TELLS)).job(harm.program.job)
    names = (*NAMES, JOINS)
    with shown:
        for future in job.as_completed():
            made = Made.told(future.result())
            tally.add(made)
            shown.add(made.y, made.rgb, names.index(made.node))
            harm.come(made, tally, shown)
    return tally


def _collected(node: LocalNode, job: str) -> tuple[list[Made], int]:
    """Return the rows as the command prints them there, and how many tasks ran again."""
    from p2pgrid.cli.demo_program import Made

    rows = [
        Made.told(json.loads(line)["value"]) for line in _said(node, "result", job, "--format", "jsonl").splitlines()
    ]
    return rows, json.loads(_said(node, "show", job, "--json"))["job"]["rerun"]


def _said(node: LocalNode, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "p2pgrid", *words, "--dir", str(node.dir)],
        capture_output=True, text=True, timeout=READ_S, check=False,
    )  # fmt: skip
    if done.returncode:
        raise GridError(f"p2pgrid {words[0]}: {done.stderr.strip()[-300:]}", code="failed", next="p2pgrid demo")
    return done.stdout


def _shares(tally: Tally, harm: Harm) -> str:
    dead = {death.name for death in harm.deaths}
    shares = tally.by_node()
    if harm.joined is None:
        del shares[JOINS]
    return ", ".join(f"{name}{' †' if name in dead else ''} {made}" for name, made in shares.items())


def _judge(
    scene: Scene, tally: Tally, harm: Harm, rows: list[Made], again: int, grid_s: float, show: Show
) -> dict[str, Any]:
    """Render it all again, serially, and compare; write the pictures."""
    from p2pgrid.cli.canvas import hue, tinted
    from p2pgrid.cli.julia import row
    from p2pgrid.cli.png import png

    began = time.monotonic()
    serial = b"".join(row(scene, y) for y in range(scene.height))
    serial_s = time.monotonic() - began
    ours, theirs = (hashlib.sha256(data).hexdigest() for data in (b"".join(made.rgb for made in rows), serial))
    changed = [made for made in rows if made != tally.rows.get(made.y)]
    once = [made.y for made in rows] == list(range(scene.height)) and not changed
    identical = ours == theirs and once
    verdict = "= serial render   IDENTICAL" if identical else f"≠ serial render {theirs[:12]}…   DIFFERENT"
    every = "every row once" if once else f"{count(len(rows), 'row')} instead of each once"
    for made in changed[:3]:
        show.say(f"   row {made.y} came from {tally.rows[made.y].node}, and is said to be from {made.node} now")
    show.say(f"   {every} · sha256 {ours[:12]}… {verdict} · {count(again, 'row')} re-run")
    cores = min(len(NAMES), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    # While somebody thought the grid may have stood still: then the comparison says nothing.
    ideal = "" if harm.asks else f": {serial_s / cores / grid_s:.0%} of ideal"
    show.say(f"   {grid_s:.1f} s with {count(cores, 'core')}, {serial_s:.1f} s serially{ideal}")
    names = (*NAMES, JOINS)
    makers = b"".join(tinted(made.rgb, hue(names.index(made.node))) for made in rows)
    for name, data in zip(FILES, (b"".join(made.rgb for made in rows), makers), strict=True):
        try:
            Path(name).write_bytes(png(scene.width, scene.height, data))
        except OSError as error:
            raise _unwritable(name, error.strerror) from error
    show.say(f"   {', '.join(FILES)}")
    show.say("5  now you:  p2pgrid node      another machine:  p2pgrid invite, and there  p2pgrid node --join -")
    owner, victim = [*harm.deaths, None, None][:2]
    return {
        "identical": identical, "sha256": ours, "rows": len(rows), "rerun": again,
        "workers": len({(made.node, made.pid) for made in rows}), "nodes": tally.by_node(),
        "victim": victim and victim.name, "killed": victim and victim.pid, "noticed": victim and victim.noticed_s,
        "duration": grid_s, "serial": serial_s, "files": list(FILES),
        "job": harm.program.job, "program": harm.program.pid, "owner": owner and owner.name,
        "owner_killed": owner and owner.pid, "owner_noticed": owner and owner.noticed_s,
        "joined": harm.joined and JOINS, "told_by": TELLS,
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
