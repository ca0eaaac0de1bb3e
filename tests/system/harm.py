"""Harm to a grid of real nodes while it has work: kills in a given order, at random moments, of all; and repair."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from p2pgrid.core.errors import GridError
from tests.system.grids import Node, Nodes, wait
from tests.system.survival import Sent, answer, listed
from tests.system.wires import ADDRESSES, WhyNot, Wire

PAUSE_S = 2.0
"""Between one kill and the next."""
ALIVE_S = 240.0
STARTING = 3
WIRE_MBIT_S = 200
SMALL_TASKS = 40
MOMENT_MAX_S = 1.5
"""From the call of `start` on: about as long as the small job takes, and a little longer."""


def strike(nodes: Sequence[Node], sent: Sent, given_to: Node, rng: random.Random, more: int) -> list[str]:
    """Kill the client and its node at once, then more nodes, one every 2 s; return whom, in order."""
    victims = rng.sample([node for node in nodes if node is not given_to], more)
    sent.kill()
    given_to.kill()
    began = time.monotonic()
    for number, victim in enumerate(victims, 1):
        time.sleep(max(began + number * PAUSE_S - time.monotonic(), 0))
        victim.kill()
    return [given_to.name, *(victim.name for victim in victims)]


def revive(nodes: Nodes) -> None:
    """Start whoever was killed, on its directory, and thaw the frozen; return once all are one grid."""
    for node in nodes.all:
        if node.runs and not node.answers:
            node.thaw()
    gone = [node for node in nodes.all if not node.runs]
    for at in range(0, len(gone), STARTING):
        for node in gone[at : at + STARTING]:
            node.spawn()
        for node in gone[at : at + STARTING]:
            node.wait_ready(ALIVE_S)
    nodes.wait_all_alive(ALIVE_S)


class Halves:
    """Nodes at the two ends of a wire, in turn; who has no namespaces has them in one place, and `why_not` says why."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.nodes = Nodes(folder)
        self.names = names
        self.wire = Wire(WIRE_MBIT_S)
        self.why_not = ""
        self._stack = ExitStack()

    @property
    def sides(self) -> tuple[list[Node], list[Node]]:
        """Whoever is at one end, and at the other."""
        return self.nodes.all[0 : len(self.names) : 2], self.nodes.all[1 : len(self.names) : 2]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            try:
                stack.enter_context(self.wire)
            except WhyNot as reason:
                self.why_not = str(reason)
                made = [self.nodes.node(name) for name in self.names]
            else:
                ends = [*zip(self.wire.names, ADDRESSES, strict=True)]
                made = [
                    self.nodes.node(name, netns=ends[at % 2][0], listen=f"{ends[at % 2][1]}:0")
                    for at, name in enumerate(self.names)
                ]
            stack.enter_context(self.nodes)
            self.nodes.begin(made)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        self._stack.__exit__(kind, error, trace)


class Cut(NamedTuple):
    """What became of three jobs: one that was running when the halves were cut, and one that each half was given."""

    ended_apart: list[float]
    """When the new job of each half had ended, in seconds since the cut."""
    met_s: float
    """From healing until every node saw every other alive."""
    agreed_s: float
    """From healing until all listed the same jobs, these three as done."""
    again: list[int]
    """Executions in vain, of each of the three."""


def cut_in_halves(halves: Halves, tasks: int, task_s: float, cut_s: float) -> Cut:
    """Cut a grid in the middle of a job, give each half a new one, heal; all three must end, all nodes list them.

    Raises:
        AssertionError: results are not what a loop would have given, or nodes list different things.
    """
    ours, theirs = halves.sides
    with ExitStack() as stack:
        old = stack.enter_context(Sent(ours[0], tasks, task_s))
        old.wait(0.2)
        halves.wire.cut()
        began = time.monotonic()
        fresh = [stack.enter_context(Sent(side[1], SMALL_TASKS, task_s)) for side in (ours, theirs)]
        ended = []
        for one, side in zip(fresh, (ours, theirs), strict=True):
            one.must_be_right(side[2], ALIVE_S)  # nobody waits for the other half
            ended.append(time.monotonic() - began)
        wait(lambda: time.monotonic() - began >= cut_s, cut_s + 1, "the cut lasts")
        halves.wire.heal()
        healed = time.monotonic()
        halves.nodes.wait_all_alive(ALIVE_S)
        met_s = time.monotonic() - healed
        jobs = [old, *fresh]
        for one, reader in zip(jobs, (theirs[-1], theirs[-1], ours[-1]), strict=True):
            one.must_be_right(reader, ALIVE_S)
        wait(lambda: _agree(halves.nodes, [one.id for one in jobs]), ALIVE_S, "all list the same jobs")
        return Cut(ended, met_s, time.monotonic() - healed, [one.again for one in jobs])


def _agree(nodes: Nodes, names: Sequence[str]) -> bool:
    lists = [listed(node) for node in nodes.all if node.answers]
    return all(one == lists[0] for one in lists) and all(lists[0].get(name) == "done" for name in names)


def blackout(nodes: Nodes, sent: Sent, lost: Node) -> list[Node]:
    """Kill the client and all nodes at once, delete the directory of one, start the others; return them."""
    sent.kill()
    for node in nodes.all:
        node.kill()
    shutil.rmtree(lost.dir)
    back = [node for node in nodes.all if node is not lost]
    for node in back:
        node.spawn()
    for node in back:
        node.wait_ready(ALIVE_S)
    return back


def _slow_answer(index: int) -> int:
    time.sleep(0.03)
    return index * 2654435761 % 2**32


_slow_answer.__module__ = "__main__"  # as if a script had it: it travels by itself, without all these files


class Moment(NamedTuple):
    """One node killed at one moment; `taken` is False if the client was not promised anything before."""

    right: bool
    taken: bool
    victim: str
    at_s: float
    why: str = ""


def moment(nodes: Nodes, rng: random.Random) -> Moment:
    """Kill one node, any, at a moment of a small job; whatever was promised must come true at another."""
    given_to, victim = rng.choice(nodes.all), rng.choice(nodes.all)
    at_s = rng.uniform(0, MOMENT_MAX_S)
    session = given_to.grid(reconnect=False)
    killer = threading.Timer(at_s, victim.kill)
    killer.start()
    try:
        job = session.start(_slow_answer, range(SMALL_TASKS))
    except GridError as error:
        killer.join()
        return Moment(victim is given_to, False, victim.name, at_s, "" if victim is given_to else str(error))  # noqa: FBT003
    finally:
        session.shutdown(wait=False)
    killer.join()
    reader = rng.choice([node for node in nodes.all if node.runs])
    why = ""
    try:
        with reader.grid() as other:
            got = list(other.job(job.id).results(timeout=90))
        if got != [answer(index) for index in range(SMALL_TASKS)]:
            why = f"{job.id} at {reader.name}: {len(got)} results, or wrong ones"
    except (GridError, TimeoutError) as error:
        why = f"{job.id} at {reader.name}: {error!r}"
    return Moment(not why, True, victim.name, at_s, why)  # noqa: FBT003
