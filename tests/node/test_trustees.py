"""Trust frames between charters on disk, carried by hand: who signs, who passes on, who has to go."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from p2pgrid.core import messages as m
from p2pgrid.core.chains import ADMIN, DEFAULT_ROLES, WORK
from p2pgrid.core.errors import PeerError
from p2pgrid.node import events as e
from p2pgrid.node.charter import Admitted
from p2pgrid.node.identity import peer_id
from p2pgrid.node.network import Network
from p2pgrid.node.trustees import Trustees
from tests.node.boxes import HERE, WEEK, Box, grid_of, handshake, join, meet


class Post:
    """Stands in for a node's network: what is sent lies in the town's bag until somebody carries it."""

    def __init__(self, box: Box, town: Town) -> None:
        self.box = box
        self.id = peer_id(box.public)
        self.charter = box.charter
        self.rng = random.Random(box.name)
        self.members: dict[str, Admitted] = {}
        self.events: list[e.Event] = []
        self.warned: list[str] = []
        self.sent: list[tuple[str, int]] = []
        self._town = town
        self.trustees = Trustees(cast("Network", self))

    def send(self, peer: str, kind: int, body: Any) -> None:
        self.sent.append((peer, kind))
        self._town.bag.append((self.id, peer, kind, body))

    def soon(self, work: Callable[..., Any], *arguments: Any) -> None:
        self._town.later.append((work, arguments))

    def later(self, event: e.Event) -> None:
        self.events.append(event)

    def show(self) -> None:
        self.events.append(e.Belongs(self.charter.grid, self.charter.grid_name, self.charter.roles))

    def warn(self, text: str) -> None:
        self.warned.append(text)

    def expel(self, public: bytes) -> None:
        self.members.pop(peer_id(public), None)

    def let_go(self) -> None:
        self.members.clear()


class Town:
    """Some posts, and the frames between them."""

    def __init__(self, *boxes: Box) -> None:
        self.bag: deque[tuple[str, str, int, Any]] = deque()
        self.later: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self.posts = {peer_id(box.public): Post(box, self) for box in boxes}

    def __getitem__(self, box: Box) -> Post:
        return self.posts[peer_id(box.public)]

    def connect(self, caller: Box, called: Box) -> None:
        """Both are up for each other. Raises Refused."""
        seen, back = handshake(caller, called)
        for here, there, admitted in ((called, caller, seen), (caller, called, back)):
            self[here].members[self[there].id] = admitted
        for here, there in ((called, caller), (caller, called)):
            self[here].trustees.up(self[there].id, self[here].members[self[there].id])

    def settle(self) -> float:
        """Carry everything and let every task end; return how long that took by the clock of the tasks."""
        clock = trio.testing.MockClock(autojump_threshold=0)

        async def all_of_it() -> float:
            while self.bag or self.later:
                while self.bag:
                    sender, receiver, kind, body = self.bag.popleft()
                    post = self.posts[receiver]
                    if sender in post.members:
                        post.trustees.frame(sender, kind, body)
                if self.later:
                    work, arguments = self.later.popleft()
                    await work(*arguments)
            return trio.current_time()

        began = clock.current_time()
        return trio.run(all_of_it, clock=clock) - began


def test_a_joiner_is_signed_by_whom_it_meets(tmp_path: Path) -> None:
    """The founder at once; it then shows a node link, and the machine hears of its roles."""
    founder, joiner = Box(tmp_path, "f"), Box(tmp_path, "j")
    join(joiner, founder.charter.invite(WORK, WEEK, 0, HERE)[0])
    town = Town(founder, joiner)
    town.connect(joiner, founder)
    was_provisional = joiner.charter.provisional
    took_s = town.settle()

    assert (was_provisional, joiner.charter.provisional) == (True, False)
    assert not town[founder].members[town[joiner].id].provisional
    assert town[founder].events == [e.PeerRoles(town[joiner].id, WORK)]
    assert took_s < 0.2


def test_who_stands_deeper_waits_longer(tmp_path: Path) -> None:
    """So that of two admins usually one signs."""
    founder, second = grid_of(tmp_path, "f", "s")
    joiner = Box(tmp_path, "j")
    join(joiner, founder.charter.invite(WORK, WEEK, 0, HERE)[0])
    town = Town(second, joiner)
    town.connect(joiner, second)
    took_s = town.settle()

    assert not joiner.charter.provisional
    assert 0.2 <= took_s < 0.4


def test_a_promotion_arrives_when_its_node_does(tmp_path: Path) -> None:
    """It was signed while the node was away."""
    founder, worker = grid_of(tmp_path, "f", "w", roles=WORK)
    town = Town(founder, worker)
    founder.charter.promote(worker.public, ADMIN)
    town.connect(worker, founder)
    town.settle()

    assert worker.charter.roles == WORK | ADMIN
    assert isinstance(town[worker].events[-1], e.Belongs)
    assert town[founder].members[town[worker].id].roles == WORK | ADMIN


def test_a_revocation_goes_round(tmp_path: Path) -> None:
    """From each to all its neighbours but the sender; the revoked one hears it, lets go of everybody and says so."""
    a, b, c, d = grid_of(tmp_path, "a", "b", "c", "d")
    town = Town(a, b, c, d)
    for caller, called in ((b, a), (c, b), (d, c), (d, a)):
        town.connect(caller, called)
    town.settle()
    done = a.charter.revoke(d.public)
    town[a].trustees.spread(done.records, done.expelled)
    town.settle()

    assert [town[box].members.keys() for box in (a, b)] == [{town[b].id}, {town[a].id, town[c].id}]
    assert town[c].members.keys() == {town[b].id}
    assert town[d].trustees.lost
    assert not town[d].members
    assert "was revoked" in town[d].warned[0]
    assert "move node.key" in town[d].warned[0], "a new invite alone does not help"
    assert (town[b].id, m.L_REVOCATIONS) not in town[c].sent


def test_whom_a_revoked_node_let_in_a_moment_ago_stays(tmp_path: Path) -> None:
    """Nobody has signed it yet where the revocation is said, and a voucher alone cannot be listed."""
    founder, second = grid_of(tmp_path, "f", "s")
    joiner = Box(tmp_path, "j")
    join(joiner, second.charter.invite(WORK, WEEK, 0, HERE)[0])
    town = Town(founder, second, joiner)
    town.connect(joiner, founder)
    town[founder].trustees.sign_all()
    done = founder.charter.revoke(second.public)
    town[founder].trustees.spread(done.records, done.expelled)
    town.settle()

    assert (done.kept, done.cut) == ((joiner.public,), ())
    assert town[joiner].id in town[founder].members
    assert joiner.charter.roles == WORK
    assert not joiner.charter.provisional


def test_a_revocation_that_was_missed_is_caught_up(tmp_path: Path) -> None:
    """By the digest, which costs nothing where both have heard the same."""
    a, b, c = grid_of(tmp_path, "a", "b", "c")
    town = Town(a, b, c)
    town.connect(b, a)
    town.settle()
    a.charter.revoke(c.public)
    town[b].trustees.minute()
    town.settle()
    first = town[a].sent.count((town[b].id, m.L_REVOCATIONS))
    town[b].trustees.minute()
    town.settle()

    assert b.charter.digest() == a.charter.digest()
    assert first == town[a].sent.count((town[b].id, m.L_REVOCATIONS)) == 1


def test_who_knows_by_which_invite_a_revoked_node_came_closes_it(tmp_path: Path) -> None:
    """The one who revoked it had only seen a later chain, in which no voucher stands."""
    founder, stolen, late = Box(tmp_path, "f"), Box(tmp_path, "s"), Box(tmp_path, "l")
    text, _ = founder.charter.invite(WORK, WEEK, 0, HERE)
    join(stolen, text)
    meet(stolen, founder)
    founder.charter.promote(stolen.public, WORK | ADMIN)
    meet(stolen, founder)
    join(late, founder.charter.invite(DEFAULT_ROLES, WEEK, 0, HERE)[0])
    for other in (founder, stolen):
        meet(late, other)
    town = Town(founder, late)
    town.connect(late, founder)
    town.settle()
    revoking = late.charter.revoke(stolen.public)
    town[late].trustees.spread(revoking.records, revoking.expelled)
    town.settle()

    assert [one["open"] for one in founder.charter.describe([])["invites"]] == [False, True]
    assert late.charter.digest() == founder.charter.digest()


def test_who_no_longer_holds_has_to_go(tmp_path: Path) -> None:
    """A membership with an end ends while its node is connected."""
    founder, guest = Box(tmp_path, "f"), Box(tmp_path, "g")
    join(guest, founder.charter.invite(WORK, WEEK, int(founder.clock_s) + WEEK, HERE)[0])
    town = Town(founder, guest)
    town.connect(guest, founder)
    town.settle()
    founder.charter.offset_s = 0.0
    town[founder].trustees.judge_again()
    before = dict(town[founder].members)
    founder.clock_s += WEEK + 1
    town[founder].trustees.minute()

    assert before
    assert not town[founder].members


@pytest.mark.parametrize("kind", [m.L_REVOCATIONS, m.L_REVOKED, m.L_CHAIN, m.L_SHOW, 99])
@pytest.mark.parametrize(
    "body", [None, [], [None], [b""], [b"x" * 4096], [[1]], [["x"]], [[b"junk"]], {}, "x", [b"x", 1]]
)
def test_nonsense_is_the_senders_fault(tmp_path: Path, kind: int, body: object) -> None:
    """Whatever it is, it ends in PeerError, and nothing was taken in."""
    founder, member = grid_of(tmp_path, "f", "m")
    town = Town(founder, member)
    town.connect(member, founder)
    town.settle()
    before = founder.charter.digest(), founder.charter.certificate
    with pytest.raises(PeerError):
        town[founder].trustees.frame(town[member].id, kind, body)

    assert (founder.charter.digest(), founder.charter.certificate) == before
