"""`put` and `get`: values in the shared memory of this machine's node, written and mapped by this process itself.

The node says where (`core.messages`, the requests about objects); the bytes never pass through it. Shared memory comes
over a connection of its own, which stays open: when it ends, the node knows that this process looks at nothing any more
and needs nothing it had put. So an object lives as long as its session here, or until the last `Ref` to it is gone.

Nothing here is imported or opened before the first `put` or `get`.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from p2pgrid.client.arena import take_over
from p2pgrid.client.pickling import Pickler, refuse
from p2pgrid.core import messages as m
from p2pgrid.core.errors import GridError, NodeGone, PeerError
from p2pgrid.core.large import Large
from p2pgrid.core.mapped import Mapped
from p2pgrid.core.objects import Serialised, load, serialise
from p2pgrid.core.pieces import manifest_of
from p2pgrid.core.ref import Ref
from p2pgrid.core.wire import frame

if TYPE_CHECKING:
    from p2pgrid.client.connection import Connection
    from p2pgrid.client.session import Session

KEY_BYTES = 16
ROOM_S = 60.0
"""How long a place may take: the node lets it wait in line for half of that."""
FETCH_S = 3600.0
"""The node gives up what does not come nearer long before."""
TRIES = 3
ADDRESSES_PER_BYTE = 4
"""As `node.arena`: how much larger the mapping is than the memory that may be used."""
SHARE = 3
"""A program that keeps more values than this part of the memory holds gets copies of further ones."""


class _Memory:
    """The shared memory of one life of the node, and the connection it came by, which stays open as long as this lives.

    Each view keeps it: the node must not give away what a program looks at that has left its Grid.
    """

    def __init__(self, connection: Connection, token: bytes, mapped: Mapped) -> None:
        self.connection = connection
        self.token = token
        self.mapped = mapped
        self._looked_at: dict[object, int] = {}
        weakref.finalize(self, connection.close).atexit = False

    def looked_at(self, size: int, note: _Ended, ended: queue.SimpleQueue[_Ended | None]) -> Callable[[], None]:
        """Count a view; return what to call when it has ended, in whatever thread."""
        view = object()
        self._looked_at[view] = size

        def over() -> None:
            self._looked_at.pop(view, None)  # by this each view keeps the connection open
            ended.put(note)

        return over

    @property
    def is_greedy(self) -> bool:
        """Whether this program looks at more than its share of the memory."""
        return sum(list(self._looked_at.values())) > self.mapped.size // ADDRESSES_PER_BYTE // SHARE


_Ended = tuple[bytes, str, bytes]
"""What is not needed any more: of which memory, by its token; a "view", "ref" or "key", its name."""


class _Hold:
    """Counts the Refs to one object as one; when they are gone, the node hears it."""

    __slots__ = ("__weakref__", "_id", "_kept")

    def __init__(self, id_: bytes, kept: set[bytes]) -> None:
        self._id = id_
        self._kept = kept

    def for_good(self) -> None:
        """Keep the object until the session ends."""
        self._kept.add(self._id)


class Sharing:
    """The objects of one session."""

    def __init__(self, session: Session) -> None:
        """Serve `session`; nothing is opened yet."""
        self._session = session
        self._lock = threading.Lock()
        self._memory: _Memory | None = None
        self._kept: set[bytes] = set()
        """What is not let go of before the session ends."""
        self._holds: weakref.WeakValueDictionary[bytes, _Hold] = weakref.WeakValueDictionary()
        # A finaliser may run anywhere, also in a thread that holds any lock: all it does is to put something here.
        self._ended: queue.SimpleQueue[_Ended | None] = queue.SimpleQueue()
        self._teller: threading.Thread | None = None
        self._told_on: object = None
        """The connection over which the node knows that results come with their places."""

    # ---- for callers -------------------------------------------------------------------------------------------------

    def put(self, value: object) -> Ref:
        """Write a value into shared memory; return its Ref.

        Raises:
            NotSerializable: it cannot be pickled.
            QuotaExceeded: the node has no room for it.
        """
        done = _serialised(value)
        for left in reversed(range(TRIES)):
            try:
                return self._put(done)
            except _NodeIsAnother:
                if not left:
                    raise NodeGone(message="the node was replaced while the value was written") from None
        raise AssertionError

    def _put(self, done: Serialised) -> Ref:
        memory = self._attached()
        self._tell()  # what was dropped before makes room for this
        key = os.urandom(KEY_BYTES)
        try:
            place = self._ask("place", memory, ROOM_S, key=key, size=done.size)
            memory.mapped.write(place["offset"], done)
            with memory.mapped.view(place["offset"], done.size, lambda: None) as written:
                manifest = manifest_of(written)
            id_ = manifest.id
            with self._lock:  # of two that put the same, the second's Ref must not be born into the first's end
                hold = self._holds.get(id_)
                self._ask("written", memory, None, key=key, id=id_, manifest=manifest.packed())
                if hold is None:
                    hold = self._holds[id_] = _Hold(id_, self._kept)
                    weakref.finalize(hold, self._ended.put, (memory.token, "ref", id_)).atexit = False
        except BaseException:
            self._ended.put((memory.token, "key", key))
            raise
        return Ref(id_, done.size, (self._session.welcome.id,), hold)

    def get(self, refs: list[Ref]) -> list[Any]:
        """Return the values, mapped read-only; all are fetched at once.

        Raises:
            ObjectLost: nobody has one of them any more.
            QuotaExceeded: this node has no room for one of them.
        """
        for left in reversed(range(TRIES)):
            try:
                return self._get(refs)
            except _NodeIsAnother:
                if not left:
                    raise NodeGone(message="the node was replaced while the value was fetched") from None
        raise AssertionError

    def _get(self, refs: list[Ref]) -> list[Any]:
        memory = self._attached()
        wanted = {ref.raw: ref for ref in refs}
        asked = self._session.ask(
            [("want", {"token": memory.token, "id": id_, "holders": list(ref.holders)}) for id_, ref in wanted.items()]
        )
        views: dict[bytes, memoryview] = {}
        failed: GridError | None = None
        # Each answer counts as a mapping at the node: all of them are taken in before anything is raised.
        for id_, answer in zip(wanted, asked, strict=True):
            try:
                at = _answered(answer)
            except GridError as error:
                failed = failed or error
                continue
            views[id_] = self._view(memory, id_, at)
        if failed is not None:
            raise failed
        return [load(views[ref.raw]) for ref in refs]

    def _view(self, memory: _Memory, id_: bytes, at: dict[str, Any]) -> memoryview:
        """Return an object: mapped, or copied where this program looks at too much of the node's memory already."""
        ended, size = self._ended, at["size"]
        view = memory.mapped.view(at["offset"], size, memory.looked_at(size, (memory.token, "view", id_), ended))
        return memoryview(bytes(view)) if memory.is_greedy else view

    def _ask(self, verb: str, memory: _Memory, timeout_s: float | None, **arguments: Any) -> dict[str, Any]:
        try:
            return self._session.request(verb, {"token": memory.token, **arguments}, timeout_s)
        except GridError as error:
            raise _told(error) from error

    # ---- for results that arrive -------------------------------------------------------------------------------------

    def is_attached(self) -> bool:
        """Whether results can be mapped now."""
        memory = self._memory
        return memory is not None and not memory.connection.is_over()

    def attach(self) -> None:
        """Have the shared memory mapped. Not in the reader thread: it may have to wait for it."""
        self._attached()

    def view_at(self, name: bytes, offset: int, size: int) -> memoryview | None:
        """Return an object that the node says lies there, counted as one mapping. None: the memory is another's."""
        memory = self._memory
        return None if memory is None else self._view(memory, name, {"offset": offset, "size": size})

    def ask_for(self, name: bytes, holders: tuple[str, ...], done: Callable[[Any], None]) -> None:
        """Ask where an object is; `done` is called with a future of the answer. Never waits."""
        memory = self._memory
        token = b"" if memory is None else memory.token
        if memory is not None and self._told_on is not self._session.connection:
            self.say_attached(lambda _: None)
        self._session.inquire("want", {"token": token, "id": name, "holders": list(holders)}, done)

    def say_attached(self, done: Callable[[Any], None]) -> None:
        """Tell the node that results may come with their places, and whose Refs go when this ends. Never waits."""
        memory = self._memory
        self._told_on = self._session.connection
        token = b"" if memory is None else memory.token
        self._session.inquire("attach", {"token": token, "session": self._session.id}, done)

    def ref_of(self, large: Large) -> Ref | None:
        """Return the Ref of a result; None: the memory is not attached, by which the node hears of its end."""
        memory = self._memory
        if memory is None:
            return None
        hold = self._holds.get(large.name)
        if hold is None:
            hold = self._holds[large.name] = _Hold(large.name, self._kept)
            weakref.finalize(hold, self._ended.put, (memory.token, "ref", large.name)).atexit = False
        return Ref(large.name, large.size, large.holders, hold)

    # ---- the memory --------------------------------------------------------------------------------------------------

    def _attached(self) -> _Memory:
        """Return the shared memory of the node as it is now."""
        with self._lock:
            memory = self._memory
            if memory is not None and not memory.connection.is_over():
                return memory
            if memory is not None:
                memory.connection.close()
            self._memory = memory = self._attach()
            self._kept.clear()
            self._holds.clear()  # they are of a node that is gone, and their end means nothing to this one
            if self._teller is None:
                self._teller = threading.Thread(target=self._tell_later, name="p2pgrid-objects", daemon=True)
                self._teller.start()
            return memory

    def _attach(self) -> _Memory:
        session = self._session
        token = os.urandom(KEY_BYTES)
        connection = session.another_connection()
        try:
            connection.patience(session.timeout_s)
            connection.send(frame(m.REQUEST, ["arena", {"token": token}], 1))
            mapped = take_over(connection.socket)
            connection.socket.settimeout(None)
        except (OSError, PeerError) as error:
            connection.close()
            raise GridError(
                f"the node did not hand over its shared memory: {error}", next="p2pgrid status", code="no-shared-memory"
            ) from error
        except BaseException:
            connection.close()
            raise
        return _Memory(connection, token, mapped)

    def _tell_later(self) -> None:
        """Tell the node what ended. In a thread of its own, since finalisers may not send."""
        while (first := self._ended.get()) is not None:
            self._tell(first)  # not put back: it would stand behind the None that ends this

    def _tell(self, *first: _Ended) -> None:
        """Say what views, refs and places are not needed any more."""
        with self._lock:  # until it is said: a put of the same value comes before all of it, or after
            memory = self._memory
            ended: dict[str, dict[bytes, int]] = {"view": {}, "ref": {}, "key": {}}
            for of, what, name in [*first, *self._taken()]:
                # A new Ref to the same object may have been made meanwhile; then that one's end is what counts.
                if (
                    memory is not None
                    and of == memory.token
                    and not (what == "ref" and (name in self._holds or name in self._kept))
                ):
                    ended[what][name] = ended[what].get(name, 0) + 1
            if memory is not None and any(ended.values()):
                views = [[id_, times] for id_, times in ended["view"].items()]
                said = {"token": memory.token, "views": views, "refs": list(ended["ref"]), "keys": list(ended["key"])}
                self._session.tell("let_go", {**said, "session": self._session.id})

    def _taken(self) -> list[_Ended]:
        taken: list[_Ended] = []
        with contextlib.suppress(queue.Empty):
            while (one := self._ended.get_nowait()) is not None:
                taken.append(one)
            self._ended.put(None)
        return taken

    def close(self) -> None:
        """The session is over: the node drops what it held. Values that were read stay valid."""
        memory, self._memory = self._memory, None
        self._ended.put(None)
        if memory is not None:
            memory.connection.send(frame(m.REQUEST, ["let_go", {"token": memory.token, "leave": True}], 2))

    def forked(self) -> None:
        """Leave the connection to the parent. Takes no lock."""
        if self._memory is not None:
            self._memory.connection.abandon()
            self._memory = None


class _NodeIsAnother(Exception):
    """Internal: the node does not know our mapping; it was started again."""


def _told(error: GridError) -> Exception:
    return _NodeIsAnother() if error.code == "arena-unknown" else error


def _answered(answer: Callable[[float], Any]) -> dict[str, Any]:
    try:
        return answer(FETCH_S)  # type: ignore[no-any-return]
    except GridError as error:
        raise _told(error) from error


def _serialised(value: object) -> Serialised:
    try:
        return serialise(value, lambda sink, callback: Pickler(sink, buffers=callback))
    except Exception as error:  # noqa: BLE001 - the user's __reduce__ may raise anything
        refuse(error, "the value", value)
