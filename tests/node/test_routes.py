"""Hearing that the machine's network has changed: one change is told once, and a stream of them in the end as well."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from p2pgrid.node.routes import SETTLE_MAX_S, SETTLE_S, opened, watch
from tests.system.wires import ROOT, Room, WhyNot

Say = Callable[[], Awaitable[None]]


def heard(story: Callable[[Say], Awaitable[None]]) -> list[float]:
    """Return when changes were told while somebody speaks on the socket, in seconds of scripted time."""

    async def main() -> list[float]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        times: list[float] = []
        begun = trio.current_time()

        async def say() -> None:
            theirs.send(b"a route")

        with theirs:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch, lambda: times.append(trio.current_time() - begun), ours)
                await story(say)
                nursery.cancel_scope.cancel()
        return times

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_one_change_of_many_messages_is_told_once_it_has_settled() -> None:
    async def story(say: Say) -> None:
        for _ in range(10):
            await say()
            await trio.sleep(SETTLE_S / 5)
        await trio.sleep(60)
        await say()
        await trio.sleep(60)

    first, second = heard(story)
    assert SETTLE_S < first <= 2 * SETTLE_S + 10 * SETTLE_S / 5
    assert 60 < second < 65


def test_a_stream_of_messages_is_told_now_and_then() -> None:
    async def story(say: Say) -> None:
        for _ in range(300):
            await say()
            await trio.sleep(0.1)

    times = heard(story)
    assert times
    assert len(times) <= 30 / SETTLE_MAX_S + 1


def test_where_it_cannot_be_heard_nobody_waits() -> None:
    trio.run(watch, lambda: 1 / 0, None)


WATCHER = """
import trio
from p2pgrid.node.routes import opened, watch
source = opened()
assert source is not None, "no netlink socket"
print("watching", flush=True)
trio.run(watch, lambda: print("changed", flush=True), source)
"""


@pytest.mark.slow
def test_the_kernel_tells_of_an_address_and_of_a_link() -> None:
    try:
        with Room() as room:
            words = ["ip", "netns", "exec", room.name, sys.executable, "-c", WATCHER]
            with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
                assert child.stdout is not None
                try:
                    assert child.stdout.readline() == "watching\n"
                    for change in (["addr", "add", "10.99.0.1/24", "dev", "pg0"], ["link", "set", "pg0", "down"]):
                        subprocess.run(["ip", "-n", room.name, *change], check=True)
                        assert child.stdout.readline() == "changed\n"
                finally:
                    child.kill()
    except WhyNot as reason:
        pytest.skip(str(reason))


def test_a_socket_is_had_on_linux() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("netlink is Linux's")
    source = opened()
    if source is None:
        pytest.skip("a sandbox forbids it")
    source.close()
