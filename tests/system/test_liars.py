"""A member that breaks the rules: what it says is refused, logged once, counted, and costs nobody else anything."""

from __future__ import annotations

import os
import shutil
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pgrid.core import messages as m
from p2pgrid.core.member import DEAD, shown
from p2pgrid.core.wire import FRAME_MAX_CONTROL, frame, pack
from tests.system.grids import DidNotHappen, Node, Nodes, wait
from tests.system.liar import Liar, lying_to
from tests.system.strangers import Held, identity_in, settled
from tests.system.uneven import Running
from tests.waiting import SOON_S

pytestmark = pytest.mark.slow

MIB = 1 << 20
LINES_MAX = 4
"""What one offence may add to a log: that it came, that it was dropped and why, that it is gone."""
KEY = Ed25519PrivateKey.generate()
"""Of the member that tells all lies; who breaks the protocol is another each time, for the log names each once."""
LOOKING_TASKS = 2
"""A node goes on looking for a member that it has met; that is no leak."""
Act = Callable[[Liar], Awaitable[None]]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with Nodes(tmp_path_factory.mktemp("grid")) as nodes:
        first, _ = nodes.grid("ab")
        nodes.wait_all_alive()
        act(first, says(), patience_s=0.1)
        settled(first)
        yield nodes


@pytest.fixture
def node(nodes: Nodes) -> Iterator[Node]:
    """A node that is as well after the test as it was before."""
    node, other = nodes.all[:2]
    pid = node.pid
    before = Held.by(node)
    before = replace(before, tasks=before.tasks + LOOKING_TASKS)
    yield node
    assert node.pid == pid
    wait(lambda: Held.by(node).within(before, 16 * MIB), SOON_S, f"it is as it was: {before}, now {Held.by(node)}")
    try:
        wait(lambda: node.view()["b"] == other.view()["a"] == "alive", SOON_S, "the members have each other")
    except DidNotHappen as error:
        raise DidNotHappen(f"{error}\n{node.members()}\n{other.members()}\n{nodes.logs()}") from None
    assert "Traceback" not in node.log()
    with node.grid() as session:
        Running(session, 10, 0.2).right()


def refused(node: Node) -> int:
    """Return how often a peer was dropped or refused, as the node counts it."""
    network = node.network()
    return int(network["refused"]) + int(network["dropped"])


def act(
    node: Node, what: Act, *, introduced: bool = True, patience_s: float = SOON_S, key: Ed25519PrivateKey = KEY
) -> bool:
    """Connect as a member, do it, and return whether the node has hung up."""

    async def lie() -> bool:
        async with lying_to(node, identity_in(node.dir), key) as liar:
            if introduced:
                await liar.introduce()
                assert await liar.hears(m.L_HELLO), "the node does not introduce itself"
            await what(liar)
            return await liar.is_dropped(patience_s)

    return trio.run(lie)


def says(*parts: bytes) -> Act:
    async def say(liar: Liar) -> None:
        await liar.say(*parts)

    return say


