"""Packing the inputs of a map: items are pickled in lists, lists gathered in batches, and sent as they are ready.

The size of a list is a matter of bytes, not of load balance: the node cuts ranges inside a list as it needs them.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from p2pgrid.client.future import Future
from p2pgrid.client.pickling import (
    NOTHING,
    VALUE_BYTES_MAX,
    Call,
    Function,
    HasFutures,
    Needs,
    Packed,
    TooLarge,
    pickled_call,
    pickled_items,
    refs_seen,
    refuse,
)
from p2pgrid.client.session import Session
from p2pgrid.client.upload import Upload
from p2pgrid.core.batch import ITEMS, TUPLES, encode_batch
from p2pgrid.core.deps import DEPENDENT, TaskId, table
from p2pgrid.core.ref import Ref

ITEMS_FIRST = 64
"""The first list is small, to learn what an item weighs and to let work begin."""
ITEMS_MAX = 20_000
GROWTH_MAX = 16
LIST_BYTES_GOAL = 1 << 20
LIST_BYTES_MAX = 8 << 20
"""A list that outgrows this is cut in halves, unless it is one item."""
BATCH_BYTES_GOAL = 128 * 1024
UNSURE_BYTES_MAX = 64 << 20
LISTS_PER_SLOT = 4
PULL_S = 0.05
"""How long a generator is drawn from before what it gave is sent."""

_PLAIN = frozenset({int, float, str, bytes, bool, type(None), complex})


class Feed:
    """The tasks of one map, sent in order.

    Numbers and texts leave at once. Of other values, which may turn out not to be picklable, the first 64 MiB are
    packed before anything is sent, so that a mistake in one of them costs nothing.
    """

    def __init__(
        self,
        session: Session,
        upload: Upload,
        call: Call,
        source: Iterable[Any],
        begin: Callable[[], None],
        *,
        shape: int,
        total: int | None,
        items_per_list: int | None = None,
    ) -> None:
        """Pack `source`, which has `total` items if that is known; `begin` opens the job before the first batch."""
        assert shape in (ITEMS, TUPLES)
        self.sent = 0
        self.exhausted = False
        self._session = session
        self._upload = upload
        self._call = call
        self._begin = begin
        self._slice = source if isinstance(source, range | list | tuple) and shape == ITEMS else None
        self._items: Iterator[Any] = iter(source)
        self._shape = shape
        self._fixed = items_per_list
        self._cap = ITEMS_MAX
        if total is not None:
            self._cap = max(1, min(ITEMS_MAX, -(-total // (LISTS_PER_SLOT * max(1, session.welcome.slots)))))
        self._step = min(self._cap, ITEMS_FIRST)
        self._packed = 0
        self._runs: list[tuple[Function, int, int, Any]] = []
        self._run_bytes = 0
        self._unsure: list[tuple[int, int, bytes, list[Function]]] | None = []
        self._unsure_bytes = 0
        self._refs: list[Ref] = []
        """Among the items packed and not sent."""
        self._lock = threading.Lock()

    def all(self) -> None:
        """Send everything there is."""
        with self._lock:
            while not self.exhausted:
                self._pull(None)
            self._flush()

    def some(self, most: int) -> None:
        """Send up to task `most`, or for as long as it takes a slow generator to give one."""
        with self._lock:
            until = time.monotonic() + PULL_S
            while not self.exhausted and self._packed < most:
                self._pull(until, most - self._packed)
                if time.monotonic() >= until:
                    break
            self._flush()
            self._be_sure()

    def _pull(self, until: float | None, room: int = ITEMS_MAX) -> None:
        """Draw one list of items and pack it."""
        count = min(self._fixed or self._step, room)
        if self._slice is not None:
            # A range stays one: it takes the place of a list in 60 bytes, whatever its length.
            items: Sequence[Any] = self._slice[self._packed : self._packed + count]
            full = self._packed + count <= len(self._slice)
        elif until is None:
            items = list(itertools.islice(self._items, count))
            full = len(items) == count
        else:
            items, full = self._drawn(count, until)
        if items:
            self._pack(items)
        if not full:
            self.exhausted = True
            self._flush()
            self._be_sure()
            with self._session.lock:
                self._session.say(self._upload.close(self._packed))

    def _drawn(self, count: int, until: float) -> tuple[list[Any], bool]:
        """Draw up to `count` items, fewer if time is up; also say whether there may be more."""
        items: list[Any] = []
        for item in self._items:
            items.append(item)
            if len(items) == count or time.monotonic() >= until:
                return items, True
        return items, False

    def _pack(self, items: Sequence[Any]) -> None:
        lo = self._packed
        one = len(items) == 1
        try:
            data, needs, _ = pickled_items(items, lo, VALUE_BYTES_MAX if one else LIST_BYTES_MAX)
        except HasFutures:
            self._pack_calls(items)
            return
        except TooLarge as error:
            if one:
                refuse(error, f"items[{lo}]", items[0])
            middle = len(items) // 2
            self._pack(items[:middle])
            self._pack(items[middle:])
            return
        self._packed += len(items)
        weight = max(1, len(data) // len(items))
        self._step = max(1, min(self._cap, LIST_BYTES_GOAL // weight, GROWTH_MAX * len(items)))
        if self._run_bytes and self._run_bytes + len(data) > LIST_BYTES_MAX:
            self._flush()
        self._runs.append((self._call.serving(needs), len(items), self._shape, data))
        self._run_bytes += len(data)
        if self._unsure is not None and type(items[0]) in _PLAIN and type(items[-1]) in _PLAIN:
            self._be_sure()
        if self._run_bytes >= BATCH_BYTES_GOAL:
            self._flush()

    def _pack_calls(self, items: Sequence[Any]) -> None:
        """Pack items among which are futures one by one: each waits for its own."""
        calls: list[tuple[bytes, Sequence[TaskId]]] = []
        size, needs = 0, NOTHING
        senders: dict[bytes, Future] = {}
        for item in items:
            call = pickled_call((item,) if self._shape == ITEMS else tuple(item), {})
            if isinstance(call, Packed):
                calls.append((call.data, call.tasks))
                senders |= {future.task[0]: future for future in call.futures}
                needs |= call.needs
            else:
                calls.append((call, ()))
            size += len(calls[-1][0])
            if size > LIST_BYTES_GOAL:
                self._add_calls(calls, size, needs)
                calls, size = [], 0
        for future in senders.values():  # of each job one is enough to have all of it sent
            future.sent()
        self._add_calls(calls, size, needs)

    def _add_calls(self, calls: list[tuple[bytes, Sequence[TaskId]]], size: int, needs: Needs) -> None:
        if calls:
            self._packed += len(calls)
            said = table(calls, self._upload.job)
            self._runs.append((self._call.serving(needs), len(calls), DEPENDENT, said))
            self._run_bytes += size
            if self._run_bytes >= BATCH_BYTES_GOAL:
                self._flush()

    def _flush(self) -> None:
        """Make a batch of the lists gathered."""
        if not self._runs:
            return
        self._refs += refs_seen()
        count = sum(tasks for _, tasks, _, _ in self._runs)
        functions = {function.id: function for function, *_ in self._runs}
        places = {id_: place for place, id_ in enumerate(functions)}
        runs = [(tasks, places[function.id], 0, shape, data) for function, tasks, shape, data in self._runs]
        batch = encode_batch(list(functions), [self._call.options], runs)
        self._runs, self._run_bytes = [], 0
        lo = self.sent
        self.sent = lo + count
        if self._unsure is None:
            refs, self._refs = self._refs, []
            self._send(lo, self.sent, batch, functions.values(), refs)
            return
        self._unsure.append((lo, self.sent, batch, list(functions.values())))
        self._unsure_bytes += len(batch)
        if self._unsure_bytes > UNSURE_BYTES_MAX:
            self._be_sure()

    def _be_sure(self) -> None:
        """Send what was held back, and hold nothing back any more."""
        unsure, self._unsure = self._unsure, None
        if unsure is None:
            return
        self._begin()
        refs, self._refs = self._refs, []
        for lo, hi, batch, functions in unsure:
            self._send(lo, hi, batch, functions, refs)

    def _send(self, lo: int, hi: int, batch: bytes, functions: Iterable[Function], refs: list[Ref]) -> None:
        session = self._session
        session.wait_for_room()
        with session.lock:
            session.keep(len(batch))
            named = self._upload.refs(refs)
            session.say(b"".join(map(self._upload.code, functions)) + named + self._upload.append(lo, hi, batch))
