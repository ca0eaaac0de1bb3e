"""One connection with a peer, once both are members: its control streams, its bulk streams, its end.

Each side opens one control stream, which begins with HELLO, and reads that of the other; the link is *ready* when ours
stands and the peer's HELLO was read. One task writes a stream and one reads it. Nothing here waits for a write that
must be prompt: `send` queues, a queue that grows too long ends the link.

Rule: what a peer or the library does wrong ends the link (`end`), with the reason. Any other exception, of the listener
or of ours, is a bug and leaves `converse`: no `except` here is wider than one call into the library.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Any, Protocol, TypeVar

import trio
from libp2p.abc import IHost, INetConn, INetStream
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator

from p2pgrid.core.errors import PeerError
from p2pgrid.core.member_shapes import read_card
from p2pgrid.core.messages import L_GOODBYE, L_HELLO, L_PING, L_PONG, L_UNKNOWN
from p2pgrid.core.wire import FRAME_MAX_CONTROL, FRAME_MAX_LOCAL, VERSION, Frame, Splitter, frame
from p2pgrid.node.net.bulk import Bulk
from p2pgrid.node.net.membership import close_quietly
from p2pgrid.node.net.pacing import FLOOD_S, WINDOW_MIN, Bucket
from p2pgrid.node.net.tcp import remote_address, unacknowledged_bytes

CONTROL = TProtocol("/p2pgrid/control/1.0.0")
BULK = TProtocol("/p2pgrid/bulk/1.0.0")
NEGOTIATION_S = 5
PARTING_S = 0.5
"""For a goodbye to be written, and for the peer to hang up on it."""
RETIRING_S = 10.0
"""A connection that another one replaces is not waited for when nothing has come or gone on it for so long."""
READ_BYTES = 16 << 10
"""Decoded at once: 1,800 of the smallest frames, a few milliseconds."""
BULK_READ_BYTES = 256 << 10
LOT = 64
"""Frames handed over before others get their turn."""
PINGS_MAX = 64
"""PINGs whose PONG is still awaited; who answers none is dropped by TCP, Yamux or the grid's own heartbeats."""
PINGS_DUE_MAX = 1000
"""So many PINGs may come late behind the bulk that they are for."""
WHY_MAX = 200

T = TypeVar("T")


class Ending(Enum):
    LOST = auto()  # it broke, or the peer went without a word
    GOODBYE = auto()  # the peer said so
    DROPPED = auto()  # we do not want it
    BROKE = auto()  # the peer broke the protocol or does not keep up: dropped, and logged
    REPLACED = auto()  # another connection with the same peer stays


@dataclass(frozen=True)
class LinkOptions:
    """The limits of a link."""

    control_bytes_max: int = 4 << 20
    """Unsent; at 64 KiB per frame at most. A peer that is so far behind is of no use to its neighbours."""
    bulk_bytes_max: int = 1 << 30
    introduction_s: float = 5.0
    frames_per_s: float = 5000
    frames_burst: float = 20_000
    flood_s: float = FLOOD_S
    frame_max: Callable[[str, Any], int] = lambda _peer, _member: FRAME_MAX_LOCAL
    """How long a frame may be that a peer sends in bulk, by its id and what admission said of it."""


class Owner(Protocol):
    """What a link needs from `Links`."""

    def hello(self) -> list[bytes]: ...
    def ready(self, link: Link) -> None: ...
    def parting(self, link: Link) -> None: ...
    def over(self, link: Link) -> None: ...
    def deliver(self, link: Link, kind: int, body: Any) -> None: ...
    def not_known(self, link: Link, version: int, kind: int) -> None: ...
    def not_known_there(self, link: Link, version: int, kind: int) -> None: ...


class Cut(Exception):
    """A stream or connection is no more."""


async def through(call: Awaitable[T]) -> T:
    """Translate whatever the library raises, once, at the border."""
    try:
        return await call
    except StreamEOF as error:
        raise Cut("the peer closed the stream") from error
    except Exception as error:
        raise Cut(f"{type(error).__name__} {error}".strip()) from error


