"""One client session: a connection, its reader thread, the jobs that go out through it and come back.

Threads: any number of callers, who send under `lock`; one reader, which hands results to receivers and never sends
anything that could block. Futures are decided without `lock`, since whoever waits on one may take it.

The connection may be lost and found again: what the node has not acknowledged is sent again, what is expected is
watched again without what is here already.
"""

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from p2pgrid.client import notebook
from p2pgrid.client.connection import Connection, ConnectionLost, Welcome
from p2pgrid.client.incoming import Incoming
from p2pgrid.client.ledger import Ledger
from p2pgrid.client.receiver import Receiver
from p2pgrid.client.requests import Requests
from p2pgrid.client.upload import Upload
from p2pgrid.core.errors import GridError, NodeGone
from p2pgrid.core.ids import job_name
from p2pgrid.core.messages import GOODBYE
from p2pgrid.core.wire import frame

if TYPE_CHECKING:
    from p2pgrid.client.sharing import Sharing

SESSION_ID_BYTES = 16
UNSENT_BYTES_MAX = 256 * 1024 * 1024
RETRY_FIRST_S, RETRY_MAX_S = 0.05, 0.2
LEAVE_S = 3.0
ROUNDS_S = 5.0
"""How long after the end of all patience a node may take to say that nobody knows a job: it waits for the silent."""
REFRESH_S = 2.0
"""How old the count of slots in the grid may be."""
REFRESH_WAIT_S = 1.0


class Finder(Protocol):
    """Finds the node, the first time and again."""

    def connect(self, hello: dict[str, Any]) -> Connection:
        """Find or start a node. Raises NoNode."""

    def again(self, hello: dict[str, Any]) -> Connection | None:
        """Try once to reach the node of before."""

    @property
    def flags(self) -> str:
        """What a command needs to reach that node: ` --dir DIR`, or nothing where it would look anyway."""


class Held(Protocol):
    """Somebody who holds tasks back while others are on their way."""

    def flush(self) -> None:
        """Send what is held back; called with the session's lock held."""

    def close(self) -> None:
        """Say that nothing more comes."""


