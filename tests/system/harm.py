"""Harm to a grid of real nodes while it has work: kills in a given order, at random moments, of all; and repair."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from p2pgrid.core.errors import GridError
from tests.system.grids import Node, Nodes
from tests.system.survival import Sent, answer

PAUSE_S = 2.0
"""Between one kill and the next."""
ALIVE_S = 240.0
STARTING = 3
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
