"""The local socket: who may talk, what is answered, and that nobody's nonsense harms anybody else."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from p2pgrid.core import messages as m
from p2pgrid.core.wire import Frame, Splitter, frame
from p2pgrid.node import local
from p2pgrid.node.events import ClientGone, ClientJoined, ClientSent, Event, Log, Reply
from p2pgrid.node.local import DirectoryLock, LocalServer

HELLO = {"v": 1, "session": b"", "pid": 7, "program": "test"}
DEADLINE_S = 60.0


class World:
    """A server whose machine answers each REQUEST with what `answer` says."""

    def __init__(self, path: Path, answer: Callable[[ClientSent], object] = lambda event: event.body) -> None:
        self.events: list[Event] = []
        self.logs: list[Log] = []
        self._answer = answer
        self._changed = trio.Event()
        self.server = LocalServer(path, self.deliver, self.logs.append)

    def deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            self.events.append(event)
            if isinstance(event, ClientSent):
                self.server.reply(Reply(event.client, m.ANSWER, event.id, self._answer(event)))
        self.server.flush()
        self._changed.set()

    async def until(self, done: Callable[[], bool]) -> None:
        with trio.fail_after(DEADLINE_S):
            while not done():
                self._changed = trio.Event()
                await self._changed.wait()


class Peer:
    """The other side, speaking trio."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._splitter = Splitter()
        self._frames: list[Frame] = []

    @classmethod
    async def connect(cls, world: World, hello: object = HELLO) -> Peer:
        peer = cls(await trio.open_unix_socket(str(world.server.path)))
        if hello is not None:
            await peer.send(m.HELLO, hello)
        return peer

    async def send(self, kind: int, body: object, id_: int = 0) -> None:
        await self.stream.send_all(frame(kind, body, id_))

    async def heard(self) -> Frame | None:
        """Return the next frame, or None at the end."""
        with trio.fail_after(DEADLINE_S):
            while not self._frames:
                try:
                    data = await self.stream.receive_some(1 << 20)
                except trio.BrokenResourceError:
                    return None
                if not data:
                    return None
                self._frames += self._splitter.feed(bytes(data))
        return self._frames.pop(0)


@contextmanager
def listening(world: World) -> Iterator[World]:
    world.server.listen()
    try:
        yield world
    finally:
        world.server.close()


def run(world: World, scene: Callable[[World], object]) -> World:
    """Play a scene against a served socket."""

    async def main() -> None:
        with listening(world):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(world.server.serve)
                await scene(world)  # type: ignore[misc]
                nursery.cancel_scope.cancel()

    trio.run(main)
    return world


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "run" / "s")


def test_a_client_joins_asks_and_leaves(world: World) -> None:
    """HELLO, a request, its answer, GOODBYE: four events."""

    async def scene(world: World) -> None:
        peer = await Peer.connect(world, {**HELLO, "session": b"s" * 16})
        await peer.send(m.REQUEST, ["jobs", {}], 5)
        answer = await peer.heard()
        await peer.send(m.GOODBYE, [])
        end = await peer.heard()
        await world.until(lambda: len(world.events) == 3)

        assert answer == Frame(1, m.ANSWER, 5, ["jobs", {}])
        assert end is None

    run(world, scene)

    assert world.events == [
        ClientJoined(1, b"s" * 16, "test", 7),
        ClientSent(1, m.REQUEST, 5, ["jobs", {}]),
        ClientGone(1, goodbye=True),
    ]


def test_frames_of_one_send_are_delivered_together(world: World) -> None:
    """HELLO may travel with what follows it, and a frame in pieces."""

    async def scene(world: World) -> None:
        peer = await Peer.connect(world, None)
        data = frame(m.HELLO, HELLO) + b"".join(frame(m.REQUEST, [i], i + 1) for i in range(3))
        await peer.stream.send_all(data[:-2])
        await world.until(lambda: len(world.events) == 3)
        await peer.stream.send_all(data[-2:])
        answers = [await peer.heard() for _ in range(3)]

        assert answers == [Frame(1, m.ANSWER, i + 1, [i]) for i in range(3)]

    run(world, scene)


def test_a_client_that_vanishes_did_not_say_goodbye(world: World) -> None:
    """The machine gives such a one time to come back."""

    async def scene(world: World) -> None:
        peer = await Peer.connect(world)
        await world.until(lambda: len(world.events) == 1)
        await peer.stream.aclose()
        await world.until(lambda: len(world.events) == 2)

    run(world, scene)

    assert world.events[-1] == ClientGone(1, goodbye=False)


