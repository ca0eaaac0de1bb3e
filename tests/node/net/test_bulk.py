"""Bulk as its writer sees it: every byte in order, in slices that run across frames, and who waits is woken."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import trio
import trio.testing

from p2pgrid.node.net.bulk import SLICE_BYTES, Bulk

WITHIN_S = 60.0


class Peer:
    """Acknowledges what was written; keeps what it was sent."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.bulk = Bulk(self._ping, lambda: 0)
        self.written: list[bytes] = []

    def _ping(self) -> None:
        self.nursery.start_soon(self._pong, self.bulk.written, self.bulk.under_way == 0)

    async def _pong(self, written: int, alone: bool) -> None:  # noqa: FBT001 - started with it
        await trio.lowlevel.checkpoint()
        self.bulk.acknowledged(written, 0.001, trio.current_time(), alone=alone)

    async def write(self, view: memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self.written.append(bytes(view))


def talk(about: Callable[[Peer], Awaitable[None]]) -> Peer:
    async def main() -> Peer:
        with trio.fail_after(WITHIN_S):
            async with trio.open_nursery() as nursery:
                peer = Peer(nursery)
                nursery.start_soon(peer.bulk.write_all, peer.write)
                await about(peer)
                nursery.cancel_scope.cancel()
        return peer

    return trio.run(main)


def test_slices_are_full_whatever_the_frames_are() -> None:
    """As large as the window lets them be; a frame of a piece and a bit would else cost a write for the bit."""
    rng = random.Random(1)
    sizes = [rng.choice([1, 50, 70_000, 262_200, 1_000_000]) for _ in range(60)]
    frames = [rng.randbytes(size) for size in sizes]

    async def about(peer: Peer) -> None:
        peer.bulk.window.bytes = 4 << 20
        for data in frames:
            peer.bulk.put(memoryview(data))
        await peer.bulk.drained()

    peer = talk(about)

    assert b"".join(peer.written) == b"".join(frames)
    assert {len(each) for each in peer.written[:-1]} == {SLICE_BYTES}
    assert peer.bulk.queued_bytes == 0


def test_who_waits_for_room_is_woken_by_each_slice_and_by_the_end() -> None:
    left: list[int] = []

    async def about(peer: Peer) -> None:
        peer.bulk.put(bytes(3 * SLICE_BYTES))
        while peer.bulk.queued_bytes:
            left.append(peer.bulk.queued_bytes)
            await peer.bulk.left()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(peer.bulk.left)
            await trio.testing.wait_all_tasks_blocked()
            peer.bulk.stop()

    talk(about)

    assert left == sorted(left, reverse=True)
    assert len(left) > 1
