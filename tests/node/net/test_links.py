"""Links between real hosts on loopback: what two nodes say to each other, and how they lose and find each other."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.network.stream.exceptions import StreamError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from multiaddr import Multiaddr

from p2pgrid.core.errors import PeerError
from p2pgrid.core.messages import L_PING, L_UNKNOWN
from p2pgrid.core.wire import FRAME_MAX_CONTROL, frame, pack
from p2pgrid.node.net import dialling
from p2pgrid.node.net.control import CONTROL
from p2pgrid.node.net.links import NoConnection
from p2pgrid.node.net.unknown import FLOOD_FRAMES, Unknown
from p2pgrid.node.network import Network
from tests.node.net.grids import Node, hold, make, run, silent
from tests.node.net.linked import NEWS, Linked, both_up, grid, happens, linked

pytestmark = pytest.mark.slow


async def open_control(node: Node, to: Linked) -> INetStream:
    """Open a control stream as a node would; what is written on it is up to the test."""
    connection = await node.dial(to.node)
    stream = await connection.new_stream()
    await node.host.multiselect_client.select_one_of([CONTROL], MultiselectCommunicator(stream), 5)
    return stream


# ---- saying hello, and talking --------------------------------------------------------------------------------------


def test_both_learn_who_the_other_is() -> None:
    """The hello of each arrives, its card read, and so does what admission said of it."""

    async def meet() -> tuple[Linked, Linked]:
        a, b = linked(life=b"life of a"[:8]), linked()
        async with grid(a, b):
            await both_up(a, b)
            assert a.links.peers() == [b.id]
        return a, b

    a, b = run(meet)

    assert a.told.events == [("up", b.id)]
    assert b.told.events == [("up", a.id)]
    assert b.told.hellos[a.id]["card"].life == b"life of "


def test_frames_arrive_in_order_and_those_of_one_turn_in_one_write() -> None:
    async def talk() -> tuple[int, list[Any]]:
        a, b = linked(), linked()
        async with grid(a, b):
            await both_up(a, b)
            await happens(lambda: a.links.stats()["peers"][b.id]["rtt_s"] > 0)
            before = a.links.stats()["peers"][b.id]["writes"]
            for number in range(1000):
                a.links.send(b.id, NEWS, number)
            assert a.links.stats()["peers"][b.id]["queued_bytes"] > 1000
            a.links.flush()
            await happens(lambda: len(b.told.bodies) == 1000)
            return a.links.stats()["peers"][b.id]["writes"] - before, b.told.bodies

    writes, bodies = run(talk)

    assert writes == 1
    assert bodies == list(range(1000))


def test_what_is_said_to_nobody_is_counted() -> None:
    async def talk() -> dict[str, Any]:
        a = linked()
        async with grid(a):
            a.links.send("nobody", NEWS, 1)
            a.links.flush()
            return a.links.stats()

    stats = run(talk)

    assert (stats["sent"], stats["dropped"], stats["peers"]) == (0, 1, {})


def test_over_ipv6() -> None:
    async def talk() -> str:
        a, b = linked(), linked()
        async with grid(a, b, listen=[Multiaddr("/ip6/::1/tcp/0")]):
            await both_up(a, b)
            a.say(b, "hi")
            await happens(lambda: b.told.bodies == ["hi"])
            return str(a.links.stats()["peers"][b.id]["address"])

    try:
        address = run(talk)
    except ExceptionGroup as error:
        if error.subgroup(OSError) is None:
            raise
        pytest.skip("no IPv6 here")

    assert address.startswith("/ip6/::1/tcp/")


def test_somebody_unknown_is_dialled_by_an_address_alone() -> None:
    async def dial() -> str:
        a, b = linked(), linked()
        async with grid(a, b):
            address = f"{b.addresses[0].partition('/p2p')[0]}/p2p/{b.id}"
            assert await a.links.dial(address, 5) == b.id
            assert await a.links.dial(address, 5) == b.id
            for bad in ("nonsense", "/ip4/127.0.0.1/tcp/1", f"/ip4/127.0.0.1/tcp/1/p2p/{a.id}"):
                with pytest.raises(NoConnection):
                    await a.links.dial(bad, 5)
        return str(a.told.words)

    assert run(dial) == "['up']"


# ---- bulk -----------------------------------------------------------------------------------------------------------


def test_large_frames_arrive_whole_and_in_order_and_control_overtakes_them() -> None:
    async def talk() -> tuple[list[int], list[int]]:
        a, b = linked(), linked()
        async with grid(a, b):
            await both_up(a, b)
            sizes = [FRAME_MAX_CONTROL, 300_000, 30_000_000, 300_001]
            for size in sizes:
                a.say(b, bytes(size))
            a.say(b, b"last but first")
            await happens(lambda: len(b.told.bodies) == 5)
            return sizes, [len(body) for body in b.told.bodies]

    sizes, arrived = run(talk)

    assert arrived[0] == len(b"last but first")
    assert arrived[1:] == sizes


def test_who_need_not_send_much_cannot() -> None:
    """A frame that is longer than the roles of its sender allow is refused when its length is read, not its bytes."""

    async def talk() -> tuple[list[int], int, list[str]]:
        seen = []

        def most(peer: str, member: Any) -> int:
            seen.append((peer, member))
            return 400_000

        a, b = linked(), linked(frame_max=most)
        async with grid(a, b):
            await both_up(a, b)
            a.say(b, bytes(300_000))
            await happens(lambda: len(b.told.bodies) == 1)
            (link,) = b.links._links_with(a.id)
            a.say(b, bytes(30_000_000))
            await happens(lambda: "down" in b.told.words)
            assert seen[0] == (a.id, link.member)
        return [len(body) for body in b.told.bodies], link._bytes_read, b.log

    arrived, read, log = run(talk)

    assert arrived == [300_000]
    assert read < 5_000_000
    assert any("more than the 400000 allowed" in line for line in log)


def test_bulk_to_a_peer_that_does_not_read_delays_nobody_else() -> None:
    async def talk() -> int:
        a, b, stuck = linked(bulk_bytes_max=50 << 20), linked(), linked()
        async with grid(a, b, stuck):
            await both_up(a, b)
            await both_up(a, stuck)
            (link,) = stuck.links._links_with(a.id)
            link._bucket._tokens = -1e9  # it reads no more
            a.say(stuck, 1)
            a.say(stuck, bytes(20 << 20))
            for number in range(50):
                a.say(b, number)
                await happens(lambda number=number: number in b.told.bodies)  # type: ignore[misc]
            queued = int(a.links.stats()["peers"][stuck.id]["queued_bytes"])
            a.say(stuck, bytes(40 << 20))
            await happens(lambda: "down" in a.told.words)
            assert a.told.events[-1][:3] == ("down", stuck.id, False)
            assert "too slow" in a.log[0]
        return queued

    assert run(talk) > 10 << 20


def test_a_peer_that_falls_behind_with_control_frames_is_dropped() -> None:
    async def talk() -> list[str]:
        a, b = linked(control_bytes_max=100_000), linked()
        async with grid(a, b):
            await both_up(a, b)
            for _ in range(5):
                a.links.send(b.id, NEWS, bytes(30_000))
            assert not a.links.is_up(b.id)
            await happens(lambda: "down" in a.told.words)
        return a.log

    (line,) = run(talk)

    assert "too slow" in line


# ---- who breaks the rules -------------------------------------------------------------------------------------------

HELLO = linked().links.hello()[0]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"\0\1\0\1" + bytes(70_000), "bytes"),
        (HELLO + b"\0\1\0\1", "more than"),
        (HELLO + b"\0\0\0\4nope", "not msgpack"),
        (HELLO + frame(L_PING, ["x"]), "malformed PING"),
        (HELLO + frame(L_UNKNOWN, ["x"]), "malformed UNKNOWN"),
        (frame(NEWS, 1), "no HELLO"),
        (b"GET / HTTP/1.1\r\n\r\n", "bytes"),
    ],
    ids=[
        "oversized",
        "oversized later",
        "no msgpack",
        "malformed ping",
        "malformed unknown",
        "no hello",
        "another protocol",
    ],
)
def test_a_peer_that_talks_nonsense_is_dropped_and_counted(said: bytes, why: str) -> None:
    """Its connection ends, and one line says why."""

    async def babble() -> Linked:
        a = linked()
        stranger = make()
        stranger.host.set_stream_handler(CONTROL, hold)
        async with grid(a), silent(stranger) as peer:
            stream = await open_control(peer, a)
            with suppress(StreamError):  # it may be hung up on before all is said
                await stream.write(said)
            await happens(lambda: not a.node.connections() and bool(a.log))
        return a

    a = run(babble)

    assert why in a.log[0]
    assert len(a.log) == 1
    assert a.links._refused == 1


def say_of_version(version: int, kind: int) -> bytes:
    data = pack([version, kind, 0, [1, 96]])
    return len(data).to_bytes(4, "big") + data


def test_what_a_later_version_says_is_refused_once_and_costs_it_nothing() -> None:
    """Frames of another version, and of a kind that the listener does not know; never is a refusal refused."""

    async def talk() -> tuple[Linked, Linked]:
        a, b = linked(), linked()

        def unknown(peer: str, kind: int) -> None:
            if kind != NEWS:
                b.links.unknown(peer, kind)

        b.told.unknown = unknown
        async with grid(a, b):
            await both_up(a, b)
            link = a.links._used(b.id)
            assert link is not None
            for said in [say_of_version(2, 300), say_of_version(2, L_UNKNOWN)] * 3:
                link.send(said)
            for _ in range(3):
                a.links.send(b.id, 60_000, None)
            a.links.send(b.id, L_UNKNOWN, [1, 96])
            a.say(b, "after it")
            await happens(lambda: b.told.bodies == ["after it"])
            b.say(a, "so what")
            await happens(lambda: a.told.bodies == ["so what"])
            assert a.told.words == b.told.words == ["up"]
            assert [each.links.stats()["unknown"] for each in (a, b)] == [0, 6]
            assert [each.links.stats()["unknown_to_peers"] for each in (a, b)] == [2, 4]
        return a, b

    a, b = run(talk)

    assert a.log == [f"peer {b.id} does not know frames of version 2, type 300"]
    assert len(b.log) == 2
    assert b.log[0] == f"peer {a.id} sends frames of version 2, type 300: unknown here, ignored"


@pytest.mark.parametrize("kind", [0, 95, 119, 129, 60_000])
def test_a_node_refuses_what_is_no_kind_of_peers_and_drops_nobody(kind: int) -> None:
    asked: list[tuple[str, int]] = []
    links = SimpleNamespace(unknown=lambda *what: asked.append(what))
    node: Any = SimpleNamespace(members={"peer": None}, links=links)

    Network.frame(node, "peer", kind, None)

    assert asked == [("peer", kind)]


def test_who_says_nothing_but_unknown_things_is_dropped() -> None:
    async def flood() -> Linked:
        a, b = linked(), linked()
        async with grid(a, b):
            await both_up(a, b)
            link = a.links._used(b.id)
            assert link is not None
            for _ in range(FLOOD_FRAMES):
                link.send(say_of_version(2, 300))
            a.say(b, "still here")
            await happens(lambda: b.told.bodies == ["still here"])
            link.send(say_of_version(2, 300))
            link.flush()
            await happens(lambda: "down" in a.told.words and "down" in b.told.words)
        return b

    b = run(flood)

    assert "more than 1000 unknown frames" in b.log[-1]
    assert b.links._refused == 1


def test_a_flood_of_unknown_things_is_more_than_a_thousand_in_a_minute() -> None:
    known = Unknown(b"a life..")
    assert sum(known.heard(2, number % 10, number * 0.061) for number in range(10_000)) == 10
    known.born(b"a life..")
    assert not known.heard(2, 0, 700.0)
    known.born(b"another.")
    assert known.heard(2, 0, 700.0)

    with pytest.raises(PeerError, match="unknown frames"):
        deque(known.heard(2, number, 800 + number * 0.0599) for number in range(10_000))


@pytest.mark.parametrize("id_", ["0", "n0", " ", "not an id", "\x1b[2J"])
def test_nobody_is_dialled_by_an_id_that_is_none(id_: str) -> None:
    """Members are told of by others in gossip: one that cannot be is no reason to end."""

    async def talk() -> None:
        a, b = linked(), linked()
        async with grid(a, b):
            a.links.connect(id_, b.addresses)
            await both_up(a, b)
            a.links.connect(id_, [])
            a.links.disconnect(id_)
            a.say(b, "still here")
            await happens(lambda: b.told.bodies == ["still here"])

    run(talk)


def test_a_mute_peer_is_not_waited_for() -> None:
    """A member that connects and never introduces itself loses its connection."""

    async def wait() -> Linked:
        a = linked(introduction_s=0.3)
        async with grid(a), silent(make()) as peer:
            await peer.dial(a.node)
            await happens(lambda: not peer.connections() and not a.node.connections())
        return a

    assert run(wait).told.events == []


def test_a_flood_is_slowed_down_and_others_are_served() -> None:
    """Over its rate a peer is read as fast as that rate."""

    async def flood() -> float:
        a, b, c = linked(), linked(frames_per_s=2000, frames_burst=1000), linked()
        async with grid(a, b, c):
            await both_up(a, b)
            await both_up(c, b)
            started = trio.current_time()
            for number in range(3000):
                a.links.send(b.id, NEWS, number)
            a.links.flush()
            await happens(lambda: len(b.told.bodies) > 500)
            c.say(b, "me too")
            await happens(lambda: "me too" in b.told.bodies)
            served = trio.current_time() - started
            await happens(lambda: len(b.told.bodies) == 3001)
            print(f"another is served after {served * 1000:.0f} ms")
            assert b.links.is_up(a.id)
            return trio.current_time() - started

    assert run(flood) > 0.4


def test_who_floods_for_too_long_is_dropped_and_others_are_served() -> None:
    async def flood() -> Linked:
        a, b, c = linked(), linked(frames_per_s=500, frames_burst=100, flood_s=1.0), linked()
        async with grid(a, b, c):
            await both_up(a, b)
            await both_up(c, b)
            while "down" not in b.told.words:
                if a.links.stats()["queued_bytes"] < 100_000:
                    for number in range(100):
                        a.links.send(b.id, NEWS, number)
                    a.links.flush()
                await trio.sleep(0.01)
            await happens(lambda: "down" in a.told.words)
            c.say(b, "me too")
            await happens(lambda: "me too" in b.told.bodies)
            assert b.links.is_up(c.id)
        return b

    b = run(flood)

    assert "more than 500 frames per second for 1 s" in b.log[0]
    assert b.links._refused == 1


def test_beyond_the_most_connections_nobody_comes_in_until_one_ends() -> None:
    """Those who are in stay in; who waited outside gets in by its redials."""

    async def crowd() -> None:
        hub = linked(make(connections_max=2))
        first, second, third = linked(), linked(), linked()
        async with grid(hub, first, second, third):
            for one in (first, second):
                one.links.connect(hub.id, hub.addresses)
                await happens(lambda one=one: one.links.is_up(hub.id) and hub.links.is_up(one.id))  # type: ignore[misc]
            third.links.connect(hub.id, hub.addresses)
            await happens(lambda: third.links._peers[hub.id].failures > 0)
            assert sorted(hub.links.peers()) == sorted([first.id, second.id])
            first.links.disconnect(hub.id)
            third.links._peers[hub.id].prompt.set()
            await happens(lambda: third.links.is_up(hub.id) and hub.links.is_up(third.id))
            assert second.told.words == third.told.words == ["up"]

    run(crowd)


def test_what_a_listener_says_of_a_peer_drops_the_peer() -> None:
    async def talk() -> Linked:
        a, b, c = linked(), linked(), linked()
        async with grid(a, b, c):
            await both_up(a, b)
            await both_up(c, b)
            b.told.raises = PeerError("a malformed claim")
            a.say(b, 1)
            await happens(lambda: ("down", b.id, False, "dropped") in a.told.events)
            await happens(lambda: "down" in b.told.words)
            assert b.links.peers() == [c.id]
        return b

    b = run(talk)

    assert "a malformed claim" in b.log[0]
    assert b.links._refused == 1


def test_a_bug_of_the_listener_ends_the_node() -> None:
    async def talk() -> None:
        a, b = linked(), linked()
        async with grid(a, b):
            await both_up(a, b)
            b.told.raises = RuntimeError("a bug")
            a.say(b, 1)
            await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        run(talk)

    assert caught.group_contains(RuntimeError, match="a bug")


# ---- losing and finding each other ----------------------------------------------------------------------------------


def test_a_killed_node_is_known_to_be_gone() -> None:
    """Its port refuses: that is no lost connection."""

    async def kill() -> tuple[Any, ...]:
        a, b = linked(), linked()
        async with grid(a, b):
            await both_up(a, b)
            await b.kill()
            took = await happens(lambda: "down" in a.told.words)
            print(f"known after {took * 1000:.0f} ms")
            assert not a.links.is_up(b.id)
        return a.told.events[-1]

    assert run(kill)[2] is True


def test_a_killed_node_that_dialled_us_is_known_by_the_addresses_it_showed() -> None:
    async def kill() -> tuple[Any, ...]:
        node = make()
        a = linked()
        async with grid(a):
            b = linked(node, addresses=("/ip4/127.0.0.1/tcp/1",))  # refuses, as its own port would
            async with grid(b):
                b.links.connect(a.id, a.addresses)
                await happens(lambda: a.links.is_up(b.id))
                await b.kill()
                await happens(lambda: "down" in a.told.words)
        return a.told.events[-1]

    assert run(kill)[2] is True


def test_without_any_address_a_loss_is_a_loss() -> None:
    async def kill() -> tuple[Any, ...]:
        a, b = linked(), linked()
        async with grid(a, b):
            b.links.connect(a.id, a.addresses)
            await happens(lambda: a.links.is_up(b.id))
            await b.kill()
            await happens(lambda: "down" in a.told.words)
        return a.told.events[-1]

    assert run(kill)[2] is False


def test_a_broken_connection_is_mended_at_once() -> None:
    """The listener sees the peer go and come; nothing says that its process died."""

    async def cut() -> Linked:
        a, b = linked(), linked()
        async with grid(a, b):
            await both_up(a, b)
            (connection,) = a.node.connections()
            await connection.muxed_conn.secured_conn.close()
            await happens(lambda: a.told.words == ["up", "down", "up"])
            a.say(b, "again")
            await happens(lambda: b.told.bodies == ["again"])
        return a

    assert run(cut).told.events[1][2] is False


def test_who_says_goodbye_is_not_called_back_at_once() -> None:
    async def leave() -> Linked:
        a, b = linked(), linked()
        async with grid(a, b):
            await both_up(a, b)
            b.links.send(a.id, NEWS, "a last word")
            await b.links.close("stopping")
            await happens(lambda: "down" in a.told.words)
            assert a.links._peers[b.id].slow
        return a

    a = run(leave)

    assert a.told.bodies == ["a last word"]
    assert a.told.events[-1][2:] == (False, "stopping")


def test_a_peer_behind_an_address_that_neither_answers_nor_refuses_is_reported_within_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def vanish() -> tuple[Any, ...]:
        a, b = linked(), linked()
        async with grid(a, b):
            await both_up(a, b)

            async def hang(*_arguments: Any) -> None:
                await trio.sleep_forever()

            monkeypatch.setattr(dialling, "dial_any", hang)
            monkeypatch.setattr(dialling, "REPORT_S", 1.0)
            await b.kill()
            await happens(lambda: "down" in a.told.words)
            assert a.links._peers[b.id].chased
        return a.told.events[-1]

    assert run(vanish)[2] is False


def test_a_wanted_peer_is_found_once_it_is_there() -> None:
    """It is dialled again and again; new addresses are tried at once."""

    async def wait() -> Linked:
        a, b = linked(), linked()
        async with grid(a):
            a.links.connect(b.id, ["/ip4/127.0.0.1/tcp/1", "no address"])
            await happens(lambda: a.links._peers[b.id].failures >= 3)
            a.links._peers[b.id].failures = 10
            async with grid(b):
                a.links.connect(b.id, b.addresses)
                await happens(lambda: a.links.is_up(b.id))
                a.links.disconnect(b.id)
                await happens(lambda: a.told.words == ["up", "down"])
                await happens(lambda: not a.links._peers)
        return a

    run(wait)


def test_who_is_expelled_is_gone_at_once() -> None:
    async def expel() -> Linked:
        a, b = linked(), linked()
        async with grid(a, b):
            await both_up(a, b)
            await a.node.membership.expel(b.node.public)
            await happens(lambda: "down" in a.told.words)
        return a

    assert run(expel).told.events[-1][2:] == (False, "no longer a member")


@pytest.mark.parametrize("broke", [False, True])
def test_who_is_dropped_is_told_so(*, broke: bool) -> None:
    """For what it said: that is counted as well."""

    async def drop() -> tuple[Linked, Linked]:
        a, b = linked(), linked()
        async with grid(a, b):
            await both_up(a, b)
            a.links.drop(b.id, "I do not like it", broke=broke)
            assert not a.links.is_up(b.id)
            assert a.told.words == ["up"]
            await happens(lambda: "down" in a.told.words and "down" in b.told.words)
        return a, b

    a, b = run(drop)

    assert a.told.events[-1][2:] == (False, "I do not like it")
    assert b.told.events[-1][2:] == (False, "dropped")
    assert a.links.stats()["refused"] == broke


def test_who_is_not_let_in_asks_seldom_and_says_so_once() -> None:
    async def knock() -> Linked:
        a, b = linked(), linked()
        async with grid(a, b):
            b.node.membership.admit = refuse_all
            a.links.connect(b.id, b.addresses)
            await happens(lambda: bool(a.log))
            with pytest.raises(NoConnection) as caught:
                await a.links.dial(f"{b.addresses[0].partition('/p2p')[0]}/p2p/{b.id}", 5)
            assert caught.value.refused is not None
        return a

    a = run(knock)

    assert len(a.log) == 1
    assert a.links._peers[next(iter(a.links._peers))].refusal is not None


def refuse_all(certificate: bytes, public: bytes, *, dialler: bool) -> Any:
    from p2pgrid.core.chains import Reason, refuse  # noqa: PLC0415

    return refuse(Reason.REVOKED)
