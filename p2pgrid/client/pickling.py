"""How functions and values become bytes: cloudpickle, with the user's own modules by value.

Bytes made here are read by `pickle.loads` in a worker that has cloudpickle and what is installed there.

Rule: whatever fails here raises NotSerializable with the path to the culprit, before anything is sent.
"""

import io
import pickle
import sys
import threading
import types
import weakref
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future as PlainFuture
from dataclasses import dataclass
from typing import Any, NoReturn

import cloudpickle

from p2pgrid.client.future import Future
from p2pgrid.client.modules import travels_by_value
from p2pgrid.client.reach import Captured, Reach
from p2pgrid.client.unpicklable import explain
from p2pgrid.core import deps
from p2pgrid.core.batch import BATCH_BYTES_MAX, content_id, pickled_function
from p2pgrid.core.deps import TaskId
from p2pgrid.core.errors import NotSerializable, QuotaExceeded
from p2pgrid.core.ref import Ref
from p2pgrid.core.units import format_size

PROTOCOL = 5
ENVELOPE_BYTES = 4096
VALUE_BYTES_MAX = BATCH_BYTES_MAX - ENVELOPE_BYTES
"""One value and the little that surrounds it in its batch."""
LIST_REFS_BYTES_MAX = 64 * 1024 * 1024
"""What several Refs in one packed list may stand for."""
INLINE_BYTES_MAX = 1024
"""Texts and byte strings that travel inside the arguments, where the task that returned them has ended."""

_PLAIN = frozenset({int, float, str, bytes, bool, type(None), complex})
_CONTAINERS = frozenset({list, tuple, dict, set, frozenset, bytearray})
_MODULE_TEXTS = frozenset({"__name__", "__doc__", "__package__", "__file__"})
_STACK_GLOBAL = pickle.STACK_GLOBAL
_lock = threading.RLock()  # cloudpickle's list of modules by value is one for the process; user code may come back here


class Misplaced(TypeError):
    """A Future or Ref where it cannot be resolved; the text says what to do instead."""


class HasFutures(Exception):
    """Internal: items cannot be pickled in one list, since each waits for tasks of its own."""


class TooLarge(Exception):
    """Internal: a pickle outgrew the limit it was given."""


