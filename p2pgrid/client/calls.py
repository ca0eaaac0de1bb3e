"""The single submits of a session: one open job whose tasks go out in batches.

When nothing is on its way, or fewer tasks than there are slots, the calling thread sends at once; otherwise tasks are
held back until the next frame arrives from the node (each batch is answered within a commit), until there are 256, or
until somebody waits for one. So a lone call costs one round trip and 10,000 of them some hundred frames.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future as PlainFuture
from typing import Any

from p2pgrid.client.future import Future
from p2pgrid.client.pickling import Function
from p2pgrid.client.session import Session
from p2pgrid.client.table import FutureTable
from p2pgrid.client.upload import Upload
from p2pgrid.core.batch import CALLS, encode_batch
from p2pgrid.core.deps import DEPENDENT, TaskId, table
from p2pgrid.core.prints import PRINTS
from p2pgrid.core.record import Spec
from p2pgrid.core.ref import Ref

HELD_TASKS_MAX = 256
HELD_BYTES_MAX = 1 << 20


class JobOver(Exception):
    """Internal: the job was closed or cancelled meanwhile; another one has to be opened."""


class Calls(FutureTable):
    """One open job of single calls."""

    mine = True
    show = PRINTS

    def __init__(self, session: Session, job: bytes, spec: Spec) -> None:
        """Hold tasks of a job that `Session.add` opens."""
        super().__init__(session, job)
        self.upload = Upload(job, spec)
        self.over = False
        self.detach = spec.detach
        self._sent = 0
        self._held_bytes = 0
        self._function: Function | None = None
        self._options: Mapping[str, Any] | None = None
        self._runs: list[tuple[Function, Mapping[str, Any], list[Any]]] = []
        # The number of the next task follows from what is held: appending to the run is the one step that counts, so
        # that Ctrl-C between any two of them leaves a task either whole or not there.
        self._run: list[Any] = []
        """Pickled arguments, or such and the tasks they wait for."""
        self._after: tuple[Function, Mapping[str, Any]] | None = None
        """What the last run calls, if its tasks wait for others; then it has no `_function`."""
        self._run_lo = 0
        session.held.append(self)

    def submit(self, function: Function, options: Mapping[str, Any], data: bytes, refs: Collection[Ref] = ()) -> Future:
        """Add a task, with the Refs among its arguments; equal options are the same object.

        Raises:
            JobOver: the job takes none any more.
        """
        session = self.session
        with session.lock:
            if self.over:
                raise JobOver
            if self._held_bytes and self._held_bytes + len(data) > HELD_BYTES_MAX:
                self.flush()
            if refs:
                session.say(self.upload.refs(refs))
            index = self._run_lo + len(self._run)
            future = self.futures[index] = Future(self, index)
            if function is not self._function or options is not self._options or not self._runs:
                self._begin_run(index, function, options)
            self._run.append(data)
            self._held_bytes += len(data)
            if (
                not session.hot
                or len(self.futures) <= session.welcome.slots
                or index - self._sent >= HELD_TASKS_MAX - 1
                or self._held_bytes >= HELD_BYTES_MAX
            ):
                self.flush()
        return future

    def let_go_before(self, futures: Iterable[Future]) -> None:
        """See to it that the grid knows what a task here waits for; what is in one job leaves in its order anyway."""
        for one in futures:
            if one.task[0] != self.id:
                one.sent()

    def submit_after(
        self,
        function: Function,
        options: Mapping[str, Any],
        data: bytes,
        deps: Sequence[TaskId],
        refs: Collection[Ref] = (),
    ) -> Future:
        """Add a task with the results of others in its arguments; whoever holds these back has sent them."""
        with self.session.lock:
            if self.over:
                raise JobOver
            if self._held_bytes and self._held_bytes + len(data) > HELD_BYTES_MAX:
                self.flush()
            if refs:
                self.session.say(self.upload.refs(refs))
            index = self._next
            future = self.futures[index] = Future(self, index)
            if self._after != (function, options) or not self._runs:
                self._begin_run(index, function, options)
                self._after, self._function = (function, options), None
            self._run.append((data, deps))
            self._held_bytes += len(data)
            few = not self.session.hot or len(self.futures) <= self.session.welcome.slots
            if few or index - self._sent >= HELD_TASKS_MAX - 1 or self._held_bytes >= HELD_BYTES_MAX:
                self.flush()
        return future

    def _begin_run(self, index: int, function: Function, options: Mapping[str, Any]) -> None:
        self._run, self._run_lo = [], index
        self._runs.append((function, options, self._run))
        self._function, self._options, self._after = function, options, None

    @property
    def _next(self) -> int:
        return self._run_lo + len(self._run)

    def flush(self) -> None:
        """Send what is held back; called with the session's lock held."""
        lo, hi = self._sent, self._next
        if lo < hi:
            frames = b""
            functions: dict[bytes, int] = {}
            options: list[Mapping[str, Any]] = []
            runs = []
            for function, wanted, data in self._runs:
                if not data:
                    continue
                frames += self.upload.code(function)
                place = functions.setdefault(function.id, len(functions))
                if not options or wanted is not options[-1]:
                    options.append(wanted)
                dependent = type(data[0]) is tuple
                said = table(data, self.job) if dependent else data
                runs.append((len(data), place, len(options) - 1, DEPENDENT if dependent else CALLS, said))
            batch = encode_batch(list(functions), options, runs)
            self._runs, self._held_bytes, self._sent = [], 0, hi
            self._run, self._run_lo = [], hi
            self.session.keep(len(batch))
            self.session.hot = True
            self.session.say(frames + self.upload.append(lo, hi, batch))

    def awaited(self) -> None:
        """Send what is held back, for somebody waits."""
        if self._sent < self._next:
            with self.session.lock:
                self.flush()

    def cancel_task(self, index: int) -> None:
        """Cancel one task; it may not have been sent yet."""
        self.cancel_tasks([index])

    def cancel_tasks(self, indices: list[int]) -> None:
        """Cancel tasks in one frame."""
        self.awaited()
        flat: list[int] = []
        for index in sorted(indices):
            if flat and flat[-1] == index:
                flat[-1] = index + 1
            else:
                flat += [index, index + 1]
        self.session.cancel(self.job, flat)

    @property
    def count(self) -> int:
        """How many tasks there are."""
        return self._next

    def interrupted(self, before: int | None) -> None:
        """Cancel what the interrupted cell has submitted."""
        if not self.detach:
            self.cancel_all(before or 0)

    def cancel_all(self, lo: int = 0) -> None:
        """Cancel whatever is not decided, from task `lo` on."""
        taken = [index for index in list(self.futures) if index >= lo and self._cancel_quietly(index)]
        if taken:
            self.cancel_tasks(taken)

    def _cancel_quietly(self, index: int) -> bool:
        future = self.futures.get(index)
        if future is None or not self.take(index):
            return False
        future.set_cancelled()
        return True

    def close(self) -> None:
        """Say that no more tasks come."""
        with self.session.lock:
            if not self.over:
                self.flush()
                self._stop_holding()
                self.session.say(self.upload.close(self._next))

    def _stop_holding(self) -> None:
        self.over = True
        if self in self.session.held:
            self.session.held.remove(self)

    def ended(self, state: str, reason: str) -> None:
        """Take the end of the job: further submits need another one."""
        with self.session.lock:
            self._stop_holding()
        super().ended(state, reason)
        self.session.remove(self, ended=True)

    def lost(self, error: Exception, lo: int = 0, hi: int | None = None) -> None:
        """Give up tasks; without bounds the whole job."""
        if hi is None:
            with self.session.lock:
                self._stop_holding()
        super().lost(error, lo, hi)

    def durable(self, index: int) -> "PlainFuture[None]":
        """Return a future of the moment in which the node has the task on disk."""
        with self.session.lock:
            self.flush()
            return self.upload.durable(index)
