"""Large results as they arrive: mapped from the node's shared memory before anybody is told that they are there.

A result comes with its place where the node knows our mapping; otherwise it is asked for, and the segment that brought
its name waits until the answer is here. Then it goes to the receivers of its job like any other, and after it the end
of the job, if that came meanwhile.

Threads: called by the reader, which must not wait. The memory is attached in a thread of its own, once.
"""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from p2pgrid.client.receiver import Segment
from p2pgrid.core.errors import GridError, PeerError
from p2pgrid.core.large import LARGE, Large, read_large
from p2pgrid.core.objects import load

if TYPE_CHECKING:
    from p2pgrid.client.sharing import Sharing

TRIES = 3


class Arrived:
    """The data of a segment of shape LARGE, once it is here: a mapped object, a Ref, or why there is none."""

    def __init__(self, size: int, give: Callable[[], Any]) -> None:
        """Stand for `size` bytes of result; `give` returns the value, or raises."""
        self.size = size
        self._give = give

    def __len__(self) -> int:
        """Return how many bytes the node counts for it."""
        return self.size

    def value(self) -> Any:
        """Return the value; raises what unpickling raises, ObjectLost, QuotaExceeded."""
        return self._give()


class Arrivals:
    """The large results of one session that are not here yet."""

    def __init__(self, sharing: "Sharing", deliver: Callable[[bytes, list[Segment]], None]) -> None:
        """Give what has arrived to `deliver`."""
        self._sharing = sharing
        self._deliver = deliver
        self._lock = threading.Lock()
        self._under_way: dict[bytes, int] = {}
        self._afterwards: dict[bytes, list[Callable[[], None]]] = {}
        self._unattached: deque[tuple[bytes, Segment, Large, int]] = deque()
        self._attaching = False

    def sort_out(self, job: bytes, segments: list[Segment]) -> list[Segment]:
        """Return the segments that are here; the others are delivered when they are."""
        here: list[Segment] = []
        for segment in segments:
            if segment[2] != LARGE:
                here.append(segment)
                continue
            try:
                large = read_large(segment[3])
            except PeerError as error:
                here.append(_with(segment, _failed(0, error)))
                continue
            arrived = self._arrived(large)
            if arrived is not None:
                here.append(_with(segment, arrived))
            else:
                with self._lock:
                    self._under_way[job] = self._under_way.get(job, 0) + 1
                self._ask(job, segment, large, TRIES)
        return here

    def after(self, job: bytes, then: Callable[[], None]) -> bool:
        """Do something once all of a job that is under way has arrived; False: nothing is."""
        with self._lock:
            if job not in self._under_way:
                return False
            self._afterwards.setdefault(job, []).append(then)
            return True

    def _arrived(self, large: Large) -> Arrived | None:
        if large.is_ref:
            ref = self._sharing.ref_of(large)
            return None if ref is None else Arrived(large.size, lambda: ref)
        if large.offset is None:
            return None
        view = self._sharing.view_at(large.name, large.offset, large.size)
        return None if view is None else Arrived(large.size, lambda: load(view))

    def _ask(self, job: bytes, segment: Segment, large: Large, tries: int) -> None:
        """Ask the node where it is, or have the memory attached first."""
        if self._sharing.is_attached():
            if large.is_ref:  # the node is to know whose Refs these are; nothing is wrong if it says no
                self._sharing.say_attached(lambda _: self._came_ref(job, segment, large))
                return
            self._sharing.ask_for(
                large.name, large.holders, lambda answer: self._answered(job, segment, large, tries, answer)
            )
            return
        with self._lock:
            self._unattached.append((job, segment, large, tries))
            if self._attaching:
                return
            self._attaching = True
        threading.Thread(target=self._attach, name="p2pgrid-attach", daemon=True).start()

    def _attach(self) -> None:
        failed: Exception | None = None
        try:
            self._sharing.attach()
        except Exception as error:  # noqa: BLE001 - the node is gone, or has no memory: whoever waits hears it
            failed = error
        with self._lock:
            self._attaching = False
            waiting = [self._unattached.popleft() for _ in range(len(self._unattached))]
        for job, segment, large, tries in waiting:
            if failed is not None:
                self._came(job, segment, _failed(large.size, failed))
            else:
                self._ask(job, segment, large, tries)

    def _answered(self, job: bytes, segment: Segment, large: Large, tries: int, answer: "Future[Any]") -> None:
        error = answer.exception()
        if isinstance(error, GridError) and error.code == "arena-unknown" and tries > 1:
            self._ask(job, segment, large, tries - 1)
            return
        if error is None:
            at = answer.result()
            view = self._sharing.view_at(large.name, at["offset"], at["size"])
            if view is not None:
                self._came(job, segment, Arrived(large.size, lambda: load(view)))
                return
            error = GridError("the node was replaced while a result was fetched", next="p2pgrid status")
        self._came(job, segment, _failed(large.size, error))

    def _came_ref(self, job: bytes, segment: Segment, large: Large) -> None:
        gone = GridError("the node was replaced while a result came", next="p2pgrid status")
        self._came(job, segment, self._arrived(large) or _failed(large.size, gone))

    def _came(self, job: bytes, segment: Segment, arrived: Arrived) -> None:
        self._deliver(job, [_with(segment, arrived)])
        with self._lock:
            self._under_way[job] -= 1
            if self._under_way[job]:
                return
            del self._under_way[job]
            afterwards = self._afterwards.pop(job, [])
        for then in afterwards:
            then()


def _with(segment: Segment, arrived: Arrived) -> Segment:
    lo, hi, shape, _, node, attempt = segment
    return lo, hi, shape, arrived, node, attempt


def _failed(size: int, error: BaseException) -> Arrived:
    def give() -> Any:
        raise error

    return Arrived(size, give)
