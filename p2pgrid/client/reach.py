"""What a function that goes by value reaches by name: other functions and classes that go with it by value.

What can be imported goes by its name, from a source tree; what is bound to it there is no business of ours.
"""

import functools
import itertools
import opcode
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from p2pgrid.client.modules import is_own

OBJECTS_MAX = 10_000
MEMBERS_MAX = 1000
"""Of a container: enough for a table of functions, and no data set is walked through."""

Binding = tuple[dict[str, Any], str, Any]
"""A namespace, a name in it, and what that was bound to."""


class Reach:
    """Everything a function reaches, found by following the names in its code.

    Attribute names count like global ones, wherever they occur: more may be found than is used, never less, except for
    what is looked up by text (`globals()["na" + "me"]`).
    """

    def __init__(self, root: Callable[..., Any]) -> None:
        """Follow all names from `root`."""
        self.functions: list[types.FunctionType] = []
        self.bindings: list[Binding] = []
        self._seen: set[int] = set()
        self._queue: list[object] = [root]
        while self._queue and len(self._seen) < OBJECTS_MAX:
            self._follow(self._queue.pop())

    def _follow(self, one: object) -> None:
        if id(one) in self._seen:
            return
        self._seen.add(id(one))
        match one:
            case types.FunctionType():
                self._take_function(one)
            case types.MethodType():
                self._queue += [one.__func__, type(one.__self__)]
            case type() if goes_by_value(one):
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
            case _ if goes_by_value(type(one)):
                self._queue += [type(one), *getattr(one, "__dict__", {}).values()]

    def _take_function(self, one: types.FunctionType) -> None:
        if self.functions and not goes_by_value(one):
            return
        self.functions.append(one)
        for name in set(names_of(one.__code__)):
            if name in one.__globals__:
                value = one.__globals__[name]
                self.bindings.append((one.__globals__, name, value))
                self._queue.append(value)
        for cell in one.__closure__ or ():
            try:
                self._queue.append(cell.cell_contents)
            except ValueError:
                continue


def goes_by_value(one: Any) -> bool:
    """Say whether a function or class of the program's travels by value: a worker could not import it."""
    module = getattr(one, "__module__", None)
    if not isinstance(module, str):
        return False
    return module == "__main__" or (is_own(module) and imported_name(one) is None)


def imported_name(one: Any) -> str | None:
    """Return the name under which a function or class can be imported, `module:qualname`; None: it cannot."""
    module, qualname = getattr(one, "__module__", None), getattr(one, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str) or module == "__main__":
        return None
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return f"{module}:{qualname}" if found is one else None


def names_of(code: types.CodeType) -> Iterator[str]:
    """Yield the global and attribute names in a code object and in those inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_of(constant)


def imports_of(function: types.FunctionType) -> Iterator[str]:
    """Yield the modules that `import` statements inside of a function may name: relative ones cannot be told apart."""
    package = function.__globals__.get("__package__")
    for name in _imports_in(function.__code__):
        if name:
            yield name
        above = package if isinstance(package, str) else ""
        while above:
            yield f"{above}.{name}" if name else above
            above = above.rpartition(".")[0]


def _imports_in(code: types.CodeType) -> Iterator[str]:
    wide = 0
    for at in range(0, len(code.co_code), 2):
        operation, argument = code.co_code[at], code.co_code[at + 1] | wide
        wide = argument << 8 if operation == opcode.EXTENDED_ARG else 0
        if operation == _IMPORT_NAME:
            yield code.co_names[argument]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _imports_in(constant)


_IMPORT_NAME = opcode.opmap["IMPORT_NAME"]


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
