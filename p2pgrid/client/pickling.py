"""How functions and values become bytes: by name where they can be imported, else by cloudpickle.

Bytes made here are read by `pickle.loads` in a worker that has cloudpickle, what is installed there, and the source
tree with the program's own modules (`trees`).

Rule: whatever fails here raises NotSerializable with the path to the culprit, before anything is sent.
"""

from __future__ import annotations

import io
import pickle
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future as PlainFuture
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import cloudpickle

from p2pgrid.client.future import Future
from p2pgrid.client.modules import is_own
from p2pgrid.client.reach import Captured, Reach, imported_name, imports_of
from p2pgrid.client.unpicklable import explain
from p2pgrid.core import deps
from p2pgrid.core.batch import BATCH_BYTES_MAX, content_id, imported_function, pickled_function
from p2pgrid.core.coroutines import is_async
from p2pgrid.core.deps import TaskId
from p2pgrid.core.errors import NotSerializable, QuotaExceeded
from p2pgrid.core.ref import Ref
from p2pgrid.core.units import format_size

if TYPE_CHECKING:
    from p2pgrid.client.trees import Tree

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
VARIANTS_MAX = 64
"""Ways in which one function travels that are remembered."""
_STACK_GLOBAL = pickle.STACK_GLOBAL
seen: dict[int, dict[bytes, Ref]] = {}
"""Refs among what each thread has pickled as arguments; `refs_seen` takes them. Hardly ever any: one look is cheap."""


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


@dataclass(frozen=True, slots=True)
class Needs:
    """What unpickling something takes."""

    modules: frozenset[str] = frozenset()
    """Modules of the program's own."""
    same_minor: bool = False
    """Code went by value, which only the Python minor version reads that made it."""

    def __bool__(self) -> bool:
        """Say whether it takes anything that is not everywhere."""
        return self.same_minor or bool(self.modules)

    def __or__(self, other: Needs) -> Needs:
        """Return what both take."""
        return Needs(self.modules | other.modules, self.same_minor or other.same_minor)


NOTHING = Needs()


_reached: set[str] = set()
"""Modules of the program's own that anything needed so far: what a Ref or a Future stands for may need any of them."""


