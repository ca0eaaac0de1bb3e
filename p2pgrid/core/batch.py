"""Batches of task inputs: how a client packs tasks, and how a node cuts them into what a worker gets.

A batch is immutable and travels byte for byte. It names its functions by content id (their bodies travel once per job,
in CODE frames) and packs tasks by runs of equal function and options, so that a map of 10⁶ items costs no per-task
bytes beyond the pickled items themselves:

    batch = msgpack [fns, opts, runs]
    fns   = [code id, …]                       16 bytes each: the first half of the BLAKE3 of the function union
    opts  = [{…}, …]                           core.options, only what differs from the defaults
    run   = [count, fn, opts, shape, data, deps, parent]     fn and opts are positions in the tables
    union = msgpack ["pickle", python minor, bytes, tree id or nil] | ["import", "module:qualname", tree id or nil]
                  | ["name", text] | ["exec", argv, tree id or nil] | ["tree", …]

A word of `argv` is a text, ["file", path in the source tree], or ["python"]: the interpreter that runs the task.
A source tree (`core.tree`) travels in the table of functions, before those that name it by its id.

Shapes are those of `node.events.Segment`. `deps` is nil but for runs whose tasks wait for others (`core.deps`);
`parent` is nil until nested tasks are built.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

try:
    from blake3 import blake3
except ImportError:  # in a task whose interpreter has nothing installed: it names functions, and no node relies on how
    blake3 = None  # type: ignore[assignment,misc]

from p2pgrid.core import deps as deps_
from p2pgrid.core.deps import DEPENDENT, Dep, TaskId
from p2pgrid.core.errors import PeerError
from p2pgrid.core.tree import TRAVELLING_BYTES_MAX
from p2pgrid.core.wire import pack, unpack

TASKS_PER_BATCH_MAX = 1 << 20
TASKS_MAX = 1 << 62
"""Indices stay below it: as numbers of msgpack and SQLite."""
TABLE_MAX = 4096
RUN_FIELDS = 7
_NO_RUN: list[Any] = [0, 0, 0, 0, None, None, None]
BATCH_BYTES_MAX = 256 * 1024 * 1024

ID_BYTES = 16

TREE_MARK = pack(["tree", None])[:-1]
"""How the union of a source tree begins."""

TREES = bytes(ID_BYTES)
"""Stands for the job where it is told who has which source tree: one is the same in all jobs."""

CALLS, ITEMS, TUPLES = 0, 1, 2
"""Shapes: a list of pickled (args, kwargs); one pickled list for fn(item); the same for fn(*item).

