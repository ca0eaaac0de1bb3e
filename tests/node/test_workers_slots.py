"""Slots without children: those that rest until there is work. Real processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from unittest.mock import patch

import pytest
import trio

from p2pgrid.node import workers
from p2pgrid.node.workers import PoolOptions
from p2pgrid.node.workers_home import fresh_home
from p2pgrid.node.workers_slots import Failures
from tests.node.pool_harness import Harness, pooled
from tests.waiting import SOON_S

RESTING = PoolOptions(rest_s=0.2)


def pid() -> int:
    return os.getpid()


def end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def resting(h: Harness) -> None:
    """Wait until no slot has a child."""
    with trio.fail_after(SOON_S):
        while {state.state for state in h.pool.states()} != {"resting"} or h.pool._living:  # noqa: ASYNC110 - no event
            await trio.sleep(0.01)


@pooled(slots=2, options=RESTING)
async def test_workers_start_with_the_first_task_and_end_when_there_is_none(h: Harness) -> None:
    """The machine hears that the slots are ready all the same; only the one that gets work has a child."""
    await resting(h)
    first = (await h.do(pid, [()])).values[0]
    assert h.pool.states()[1].state == "resting"
    await resting(h)
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    second = (await h.do(pid, [()])).values[0]

    assert first != second
    assert not h.died


@pooled(options=RESTING)
async def test_what_is_given_to_a_resting_slot_can_be_taken_back(h: Harness) -> None:
    """Before its child is born."""
    await resting(h)
    number = h.start(pid, [(), ()])
    h.pool.recall(0)
    report = await h.finished(number)

    assert (report.returned, report.values) == ([(0, 2)], {})


@pooled(options=RESTING)
async def test_a_death_is_told_and_the_slot_rests_again(h: Harness) -> None:
    """A fresh child comes at once, as always, and goes to rest when it has nothing to do."""
    await resting(h)
    h.start(end, [()])
    died = await h.death()
    await resting(h)

    assert died.cause == "signal"
    assert (await h.do(pid, [()])).values


@pooled(options=RESTING)
async def test_a_slot_rests_again_though_its_next_child_was_long_in_coming(h: Harness) -> None:
    """The watch had nobody to look after meanwhile, and waited for work for ever."""

    def slowly(scratch: Path, home: str) -> Path:
        time.sleep(1.5)  # in a thread, while the watch goes round
        return fresh_home(scratch, home)

    with patch.object(workers, "WATCH_IDLE_S", 0.1):
        h.start(end, [()])
        with patch.object(workers, "fresh_home", slowly):
            await h.death()
            with trio.fail_after(SOON_S):
                while not h.pool._living:  # noqa: ASYNC110 - no event
                    await trio.sleep(0.01)
        await resting(h)


@pooled(options=PoolOptions(rest_s=600.0))
async def test_a_pool_whose_slots_rest_ends(h: Harness) -> None:
    """Nothing is born for it (the harness sees that it ends in time)."""
    assert not h.pool._living


def test_children_that_do_not_start_are_tried_again_ever_later() -> None:
    """After so many in a row; one that starts ends it."""
    failures = Failures(3, 5.0, 1.0, 3.0)
    pauses = [failures.failed(float(at)) for at in (0, 1, 2, 4, 7, 10)]
    failures.succeeded()

    assert pauses == [0.0, 0.0, 1.0, 2.0, 3.0, 3.0]
    assert [failures.failed(float(at)) for at in (20, 21, 22)] == [0.0, 0.0, 1.0]