NONSENSE = {
    "text": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "too long": struct.pack(">I", 1 << 31),
    "not msgpack": struct.pack(">I", 4) + b"\xc1\xc1\xc1\xc1",
    "not a frame": struct.pack(">I", 1) + b"\x90",
    "no HELLO": frame(m.REQUEST, ["jobs", {}], 1),
    "HELLO without session": frame(m.HELLO, {"v": 1}),
    "short session": frame(m.HELLO, {**HELLO, "session": b"abc"}),
    "then garbage": frame(m.HELLO, HELLO) + b"\xff" * 100,
}


@pytest.mark.parametrize("data", NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_costs_its_sender_the_connection(world: World, data: bytes) -> None:
    """One line in the log, one in the count; the next client is served."""

    async def scene(world: World) -> None:
        bad = await Peer.connect(world, None)
        await bad.stream.send_all(data)

        assert await bad.heard() is None
        good = await Peer.connect(world)
        await good.send(m.REQUEST, ["jobs", {}], 1)

        assert await good.heard() == Frame(1, m.ANSWER, 1, ["jobs", {}])

    run(world, scene)

    assert (world.server.refused, len(world.logs)) == (1, 1)


def test_another_version_is_told_so(world: World) -> None:
    """A typed refusal, not only a closed door."""

    async def scene(world: World) -> None:
        peer = await Peer.connect(world, {**HELLO, "v": 2})
        refusal = await peer.heard()

        assert refusal is not None
        assert (refusal.kind, refusal.body["code"]) == (m.ERROR, "version-mismatch")
        assert await peer.heard() is None

    run(world, scene)

    assert world.events == []


def test_silence_is_not_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever connects and says nothing loses the connection."""
    monkeypatch.setattr(local, "HELLO_WITHIN_S", 0.01)

    async def scene(world: World) -> None:
        peer = await Peer.connect(world, None)

        assert await peer.heard() is None

    run(world, scene)

    assert "did not say HELLO" in world.logs[0].text


def test_a_large_answer_arrives_whole(tmp_path: Path) -> None:
    """What the socket does not take at once follows, in order."""
    blob = os.urandom(20_000_000)
    world = World(tmp_path / "run" / "s", lambda event: blob if event.id == 1 else event.id)

    async def scene(world: World) -> None:
        peer = await Peer.connect(world)
        for i in range(1, 4):
            await peer.send(m.REQUEST, [], i)
        answers = [await peer.heard() for _ in range(3)]

        assert [answer and answer.body for answer in answers] == [blob, 2, 3]

    run(world, scene)


def test_a_client_that_does_not_read_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for it is bounded; the others do not notice."""
    monkeypatch.setattr(local, "OUT_BYTES_MAX", 5_000_000)
    world = World(tmp_path / "run" / "s", lambda event: bytes(1_000_000) if event.body else "small")

    async def scene(world: World) -> None:
        greedy, modest = await Peer.connect(world), await Peer.connect(world)
        await greedy.stream.send_all(b"".join(frame(m.REQUEST, ["much"], i) for i in range(10)))
        await world.until(lambda: any(isinstance(event, ClientGone) for event in world.events))
        await modest.send(m.REQUEST, [], 1)

        assert await modest.heard() == Frame(1, m.ANSWER, 1, "small")

    run(world, scene)

    assert "does not read" in world.logs[0].text


def test_a_reply_to_a_client_that_is_gone_is_dropped(world: World) -> None:
    """It may have left between question and answer."""
    world.server.reply(Reply(99, m.ANSWER, 1, {}))
    world.server.flush()

    assert world.logs == []


def test_the_socket_is_for_this_user_alone(world: World) -> None:
    """Mode 0600 in a folder of mode 0700."""
    with listening(world):
        path = world.server.path

        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert not path.exists()


def test_another_user_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the modes say: the kernel tells who it is."""
    monkeypatch.setattr(local, "_stranger", lambda _sock: 4711)

    async def scene(world: World) -> None:
        peer = await Peer.connect(world, None)

        assert await peer.heard() is None

    run(world, scene)

    assert world.logs[0].text.endswith("it runs as user 4711")


def test_a_stale_socket_is_replaced(world: World) -> None:
    """A node that was killed leaves its socket file."""
    path = world.server.path
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    async def scene(world: World) -> None:
        peer = await Peer.connect(world)
        await peer.send(m.REQUEST, [], 1)

        assert await peer.heard() is not None

    run(world, scene)


def test_one_node_per_directory(tmp_path: Path) -> None:
    """The second is told who holds it; when that ends, the directory is free."""
    first, second = DirectoryLock(tmp_path), DirectoryLock(tmp_path)

    assert first.take()
    assert not second.take()
    assert f"(pid {os.getpid()})" in second.in_use().message
    first.release()
    assert second.take()
    second.release()