JOB = bytes(16)
BREACHES: dict[str, Act] = {
    "an oversized frame": says(struct.pack(">I", FRAME_MAX_CONTROL + 1) + bytes(100)),
    "a length of 4 GiB": says(b"\xff\xff\xff\xff"),
    "no msgpack": says(struct.pack(">I", 5) + b"\xc1\xc1\xc1\xc1\xc1"),
    "no frame": says(struct.pack(">I", 1) + pack(7)),
    "msgpack in msgpack": says(struct.pack(">I", 1000) + b"\x91" * 1000),
    "malformed gossip": says(frame(m.P_GOSSIP, ["nonsense"])),
    "gossip about nobody": says(frame(m.P_GOSSIP, [[[7, 1, 0, "x", None]]])),
    "a malformed digest": says(frame(m.P_DIGEST, [b"short"])),
    "a malformed ping": says(frame(m.P_PING, ["one", 2, 3])),
    "a ping of minus one": says(frame(m.P_PING, [-1, -1, -1])),
    "a malformed claim": says(frame(m.P_CLAIM, [1, 2, "soon", {}])),
    "malformed results": says(frame(m.P_RESULTS, [[[JOB, [1, 1], 1, [[5, 2, 0, []]]]]])),
    "a malformed grant": says(frame(m.P_GRANT, [[1, 1], JOB, "x", "y", "z", "w"])),
    "a malformed goodbye": says(frame(m.L_GOODBYE, {"why": 1})),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_member_that_breaks_the_protocol_is_dropped(breach: str, node: Node) -> None:
    """At once, with a line in the log, and it is counted."""
    counted, lines = refused(node), len(node.log().splitlines())
    started = time.monotonic()
    dropped = act(node, BREACHES[breach], key=Ed25519PrivateKey.generate())
    took = time.monotonic() - started
    assert dropped
    wait(lambda: refused(node) > counted and len(node.log().splitlines()) > lines, SOON_S, "it is counted and told")
    said = node.log().splitlines()[lines:]

    print(f"dropped in {took:.2f} s; logged: {said}")
    assert len(said) <= LINES_MAX


def chain_of_nobody() -> bytes:
    return pack([[b"body", os.urandom(64)]])


LIES: dict[str, Act] = {
    "a frame of an unknown type": says(frame(250, ["what", "is", "this"])),
    "a client's frame": says(frame(m.OPEN, [JOB, b"spec"])),
    "a revocation that nobody signed": says(frame(m.L_REVOCATIONS, [[os.urandom(200)]])),
    "a chain that nobody signed": says(frame(m.L_CHAIN, [chain_of_nobody()])),
    "a certificate that nobody signed": says(frame(m.L_SHOW, [chain_of_nobody()])),
    "results of no job": says(frame(m.P_RESULTS, [[[JOB, [1, 1], 1, [[0, 1, 0, [b"x"]]]]]])),
    "a claim on no job": says(frame(m.P_CLAIM, [1, 1, 1.0, [[JOB, [0, 5], [0, 1]]]])),
    "a drop of no job": says(frame(m.P_DROP, [JOB, None])),
    "a grant nobody asked for": says(frame(m.P_GRANT, [[1, 1], JOB, "j", [[0, 1, 1, False]], [], []])),
    "an answer nobody asked for": says(frame(m.P_ANSWER, [[1, 1], {}])),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_changes_nothing(lie: str, node: Node) -> None:
    """Well-formed or not understood: refused or passed over, said at most once, and all goes on."""
    lines = len(node.log().splitlines())

    async def repeat(liar: Liar) -> None:
        for _ in range(20):
            await LIES[lie](liar)

    dropped = act(node, repeat, patience_s=2)
    said = node.log().splitlines()[lines:]

    print(f"dropped: {dropped}; logged: {said}")
    assert len(said) <= LINES_MAX


def test_a_member_that_does_not_introduce_itself_is_dropped(node: Node) -> None:
    assert act(node, says(), introduced=False)


@pytest.mark.parametrize(
    "first",
    [
        frame(m.P_PING, [1, 1, 0]),
        frame(m.L_HELLO, {"v": 1}),
        frame(m.L_HELLO, {"v": 1, "card": [1]}),
        frame(m.L_HELLO, 5),
    ],
    ids=["a ping", "no card", "half a card", "no body"],
)
def test_a_wrong_introduction_is_refused(first: bytes, node: Node) -> None:
    """The first frame is a HELLO with a card, or the connection ends."""
    assert act(node, says(first), introduced=False)


def test_a_flood_of_frames_is_slowed_and_then_dropped(node: Node, nodes: Nodes) -> None:
    """While it lasts, programs of the node are answered, and its neighbour does not lose it."""
    other = nodes.all[1]
    slowest = 0.0
    ping = b"".join(frame(m.P_PING, [number, 1, 0]) for number in range(1000))

    async def flood(liar: Liar) -> None:
        nonlocal slowest
        async with trio.open_nursery() as nursery:

            async def pour() -> None:
                while not liar._connection.event_closed.is_set():
                    await liar.say(ping)

            nursery.start_soon(pour)
            with trio.move_on_after(SOON_S):
                while not liar._connection.event_closed.is_set():
                    started = time.monotonic()
                    await trio.to_thread.run_sync(node.status)
                    slowest = max(slowest, time.monotonic() - started)
                    assert (await trio.to_thread.run_sync(other.view))["a"] != "dead"
                    await trio.sleep(0.1)
            nursery.cancel_scope.cancel()

    dropped = act(node, flood)

    print(f"dropped: {dropped}; slowest answer to a program meanwhile {slowest * 1000:.0f} ms")
    assert dropped


def test_a_member_that_reads_nothing_costs_no_memory(node: Node) -> None:
    """Who asks and does not take the answers is dropped before they fill the memory."""

    async def ask(liar: Liar) -> None:
        async def hold(_stream: Any) -> None:
            await trio.sleep_forever()

        asks = b"".join(frame(m.P_RECORDS, [list(range(64)), []]) for _ in range(200))
        with trio.move_on_after(15):
            while not liar._connection.event_closed.is_set():
                await liar.say(asks)

    before = node.process()["rss"]
    act(node, ask, patience_s=10)
    print(f"{(node.process()['rss'] - before) / MIB:+.1f} MiB")


def test_a_false_alarm_does_not_stick(node: Node, nodes: Nodes) -> None:
    """A member says of another that it is dead; the other refutes it, and everybody believes the other."""
    other = nodes.all[1]

    def incarnation() -> int:
        return int(time.time()) + 1

    async def slander(liar: Liar) -> None:
        for status in (1, DEAD):
            await liar.say(frame(m.P_GOSSIP, [[[other.id, incarnation(), status, liar.id, None]]]))
            await trio.sleep(0.5)

    act(node, slander, patience_s=0.5)
    wait(lambda: node.view()["b"] == other.view()["a"] == "alive", SOON_S, "b has refuted it")


def test_a_card_of_another_is_not_believed(node: Node, nodes: Nodes) -> None:
    """Somebody says where b is, and signs it with his own key."""
    other = nodes.all[1]

    async def forge(liar: Liar) -> None:
        forged = shown(liar.card._replace(incarnation=int(time.time()), addresses=("/ip4/127.0.0.1/tcp/9",)))
        await liar.say(frame(m.P_GOSSIP, [[[other.id, int(time.time()), 0, other.id, forged]]]))

    act(node, forge, patience_s=0.5)
    ports = [str(other.port) in str(each["addresses"]) for each in node.members() if each["id"] == other.id]
    assert ports == [True]
    wait(lambda: node.view()["b"] == "alive", SOON_S, "b is where it was")


def test_two_nodes_with_one_identity_refuse_work(nodes: Nodes) -> None:
    """A copied directory: both say so in `status` and take no work; when one is gone the other works again."""
    a = nodes.all[0]
    twin = nodes.node("twin").start(a.invite())
    wait(lambda: a.view().get("twin") == "alive", SOON_S, "it has joined")
    twin.stop()
    clone = nodes.node("clone")
    shutil.copytree(twin.dir, clone.dir)
    twin.start()
    wait(lambda: a.view().get("twin") == "alive", SOON_S, "it is back")
    clone.start()
    assert clone.id == twin.id

    for node in (twin, clone):
        wait(lambda node=node: "identity" in node.warnings(), 60, f"{node.name} says so")  # type: ignore[misc]
        print(node.warnings())
    with a.grid() as session:
        found = session.options(where="name == 'twin' or name == 'clone'").submit(pow, 2, 2)
        with pytest.raises(TimeoutError):
            found.result(5)
        found.cancel()
    clone.kill()
    twin.kill()
