"""Redialling in scripted time: when a network heals, nobody waits for the end of a pause that has grown meanwhile."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import pytest
import trio
import trio.testing
from libp2p.abc import IHost, INetConn
from libp2p.peer.id import ID

from p2pgrid.core.chains import Reason
from p2pgrid.node.net import dialling
from p2pgrid.node.net.control import Link
from p2pgrid.node.net.dial import NoConnection
from p2pgrid.node.net.dialling import ANEW_PAUSE_S, Dialling, Peer
from p2pgrid.node.net.pacing import BACKOFF_MAX_S
from tests.node.net.grids import make

CUT_S = 300.0
"""Long enough for every pause to have grown to its end."""


class Net:
    """Peers that answer once their part of the network is whole, and what dialling them came to."""

    def __init__(self, count: int, seed: int) -> None:
        self.peers = [Peer(str(make().host.get_id()), wanted=True) for _ in range(count)]
        self.whole: set[str] = set()
        self.refusing: set[str] = set()
        self.dialled: defaultdict[str, list[float]] = defaultdict(list)
        self.up: dict[str, float] = {}
        self.dialling = Dialling(cast("IHost", None), self, lambda _: None, random.Random(seed))

    async def dial_any(self, host: IHost, peer_id: ID, addresses: Sequence[object]) -> INetConn:
        """What stands in for `dial.dial_any`: it takes 3 s to hear from nobody, as ARP does."""
        peer = str(peer_id)
        self.dialled[peer].append(trio.current_time())
        if peer in self.refusing:
            error = NoConnection(peer_id, [])
            error.refused = Reason.REVOKED
            raise error
        if peer not in self.whole:
            await trio.sleep(3)
            raise NoConnection(peer_id, [OSError("no route to host")])
        await trio.sleep(0.01)
        (known,) = (each for each in self.peers if each.id == peer)
        self.answers(known)
        return cast("INetConn", None)

    def answers(self, peer: Peer) -> None:
        """As `Links._tell_up`."""
        was_away = peer.failures > 1
        peer.links.append(cast("Link", object()))
        peer.failures = 0
        peer.prompt.set()
        self.up[peer.id] = trio.current_time()
        if was_away:
            self.dialling.begin_anew(self.peers)

    def link_of(self, connection: INetConn) -> Link | None:
        return None

    def report_down(self, peer: Peer, *, reset: bool) -> None:
        raise AssertionError("nobody was up")

    def forget(self, peer: Peer) -> None:
        pass

    def dials(self, since_s: float) -> int:
        return sum(at >= since_s for times in self.dialled.values() for at in times)


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a story with a net, in time that passes as fast as nothing happens."""

    def play(net: Net, story: Callable[[], Awaitable[Any]]) -> Any:
        monkeypatch.setattr(dialling, "dial_any", net.dial_any)

        async def main() -> Any:
            async with trio.open_nursery() as nursery:
                net.dialling.start(nursery)
                for peer in net.peers:
                    net.dialling.chase(peer)
                told = await story()
                nursery.cancel_scope.cancel()
                return told

        return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

    return play


@pytest.mark.parametrize("seed", range(5))
def test_one_that_answers_again_has_all_others_dialled_soon(play: Callable[..., Any], seed: int) -> None:
    """The whole network heals; the first peer that is reached, by whichever of the two, ends the waiting for all."""
    net = Net(12, seed)

    async def story() -> float:
        await trio.sleep(CUT_S)
        net.whole = {peer.id for peer in net.peers}
        net.answers(net.peers[0])  # it has dialled us
        healed = trio.current_time()
        await trio.sleep(60)
        assert len(net.up) == 12
        return max(net.up.values()) - healed

    assert play(net, story) < 5  # a dial that was under way when the network healed fails after 3 s


@pytest.mark.parametrize("seed", range(5))
def test_the_machines_own_network_comes_back(play: Callable[..., Any], seed: int) -> None:
    net = Net(3, seed)

    async def story() -> float:
        await trio.sleep(CUT_S)
        net.whole = {peer.id for peer in net.peers}
        net.dialling.begin_anew(net.peers)
        healed = trio.current_time()
        await trio.sleep(60)
        return max(net.up.values()) - healed

    assert play(net, story) < 5


def test_without_news_the_pauses_stay_long(play: Callable[..., Any]) -> None:
    net = Net(4, 1)

    async def story() -> int:
        await trio.sleep(CUT_S)
        since = trio.current_time()
        await trio.sleep(600)
        return net.dials(since)

    expected = 4 * 600 / (3 + BACKOFF_MAX_S / 2)  # a dial, and a pause with full jitter
    assert play(net, story) < 1.5 * expected


def test_who_comes_and_goes_has_nobody_dialled_without_end(play: Callable[..., Any]) -> None:
    """One peer is lost and found every second: those who are gone for good are not dialled as often."""
    net = Net(3, 2)

    async def story() -> float:
        await trio.sleep(CUT_S)
        since = trio.current_time()
        for _ in range(120):
            await trio.sleep(1)
            net.dialling.begin_anew(net.peers)
        return net.dials(since) / 3

    assert play(net, story) < 120 / ANEW_PAUSE_S * 4


def test_who_refuses_us_is_not_asked_again_for_that(play: Callable[..., Any]) -> None:
    net = Net(2, 3)
    net.refusing = {peer.id for peer in net.peers}

    async def story() -> int:
        await trio.sleep(CUT_S)
        since = trio.current_time()
        for _ in range(5):
            await trio.sleep(ANEW_PAUSE_S + 1)
            net.dialling.begin_anew(net.peers)
        return net.dials(since)

    assert play(net, story) <= 2 * 2