class _Sink:
    """Takes the pickler's output in pieces and stops it early when it is too much."""

    def __init__(self, limit: int) -> None:
        self.parts: list[bytes] = []
        self._left = limit

    def write(self, data: bytes | bytearray | memoryview | pickle.PickleBuffer) -> int:
        """Keep one piece. Large ones come as they are: a numpy array as a PickleBuffer, which has no length."""
        if not isinstance(data, bytes):
            data = data.raw() if isinstance(data, pickle.PickleBuffer) else memoryview(data)
        size = len(data) if isinstance(data, bytes) else data.nbytes
        self._left -= size
        if self._left < 0:
            raise TooLarge
        self.parts.append(data if isinstance(data, bytes) else bytes(data))
        return size

    def joined(self) -> bytes:
        """Return all of it."""
        return self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle, to which each module of the user's is made known when it is first reached.

    Atoms and plain containers never enter Python code here: for a list of 20,000 numbers it is as fast as `pickle`.
    """

    def __init__(
        self,
        sink: Any,
        names: AbstractSet[str] | None = None,
        buffers: Callable[[pickle.PickleBuffer], Any] | None = None,
    ) -> None:
        """Write to `sink`, which needs only `write`; of the user's modules only `names` are wanted (None: all).

        Large parts go to `buffers`, where that is given (pickle's buffer_callback).
        """
        super().__init__(sink, PROTOCOL, buffers)
        self._names = names
        self._puts = buffers is not None
        self.refs: dict[bytes, Ref] = {}
        """Those among the arguments."""
        self.futures: list[Future] = []
        """Those among the arguments that stand for what is not known yet, in the order of their placeholders."""
        self.is_list = False
        """Whether this is a list of the arguments of several tasks."""
        self._numbers: dict[tuple[bytes, int], int] = {}
        self._registered: list[types.ModuleType] = []

    def reducer_override(self, obj: Any) -> Any:
        """Let a class, function or module of the user's travel by value."""
        if isinstance(obj, types.ModuleType):
            return self._reduced_module(obj) if travels_by_value(obj.__name__) else NotImplemented
        if isinstance(obj, type | types.FunctionType):
            self._reach(getattr(obj, "__module__", None))
        elif isinstance(obj, PlainFuture):
            return self._reduced_future(obj)
        elif isinstance(obj, Ref):
            return self._reduced_ref(obj)
        return super().reducer_override(obj)

    def _reduced_module(self, module: types.ModuleType) -> Any:
        """Return a module by value. Not as cloudpickle does: modules refer to each other in circles.

        The empty module is made and remembered first, and filled afterwards.
        """
        wanted = {
            name: value
            for name, value in vars(module).items()
            if name in _MODULE_TEXTS or (not name.startswith("__") and (self._names is None or name in self._names))
        }
        return cloudpickle.cloudpickle.dynamic_subimport, (module.__name__, {}), wanted

    def _reduced_ref(self, ref: Ref) -> Any:
        """Let a Ref among arguments arrive as its value, one within a value that is put as a Ref."""
        if self._puts:
            return NotImplemented
        if self._names is not None:
            raise Misplaced("a function cannot capture a Ref: pass it as an argument")
        self.refs[ref.raw] = ref
        return ref.as_argument()

    def _reduced_future(self, future: "PlainFuture[Any]") -> Any:
        """Let a future among arguments arrive as its value: the small one of a task that has ended travels itself."""
        if not isinstance(future, Future):
            raise Misplaced("only a Future of a Grid can be an argument: pass the value of this one, use .result()")
        if self._puts:
            raise Misplaced("a value that is put cannot hold a Future: pass it as an argument")
        if self._names is not None:
            raise Misplaced("a function cannot capture a Future: pass it as an argument")
        known = future.known(INLINE_BYTES_MAX)
        if known:
            return deps.itself, known
        if self.is_list:
            raise HasFutures
        number = self._numbers.setdefault(future.task, len(self.futures))
        if number == len(self.futures):
            self.futures.append(future)
        return deps.argument, (number,)

    def _reach(self, name: object) -> None:
        if isinstance(name, str) and travels_by_value(name):
            module = sys.modules.get(name)
            if module is not None and name not in cloudpickle.list_registry_pickle_by_value():
                cloudpickle.register_pickle_by_value(module)
                self._registered.append(module)

    def dump(self, obj: Any) -> None:
        """Pickle `obj`; afterwards cloudpickle's list of modules is as it was."""
        with _lock:
            try:
                super().dump(obj)
            finally:
                for module in self._registered:
                    cloudpickle.unregister_pickle_by_value(module)
                self._registered.clear()


def dump(obj: object, limit: int | None = None, names: AbstractSet[str] | None = None) -> bytes:
    """Return the pickle of `obj`, whatever error that gives. Raises TooLarge beyond `limit` bytes."""
    sink = _Sink(VALUE_BYTES_MAX if limit is None else limit)
    Pickler(sink, names).dump(obj)
    return sink.joined()


def probe(obj: object) -> Exception | None:
    """Return why `obj` cannot be pickled, or None."""
    try:
        Pickler(io.BytesIO()).dump(obj)
    except Exception as error:  # noqa: BLE001 - the user's __reduce__ may raise anything, and that is the answer
        return error
    return None


def refuse(error: Exception, what: str, obj: object) -> NoReturn:
    """Raise for `obj`, called `what` by the user, which failed to pickle with `error`."""
    if isinstance(error, Misplaced):
        raise error
    if isinstance(error, TooLarge):
        msg = f"{what}: more than {format_size(VALUE_BYTES_MAX)} when pickled, which is the most one task may carry"
        raise QuotaExceeded(msg, next="pass a path or a smaller piece, and load the rest inside the task") from None
    raise NotSerializable(explain(what, obj, error, probe)) from error


@dataclass(frozen=True, slots=True)
class Dependent:
    """Pickled arguments in which futures are placeholders."""

    data: bytes
    futures: Sequence[Future]

    @property
    def tasks(self) -> list[TaskId]:
        """What the placeholders stand for, in their order."""
        return [TaskId(*future.task) for future in self.futures]


def pickled_call(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes | Dependent:
    """Return the pickle of `(args, kwargs)`, b"" for none.

    Numbers and texts take the plain pickler, which is three times as fast. So do containers; but where what comes out
    may name a class (the opcode's byte is in it), only ours knows whether that class has to travel as well.
    """
    if not kwargs:
        if not args:
            return b""
        plain = True
        for arg in args:
            kind = type(arg)
            if kind not in _PLAIN:
                if kind not in _CONTAINERS:
                    return _pickled_slowly(args, kwargs)
                plain = False
        if plain:
            data = pickle.dumps((args, kwargs), PROTOCOL)
            return data if len(data) <= VALUE_BYTES_MAX else _pickled_slowly(args, kwargs)
    try:
        data = pickle.dumps((args, kwargs), PROTOCOL)
    except Exception:  # noqa: BLE001 - ours may succeed, and says better what is wrong
        return _pickled_slowly(args, kwargs)
    if _STACK_GLOBAL in data or len(data) > VALUE_BYTES_MAX:
        return _pickled_slowly(args, kwargs)
    return data


def _pickled_slowly(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes | Dependent:
    try:
        sink = _Sink(VALUE_BYTES_MAX)
        pickler = Pickler(sink)
        pickler.dump((args, kwargs))
        return Dependent(sink.joined(), pickler.futures) if pickler.futures else sink.joined()
    except TooLarge as error:
        refuse(error, "the arguments", args)
    except Exception as error:  # noqa: BLE001 - see probe
        for index, arg in enumerate(args):
            if (why := probe(arg)) is not None:
                refuse(why, f"args[{index}]", arg)
        for name, arg in kwargs.items():
            if (why := probe(arg)) is not None:
                refuse(why, name, arg)
        refuse(error, "the arguments together", args)


def pickled_items(items: Sequence[Any], lo: int, limit: int) -> bytes:
    """Return the pickle of a list of items, the first of which is item `lo` of its map.

    Raises:
        TooLarge: they need more than `limit` bytes.
        HasFutures: some of them hold futures.
    """
    try:
        sink = _Sink(limit)
        pickler = Pickler(sink)
        pickler.is_list = True
        pickler.dump(items)
        refs = pickler.refs.values()
        if len(refs) > 1 and len(items) > 1 and sum(ref.size for ref in refs) > LIST_REFS_BYTES_MAX:
            raise TooLarge  # a worker maps all that a list refers to
        return sink.joined()
    except (TooLarge, HasFutures):
        raise
    except Exception as error:  # noqa: BLE001 - see probe
        for index, item in enumerate(items):
            if (why := probe(item)) is not None:
                refuse(why, f"items[{lo + index}]", item)
        refuse(error, f"items[{lo}:{lo + len(items)}]", items)


@dataclass(frozen=True, slots=True)
class Function:
    """A function as it travels: its content id and its union (`core.batch`)."""

    id: bytes
    union: bytes


@dataclass(frozen=True, slots=True)
class Call:
    """What is called, and with which options (`core.options`, as they travel)."""

    function: Function
    options: Mapping[str, Any]


class Functions:
    """The functions of one session, each pickled once per function object and again when what it captures is rebound.

    Only plain functions and built-in ones are remembered: bound methods, partials and callable objects carry state
    that changes, so they are pickled at every submit; the content id keeps them from being sent twice.
    """

    def __init__(self) -> None:
        """Start with none."""
        self._by_id: dict[int, tuple[weakref.ref[Any], Captured | None, Function]] = {}

    def get(self, fn: Any) -> Function:
        """Return `fn` as it travels.

        Raises:
            NotSerializable: it cannot be pickled.
            TypeError: it cannot be called.
        """
        known = self._by_id.get(id(fn))
        if known is not None:
            alive, captured, function = known
            if alive() is fn and (captured is None or captured.is_current(fn)):
                return function
        return self._pickle(fn)

    def _pickle(self, fn: Any) -> Function:
        if not callable(fn):
            msg = f"the first argument has to be a function, not {type(fn).__name__}"
            raise TypeError(msg)
        # What is captured is noted before it is pickled: a change in between costs one more pickle, never a stale one.
        reach = Reach(fn)
        captured = Captured(fn, reach) if isinstance(fn, types.FunctionType) else None
        try:
            data = dump(fn, names=reach.names)
        except Exception as error:  # noqa: BLE001 - see probe
            refuse(error, getattr(fn, "__qualname__", None) or type(fn).__qualname__, fn)
        union = pickled_function(sys.version_info.minor, data)
        function = Function(content_id(union), union)
        if isinstance(fn, types.FunctionType | types.BuiltinFunctionType):
            key = id(fn)
            forget = weakref.ref(fn, lambda _: self._by_id.pop(key, None))
            self._by_id[key] = (forget, captured, function)
        return function