The fourth is DEPENDENT: a list of calls to whose arguments belongs what other tasks return (`core.deps`).
"""


def content_id(data: bytes) -> bytes:
    """Return the 16-byte content id of `data` (BLAKE3, truncated)."""
    if blake3 is None:
        return blake2b(data, digest_size=ID_BYTES).digest()
    return blake3(data).digest(ID_BYTES)


def pickled_function(minor: int, data: bytes, tree: bytes | None = None) -> bytes:
    """Return the union of a function pickled under Python 3.`minor`, which imports from the source tree called so."""
    return pack(["pickle", minor, data] if tree is None else ["pickle", minor, data, tree])


def imported_function(name: str, tree: bytes | None) -> bytes:
    """Return the union of a function that a worker imports: `module:qualname`, from a source tree or installed."""
    return pack(["import", name, tree])


def program(argv: Sequence[Any], tree: bytes | None) -> bytes:
    """Return the union of a command; its words may name files of the source tree called so."""
    return pack(["exec", list(argv), tree])


class Binding(NamedTuple):
    """What a function is bound to."""

    minor: int | None
    """The Python minor version; None: it runs under any."""
    tree: bytes | None
    """The id of the source tree that it imports from."""


def is_tree(union: object) -> bool:
    """Whether this is a source tree, by its first bytes: it may be large, and only workers look into it."""
    return isinstance(union, bytes) and union.startswith(TREE_MARK)


def binding(union: bytes) -> Binding:
    """Return what a function, or a source tree that travels like one, is bound to. Raises PeerError if it is none."""
    if is_tree(union):
        if len(union) > TRAVELLING_BYTES_MAX:
            msg = "a source tree over its limit"
            raise PeerError(msg)
        return Binding(None, None)
    match unpack(union):
        case ["pickle", int(minor), bytes()]:
            return Binding(minor, None)
        case ["pickle", int(minor), bytes(), bytes(tree)]:
            return Binding(minor, _tree_id(tree))
        case ["import", str(), None] | ["name", str()] | ["exec", list(), None]:
            return Binding(None, None)
        case ["import", str(), bytes(tree)] | ["exec", list(), bytes(tree)]:
            return Binding(None, _tree_id(tree))
    msg = "an unknown kind of function"
    raise PeerError(msg)


def _tree_id(value: bytes) -> bytes:
    if len(value) != ID_BYTES:
        msg = "a malformed name of a source tree"
        raise PeerError(msg)
    return value


@dataclass(frozen=True, slots=True)
class InputRun:
    """`hi - lo` adjacent tasks that call one function with one set of options."""

    lo: int
    hi: int
    fn: bytes
    opts: int
    shape: int
    data: Any
    deps: list[Dep] | None = None
    """Of a DEPENDENT run: what its tasks wait for. Ids turn into values there as tasks end."""

    @property
    def packed(self) -> bool:
        """Whether its inputs are one pickled list, which travels whole."""
        return self.shape in (ITEMS, TUPLES)

    def cut(self, lo: int, hi: int) -> tuple[Any, int]:
        """Return (data, offset) for the tasks [lo, hi) of this run, as a Segment wants them."""
        if self.shape == CALLS:
            return self.data[lo - self.lo : hi - self.lo], 0
        if self.deps is not None:
            return deps_.cut(self.data, self.deps, lo - self.lo, hi - self.lo), 0
        return self.data, lo - self.lo

    def sizes(self, lo: int, hi: int) -> Iterable[int]:
        """Return how many bytes each of the tasks [lo, hi) of a run that is not packed adds to a frame."""
        if self.deps is not None:
            return deps_.sizes(self.data, self.deps, lo - self.lo, hi - self.lo)
        return map(len, self.data[lo - self.lo : hi - self.lo])

    @property
    def is_whole(self) -> bool:
        """Whether none of its tasks waits for others."""
        return self.deps is None or not any(isinstance(dep, TaskId) for dep in self.deps)

    def ready(self, lo: int, hi: int) -> Iterator[tuple[int, int]]:
        """Yield those of the tasks [lo, hi), one by one, that wait for no others any more."""
        for index in range(lo, hi):
            if self.deps is None or not deps_.waits(self.data[index - self.lo], self.deps):
                yield index, index + 1


@dataclass(frozen=True, slots=True)
class InputBatch:
    """A decoded batch: tasks [lo, hi) of a job."""

    lo: int
    hi: int
    opts: tuple[Mapping[str, Any], ...]
    runs: tuple[InputRun, ...]


def encode_batch(
    fns: Sequence[bytes],
    opts: Sequence[Mapping[str, Any]],
    runs: Sequence[tuple[int, int, int, int, Any]],
) -> bytes:
    """Return the bytes of a batch. `runs` are (count, position in fns, position in opts, shape, data).

    The data of a DEPENDENT run is [calls, deps], as `InputRun.cut` gives it.
    """
    said = [[*run, None, None] if run[3] != DEPENDENT else [*run[:4], *run[4], None] for run in runs]
    return pack([list(fns), list(opts), said])


def decode_batch(lo: int, hi: int, data: bytes) -> InputBatch:
    """Return the batch that holds the tasks [lo, hi). Raises PeerError unless it is well formed."""
    if type(lo) is not int or type(hi) is not int or not 0 <= lo < hi < TASKS_MAX or not isinstance(data, bytes):
        msg = "a batch without tasks"
        raise PeerError(msg)
    batch = unpack(data)
    if type(batch) is not list or len(batch) != 3 or not all(type(part) is list for part in batch):  # noqa: PLR2004
        raise PeerError("a batch that is not [fns, opts, runs]")
    fns, opts, runs = batch
    if len(fns) > TABLE_MAX or len(opts) > TABLE_MAX:
        raise PeerError(f"a batch with a table of more than {TABLE_MAX}")
    if not all(isinstance(fn, bytes) and len(fn) == ID_BYTES for fn in fns) or not all(
        isinstance(o, dict) for o in opts
    ):
        msg = "a batch with a malformed table"
        raise PeerError(msg)
    at = lo
    decoded = []
    for run in runs:
        # Spelled out, not matched as a pattern: this runs once per submit on the hot path.
        count, fn, opt, shape, body, deps, parent = run if type(run) is list and len(run) == RUN_FIELDS else _NO_RUN
        table: list[Dep] | None = None
        try:
            good = parent is None and count > 0 and 0 <= fn < len(fns) and 0 <= opt < len(opts)
            if shape == CALLS:
                good = good and type(body) is list and len(body) == count and set(map(type, body)) == {bytes}
                good = good and deps is None
            elif shape == DEPENDENT:
                table = deps_.read(count, body, deps)
            else:
                good = good and type(body) is bytes and shape in (ITEMS, TUPLES) and deps is None
            good = good and type(count) is type(fn) is type(opt) is type(shape) is int
        except (TypeError, ValueError):
            good = False
        if not good:
            raise PeerError("a batch with a malformed run")
        decoded.append(InputRun(at, at + count, fns[fn], opt, shape, body, table))
        at += count
    if at != hi or hi - lo > TASKS_PER_BATCH_MAX:
        msg = f"a batch of {at - lo} tasks that says it has {hi - lo}"
        raise PeerError(msg)
    return InputBatch(lo, hi, tuple(opts), tuple(decoded))
