"""The hands of the policies for objects, on a real arena: what happens when the machine runs short of memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import trio

from p2pgrid.node.hands import PRESSURE_S, Hands
from p2pgrid.node.object_events import Key

MIB = 1024 * 1024
MINE = ("session", b"mine")


def with_hands(folder: Path, do: Callable[[Hands], Awaitable[None]]) -> None:
    """Run something with the objects of a node of 4 GiB that knows nobody."""

    async def main() -> None:
        config: Any = SimpleNamespace(dir=folder, quota=64 * MIB, ram=4096 * MIB)
        async with trio.open_nursery() as nursery:
            await do(Hands(config, "me", cast("Any", SimpleNamespace(members={}, links=None)), nursery, print))
            nursery.cancel_scope.cancel()

    trio.run(main)


async def written(hands: Hands, key: Key, size: int) -> None:
    """Have an object in memory."""
    placed = trio.Event()
    hands.on_placed = lambda _: placed.set()
    hands.perform(hands.shelf.admit(key, size, MINE, 0.0))
    await placed.wait()
    for at in range(0, size, MIB):
        hands.arena.write(key, at, bytes(key[:1]) * min(MIB, size - at))
    hands.perform(hands.shelf.written(key))


def test_a_machine_short_of_memory_gets_it_back(tmp_path: Path) -> None:
    """What is needed goes to disk, what is not goes, what is looked at stays."""

    async def do(hands: Hands) -> None:
        for name in (b"needed", b"spare", b"mapped"):
            await written(hands, name, 4 * MIB)
        hands.shelf.unpin(b"spare", MINE)
        hands.shelf.map(b"mapped", 7)
        before = hands.arena.resident_bytes()
        with trio.fail_after(30):
            while hands.shelf.items[b"needed"].memory:
                await hands.relieve(64 * MIB)
                await trio.lowlevel.checkpoint()
            await hands.relieve(64 * MIB)

        assert b"spare" not in hands.shelf.items
        assert hands.shelf.items[b"needed"].disk
        assert hands.shelf.items[b"mapped"].memory
        assert hands.arena.resident_bytes() <= before - 8 * MIB

    with_hands(tmp_path, do)


def test_memory_is_watched_as_long_as_objects_use_some(tmp_path: Path) -> None:
    """And warming stops where it is short."""

    async def do(hands: Hands) -> None:
        await written(hands, b"spare", 4 * MIB)
        hands.shelf.unpin(b"spare", MINE)
        hands.available = lambda: 0
        hands.warm()
        with trio.fail_after(10 * PRESSURE_S):
            while b"spare" in hands.shelf.items:
                await trio.lowlevel.checkpoint()

    with_hands(tmp_path, do)
