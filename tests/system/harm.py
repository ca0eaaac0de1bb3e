"""Harm to a grid of real nodes while it has work: kills in a given order, at random moments, of all; and repair."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Timer
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
READ_S = 90.0
SLACK_S = 60.0
"""How much later than it should this program may look again."""
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
        wait(lambda: time.monotonic() - began >= cut_s, cut_s + SLACK_S, "the cut lasts")
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


class Frozen(NamedTuple):
    """What became of two jobs while one node stood still: one that it had taken, and one that another node had."""

    victim: str
    told_s: tuple[float, ...]
    """When programs at another node had all results of each job, in seconds since it froze."""
    again: tuple[int, ...]
    """Executions in vain, of each."""


def freeze(nodes: Nodes, victim: Node, rng: random.Random, tasks: int, seconds: float) -> Frozen:
    """SIGSTOP one node in the middle of two jobs, SIGCONT later; programs follow both jobs, there and elsewhere.

    Raises:
        AssertionError: something was lost, counted twice, or told twice to one of these programs.
    """
    other, reader = rng.sample([node for node in nodes.all if node is not victim], 2)
    with ExitStack() as stack:
        jobs = [stack.enter_context(Sent(node, tasks)) for node in (victim, other)]
        pool = stack.enter_context(ThreadPoolExecutor(2 * len(jobs)))
        readers = [_Follower(pool, node, one) for one in jobs for node in (reader, victim)]
        for each in readers:
            wait(lambda each=each: each.told or each.ended.done(), ALIVE_S, f"{each} follows")  # type: ignore[misc]
        for one in jobs:
            one.wait(0.2)
        victim.freeze()
        began = time.monotonic()
        wait(lambda: time.monotonic() - began >= seconds, seconds + SLACK_S, "the freeze lasts")
        victim.thaw()
        nodes.wait_all_alive(ALIVE_S)
        for one, node in zip(jobs, (reader, victim), strict=True):
            one.must_be_right(node, ALIVE_S)
        expected = sorted(map(answer, range(tasks)))
        for each in readers:
            each.ended.result(ALIVE_S)
            assert sorted(value for value, _ in each.told) == expected, f"{each}: {len(each.told)} of {tasks}"
        for one in jobs:
            for node in (reader, victim):
                with node.grid() as session:
                    assert session.job(one.id).progress() == (tasks, 0, tasks), (one.id, node)
        told_s = tuple(each.told[-1][1] - began for each in readers[::2])
        return Frozen(victim.name, told_s, tuple(one.again for one in jobs))


class _Follower:
    """A program at a node that is told of each task of a job as it ends.

    Attributes:
        told: the values, and when they came.
        ended: when the program has.
    """

    def __init__(self, pool: ThreadPoolExecutor, node: Node, sent: Sent) -> None:
        self.name = f"a program at {node} on {sent.id}"
        self.told: list[tuple[int, float]] = []
        self.ended = pool.submit(self._follow, node, sent.id)

    def _follow(self, node: Node, name: str) -> None:
        with node.grid() as session:
            for future in session.job(name).as_completed(timeout=ALIVE_S):
                self.told.append((future.result(), time.monotonic()))

    def __repr__(self) -> str:
        return self.name


def _slow_answer(index: int) -> int:
    time.sleep(0.03)
    return index * 2654435761 % 2**32


_slow_answer.__module__ = "__main__"  # as if a script had it: it travels by itself, without all these files


class Moment(NamedTuple):
    """One node killed at one moment of a small job; `taken` is False if its client was promised nothing before."""

    right: bool
    taken: bool
    victim: str
    given_to: str
    at_s: float
    """After the call of `start`."""
    why: str = ""


def moments(nodes: Nodes, rng: random.Random, jobs: int = 1) -> list[Moment]:
    """Kill one node, any, at a random moment of each of some small jobs; all that was promised must come true."""
    victim = rng.choice(nodes.all)
    others = [node for node in nodes.all if node is not victim]
    plan = [(rng.choice(nodes.all), rng.choice(others), rng.uniform(0, MOMENT_MAX_S)) for _ in range(jobs)]
    begun, dead = Event(), Event()

    def kill() -> None:
        victim.kill()
        dead.set()

    def play(given_to: Node, reader: Node, at_s: float) -> Moment:
        told = (victim.name, given_to.name, at_s)
        session = given_to.grid(reconnect=False)
        begun.wait()
        dead.wait(MOMENT_MAX_S - at_s)
        try:
            name = session.start(_slow_answer, range(SMALL_TASKS)).id
        except GridError as error:
            return Moment(victim is given_to, False, *told, "" if victim is given_to else str(error))  # noqa: FBT003
        finally:
            session.shutdown(wait=False)
            dead.wait()
        why = _why_not_right(name, reader)
        return Moment(not why, True, *told, why)  # noqa: FBT003

    killer = Timer(MOMENT_MAX_S, kill)
    with ThreadPoolExecutor(jobs) as pool:
        playing = [pool.submit(play, *each) for each in plan]
        killer.start()
        begun.set()
        found = [each.result() for each in playing]
    killer.join()
    return found


def _why_not_right(name: str, reader: Node) -> str:
    """Return what is wrong with the results of a small job, as another node tells them; empty: nothing."""
    try:
        with reader.grid() as session:
            got = list(session.job(name).results(timeout=READ_S))
    except (GridError, TimeoutError) as error:
        return f"{name} at {reader.name}: {error!r}"
    right = got == [answer(index) for index in range(SMALL_TASKS)]
    return "" if right else f"{name} at {reader.name}: {len(got)} results, or wrong ones"