class Link:
    """One connection with a peer.

    Attributes:
        dialler: PeerId of the side that dialled.
        hello: what the peer said of itself; `card` is a `core.member.Card`.
        settled: it is ready, or it has ended.
        parted: the peer has said that another connection replaces this one.
        emptied: it has, and every bulk frame that it sent before has been handed over.
        writes: of the control stream, ever.
    """

    def __init__(self, host: IHost, connection: INetConn, owner: Owner, options: LinkOptions) -> None:
        self.connection = connection
        self.peer = str(connection.muxed_conn.peer_id)
        self.dialler = str(host.get_id()) if connection.muxed_conn.is_initiator else self.peer
        self.address = remote_address(connection.muxed_conn.secured_conn)
        self.since = trio.current_time()
        self.hello: dict[str, Any] = {}
        self.ending: Ending | None = None
        self.why = ""
        self.member: Any = None
        self.is_ready = False
        self.is_closed = False
        self.is_accounted = False
        self.is_retiring = False
        self.settled = trio.Event()
        self.ended = trio.Event()
        self.parted = trio.Event()
        self.emptied = trio.Event()
        self.rtt_s = 0.0
        self.writes = 0
        self.sent = 0
        self.received = 0
        self.bulk = Bulk(self.ping, partial(unacknowledged_bytes, connection.muxed_conn.secured_conn))
        self._host = host
        self._owner = owner
        self._options = options
        self._goodbye: str | None = None
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._due = trio.Event()
        self._stands = False
        self._accepted: dict[TProtocol, INetStream] = {}
        self._came = trio.Event()
        self._bulk_started = False
        self._bulk_sent = self._bulk_taken = self._bulk_owed = 0  # frames
        self._bytes_read = 0
        self._nursery: trio.Nursery | None = None
        self._bucket = Bucket(self.since, options.frames_per_s, options.frames_burst, options.flood_s)
        self._pings_due = 0  # PINGs that bulk has paid for
        self._pings_free = 0  # of those that were taken
        self._seq = 0
        self._pings: dict[int, tuple[float, int, bool, trio.Event]] = {}

    @property
    def life(self) -> bytes:
        return bytes(self.hello["card"].life)

    @property
    def queued_bytes(self) -> int:
        return self._queued_bytes + self.bulk.queued_bytes

    # ---- what others ask of it, at once ------------------------------------------------------------------------------

    def send(self, *pieces: bytes | memoryview) -> None:
        """Queue one encoded frame, whichever stream it belongs on."""
        if self.ending is not None:
            return
        self.sent += 1
        if sum(map(len, pieces)) - 4 > FRAME_MAX_CONTROL:
            for piece in pieces:
                self.bulk.put(piece)
            self._bulk_sent += 1
            self._start_bulk()
        else:
            data = b"".join(pieces)
            self._queue.append(data)
            self._queued_bytes += len(data)
        if (
            self._queued_bytes > self._options.control_bytes_max
            or self.bulk.queued_bytes > self._options.bulk_bytes_max
        ):
            self.end(Ending.BROKE, f"it is too slow: {self.queued_bytes >> 10} KiB unsent")

    def flush(self) -> None:
        """Let the writer take all that is queued."""
        if self._queue:
            self._due.set()

    def ping(self) -> trio.Event:
        """Measure the round trip; return what is set when the answer is here."""
        answered = trio.Event()
        self._seq += 1
        if len(self._pings) >= PINGS_MAX:
            del self._pings[next(iter(self._pings))]
        self._pings[self._seq] = trio.current_time(), self.bulk.written, self.bulk.under_way == 0, answered
        self._urge(frame(L_PING, [self._seq]))
        return answered

    def refuse(self, version: int, kind: int) -> None:
        """Tell the peer that we do not know such frames."""
        self._urge(frame(L_UNKNOWN, [version, kind]))

    async def answers(self) -> None:
        """Return when the peer has answered on this connection, or the connection has ended."""
        answered = self.ping()
        async with trio.open_nursery() as nursery:

            async def first(event: trio.Event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(first, answered)
            nursery.start_soon(first, self.ended)

    def accept(self, protocol: TProtocol, stream: INetStream) -> None:
        """Take in a stream that the peer has opened."""
        if protocol in self._accepted:
            self.end(Ending.BROKE, f"a second stream {protocol}")
            return
        self._accepted[protocol] = stream
        if protocol == CONTROL:
            self._came.set()
        elif self._nursery is not None and self.ending is None:
            self._nursery.start_soon(self._guarded, self._read_bulk, stream)

    def retire(self) -> None:
        """Leave to another connection what comes from now on, and end when the peer has done so, too."""
        if not self.is_retiring and self.ending is None and self._nursery is not None:
            self.is_retiring = True
            self._nursery.start_soon(self._retire)

    def end(self, ending: Ending, why: str, goodbye: str | None = None) -> None:
        """End it, for the first reason given; a goodbye is still written, after what is queued."""
        if self.ending is None:
            self.ending, self.why, self._goodbye = ending, why, goodbye
            self.settled.set()
            self.ended.set()
            self.bulk.stop()

    # ---- its life ----------------------------------------------------------------------------------------------------

    async def converse(self) -> None:
        """Run it to its end; the connection is closed then."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._guarded, self._write_control)
                nursery.start_soon(self._guarded, self._read_control)
                if BULK in self._accepted:
                    nursery.start_soon(self._guarded, self._read_bulk, self._accepted[BULK])
                await self.ended.wait()
                if self._goodbye is not None:
                    self._urge(frame(L_GOODBYE, [self._goodbye]))
                    self._owner.over(self)
                    with trio.move_on_after(PARTING_S):
                        await self.connection.event_closed.wait()
                nursery.cancel_scope.cancel()
        finally:
            self.ended.set()
            self.settled.set()
            self.bulk.stop()
            await self._hang_up()
            self.is_closed = True
        self._owner.over(self)
        await close_quietly(self.connection)  # takes 0.2 s, for nothing that concerns us

    async def _hang_up(self) -> None:
        """Close the connection itself; return when dialling no longer finds it."""
        await close_quietly(self.connection.muxed_conn.secured_conn)
        with trio.move_on_after(PARTING_S):
            await self.connection.event_closed.wait()

    async def _guarded(self, task: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Run a part of it; whatever the peer or the network does ends the link and nothing else."""
        try:
            await task(*arguments)
        except Cut as error:
            self.end(Ending.LOST, str(error))
        except PeerError as error:
            self.end(Ending.BROKE, str(error), goodbye="dropped")

    async def _retire(self) -> None:
        """Say that nothing more comes, and how much that is; who said so first hangs up, when he has all of the other.

        What is on its way when a connection is closed may be lost. So nobody closes who is still owed something, and
        the goodbye that answers another says that all has arrived.
        """
        if await self._patiently(self.bulk.drained):
            is_answer = self.parted.is_set()
            if not is_answer or await self._patiently(self.emptied.wait):
                self._urge(frame(L_GOODBYE, ["replaced", self._bulk_sent]))
                await self._patiently(self.ended.wait if is_answer else self.emptied.wait)
        self.end(Ending.REPLACED, "replaced")

    async def _patiently(self, wait: Callable[[], Awaitable[None]]) -> bool:
        """Wait as long as there is any progress; say whether that was enough."""
        while True:
            before = self._bytes_read, self.bulk.written, self._queued_bytes
            with trio.move_on_after(RETIRING_S):
                await wait()
                return True
            if before == (self._bytes_read, self.bulk.written, self._queued_bytes):
                return False

    # ---- writing -----------------------------------------------------------------------------------------------------

    def _urge(self, data: bytes) -> None:
        self._queue.append(data)
        self._queued_bytes += len(data)
        self._due.set()

    async def _open(self, protocol: TProtocol) -> INetStream:
        """Open a stream on this connection; the host's own way takes whichever connection there is."""

        async def opened() -> INetStream:
            stream = await self.connection.new_stream()
            negotiation = MultiselectCommunicator(stream)
            await self._host.multiselect_client.select_one_of([protocol], negotiation, NEGOTIATION_S)
            stream.set_protocol(protocol)
            return stream

        return await through(opened())

    async def _write_control(self) -> None:
        stream = await self._open(CONTROL)
        await through(stream.write(b"".join(self._owner.hello())))
        self._stands = True
        self._introduced()
        while True:
            await self._due.wait()
            self._due = trio.Event()
            data = b"".join(self._queue)
            self._queue.clear()
            self.writes += 1
            await through(stream.write(data))
            self._queued_bytes -= len(data)

    def _start_bulk(self) -> None:
        if not self._bulk_started and self._nursery is not None:
            self._bulk_started = True
            self._nursery.start_soon(self._guarded, self._write_bulk)

    async def _write_bulk(self) -> None:
        stream = await self._open(BULK)
        await self.bulk.write_all(lambda view: through(stream.write(view)))

    # ---- reading -----------------------------------------------------------------------------------------------------

    def _introduced(self) -> None:
        if self._stands and self.hello and not self.is_ready and self.ending is None:
            self.is_ready = True
            self._owner.ready(self)
            self.settled.set()

    async def _read_control(self) -> None:
        splitter = Splitter(FRAME_MAX_CONTROL)
        frames: list[Frame] = []
        with trio.move_on_after(self._options.introduction_s) as patience:
            await self._came.wait()
            stream = self._accepted[CONTROL]
            while not frames:
                frames = splitter.feed(await self._some(stream, READ_BYTES))
            self.hello = read_hello(frames.pop(0))
            self._introduced()
            if not self.is_ready:
                await self.settled.wait()
        if patience.cancelled_caught:
            self.end(Ending.LOST, f"no introduction within {self._options.introduction_s:.0f} s")
            return
        while True:
            await self._take(frames)
            frames = splitter.feed(await self._some(stream, READ_BYTES))

    async def _read_bulk(self, stream: INetStream) -> None:
        splitter = Splitter(FRAME_MAX_CONTROL)
        await self.settled.wait()
        while True:
            data = await self._some(stream, BULK_READ_BYTES)
            if self.member is not None:
                splitter.limit = self._options.frame_max(self.peer, self.member)
            self._pings_due = min(self._pings_due + 1 + len(data) // WINDOW_MIN, PINGS_DUE_MAX)
            at = 0
            while at < len(data):
                part = data[at : at + max(READ_BYTES, splitter.missing)]
                at += len(part)
                if frames := splitter.feed(part):
                    await self._take(frames)
                    self._bulk_taken += len(frames)
                    self._weigh()

    async def _some(self, stream: INetStream, size: int) -> bytes:
        data: bytes = await through(stream.read(size))
        if not data:
            raise Cut("the peer closed the stream")
        self._bytes_read += len(data)
        return data

    async def _take(self, frames: Sequence[Frame]) -> None:
        """Hand frames over; who sends more than his share is read more slowly.

        The PINGs that pace bulk are no part of it: a slow PONG makes the window smaller, and then there are more PINGs.
        """
        for at in range(0, len(frames), LOT):
            for each in frames[at : at + LOT]:
                if self.ending is not None:
                    return
                self.received += 1
                self._heard(each)
            await trio.lowlevel.checkpoint()
        free, self._pings_free = self._pings_free, 0
        if wait_s := self._bucket.take(max(len(frames) - free, 0), trio.current_time()):
            await trio.sleep(wait_s)

    def _heard(self, heard: Frame) -> None:
        if heard.kind == L_UNKNOWN:  # of whatever version: two that answer it to each other would never end
            self._owner.not_known_there(self, *_version_and_kind(heard.body))
        elif heard.version != VERSION:
            self._owner.not_known(self, heard.version, heard.kind)
        elif heard.kind == L_PING:
            if self._pings_due:
                self._pings_due -= 1
                self._pings_free += 1
            self._urge(frame(L_PONG, [_seq(heard.body)]))
            if self._queued_bytes > self._options.control_bytes_max:
                raise PeerError("it asks and does not read the answers")
        elif heard.kind == L_PONG:
            self._ponged(_seq(heard.body))
        elif heard.kind == L_GOODBYE:
            self._goodbye_heard(*_why(heard.body))
        else:
            self._owner.deliver(self, heard.kind, heard.body)

    def _ponged(self, seq: int) -> None:
        if (asked := self._pings.pop(seq, None)) is None:
            return
        sent_at, written, alone, answered = asked
        self.rtt_s = max(trio.current_time() - sent_at, 1e-6)
        self.bulk.acknowledged(written, self.rtt_s, sent_at, alone=alone)
        answered.set()

    def _goodbye_heard(self, why: str, bulk_owed: int) -> None:
        if why != "replaced":
            self.end(Ending.GOODBYE, why)
            return
        self._bulk_owed = bulk_owed
        self.parted.set()
        self._weigh()
        self._owner.parting(self)

    def _weigh(self) -> None:
        if self.parted.is_set() and self._bulk_taken >= self._bulk_owed:
            self.emptied.set()


def read_hello(first: Frame) -> dict[str, Any]:
    """Return the body of a HELLO with its card read. Raises PeerError for anything else."""
    if first.kind != L_HELLO or not isinstance(first.body, dict) or not isinstance(first.body.get("v"), int):
        raise PeerError("no HELLO at the beginning")
    return {**first.body, "card": read_card(first.body.get("card"))}


def _seq(body: Any) -> int:
    if not isinstance(body, list) or not body or type(body[0]) is not int or not 0 <= body[0] < 1 << 53:
        raise PeerError("a malformed PING or PONG")
    return body[0]


def _version_and_kind(body: Any) -> tuple[int, int]:
    if not isinstance(body, list) or len(body) <= 1 or type(body[0]) is not int or type(body[1]) is not int:
        raise PeerError("a malformed UNKNOWN")
    return body[0], body[1]


def _why(body: Any) -> tuple[str, int]:
    """Return why, and how many bulk frames were sent before."""
    if not isinstance(body, list) or not body or not isinstance(body[0], str) or len(body[0]) > WHY_MAX:
        raise PeerError("a malformed GOODBYE")
    count = body[1] if len(body) > 1 else 0
    if type(count) is not int:
        raise PeerError("a malformed GOODBYE")
    return body[0], count