class Session:
    """What all views of one `Grid` share."""

    def __init__(self, finder: Finder, *, timeout_s: float, reconnect: bool, unpickles: bool = True) -> None:
        """Find a node and greet it."""
        self._unpickles = unpickles
        self.id = os.urandom(SESSION_ID_BYTES)
        self.lock = threading.Lock()
        self.timeout_s = timeout_s
        self.over = ""
        """Why this session takes nothing more: text of a RuntimeError."""
        self.hot = False
        """Tasks were sent and no frame came back since."""
        self.held: list[Held] = []
        self._changed = threading.Condition(self.lock)
        self._waiting = 0
        self.down: GridError | None = None
        """Why waiting is in vain: the node went away and did not come back."""
        self._reconnect = reconnect
        self._finder = finder
        self.ledger = Ledger(timeout_s)
        self._requests = Requests()
        self._incoming = Incoming(self, self._requests, self._give_up, flags=lambda: finder.flags, unpickles=unpickles)
        self._sharing: Sharing | None = None
        self._leaving = False
        self._leaves_when_idle = False
        self.program = notebook.program_name()
        self._connection: Connection | None = finder.connect(self._hello())
        self.welcome: Welcome = self._connection.welcome
        self._refreshed_s = time.monotonic()
        self._start_reader()
        _sessions.add(self)
        notebook.follow()

    def _hello(self) -> dict[str, Any]:
        return {"v": 1, "session": self.id, "pid": os.getpid(), "program": self.program}

    def _start_reader(self) -> None:
        self._reader = threading.Thread(target=self._read, name="p2pgrid-reader", daemon=True)
        self._reader.start()

    # ---- for callers -------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise if nothing can be submitted; look for the node once more if it had gone."""
        if self.over:
            raise RuntimeError(self.over)
        if self.down is not None:
            self._revive()

    def _revive(self) -> None:
        with self.lock:
            down = self.down
            if down is None:
                return
            connection = self._finder.again(self._hello())
            if connection is None:
                raise NodeGone(message="the node went away and is not back")
            self._connection, self.welcome, self.down = connection, connection.welcome, None
            self._start_reader()

    def check_unpickles(self) -> None:
        """Raise if this Grid was made to unpickle nothing."""
        if not self._unpickles:
            raise GridError(
                "an object is a pickle, and this Grid was made with unpickle='never'", code="not-unpickled",
                next="read it where you trust the members of the grid: Grid(unpickle='members')",
            )  # fmt: skip

    def may_wait(self) -> None:
        """Raise RuntimeError in the reader thread, where waiting for the grid would never end."""
        if threading.current_thread() is self._reader:
            msg = "this waits for the grid inside a done-callback, which runs in the thread that would end the wait"
            raise RuntimeError(msg)

    def say(self, data: bytes) -> None:
        """Send frames; called with the lock held. While the node is away they are dropped: uploads know them."""
        if data and self._connection is not None:
            self._connection.send(data)

    def keep(self, size: int) -> None:
        """Count bytes that are kept until they are acknowledged; called with the lock held."""
        self.ledger.kept += size

    def wait_for_room(self) -> None:
        """Wait while 256 MiB are on their way."""
        ledger = self.ledger
        if ledger.kept >= UNSENT_BYTES_MAX:
            self.wait(lambda: ledger.kept < UNSENT_BYTES_MAX, None)

    def add(self, receiver: Receiver, upload: Upload | None = None) -> None:
        """Expect results of a job; with `upload` it is a job of our own."""
        with self.lock:
            if upload is not None:
                self.say(self.ledger.open(upload))
            self.say(self.ledger.expect(receiver))

    def open(self, upload: Upload) -> None:
        """Open a job of our own whose results nobody here waits for."""
        with self.lock:
            self.say(self.ledger.open(upload))

    def remove(self, receiver: Receiver, *, cancel: bool = False, ended: bool = False) -> None:
        """Expect nothing more for this receiver; `cancel` the job, if it is our own, unless it `ended`.

        The garbage collector may call this anywhere, in a thread that holds the lock too: then it happens a little
        later, in a thread of its own.
        """
        if self.lock.acquire(blocking=False):
            try:
                self._remove(receiver, cancel=cancel, ended=ended)
            finally:
                self.lock.release()
            return
        later = threading.Thread(target=self._remove_later, args=(receiver, cancel, ended), daemon=True)
        with contextlib.suppress(RuntimeError):  # the interpreter is shutting down, and the connection with it
            later.start()

    def _remove_later(self, receiver: Receiver, cancel: bool, ended: bool) -> None:  # noqa: FBT001 - for the thread
        with self.lock:
            self._remove(receiver, cancel=cancel, ended=ended)

    def _remove(self, receiver: Receiver, *, cancel: bool, ended: bool) -> None:
        self.say(self.ledger.remove(receiver, cancel=cancel, ended=ended))
        if self._waiting:
            self._changed.notify_all()

    def drop(self, job: bytes) -> None:
        """Forget what was said of a job of our own: the node forgets it as well."""
        with self.lock:
            self.ledger.drop(job, GridError(f"job {job_name(job)} is over with the task that has started it"))

    def cancel(self, job: bytes, flat: list[int] | None) -> None:
        """Cancel tasks of a job of our own, or all of it."""
        with self.lock:
            self.say(self.ledger.cancel(job, flat))
            if self._waiting:
                self._changed.notify_all()

    def consumed(self, job: bytes, size: int) -> None:
        """Give the node credit for result bytes that were taken in."""
        with self.lock:
            self.say(self.ledger.consumed(job, size))

    def starves(self, job: bytes, index: int) -> None:
        """Tell the node that the results here wait for one that is not: it comes whatever is under way."""
        with self.lock:
            self.say(self.ledger.starves(job, index))

    def wait(self, ready: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait until `ready()`, which is looked at whenever something arrived; say whether it is.

        Raises:
            NodeGone: the node went away meanwhile and did not come back.
        """
        self.may_wait()
        with self.lock:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: ready() or self.down is not None, timeout_s)
            finally:
                self._waiting -= 1
            if ready():
                return True
            if self.down is not None:
                raise self.down
            return False

    def request(self, verb: str, arguments: dict[str, Any], timeout_s: float | None = None) -> dict[str, Any]:
        """Return the node's answer.

        Raises:
            GridError: what the node says is wrong, or it did not answer in time.
        """
        (answer,) = self.ask([(verb, arguments)])
        return answer(self.timeout_s if timeout_s is None else timeout_s)

    def about(self, verb: str, target: str, timeout_s: float | None = None, **arguments: Any) -> dict[str, Any]:
        """Return the node's answer about a job; it asks whom it can reach for up to `timeout_s` before it knows none.

        Raises:
            NotFound: nobody who can be reached knows the job.
            GridError: anything else the node says, or it did not answer in time.
        """
        within_s = self.timeout_s if timeout_s is None else timeout_s
        return self.request(verb, {"target": target, "within": within_s, **arguments}, within_s + ROUNDS_S)

    def ask(self, questions: Sequence[tuple[str, dict[str, Any]]]) -> list[Callable[[float], dict[str, Any]]]:
        """Ask several things at once; return for each what waits so many seconds for its answer, as `request` does."""
        self.may_wait()
        if self.down is not None:
            self._revive()
        with self.lock:
            if self._connection is None and (self._leaving or self.over):
                raise NodeGone(message=self.over or "this Grid has left its node")
            asked = [(verb, *self._requests.ask(verb, arguments)) for verb, arguments in questions]
            self.say(b"".join(data for *_, data in asked))
        return [partial(self._requests.wait, verb, id_, answer) for verb, id_, answer, _ in asked]

    def tell(self, verb: str, arguments: dict[str, Any]) -> None:
        """Send a request whose answer nobody waits for."""
        with self.lock:
            id_, _, data = self._requests.ask(verb, arguments)
            self._requests.forget(id_)
            self.say(data)

    def inquire(self, verb: str, arguments: dict[str, Any], done: Callable[["Future[Any]"], None]) -> None:
        """Ask something; `done` is called with the answer, by the reader. Never waits: for the reader itself."""
        with self.lock:
            _, answer, data = self._requests.ask(verb, arguments)
            answer.add_done_callback(done)
            self.say(data)

    @property
    def connection(self) -> object:
        """The connection of now; another one after it was lost."""
        return self._connection

    def another_connection(self) -> Connection:
        """Return one more connection to the node, for what is no frame. Raises NodeGone."""
        connection = self._finder.again({**self._hello(), "session": b""})
        if connection is None:
            raise NodeGone(message="the node went away and is not back")
        return connection

    def sharing(self) -> "Sharing":
        """Return the objects of this session; its modules are imported now, the first time."""
        if self._sharing is None:
            from p2pgrid.client.sharing import Sharing  # blake3 and ctypes: for those who share

            with self.lock:
                if self._sharing is None:
                    self._sharing = Sharing(self)
        return self._sharing

    def slots(self) -> int:
        """Return how many tasks the grid runs at once, as of at most a few seconds ago where the node answers."""
        now = time.monotonic()
        in_reader = threading.current_thread() is self._reader  # where nobody may wait
        if now - self._refreshed_s > REFRESH_S and not in_reader and not self.over and self.down is None:
            self._refreshed_s = now
            with contextlib.suppress(GridError):
                grid = self.request("status", {}, REFRESH_WAIT_S)["grid"]
                self.welcome = replace(self.welcome, slots=grid["slots"], nodes=grid["nodes"])
        return self.welcome.slots

    # ---- the reader --------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        connection = self._connection
        while connection is not None:
            try:
                frames = connection.receive()
            except ConnectionLost as error:
                connection = None if self._leaving or self.over else self._restored(str(error))
                continue
            try:
                for one in frames:
                    self._incoming.take(one)
            except BaseException as error:
                # A frame that is not what it should be, or a bug of ours: nobody may wait for ever because of it.
                self._give_up(NodeGone(message=f"what the node sent makes no sense: {error!r}"))
                raise
            with self.lock:
                self.hot = False
                for held in self.held:
                    held.flush()
                if self._waiting:
                    self._changed.notify_all()
            self.moved()
            if self._leaves_when_idle and self.ledger.idle:
                self.leave()

    def moved(self) -> None:
        """Frames were taken in, or none will be; called by the reader."""

    # ---- losing and finding the node ---------------------------------------------------------------------------------

    def _restored(self, reason: str) -> Connection | None:
        """Return a new connection on which everything is said again, or None after all waiters were told."""
        with self.lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None
        deadline = time.monotonic() + (self.timeout_s if self._reconnect else 0.0)
        pause = RETRY_FIRST_S
        while self._reconnect and not self._leaving and not self.over:
            with contextlib.suppress(GridError):
                connection = self._finder.again(self._hello())
                if connection is not None:
                    self._resume(connection)
                    return connection
            if time.monotonic() + pause > deadline:
                break
            time.sleep(pause)
            pause = min(2 * pause, RETRY_MAX_S)
        self._give_up(NodeGone(message=f"the node went away ({reason})"))
        return None

    def _resume(self, connection: Connection) -> None:
        with self.lock:
            self._connection = connection
            self.welcome = connection.welcome
            for data in self.ledger.again():
                self.say(data)
            self.say(self._requests.again())
            self.hot = False
            for held in self.held:
                held.flush()

    def _give_up(self, gone: GridError) -> None:
        """Tell everybody who waits that it is in vain."""
        with self.lock:
            self.down = gone
            uploads, receivers = self.ledger.clear()
            self.held.clear()
        for upload in uploads:
            upload.give_up(self._of_job(gone, upload.job))
        for receiver in receivers:
            receiver.lost(self._of_job(gone, receiver.job))
        self._requests.give_up(gone)
        with self.lock:
            self._changed.notify_all()
        self.moved()

    def _of_job(self, error: GridError, job: bytes) -> GridError:
        if not isinstance(error, NodeGone):
            return error
        name, flags = job_name(job), self._finder.flags
        return NodeGone(name, next=f"p2pgrid node{flags}, then: p2pgrid show {name}{flags}")

    # ---- leaving -----------------------------------------------------------------------------------------------------

    def mine(self) -> list[Receiver]:
        """Return the receivers of the jobs this client submitted."""
        with self.lock:
            return self.ledger.mine()

    def wait_acknowledged(self, upload: Upload) -> None:
        """Wait until the node has everything on disk that was said about a job.

        Raises:
            GridError: it refuses the job, or went away for good.
        """
        self.wait(lambda: upload.settled or upload.refusal is not None, None)
        if upload.refusal is not None:
            raise upload.refusal
        with self.lock:
            self.ledger.forget(upload)

    def leave_when_idle(self) -> None:
        """Leave as soon as everything submitted is done."""
        self._leaves_when_idle = True
        if self.ledger.idle:
            self.leave()

    def leave(self) -> None:
        """Say goodbye and close; nothing more comes."""
        for held in list(self.held):
            held.close()
        with self.lock:
            if self._leaving:
                return
            self._leaving = True
            self.over = self.over or "cannot schedule new futures after shutdown"
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.send(frame(GOODBYE, []))
            left = [one for one in self.ledger.all() if not one.idle]
        if connection is not None:
            connection.drain(LEAVE_S)
            connection.close()
        if self._sharing is not None:
            self._sharing.close()
        self._incoming.close()
        for receiver in left:
            receiver.lost(GridError(f"this program left the grid before job {job_name(receiver.job)} ended"))
        _sessions.discard(self)

    def forked(self) -> None:
        """Become useless in a child process: the socket is the parent's. Takes no lock, for whoever held it is gone."""
        self.over = f"this Grid belongs to process {os.getppid()}: make one in this process, with Grid()"
        if self._connection is not None:
            self._connection.abandon()
            self._connection = None
        if self._sharing is not None:
            self._sharing.forked()


_sessions: "weakref.WeakSet[Session]" = weakref.WeakSet()


def sessions() -> list[Session]:
    """Return the sessions of this process that have not left."""
    return list(_sessions)


def _after_fork() -> None:
    for session in sessions():
        session.forked()
    _sessions.clear()


os.register_at_fork(after_in_child=_after_fork)
