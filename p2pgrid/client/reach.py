"""What a function reaches by name: other functions, classes and modules of the user's, which travel with it."""

import functools
import itertools
import types
from collections.abc import Callable, Iterator
from typing import Any

from p2pgrid.client.modules import travels_by_value

OBJECTS_MAX = 10_000
MEMBERS_MAX = 1000
"""Of a container: enough for a table of functions, and no data set is walked through."""

Binding = tuple[dict[str, Any], str, Any]
"""A namespace, a name in it, and what that was bound to."""


class Reach:
    """Everything a function reaches, found by following the names in its code.

    Attribute names count like global ones, wherever they occur: more may be found than is used, never less, except for
    what is looked up by text (`getattr(module, "na" + "me")`).
    """

    def __init__(self, root: Callable[..., Any]) -> None:
        """Follow all names from `root`."""
        self.names: set[str] = set()
        self.functions: list[types.FunctionType] = []
        self.bindings: list[Binding] = []
        self._modules: list[types.ModuleType] = []
        self._seen: set[int] = set()
        self._queue: list[object] = [root]
        known = -1
        while self._queue or known != len(self.names):
            known = len(self.names)
            while self._queue and len(self._seen) < OBJECTS_MAX:
                self._follow(self._queue.pop())
            self._queue.clear()
            # New names may be attributes of modules reached before.
            for module in self._modules:
                self._take_attributes(module)
        self.bindings += [
            (vars(module), name, value)
            for module in self._modules
            for name, value in vars(module).items()
            if name in self.names
        ]

    def _follow(self, one: object) -> None:
        if id(one) in self._seen:
            return
        self._seen.add(id(one))
        match one:
            case types.FunctionType():
                self._take_function(one)
            case types.MethodType():
                self._queue += [one.__func__, type(one.__self__)]
            case types.ModuleType() if travels_by_value(one.__name__):
                self._modules.append(one)
            case type() if is_users(one):
                for member in list(vars(one).values()):
                    self._queue.append(getattr(member, "__func__", member))
                self._queue += one.__bases__
            case property():
                self._queue += [one.fget, one.fset, one.fdel]
            case functools.partial():
                self._queue += [one.func, *one.args, *one.keywords.values()]
            case list() | tuple() | set() | frozenset():
                self._queue += itertools.islice(one, MEMBERS_MAX)
            case dict():
                self._queue += itertools.islice(one.values(), MEMBERS_MAX)
            case _ if is_users(type(one)):
                self._queue += [type(one), *getattr(one, "__dict__", {}).values()]

    def _take_function(self, one: types.FunctionType) -> None:
        if self.functions and not is_users(one):
            return
        self.functions.append(one)
        names = set(names_of(one.__code__))
        self.names |= names
        for name in names:
            if name in one.__globals__:
                value = one.__globals__[name]
                self.bindings.append((one.__globals__, name, value))
                self._queue.append(value)
        for cell in one.__closure__ or ():
            try:
                self._queue.append(cell.cell_contents)
            except ValueError:
                continue

    def _take_attributes(self, module: types.ModuleType) -> None:
        space = vars(module)
        for name in self.names & space.keys():
            if id(space[name]) not in self._seen:
                self._queue.append(space[name])


def is_users(one: object) -> bool:
    """Say whether a function or class travels by value."""
    module = getattr(one, "__module__", None)
    return isinstance(module, str) and (module == "__main__" or travels_by_value(module))


def names_of(code: types.CodeType) -> Iterator[str]:
    """Yield the global and attribute names in a code object and in those inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_of(constant)


class Captured:
    """What a function was bound to when it was pickled, to see whether the pickle is stale.

    Compared by identity: binding a global, a cell or a default anew counts, changing the inside of a captured list
    does not. It holds what is captured, so that no new object can take its address, but never the function itself.
    """

    __slots__ = ("_bindings", "_cells", "_defaults")

    def __init__(self, root: types.FunctionType, reach: Reach) -> None:
        """Note what `root` and all it reaches are bound to."""
        self._bindings = [(space, name, value) for space, name, value in reach.bindings if value is not root]
        self._cells: list[tuple[types.CellType, Any]] = []
        self._defaults: list[tuple[types.FunctionType | None, Any, Any, Any]] = []
        for one in reach.functions:
            itself = None if one is root else one
            self._defaults.append((itself, one.__code__, one.__defaults__, one.__kwdefaults__))
            for cell in one.__closure__ or ():
                try:
                    value = cell.cell_contents
                except ValueError:
                    continue
                if value is not root:
                    self._cells.append((cell, value))

    def is_current(self, root: Any) -> bool:
        """Say whether all is bound to the same objects still."""
        for space, name, value in self._bindings:
            if space.get(name) is not value:
                return False
        for cell, value in self._cells:
            try:
                if cell.cell_contents is not value:
                    return False
            except ValueError:
                return False
        for function, code, defaults, kwdefaults in self._defaults:
            one = root if function is None else function
            if one.__code__ is not code or one.__defaults__ is not defaults or one.__kwdefaults__ is not kwdefaults:
                return False
        return True
