"""What a node takes up: machines that are broken on purpose hoard, and the simulator has to notice it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from p2pgrid.node.copying import Copying
from p2pgrid.node.keeping import Keeping
from p2pgrid.node.machine import Machine
from p2pgrid.simulations import World
from p2pgrid.simulations.checks_of_copies import must_be_copied
from p2pgrid.simulations.checks_of_room import measured, must_be_tidy
from p2pgrid.simulations.world import Violation
from tests.simulations.broken import barks, passes

LONG = """
[grid]
nodes = 3
owners = 1
[run]
storm_s = 300
[[work]]
kind = "map"
jobs = 20
tasks = 20
seconds = 0.5
every_s = 15
[[fault]]
kind = "weather"
duplicate = 0.1
optional = false
"""
"""Not much to do, for five minutes."""
LARGE = """
[grid]
nodes = 4
owners = 1
[run]
storm_s = 5
[[work]]
kind = "map"
tasks = [100, 120]
seconds = 0.05
size = 60000
"""
FORGET = """
[grid]
nodes = 4
owners = 1
[run]
storm_s = 20
copies_s = 20
[[work]]
kind = "forget"
jobs = 3
tasks = [2, 20]
seconds = 0.1
every_s = 3
"""
I12, L6 = "I12 memory is bounded", "L6 nothing is left over"


@pytest.mark.parametrize("text", [LONG, LARGE, FORGET], ids=["long", "large", "forget"])
def test_the_machine_as_it_is_passes(text: str) -> None:
    """What barks at the mutants below does not bark at it."""
    passes(text, range(2))


def test_a_node_that_keeps_what_it_has_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """I12: a protocol of all events, while there is work."""
    handle: Callable[..., Any] = Machine.handle

    def hoard(self: Machine, event: Any, now: float) -> Any:
        effects = handle(self, event, now)
        self.parts.__dict__.setdefault("heard", []).append(f"{now} {event!r} {effects!r}".encode())
        return effects

    monkeypatch.setattr(Machine, "handle", hoard)
    found = barks(LONG)

    assert found.invariant == I12
    assert found.virtual_s < 300


def test_frames_that_are_kept_after_they_were_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    """I12: the rows of one job, for each of its keepers, and too many of them once it has ended."""
    synced: Callable[..., Any] = Copying.synced

    def keep(self: Copying, peer: str, number: int) -> Any:
        flight = self._ways[peer].flying.get(number)
        if flight is not None:
            self.__dict__.setdefault("old", []).append(bytes(flight.size))
        return synced(self, peer, number)

    monkeypatch.setattr(Copying, "synced", keep)
    found = barks(LARGE)

    assert found.invariant == I12
    assert "n0 takes " in found.what


def test_a_job_that_is_forgotten_and_stays_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """L6: rows that no record speaks of."""
    delete: Callable[..., Any] = Keeping.delete

    def forget(self: Keeping, *rest: Any, **more: Any) -> list[Any]:
        return [one for one in delete(self, *rest, **more) if not getattr(one, "rows", None)]

    monkeypatch.setattr(Keeping, "delete", forget)
    found = barks(FORGET)

    assert found.invariant == L6
    assert "which it does not keep" in found.what


def test_a_row_that_a_record_has_let_go_and_the_disk_has_not() -> None:
    """L6: it was taken out of the memory alone, wherever it was."""
    world = World(1)
    nodes = world.grid(3)
    job = world.client(nodes[0]).submit(20, 0.05)
    assert world.run(lambda: job.ended, 30)
    must_be_copied(world, 30)
    must_be_tidy(world, 30)
    rows = nodes[2].machine.keeping.jobs[job.job].rows
    key = rows.keys_of("result")[0]
    rows.put(nodes[2].disk.rows[job.job, "result", key]._replace(value=None))

    with pytest.raises(Violation, match=rf"n2 has 1 rows of {job.job.hex()[:6]} on disk that its record has not"):
        must_be_tidy(world, 5)


def test_what_is_measured() -> None:
    """What hangs on an object counts once, slots and methods included; names and numbers do not."""
    blob = bytes(100_000)

    class Slotted:
        __slots__ = ("held",)

        def __init__(self) -> None:
            self.held = [blob, blob, {"key": (blob,)}]

        def method(self) -> None:
            """Hold on to what it is bound to."""

    taken, objects = measured({"a": Slotted().method, "b": [1, "x" * 1000]})

    assert 100_000 < taken < 103_000
    assert objects < 12