class Packed(NamedTuple):
    """A pickle that needs something, or in which futures are placeholders."""

    data: bytes
    needs: Needs
    futures: Sequence[Future] = ()

    @property
    def tasks(self) -> list[TaskId]:
        """What the placeholders stand for, in their order."""
        return [TaskId(*future.task) for future in self.futures]


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle, which notes what it takes to read its pickle.

    Modules of the program's own, and what can be imported from them, go by name. Atoms and plain containers never enter
    Python code here: for a list of 20,000 numbers it is as fast as `pickle`.
    """

    def __init__(
        self,
        sink: Any,
        buffers: Callable[[pickle.PickleBuffer], Any] | None = None,
        *,
        of_function: bool = False,
    ) -> None:
        """Write to `sink`, which needs only `write`; large parts to `buffers`, where given (pickle's buffer_callback).

        `of_function`: it is a function that is pickled, which may not capture a Ref.
        """
        super().__init__(sink, PROTOCOL, buffers)
        self._of_function = of_function
        self._puts = buffers is not None
        self.refs: dict[bytes, Ref] = {}
        """Those among the arguments."""
        self.futures: list[Future] = []
        """Those among the arguments that stand for what is not known yet, in the order of their placeholders."""
        self.is_list = False
        """Whether this is a list of the arguments of several tasks."""
        self._numbers: dict[tuple[bytes, int], int] = {}
        self._modules: set[str] = set()
        self._same_minor = False
        self._kinds: set[type] = set()
        self._stands_for = False
        """Whether there is a Ref or a Future in it, which arrives as a value."""

    @property
    def needs(self) -> Needs:
        """What it takes to read what was pickled."""
        if self._stands_for:
            self._modules |= _reached
        return Needs(frozenset(self._modules), self._same_minor) if self._modules or self._same_minor else NOTHING

    def reducer_override(self, obj: Any) -> Any:
        """Note what is reached; let Refs travel as what they stand for."""
        if isinstance(obj, types.ModuleType):
            self._note(obj.__name__)
            return NotImplemented
        if isinstance(obj, PlainFuture):
            return self._reduced_future(obj)
        if isinstance(obj, Ref):
            return self._reduced_ref(obj)
        reduced = super().reducer_override(obj)
        if isinstance(obj, type | types.FunctionType | types.BuiltinFunctionType):
            if reduced is NotImplemented:  # by its name
                self._note(getattr(obj, "__module__", None))
            elif isinstance(obj, types.FunctionType):
                self._same_minor = True
                for name in imports_of(obj):
                    self._note(name)
        elif type(obj) not in self._kinds:
            self._kinds.add(type(obj))
            if imported_name(type(obj)) is not None:  # it may say of itself that it goes by a name in its module
                self._note(type(obj).__module__)
        return reduced

    def _note(self, name: object) -> None:
        if isinstance(name, str) and name not in self._modules and is_own(name):
            self._modules.add(name)
            _reached.add(name)

    def _reduced_ref(self, ref: Ref) -> Any:
        """Let a Ref among arguments arrive as its value, one within a value that is put as a Ref."""
        if self._puts:
            return NotImplemented
        if self._of_function:
            raise Misplaced("a function cannot capture a Ref: pass it as an argument")
        self.refs[ref.raw] = ref
        self._stands_for = True
        seen.setdefault(threading.get_ident(), {})[ref.raw] = ref
        return ref.as_argument()

    def _reduced_future(self, future: PlainFuture[Any]) -> Any:
        """Let a future among arguments arrive as its value: the small one of a task that has ended travels itself."""
        if not isinstance(future, Future):
            raise Misplaced("only a Future of a Grid can be an argument: pass the value of this one, use .result()")
        if self._puts:
            raise Misplaced("a value that is put cannot hold a Future: pass it as an argument")
        if self._of_function:
            raise Misplaced("a function cannot capture a Future: pass it as an argument")
        self._stands_for = True
        known = future.known(INLINE_BYTES_MAX)
        if known:
            return deps.itself, known
        if self.is_list:
            raise HasFutures
        number = self._numbers.setdefault(future.task, len(self.futures))
        if number == len(self.futures):
            self.futures.append(future)
        return deps.argument, (number,)


def dump(obj: object, *, of_function: bool = False) -> Packed:
    """Return the pickle of `obj`, whatever error that gives. Raises TooLarge if it is more than a task may carry."""
    sink = _Sink(VALUE_BYTES_MAX)
    pickler = Pickler(sink, of_function=of_function)
    pickler.dump(obj)
    return Packed(sink.joined(), pickler.needs, pickler.futures)


def refs_seen() -> Iterable[Ref]:
    """Return the Refs that this thread has pickled as arguments since it was asked last."""
    return seen.pop(threading.get_ident(), {}).values()


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


def pickled_call(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes | Packed:
    """Return the pickle of `(args, kwargs)`, b"" for none; with what it needs, if it needs anything.

    Numbers and texts take the plain pickler, which is three times as fast. So do containers; but where what comes out
    may name a class (the opcode's byte is in it), only ours knows whether its module has to travel as well.
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


def _pickled_slowly(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes | Packed:
    try:
        packed = dump((args, kwargs))
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
    return packed if packed.needs or packed.futures else packed.data


def pickled_items(items: Sequence[Any], lo: int, limit: int) -> Packed:
    """Return the pickle of a list of items, the first of which is item `lo` of its map, and what it needs.

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
        return Packed(sink.joined(), pickler.needs)
    except (TooLarge, HasFutures):
        raise
    except Exception as error:  # noqa: BLE001 - see probe
        for index, item in enumerate(items):
            if (why := probe(item)) is not None:
                refuse(why, f"items[{lo + index}]", item)
        refuse(error, f"items[{lo}:{lo + len(items)}]", items)


@dataclass(frozen=True, slots=True)
class Function:
    """A function as it travels: its content id, its union (`core.batch`), and the source tree that goes before it."""

    id: bytes
    union: bytes
    tree: Tree | None = None
    same_minor: bool = True
    overlaps: bool = False
    """It is `async def`."""

    def serves(self, needs: Needs) -> bool:
        """Say whether whatever needs this can be read where the function is loaded."""
        if needs.same_minor and not self.same_minor:
            return False
        return not needs.modules or (self.tree is not None and needs.modules <= self.tree.places.keys())

    def is_current(self, *, look: bool) -> bool:
        """Say whether the files of its tree are as they were."""
        return self.tree is None or self.tree.is_current(look=look)


@dataclass(frozen=True, slots=True)
class Call:
    """What is called, how that is told to travel with what it is called with, and with which options."""

    function: Function
    options: Mapping[str, Any]
    """As they travel (`core.options`)."""
    widened: Callable[[Needs], Function]
    """The same function, as it travels with arguments that need more than it does itself."""

    def serving(self, needs: Needs) -> Function:
        """Return the function as it travels with arguments that need this."""
        return self.function if self.function.serves(needs) else self.widened(needs)


@dataclass(slots=True)
class _Known:
    """A function that was pickled before."""

    alive: weakref.ref[Any]
    captured: Captured | None
    by_needs: dict[Needs, Function]


class Functions:
    """The functions of one session, each pickled once per function object and again when what it captures is rebound.

    Only plain functions and built-in ones are remembered: bound methods, partials and callable objects carry state
    that changes, so they are pickled at every submit; the content id keeps them from being sent twice.
    """

    def __init__(self) -> None:
        """Start with none."""
        self._by_id: dict[int, _Known] = {}

    def get(self, fn: Any, needs: Needs = NOTHING, *, look: bool = False) -> Function:
        """Return `fn` as it travels, with all that its arguments need.

        Args:
            fn: the function.
            needs: what its arguments need.
            look: look at the files of its source tree now, however lately that was done.

        Raises:
            NotSerializable: it cannot be pickled, or its modules cannot be packed.
            QuotaExceeded: its modules are too large.
            TypeError: it cannot be called.
        """
        known = self._by_id.get(id(fn))
        if known is not None and known.alive() is fn and (known.captured is None or known.captured.is_current(fn)):
            function = known.by_needs.get(needs)
            if function is not None and (function.tree is None or function.tree.is_current(look=look)):
                return function
            if needs and (plain := known.by_needs.get(NOTHING)) is not None and plain.serves(needs):
                return plain
        return self._pack(fn, needs)

    def widened(self, fn: Any) -> Callable[[Needs], Function]:
        """Return what gives `fn` as it travels with arguments that need this."""
        return lambda needs: self.get(fn, needs)

    def _pack(self, fn: Any, needs: Needs) -> Function:
        programs: Any = sys.modules.get("p2pgrid.client.programs")  # not imported: nobody runs a command
        if programs is not None and isinstance(fn, programs.Program):
            ready: Function = fn.function
            return ready
        if not callable(fn):
            msg = f"the first argument has to be a function, not {type(fn).__name__}"
            raise TypeError(msg)
        name = imported_name(fn) if isinstance(fn, types.FunctionType | types.BuiltinFunctionType | type) else None
        captured = None
        if name is not None and not needs.same_minor:
            module = name.partition(":")[0]
            _reached.update({module} if is_own(module) else ())
            tree = self._tree(needs.modules | ({module} if is_own(module) else set()))
            union = imported_function(name, None if tree is None else tree.id)
        else:
            # What is captured is noted before it is pickled: a change in between costs one more pickle, none is stale.
            captured = Captured(fn, Reach(fn)) if isinstance(fn, types.FunctionType) else None
            try:
                packed = dump(fn, of_function=True)
            except Exception as error:  # noqa: BLE001 - see probe
                refuse(error, getattr(fn, "__qualname__", None) or type(fn).__qualname__, fn)
            tree = self._tree(needs.modules | packed.needs.modules)
            union = pickled_function(sys.version_info.minor, packed.data, None if tree is None else tree.id)
        same_minor = name is None or needs.same_minor
        function = Function(content_id(union), union, tree, same_minor=same_minor, overlaps=is_async(fn))
        if isinstance(fn, types.FunctionType | types.BuiltinFunctionType):
            self._remember(fn, captured, needs, function)
        return function

    @staticmethod
    def _tree(modules: AbstractSet[str]) -> Tree | None:
        if not modules:
            return None
        from p2pgrid.client.trees import tree_of  # ast and more, for programs that have modules of their own

        return tree_of(modules)

    def _remember(self, fn: Any, captured: Captured | None, needs: Needs, function: Function) -> None:
        key = id(fn)
        known = self._by_id.get(key)
        if known is None or known.alive() is not fn or captured is not None:
            forget = weakref.ref(fn, lambda _: self._by_id.pop(key, None))
            known = self._by_id[key] = _Known(forget, captured, {})
        if len(known.by_needs) >= VARIANTS_MAX:
            known.by_needs.clear()
        known.by_needs[needs] = function
