"""Arguments that other tasks have returned, in the worker child: each task gets values of its own to change.

The values came packed beside the calls; they are unpickled with the arguments, for the task that needs them. Whatever
that raises is the task's failure.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

from p2pgrid.core import deps
from p2pgrid.core.deps import IN_LIST, VALUE, Dep, Value


def opened(data: Sequence[Any]) -> tuple[Sequence[Any], Callable[[Any], Any]]:
    """Return the calls of a DEPENDENT segment, and what makes (args, kwargs) of one."""
    calls, table = data
    values = deps.read(len(calls), calls, table)

    def load(call: Sequence[Any]) -> Any:
        pickled, places = call
        if not pickled:
            return (), {}
        lists: dict[int, list[Any]] = {}

        def resolve(number: int) -> Any:
            return _value(values[places[number]], lists)

        deps.resolving(resolve)
        try:
            return pickle.loads(pickled)
        finally:
            deps.resolving(None)

    return calls, load


def _value(dep: Dep, lists: dict[int, list[Any]]) -> Any:
    """Return a value of its own; `lists` are those that this task has unpickled already."""
    match dep:
        case Value(shape, data, _) if shape == VALUE:
            return pickle.loads(data) if data else None
        case Value(shape, data, position) if shape == IN_LIST:
            if id(data) not in lists:
                lists[id(data)] = pickle.loads(data)
            return lists[id(data)][position]
    raise AssertionError("the daemon sent a task before what it depends on")
