"""Strangers at the port of a real node: refused before anything but multistream and Noise was said, nothing is left."""

from __future__ import annotations

import random
import shutil
import socket
import time
from collections.abc import Iterator

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pgrid.core.chains import Reason
from p2pgrid.node.net.dial import NoConnection
from p2pgrid.node.net.membership import PROTOCOL
from tests.node.net.grids import THEIRS, issue
from tests.system.grids import Node, Nodes, wait
from tests.system.strangers import (
    MULTISTREAM,
    Held,
    Stranger,
    hang_up,
    identity_in,
    line,
    settled,
    signed_by,
    talk,
)
from tests.waiting import SOON_S

pytestmark = pytest.mark.slow

MIB = 1 << 20
OFFERS = (
    "/noise", "/tls/1.0.0", "/plaintext/2.0.0", "/secio/1.0.0", "/yamux/1.0.0", "/mplex/6.7.0", "/ipfs/id/1.0.0",
    "/ipfs/ping/1.0.0", "/p2pgrid/control/1.0.0", "/p2pgrid/bulk/1.0.0", "/p2pgrid/noise/0.9.0",
)  # fmt: skip


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with Nodes(tmp_path_factory.mktemp("grid")) as nodes:
        nodes.grid("ab")
        nodes.wait_all_alive()
        yield nodes


@pytest.fixture
def node(nodes: Nodes) -> Iterator[Node]:
    """A node that is as well after the test as it was before."""
    node, other = nodes.all[:2]
    pid = node.pid
    before = Held.by(node)
    yield node
    assert node.pid == pid
    wait(lambda: Held.by(node).within(before, 8 * MIB), SOON_S, f"it is as it was: {before}, now {Held.by(node)}")
    wait(lambda: node.view()["b"] == other.view()["a"] == "alive", SOON_S, "the members have each other")
    assert "Traceback" not in node.log()


def test_nothing_but_our_noise_is_spoken(node: Node) -> None:
    """Every other protocol is answered with `na`, and whoever then says nothing is hung up on."""
    said = talk(node.port, line(MULTISTREAM), *map(line, OFFERS))

    print(f"answered {sorted(set(said.lines))}, ended after {said.ended_s} s")
    assert said.lines[0] == MULTISTREAM
    assert set(said.lines[1:]) <= {"na"}
    assert said.ended_s is not None


def test_what_is_served_is_not_told(node: Node) -> None:
    """`ls` of multistream names no protocol but Noise."""
    said = talk(node.port, line(MULTISTREAM), line("ls"))

    print(f"ls: {said.answer!r}, ended after {said.ended_s} s")
    assert not [text for text in (b"control", b"bulk", b"yamux", b"/ipfs") if text in said.answer]
    assert said.ended_s is not None


@pytest.mark.parametrize(
    "parts",
    [
        [], [b"\x13"], [line(MULTISTREAM)], [line(MULTISTREAM), line(PROTOCOL)],
        [line(MULTISTREAM), line(PROTOCOL), b"\x00\x20" + bytes(32)],
    ],
    ids=["nothing", "half a line", "multistream", "Noise chosen", "half of Noise"],
)  # fmt: skip
def test_half_open_connections_end(parts: list[bytes], node: Node) -> None:
    """Whoever stops in the middle is hung up on; how soon is printed, it should be 6 s."""
    said = talk(node.port, *parts)

    print(f"{len(said.answer)} bytes answered, ended after {said.ended_s} s")
    assert said.ended_s is not None


def _refused(stranger: Stranger, node: Node) -> tuple[float, Reason | None]:
    """Let a stranger call; return when its call ended and what it was told."""

    async def knock() -> tuple[float, Reason | None]:
        async with stranger.running():
            started = trio.current_time()
            with pytest.raises(NoConnection) as caught:
                await stranger.dial(node)
            took = trio.current_time() - started
            assert not [each for each in stranger.host.get_network().get_connections() if not each.is_closed]
            return took, caught.value.refused

    return trio.run(knock)


def _must_be_refused(stranger: Stranger, node: Node, reason: Reason | None) -> None:
    took, told = _refused(stranger, node)
    print(f"ended after {took:.2f} s; told: {told.sentence if told else 'nothing'}")
    assert told == reason


def test_a_host_without_certificate_is_refused(node: Node) -> None:
    """It speaks plain `/noise`; here nobody does."""
    _must_be_refused(Stranger(), node, None)


def test_an_expired_certificate_is_refused(node: Node) -> None:
    """Signed by a real admin, for a time that is over."""
    key = Ed25519PrivateKey.generate()
    chain = signed_by(identity_in(node.dir), key.public_key().public_bytes_raw(), until=int(time.time()) - 10)
    _must_be_refused(Stranger(key, chain), node, Reason.ENDED)


def test_a_certificate_of_another_grid_is_refused(node: Node) -> None:
    key = Ed25519PrivateKey.generate()
    _must_be_refused(Stranger(key, issue(THEIRS, key.public_key().public_bytes_raw())), node, Reason.FOREIGN)


def test_a_stolen_certificate_is_refused(node: Node) -> None:
    """Whoever shows another's chain cannot prove the key in it."""
    _must_be_refused(Stranger(None, identity_in(node.dir).chains[0]), node, Reason.ANOTHERS)


def test_a_revoked_certificate_is_refused(nodes: Nodes, node: Node) -> None:
    """A member that was revoked while it was away, with its own key and all its chains; by every other member."""
    lost = nodes.node("lost").start(node.invite())
    nodes.wait_all_alive()
    lost.stop()
    node.ask("revoke", target=lost.id, with_admitted=False)
    other = nodes.all[1]
    wait(lambda: other.ask("grid")["revoked"], SOON_S, "the other member has heard of it")
    identity = identity_in(lost.dir)

    for member in (node, other):
        for chain in identity.chains:
            _, told = _refused(Stranger(identity.key, chain), member)
            assert told in {Reason.REVOKED, Reason.FROM_REVOKED}


def test_a_thousand_random_byte_strings_leave_nothing(node: Node) -> None:
    """Garbage before, instead of and after multistream; memory, descriptors and tasks are where they were."""
    rng = random.Random(1)
    heads = [b"", line(MULTISTREAM), line(MULTISTREAM) + line(PROTOCOL)]

    def visit(times: int) -> None:
        for _ in range(times):
            with socket.create_connection(("127.0.0.1", node.port), SOON_S) as sock:
                sock.settimeout(SOON_S)
                try:
                    sock.sendall(rng.choice(heads) + rng.randbytes(rng.choice([1, 7, 64, 1000, 20_000])))
                    if rng.random() < 0.3:
                        sock.recv(100)
                except OSError:  # it hung up while we were talking
                    pass

    visit(100)
    before = settled(node)
    started = time.monotonic()
    visit(1000)
    took = time.monotonic() - started
    wait(lambda: Held.by(node).within(before, 4 * MIB), SOON_S, f"{before} again, now {Held.by(node)}")
    print(f"before {before}, after {Held.by(node)}; {took:.1f} s")


def test_a_crowd_that_says_nothing_does_not_keep_a_member_out(nodes: Nodes, node: Node) -> None:
    """Two hundred half-open connections stay as long as they may; meanwhile a newcomer joins."""
    crowd = [socket.create_connection(("127.0.0.1", node.port), SOON_S) for _ in range(200)]
    try:
        newcomer = nodes.node("newcomer").start(node.invite())
        nodes.wait_all_alive()
    finally:
        hang_up(crowd)
    newcomer.stop()
    shutil.rmtree(newcomer.dir)
