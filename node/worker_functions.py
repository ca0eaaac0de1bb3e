"""From bytes to callables and arguments, in the worker child: the place of a node that unpickles.

A function that cannot be loaded *here* (a module is missing, another Python made it) is no failure of its tasks:
`Unfit` says why, and they go back. Arguments that cannot be loaded are a failure of their task.
"""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from p2pgrid.core import current
from p2pgrid.core.coroutines import is_async
from p2pgrid.core.missing import NoProgram, missing, missing_program
from p2pgrid.core.wire import unpack
from p2pgrid.node.worker_recent import CODES_MAX, Recent
from p2pgrid.node.worker_scratch import Scratch


class Unfit(Exception):
    """The interpreter cannot load the function, or what it is called with; the text is one line for people."""

    def __init__(self, why: str, at: int | None = None) -> None:
        """Say why, and the first task that was not run (None: none was)."""
        super().__init__(why)
        self.at = at


@dataclass(frozen=True, slots=True)
class Function:
    """A loaded function, or the exception that its own loading code raised."""

    call: Callable[..., Any]
    is_async: bool
    broken: BaseException | None = None


class Functions:
    """The functions this child knows, by content id."""

    def __init__(self) -> None:
        """Know none."""
        self._known: Recent[bytes, bytes | Function] = Recent(CODES_MAX)
        self.no_tree = ""
        """Why the source tree could not be taken up."""
        self.folder = ""
        """Where it is."""

    def add(self, code_id: bytes, union: bytes) -> None:
        """Take in a function; it is loaded when first called for."""
        self._known.put(code_id, union)

    def touch(self, code_ids: Sequence[bytes]) -> None:
        """A run that uses these functions has come (the daemon notes the same when it sends it)."""
        self._known.touch(code_ids)

    def load(self, code_id: bytes) -> Function:
        """Return the function. Raises Unfit if it cannot be loaded in this interpreter."""
        known = self._known.peek(code_id)
        if known is None:
            raise Unfit("the function did not arrive")
        if isinstance(known, Function):
            return known
        function = _load(known, self.no_tree, self.folder)
        self._known.replace(code_id, function)
        return function


def _load(union: bytes, no_tree: str, folder: str) -> Function:
    here = f"{sys.executable} (Python {sys.version_info.major}.{sys.version_info.minor})"
    try:
        match unpack(union):
            case ["import", _, bytes()] | ["exec", _, bytes()] | ["pickle", _, _, bytes()] if no_tree:
                raise Unfit(no_tree)
            case ["pickle", int(minor), bytes(data), *_]:
                if minor != sys.version_info.minor:
                    raise Unfit(f"the function was pickled by Python 3.{minor}, this is {here}")
                call = pickle.loads(data)
            case ["import", str(name), _]:
                module, _, qualname = name.partition(":")
                call = attrgetter(qualname)(importlib.import_module(module))
            case ["exec", list(argv), _]:
                from p2pgrid.node.worker_program import Program  # noqa: PLC0415 - subprocess, for those who need it

                call = Program(argv, folder)
            case _:
                raise Unfit("a kind of function that this version does not know")
    except (ImportError, AttributeError) as error:
        raise Unfit(_absent(error) or f"{error} in {here}") from error
    except Unfit:
        raise
    except BaseException as error:  # noqa: BLE001 - the user's own __setstate__ or module body raised: a task failure
        return Function(_nothing, is_async=False, broken=error)
    return Function(call, is_async(call))


def _absent(error: BaseException) -> str:
    """Say which module is missing here, if that is what `error` says."""
    importlib.invalidate_caches()  # it may be installed while this child lives
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return ""
    try:
        found = importlib.util.find_spec(error.name.partition(".")[0])
    except (ImportError, ValueError):
        found = None
    if found is not None:
        return ""  # a part of something that is there
    return missing(error.name, sys.executable, sys.version_info[:2])


def unfit_at(error: BaseException, index: int) -> Unfit | None:
    """Return what is to be raised when a module or program that is not installed here ended a task; None: it was not.

    The interpreter, or the node, lacks it, which is no fault of the task.
    """
    why = _absent(error) if isinstance(error, ModuleNotFoundError) else ""
    if isinstance(error, NoProgram):
        why = missing_program(str(error.filename))
    return Unfit(why, index) if why else None


def _nothing() -> None:
    """Stand for a function whose loading raised; never called."""


class Items:
    """One packed list of inputs, unpickled at most once for first attempts.

    A task may change its argument in place, so a second attempt gets a fresh one.
    """

    __slots__ = ("_bytes", "_files", "_list")

    def __init__(self, data: bytes) -> None:
        """Keep the bytes."""
        self._bytes = data
        self._list: list[Any] | None = None
        self._files: list[str] = []
        """Folders of files among the items."""

    def cut(self, offset: int, count: int, *, fresh: bool) -> list[Any]:
        """Return items [offset, offset + count). Raises whatever unpickling them raises."""
        if fresh:
            return self._load()[offset : offset + count]
        if self._list is None:
            self._list = self._load()
        return self._list[offset : offset + count]

    def forget(self) -> None:
        """Keep the bytes only: what was unpickled holds objects that others may need the room of."""
        self._list = None
        while self._files:
            shutil.rmtree(self._files.pop(), ignore_errors=True)

    __del__ = forget

    def _load(self) -> list[Any]:
        try:
            return pickle.loads(self._bytes)  # type: ignore[no-any-return]
        finally:
            self._files += _scratch[0].taken(current.running_index()) if _scratch else ()


_scratch: list[Scratch] = []


def receive_in(scratch: Scratch) -> None:
    """Say where files among arguments arrive, in this process."""
    _scratch[:] = [scratch]
