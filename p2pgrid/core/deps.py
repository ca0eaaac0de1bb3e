"""Dependencies: tasks whose arguments are what other tasks return.

In the pickled arguments every future is a placeholder with a number. A run of such tasks (shape DEPENDENT of
`core.batch`) carries a table `deps` that all its tasks share, and each task the places in it that its placeholders
stand for:

    data = [[pickled (args, kwargs) or b"", [place, …]], …]
    dep  = [job id or b"" for the job itself, index]     what it waits for
         | [shape, data, position]                       what that has come to: a value, as in outcomes of that shape
         | [shape, place, position]                      … whose data is that of an earlier dep of the table

A client sends ids. The node that issues the tasks puts values in their place, which then go where the tasks go.

Rule: standard library only, for the worker child reads this too; nothing is unpickled here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from p2pgrid.core.errors import GridError, PeerError

DEPENDENT = 3
"""The shape of such a run; beside CALLS, ITEMS and TUPLES of `core.batch`."""
DEPS_MAX = 1 << 16
"""Of one run, and of one task."""
VALUE, IN_LIST = 0, 1
"""Shapes of values: a pickle (b"" for None), or a pickled list and the place in it."""
_JOB_BYTES = 16
_TASKS_MAX = 1 << 62


class TaskId(NamedTuple):
    """A task of any job."""

    job: bytes
    index: int  # type: ignore[assignment]  # a tuple has a method of that name, which nobody needs


class Value(NamedTuple):
    """What a task has returned, still packed."""

    shape: int
    data: Any
    position: int = 0

    @property
    def size(self) -> int:
        """How many bytes it takes."""
        return len(self.data) if isinstance(self.data, bytes) else 64


Dep = TaskId | Value
Call = Sequence[Any]
"""[pickle, places]"""


def table(calls: Iterable[tuple[bytes, Sequence[TaskId]]], job: bytes) -> tuple[list[Any], list[Any]]:
    """Return data and deps of a run of these calls, each with what its placeholders stand for, in their order."""
    places: dict[TaskId, int] = {}
    data = [[pickled, [places.setdefault(dep, len(places)) for dep in deps]] for pickled, deps in calls]
    return data, [[b"" if dep.job == job else dep.job, dep.index] for dep in places]


def cut(calls: Sequence[Call], deps: Sequence[Dep], lo: int, hi: int) -> list[Any]:
    """Return [data, deps] of some calls of a run, with as much of the table as they need; ready to be packed."""
    places: dict[int, int] = {}
    data = [[pickled, [places.setdefault(place, len(places)) for place in used]] for pickled, used in calls[lo:hi]]
    seen: dict[int, int] = {}
    said: list[Any] = []
    for at, dep in enumerate(deps[place] for place in places):
        if isinstance(dep, Value) and dep.shape == IN_LIST:
            first = seen.setdefault(id(dep.data), at)
            said.append([dep.shape, dep.data if first == at else first, dep.position])
        else:
            said.append(list(dep))
    return [data, said]


def sizes(calls: Sequence[Call], deps: Sequence[Dep], lo: int, hi: int) -> Iterator[int]:
    """Yield how many bytes each of some calls adds to a frame that has those before it."""
    seen: set[int] = set()
    for pickled, used in calls[lo:hi]:
        size = len(pickled)
        for place in used:
            dep = deps[place]
            if isinstance(dep, Value) and id(dep.data) not in seen:
                seen.add(id(dep.data))
                size += dep.size
        yield size


def waits(call: Call, deps: Sequence[Dep]) -> bool:
    """Whether anything that a call needs is not there yet."""
    return any(isinstance(deps[place], TaskId) for place in call[1])


def fill(calls: Sequence[Call], deps: list[Dep], others: Sequence[Call], given: Sequence[Dep]) -> None:
    """Put values that the same calls came with another time in the place of ids."""
    for (_, places), (_, came) in zip(calls, others, strict=True):
        for place, other in zip(places, came, strict=False):
            value = given[other]
            if isinstance(deps[place], TaskId) and isinstance(value, Value):
                deps[place] = value


def read(count: int, data: Any, deps: Any) -> list[Dep]:
    """Return the table of a run of `count` tasks. Raises PeerError unless all of it is well formed."""
    if type(data) is not list or len(data) != count or type(deps) is not list or len(deps) > DEPS_MAX:
        raise PeerError("dependencies that are no table")
    for call in data:
        right = type(call) is list and len(call) == 2 and type(call[0]) is bytes and type(call[1]) is list  # noqa: PLR2004
        if not right or len(call[1]) > DEPS_MAX:
            raise PeerError("a malformed call with dependencies")
        if not all(type(place) is int and 0 <= place < len(deps) for place in call[1]):
            raise PeerError("a dependency beyond the table")
    out: list[Dep] = []
    for dep in deps:
        out.append(_read(dep, out))
    return out


def _read(dep: Any, before: Sequence[Dep]) -> Dep:
    match dep:
        case [bytes(job), int(index)] if len(job) in (0, _JOB_BYTES) and 0 <= index < _TASKS_MAX:
            return TaskId(job, index)
        case [0 | 1 as shape, bytes(data), int(position)] if 0 <= position < _TASKS_MAX:
            return Value(shape, data, position)
        case [1, int(place), int(position)] if 0 <= place < len(before) and 0 <= position < _TASKS_MAX:
            first = before[place]
            if isinstance(first, Value) and first.shape == IN_LIST:
                return Value(IN_LIST, first.data, position)
    raise PeerError("a malformed dependency")


# ---- inside a task's arguments --------------------------------------------------------------------------------------

_resolvers: list[Callable[[int], Any]] = []


def argument(number: int) -> Any:
    """Return what placeholder `number` stands for: called as arguments are unpickled, in a worker child."""
    if not _resolvers:
        raise GridError("a Future in arguments can be resolved in a worker only", code="not-yet", next="use .result()")
    return _resolvers[-1](number)


def itself(value: Any) -> Any:
    """Return the value of a future that had ended when it was passed: it travels in its place."""
    return value


def resolving(resolver: Callable[[int], Any] | None) -> None:
    """Say what the placeholders of the next arguments stand for; None: they were unpickled."""
    _resolvers[:] = [resolver] if resolver is not None else []
