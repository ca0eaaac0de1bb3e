"""What a LAN tells and what is made of it; the air is a list here, nothing is sent anywhere."""

from __future__ import annotations

import threading
from collections.abc import Callable
from ipaddress import ip_network

import pytest
import trio
import trio.testing

from p2pgrid.node import lan as lan_module
from p2pgrid.node.lan import FOUND_MAX, Found, Heard, Lan, Notice, read, tag_of

OURS, THEIRS = bytes(32), bytes([1] * 32)
ME = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"
WAIT_S = 60.0


def peer(number: int) -> str:
    return f"{ME[:-4]}{1111 + number}".replace("0", "x")


def notice(grid: bytes = OURS, host: str = "10.1.2.3", name: str = "blue-otter") -> Notice:
    return Notice(tag_of(grid), name, 9471, (host,))


class Fake:
    """An air whose notices a test hands out."""

    def __init__(self, _me: str, heard: Heard) -> None:
        self.hear = heard
        self.said: list[Notice] = []
        self.fails: Exception | None = None
        self.is_closed = False

    def say(self, notice: Notice) -> None:
        assert threading.current_thread() is not threading.main_thread()
        if self.fails:
            raise self.fails
        self.said.append(notice)

    def close(self) -> None:
        self.is_closed = True


class World:
    """A running `Lan`."""

    def __init__(self) -> None:
        self.heard: list[Found] = []
        self.warned: list[str] = []
        self.air: Fake
        self.lan = Lan(ME, self.heard.append, self.warned.append, self._make)

    def _make(self, me: str, heard: Heard) -> Fake:
        self.air = Fake(me, heard)
        return self.air

    async def until(self, so: Callable[[], object]) -> None:
        with trio.fail_after(WAIT_S):
            while not so():  # noqa: ASYNC110 - a test's way to wait
                await trio.sleep(0.001)


def run(story: Callable[[World], object], monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(lan_module, "networks", lambda: [ip_network("10.0.0.0/8")])
    world = World()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.lan.run)
            await trio.testing.wait_all_tasks_blocked()
            await story(world)  # type: ignore[misc]
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert world.air.is_closed
    return world


def test_it_hears_of_members_and_of_other_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        world.lan.announce(notice())
        await world.until(lambda: world.air.said == [notice()])
        for found in (Found(ME, notice()), Found(peer(1), notice()), Found(peer(2), notice(THEIRS, name="red-fox"))):
            threading.Thread(target=world.air.hear, args=[found]).start()
        await world.until(lambda: len(world.heard) == 2)
        world.air.hear(Found(peer(1), notice()))  # said again, nothing new
        world.air.hear(Found(peer(3), notice(host="192.0.2.1")))  # on no network of ours
        await world.until(lambda: peer(3) in world.lan.found)

        assert world.lan.members(OURS) == [f"/ip4/10.1.2.3/tcp/9471/p2p/{peer(1)}"]
        assert world.lan.others(OURS) == ["red-fox"]
        world.air.hear(Found(peer(1), None))
        await world.until(lambda: peer(1) not in world.lan.found)
        assert world.lan.members(OURS) == []
        assert len(world.heard) == 4

    run(story, monkeypatch)


def test_what_it_remembers_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        for number in range(2 * FOUND_MAX):
            world.air.hear(Found(f"{ME[:-5]}{number:05}".replace("0", "x"), notice()))
            if number % 100 == 0:
                await trio.testing.wait_all_tasks_blocked()
        await world.until(lambda: len(world.heard) == 2 * FOUND_MAX)
        assert len(world.lan.found) == FOUND_MAX

    run(story, monkeypatch)


def test_without_mdns_the_node_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """It warns once, and tries again whenever it is told to announce."""

    async def story(world: World) -> None:
        world.air.fails = OSError("no multicast here")
        for number in range(1, 4):
            world.lan.announce(notice())
            await world.until(lambda number=number: world.lan._notice is None and len(world.warned) == min(number, 1))  # type: ignore[misc]
        world.air.fails = None
        world.lan.announce(notice())
        await world.until(lambda: world.air.said == [notice()])
        assert len(world.warned) == 1

    run(story, monkeypatch)


@pytest.mark.parametrize(
    ("tag", "name", "port"),
    [
        ("", "blue-otter", 1),
        ("00" * 15, "blue-otter", 1),
        ("zz" * 16, "blue-otter", 1),
        ("00" * 16, "\x1b[31mred", 1),
        ("00" * 16, "blue-otter\n", 1),
        ("00" * 16, "x" * 500, 1),
        ("00" * 16, "blue-otter", 0),
        ("00" * 16, "blue-otter", None),
    ],
)
def test_what_is_no_record_of_ours_is_none(tag: str, name: str, port: int | None) -> None:
    assert read({b"grid": tag.encode(), b"name": name.encode()}, port, ["10.1.2.3"]) is None


def test_addresses_are_read_as_far_as_they_are_any() -> None:
    said = read({b"grid": b"00" * 16, b"name": b"blue-otter", b"v": None}, 1, ["10.1.2.3", "nonsense", "fe80::1%eth0"])
    assert said == Notice("00" * 16, "blue-otter", 1, ("10.1.2.3", "fe80::1"))
