"""What the tasks of a job do when they run, and what they have returned so far: known to workers and checkers alone.

No machine and no simulated client looks here: they learn by messages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from p2pgrid.core.deps import TaskId

OK, RAISE, CRASH, TIMEOUT, MEMORY, NODE = "ok", "raise", "crash", "timeout", "memory", "node"
CAUSES = {CRASH: "signal", TIMEOUT: "timeout", MEMORY: "memory"}


class Plan(NamedTuple):
    """What one task does."""

    seconds: float
    """On a worker of speed 1."""
    outcome: str = OK
    """ok, raise (an exception), crash, timeout, memory (its worker process ends), node (its whole node ends)."""
    times: int = 1 << 30
    """So many executions end like that; later ones are well."""
    size: int = 0
    """Bytes that its result has beyond its name."""
    fickle: bool = False
    """Returns another value each time."""


Planner = Callable[[int], Plan]
Needs = Callable[[int], Sequence[TaskId]]
"""What a task depends on."""


@dataclass
class Truth:
    """All about one job that really happened."""

    job: bytes
    plan: Planner
    needs: Needs | None = None
    runs: Counter[int] = field(default_factory=Counter)
    """Executions begun, by task."""
    ended: int = 0
    """Executions that brought a result."""
    worked_s: float = 0.0
    """Of work done, on a worker of speed 1, also what was done twice."""
    lied: dict[int, list[bytes]] = field(default_factory=dict)
    """Values that liars returned."""
    forged: bool = False
    """Nobody submitted it: a forger named it in a grant."""

    def value(self, index: int, plan: Plan) -> bytes:
        """Return what this execution of a task returns."""
        name = self.job[:4] + b"%d" % index
        if plan.fickle:
            name += b"/%d" % self.runs[index]
        return name + bytes(plan.size)

    def may_be(self, index: int, value: bytes) -> bool:
        """Whether some execution of that task has returned this."""
        if not self.runs[index]:
            return False
        plan = self.plan(index)
        name = self.job[:4] + b"%d" % index
        if plan.fickle:
            started, _, number = value[: len(value) - plan.size].rpartition(b"/")  # a job's id may have a slash
            return (started == name and number.isdigit() and 1 <= int(number) <= self.runs[index]) or self._lie(
                index, value
            )
        return value == name + bytes(plan.size) or self._lie(index, value)

    def _lie(self, index: int, value: bytes) -> bool:
        return value in self.lied.get(index, ())
