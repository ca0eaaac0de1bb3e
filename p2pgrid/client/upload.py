"""What a client has said about a job of its own, and what of it the node has not acknowledged yet.

Sans-IO: every method returns the frames to send. Unacknowledged parts are kept and sent again, byte for byte, after the
connection was lost; once a part is acknowledged the node holds it on disk, and it is forgotten here.
"""

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any
from weakref import WeakValueDictionary

from p2pgrid.client.pickling import Function
from p2pgrid.core.errors import GridError
from p2pgrid.core.messages import CANCEL, CLOSE, CODE, INPUT, OPEN, REFS
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.record import Spec
from p2pgrid.core.ref import Hold, Ref
from p2pgrid.core.wire import frame


class Upload:
    """The outgoing half of one job."""

    def __init__(self, job: bytes, spec: Spec) -> None:
        """Describe a job that has not been opened yet."""
        self.job = job
        self.spec = spec.packed()
        self.refusal: GridError | None = None
        """Why the node does not take the job."""
        self._spec_acked = False
        self._codes: dict[bytes, bytes] = {}
        self._codes_sent: set[bytes] = set()
        self._code_queue: deque[bytes] = deque()
        self._refs_sent: WeakValueDictionary[bytes, Hold] = WeakValueDictionary()
        """What the node knows that the job needs, as long as this program has a Ref to it."""
        self._ref_queue: deque[list[Any]] = deque()
        self._referred: list[Ref] = []
        """In the batch to come."""
        self._referring: dict[int, list[Ref]] = {}
        """In batches that are not acknowledged. Once the last Ref to an object has gone, the node takes it that no more
        tasks will need it: so this must not be before it has those that do."""
        self._batches: dict[int, tuple[int, bytes]] = {}
        self._acked = RangeSet()
        self._closed: int | None = None
        self._close_acked = False
        self._cancels: deque[list[int] | None] = deque()
        self._cancelled = False
        self._durable: dict[int, Future[None]] = {}

    # ---- saying ------------------------------------------------------------------------------------------------------

    def open(self) -> bytes:
        """Open the job."""
        return frame(OPEN, [self.job, self.spec])

    def code(self, function: Function) -> bytes:
        """Send a function, once per job; before it, the source tree that it imports from."""
        if function.id in self._codes_sent:
            return b""
        tree = function.tree
        before = b"" if tree is None else self._code(tree.id, tree.packed)
        return before + self._code(function.id, function.union)

    def _code(self, id_: bytes, union: bytes) -> bytes:
        if id_ in self._codes_sent:
            return b""
        self._codes_sent.add(id_)
        self._codes[id_] = union
        self._code_queue.append(id_)
        return frame(CODE, [self.job, id_, union])

    def refs(self, refs: Iterable[Ref]) -> bytes:
        """Name the Refs in the next batch, each once as long as there is one; those that nobody counts each time."""
        refs = list(refs)
        self._referred += refs
        fresh = [ref for ref in refs if ref.hold is None or self._refs_sent.get(ref.raw) is not ref.hold]
        if not fresh:
            return b""
        for ref in fresh:
            if ref.hold is not None:
                self._refs_sent[ref.raw] = ref.hold
        self._ref_queue.append([[ref.raw, ref.size, list(ref.holders)] for ref in fresh])
        return frame(REFS, [self.job, self._ref_queue[-1]])

    def append(self, lo: int, hi: int, batch: bytes) -> bytes:
        """Send the tasks [lo, hi)."""
        self._batches[lo] = (hi, batch)
        if self._referred:
            self._referring[lo], self._referred = self._referred, []
        return frame(INPUT, [self.job, lo, hi, batch])

    def close(self, count: int) -> bytes:
        """Say that the job has `count` tasks and gets no more."""
        self._closed = count
        return frame(CLOSE, [self.job, count])

    def cancel(self, flat: list[int] | None) -> bytes:
        """Cancel the tasks [lo, hi, …], or the whole job."""
        self._cancels.append(flat)
        self._cancelled = self._cancelled or flat is None
        return frame(CANCEL, [self.job, flat])

    def again(self) -> bytes:
        """Return all that is not acknowledged, in its order, for a new connection."""
        parts = [frame(OPEN, [self.job, self.spec])] if not self._spec_acked else []
        parts += [frame(CODE, [self.job, id_, self._codes[id_]]) for id_ in self._code_queue]
        parts += [frame(REFS, [self.job, refs]) for refs in self._ref_queue]
        parts += [frame(INPUT, [self.job, lo, hi, batch]) for lo, (hi, batch) in sorted(self._batches.items())]
        if self._closed is not None and not self._close_acked:
            parts.append(frame(CLOSE, [self.job, self._closed]))
        parts += [frame(CANCEL, [self.job, flat]) for flat in self._cancels]
        return b"".join(parts)

    # ---- hearing -----------------------------------------------------------------------------------------------------

    def acknowledged(self, what: str, lo: int) -> tuple[int, list[Future[None]]]:
        """Take one ACK; return how many bytes need not be kept any longer, and the futures that are durable now."""
        match what:
            case "spec":
                self._spec_acked = True
            case "code" if self._code_queue:
                # In the order in which they were sent.
                self._codes.pop(self._code_queue.popleft(), None)
            case "refs" if self._ref_queue:
                self._ref_queue.popleft()
            case "input" if lo in self._batches:
                hi, batch = self._batches.pop(lo)
                self._referring.pop(lo, None)
                self._acked.add(lo, hi)
                settled = [self._durable.pop(index) for index in list(self._durable) if lo <= index < hi]
                return len(batch), settled
            case "close":
                self._close_acked = True
            case "cancel" if self._cancels:
                self._cancels.popleft()
        return 0, []

    def refused(self, what: str, lo: int) -> tuple[int, int | None]:
        """Take one REFUSED; return the bytes freed, and where the refused tasks end (None: the job as a whole)."""
        if what == "input" and lo in self._batches:
            hi, batch = self._batches.pop(lo)
            self._referring.pop(lo, None)
            return len(batch), hi
        return 0, None

    def give_up(self, error: GridError) -> int:
        """Forget what is kept, for nobody will take it; return how many bytes that were."""
        self.refusal = error
        freed = sum(len(batch) for _, batch in self._batches.values())
        self._batches.clear()
        self._referring.clear()
        self._referred.clear()
        for future in self._durable.values():
            future.set_exception(error)
        self._durable.clear()
        return freed

    @property
    def settled(self) -> bool:
        """Whether all that was said is acknowledged."""
        return (
            self._spec_acked
            and not self._code_queue
            and not self._ref_queue
            and not self._batches
            and not self._cancels
            and (self._closed is None or self._close_acked)
        )

    @property
    def over(self) -> bool:
        """Whether nothing more will be said: the job is closed or cancelled, and the node knows all of it."""
        return self.settled and (self._close_acked or self._cancelled)

    @property
    def cancelling(self) -> bool:
        """Whether a cancellation is not on disk yet."""
        return bool(self._cancels)

    @property
    def input_settled(self) -> bool:
        """Whether all tasks sent so far are on disk."""
        return not self._batches and not self._ref_queue

    def durable(self, index: int) -> Future[None]:
        """Return a future of the moment in which task `index` is on the node's disk."""
        known = self._durable.get(index)
        if known is None:
            known = Future()
            if index in self._acked:
                known.set_result(None)
            else:
                self._durable[index] = known
        return known
