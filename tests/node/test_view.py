"""The member view: merging, gossip, anti-entropy, memory and its limits; then whole grids in virtual time."""

from __future__ import annotations

import random
from functools import reduce
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.core import messages as m
from p2pgrid.core.errors import PeerError
from p2pgrid.core.member import ALIVE, DEAD, LEFT, SUSPECT, Card, Known, Update, Verdict, merge
from p2pgrid.core.member_shapes import from_neighbour
from p2pgrid.core.wire import FRAME_MAX_CONTROL, frame, pack, unpack
from p2pgrid.node.events import Send
from p2pgrid.node.pace import ViewOptions
from p2pgrid.node.view import Cloned, Forgotten, View, wire
from tests.node.ring_world import World, nothing_is_cut

NOW = 100.0
ME = "me"


def card(incarnation: int = 10, seq: int = 0, life: bytes = b"life----", **more: Any) -> Card:
    return Card(incarnation, seq, life, more.get("leaf", False), ("/ip4/10.0.0.1/tcp/1",), more.get("facts", {}), (0,))


def view(*others: str, me: str = ME, seed: int = 1, **options: Any) -> View:
    """Return a view that knows others in their incarnation 10 and has nothing to tell."""
    one = View(me, ViewOptions(**options), random.Random(seed))
    one.begin(card(1000), NOW)
    for name in others:
        hear(one, name, 10, ALIVE, shown=card())
    one._news.clear()
    return one


def hear(
    one: View, name: str, incarnation: int, status: int, by: str = "by", *, shown: Card | None = None, at: float = NOW
) -> list[Any]:
    """Let a view hear one piece of news by gossip."""
    return one.received("peer", m.P_GOSSIP, ([Update(name, incarnation, status, by, shown)],), at)


def told(one: View, now: float) -> list[Update]:
    """Return what a view gossips at its next round."""
    sends = [e for e in one.tick(now) if isinstance(e, Send) and e.kind == m.P_GOSSIP]
    return [update for send in sends[:1] for update in from_neighbour(m.P_GOSSIP, send.body)[0]]


def exchange(a: View, b: View, now: float = NOW) -> int:
    """Compare two views once, as frames would; return how many frames that took."""
    frames = [(b, send) for send in a.met(b.me, now) if isinstance(send, Send)]
    count = 0
    while frames:
        target, send = frames.pop(0)
        count += 1
        assert len(frame(send.kind, send.body)) <= FRAME_MAX_CONTROL
        source = a if target is b else b
        body = from_neighbour(send.kind, send.body)
        frames += [(source, e) for e in target.received(source.me, send.kind, body, now) if isinstance(e, Send)]
    return count


# ---- the lattice ----------------------------------------------------------------------------------------------------

small = st.integers(1, 3)
cards = st.builds(card, small, small, st.sampled_from([b"life----", b"clone---"]))
knowledge = st.builds(Known, small, st.sampled_from([ALIVE, SUSPECT, DEAD, LEFT]), cards)


@given(knowledge, knowledge, knowledge)
def test_merging_is_a_lattice(a: Known, b: Known, c: Known) -> None:
    """Any order, any grouping, any repetition."""
    assert merge(a, b) == merge(b, a)
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert merge(a, a) == a


@given(st.lists(knowledge, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_views_that_heard_the_same_in_another_order_are_equal(news: list[Known], rng: random.Random) -> None:
    """Given that both knew the member alive before, for the death of a stranger is nobody's news."""
    pictures = []
    for _ in range(2):
        one = view()
        hear(one, "a", 0, ALIVE, shown=card(0))
        for known in news:
            hear(one, "a", known.incarnation, known.status, shown=known.card)
        pictures.append((one.members["a"].known, one._hashes))
        rng.shuffle(news)

    assert pictures[0] == pictures[1]
    assert pictures[0][0] == reduce(merge, news, Known(0, ALIVE, card(0)))


# ---- verdicts -------------------------------------------------------------------------------------------------------


def test_news_becomes_a_verdict_once() -> None:
    """What changes nothing is not said again, neither to the policies nor to others."""
    one = view("a")
    first = hear(one, "a", 10, DEAD, "b")

    assert first == [Verdict("a", 10, DEAD, "b")]
    assert hear(one, "a", 10, DEAD, "c") == []
    assert hear(one, "a", 10, SUSPECT, "c") == []
    assert hear(one, "a", 9, ALIVE, "a") == []


def test_each_accuser_is_news_up_to_four() -> None:
    """A suspicion and its three confirmations."""
    one = view("a")
    said = [hear(one, "a", 10, SUSPECT, by) for by in ("b", "b", "c", "d", "e", "f")]

    assert [len(effects) for effects in said] == [1, 0, 1, 1, 1, 0]
    assert {update.by for update in told(one, NOW + 1)} == {"b", "c", "d", "e"}


def test_a_refutation_replaces_the_accusations_that_were_being_told() -> None:
    """Old news about a member are not told beside new ones."""
    one = view("a", "b")
    hear(one, "a", 10, SUSPECT, "b")
    hear(one, "a", 10, SUSPECT, "c")
    hear(one, "a", 11, ALIVE, "a")

    assert [update[:3] for update in told(one, NOW + 1)] == [("a", 11, ALIVE)]


def test_the_death_of_a_stranger_is_no_news() -> None:
    """Who forgot a dead member does not hear of it for ever from those that have not."""
    one = view()

    assert hear(one, "a", 10, DEAD, shown=card()) == []
    assert hear(one, "a", 10, SUSPECT) == []
    assert "a" not in one.members


def test_own_verdicts_are_spread() -> None:
    """Liveness decides, the view tells."""
    one = view("a", "b")
    one.judged(Verdict("a", 10, SUSPECT, ME), NOW)

    assert one.members["a"].known.status == SUSPECT
    assert told(one, NOW + 1) == [Update("a", 10, SUSPECT, ME, None)]


def test_an_accusation_of_this_node_is_for_liveness_to_refute() -> None:
    """The view changes nothing about itself until there is a new incarnation, which it then shows."""
    one = view("a")
    said = hear(one, ME, 1000, SUSPECT, "a")
    one.judged(Verdict(ME, 1001, ALIVE, ME), NOW)

    assert said == [Verdict(ME, 1000, SUSPECT, "a")]
    assert one.members[ME].known[:2] == (1001, ALIVE)
    assert one.card.incarnation == 1001
    assert hear(one, ME, 1000, DEAD, "a") == []


@pytest.mark.parametrize("forged", [{"seq": 10**9}, {"facts": {"name": "somebody else"}}])
def test_a_card_of_this_node_that_it_never_showed_is_answered(forged: dict[str, Any]) -> None:
    """Cards are not signed: without a newer one a false name or address would stay for the rest of this life."""
    one = view("a")
    false = one.card._replace(**forged)
    said = hear(one, ME, 1000, ALIVE, shown=false)
    one.judged(Verdict(ME, 1001, ALIVE, ME), NOW)

    assert said == [Verdict(ME, 1000, SUSPECT, "by")]
    assert merge(Known(1000, ALIVE, false), one.members[ME].known) == one.members[ME].known


def test_a_card_of_this_node_as_it_comes_back_is_no_forgery() -> None:
    """Through msgpack, in which a tuple is a list; and so are those it showed before."""
    one = view("a")
    one.show(NOW, addresses=("/ip4/192.0.2.1/tcp/1",), facts={"tags": ("x",), "cpus": 2})
    cards = [one.card]
    one.show(NOW, load=(3, 4))
    cards.append(one.card)
    for each in cards:
        update = wire(Update(ME, 1000, ALIVE, "a", each))
        assert one.received("a", m.P_GOSSIP, from_neighbour(m.P_GOSSIP, unpack(pack([[update]]))), NOW) == []


def test_a_leaver_says_so_at_once() -> None:
    """There may be no next round."""
    one = view("a", "b", "c")
    sends = one.judged(Verdict(ME, 1000, LEFT, ME), NOW)

    assert [send.peer for send in sends if isinstance(send, Send)] != []


# ---- gossip ---------------------------------------------------------------------------------------------------------


def test_without_news_nothing_is_sent() -> None:
    """Silence is free."""
    one = view("a", "b", "c")
    sends = [e for i in range(100) for e in one.tick(NOW + i * 0.2)]

    assert [e for e in sends if isinstance(e, Send) and e.kind == m.P_GOSSIP] == []


def test_a_piece_of_news_is_told_a_limited_number_of_times_to_three_per_round() -> None:
    """4 · ⌈log10(N + 1)⌉."""
    one = view(*(f"n{i}" for i in range(20)), sync_s=1e9)
    hear(one, "n3", 11, ALIVE)
    rounds = []
    while one._gossip_s is not None:
        rounds.append(len(one.tick(one._gossip_s)))

    assert sum(rounds) == 4 * 2
    assert max(rounds) == 3


def test_a_message_carries_six_pieces_of_news_the_least_told_first() -> None:
    """A burst does not make large messages, and each piece gets its turn."""
    one = view(*(f"n{i}" for i in range(20)))
    for i in range(20):
        hear(one, f"n{i}", 11, ALIVE)
    sends = [e for e in one.tick(one._gossip_s or 0.0) if isinstance(e, Send)]

    assert [len(send.body[0]) for send in sends] == [6, 6, 6]
    assert len({update[0] for send in sends for update in send.body[0]}) == 18


def test_leaves_are_not_gossiped_to() -> None:
    """They hear what concerns them in the answers to their heartbeats, the rest by anti-entropy."""
    one = view("a")
    hear(one, "leaf", 10, ALIVE, shown=card(leaf=True))
    hear(one, "a", 11, ALIVE)

    assert [e.peer for e in one.tick(NOW + 1) if isinstance(e, Send) and e.kind == m.P_GOSSIP] == ["a"]


def test_a_load_travels_quietly_and_facts_aloud() -> None:
    """Loads change all the time."""
    one = view("a")
    one.show(NOW, load=(5,))
    quiet = told(one, NOW + 1)
    one.show(NOW + 1, facts={"gpu": 1})
    one.show(NOW + 1, facts={"gpu": 1})
    loud = told(one, NOW + 2)

    assert quiet == []
    assert [(u.id, u.card.load, u.card.facts, u.card.seq) for u in loud if u.card] == [(ME, (5,), {"gpu": 1}, 2)]


# ---- anti-entropy ---------------------------------------------------------------------------------------------------


def test_equal_views_need_one_frame() -> None:
    """The digest first."""
    a, b = view("x", "y", me="a"), view("x", "y", me="b")
    exchange(a, b)

    assert exchange(a, b) == 1


def test_an_exchange_makes_two_views_equal() -> None:
    """Both ways: members, verdicts, cards."""
    a, b = view("x", "y", "z", me="a"), view("y", "z", "w", me="b")
    hear(a, "y", 11, SUSPECT)
    hear(b, "z", 10, ALIVE, shown=card(seq=7))
    exchange(a, b)

    assert dict(a.live()) == dict(b.live())
    assert set(dict(a.live())) == {"a", "b", "w", "x", "y", "z"}
    assert a._hashes == b._hashes


def test_a_large_exchange_is_cut_into_control_frames() -> None:
    """64 KiB at most, asserted in `exchange`."""
    a, b = view(me="a"), view(me="b")
    for i in range(400):
        hear(a, f"n{i}", 10, ALIVE, shown=card(facts={"text": "x" * 1000}))
    frames = exchange(a, b)

    assert frames > 10
    assert dict(a.live()) == dict(b.live())


def test_who_passes_a_suspicion_on_is_no_accuser() -> None:
    """Confirmations count distinct observers."""
    a, b = view("x", me="a"), view("x", me="b")
    hear(a, "x", 10, SUSPECT, "observer")
    exchange(a, b)

    assert list(b.members["x"].accusers) == ["observer"]


def test_a_member_thought_dead_is_asked_too() -> None:
    """The halves of a broken grid find each other so, also after the dead are forgotten."""
    one = view("a", "b", sync_s=10.0, dead_s=20.0)
    hear(one, "a", 10, DEAD)
    asked = [e.peer for i in range(30) for e in one.tick(NOW + i) if isinstance(e, Send) and e.kind == m.P_DIGEST]

    assert "a" not in one.members
    assert asked.count("a") >= 2
    assert asked.count("b") >= 2


def test_the_dead_are_forgotten_after_a_while_and_a_stall_lengthens_it() -> None:
    """And the others are told about nobody forgotten."""
    one = view("a", "b", dead_s=60.0, sync_s=1e9)
    hear(one, "a", 10, DEAD)
    one.stalled(30.0)

    assert Forgotten("a") not in one.tick(NOW + 89.0)
    assert Forgotten("a") in one.tick(NOW + 90.0)


def test_within_the_memory_an_old_life_stays_dead() -> None:
    """Whoever has not heard yet does not bring it back."""
    one = view("a")
    hear(one, "a", 10, DEAD)

    assert hear(one, "a", 10, ALIVE, shown=card(10, 5)) == []
    assert hear(one, "a", 11, ALIVE, shown=card(11)) == [Verdict("a", 11, ALIVE, "by")]


# ---- limits ---------------------------------------------------------------------------------------------------------


def test_a_bounded_view_keeps_the_nearest_on_the_rings() -> None:
    """So that observers and subjects are always among them, whatever the order of arrival."""
    names = [f"n{i}" for i in range(300)]
    views = []
    for seed in (1, 2):
        random.Random(seed).shuffle(names)
        views.append(view(*names, members_max=50))
    ranked = sorted(names, key=views[0]._distance)

    assert views[0].members.keys() == views[1].members.keys() == {ME, *ranked[:49]}


def test_who_falls_out_of_a_bounded_view_is_reported() -> None:
    """Liveness has to forget it too."""
    one = view(members_max=3)
    said = [e for i in range(20) for e in hear(one, f"n{i}", 10, ALIVE, shown=card())]
    came = {e.id for e in said if isinstance(e, Verdict)}
    went = {e.id for e in said if isinstance(e, Forgotten)}

    assert came - went == one.members.keys() - {ME}
    assert len(one.members) == 3


def test_bounded_views_exchange_little_per_round() -> None:
    """They always differ."""
    a = view(*(f"n{i}" for i in range(200)), me="a", members_max=100)
    b = view(*(f"n{i}" for i in range(200)), me="b", members_max=100)
    [digest] = a.met("b", NOW)
    assert isinstance(digest, Send)
    [records] = b.received("a", m.P_DIGEST, from_neighbour(m.P_DIGEST, digest.body), NOW)
    assert isinstance(records, Send)

    assert len(records.body[0]) == 4


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**64 - 1) | st.floats() | st.text(max_size=5) | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=12,
)
ids = st.sampled_from([ME, "a", "b", "stranger"])
numbers = st.sampled_from([0, 1, 9, 10, 11, 1000, 1001, 2**53 - 1])
lives = st.sampled_from([b"life----", b"clone---"])
almost_cards = st.none() | st.tuples(
    numbers, numbers, lives, st.booleans(), st.just([]), st.just({}), st.just([])
).map(list)  # fmt: skip
almost_updates = st.tuples(ids, numbers, st.integers(0, 3), ids, almost_cards).map(list)
almost = st.one_of(
    st.tuples(st.just(m.P_GOSSIP), st.lists(almost_updates, max_size=6).map(lambda updates: [updates])),
    st.tuples(
        st.just(m.P_RECORDS),
        st.tuples(st.lists(st.integers(0, 63), max_size=3), st.lists(almost_updates, max_size=4)).map(list),
    ),
    st.tuples(st.just(m.P_DIGEST), st.binary(min_size=512, max_size=512).map(lambda hashes: [hashes])),
    st.tuples(st.sampled_from([m.P_GOSSIP, m.P_RECORDS, m.P_DIGEST]), junk | st.lists(junk, min_size=1, max_size=3)),
)


@given(st.lists(almost, max_size=8))
def test_whatever_members_send_the_view_stays_whole(frames: list[tuple[int, Any]]) -> None:
    """Malformed frames raise PeerError; what is well formed leaves hashes, buckets and lists consistent."""
    one = view("a", "b", members_max=3)
    for kind, body in frames:
        try:
            read = from_neighbour(kind, body)
        except PeerError:
            continue
        one.received("a", kind, read, NOW)
        one.tick(NOW + 200.0)
    hashes = [0] * 64
    for bucket, nodes in enumerate(one._buckets):
        for name in nodes:
            hashes[bucket] ^= one.members[name].hash

    assert hashes == one._hashes
    assert sorted(name for _, name in one._far) == sorted(one.members) == sorted(n for b in one._buckets for n in b)
    assert len(one.members) <= 3
    assert one.card.life == b"life----"


# ---- clones ---------------------------------------------------------------------------------------------------------


def test_a_former_life_that_was_ahead_is_overtaken_and_no_clone() -> None:
    """The clock was set back between two starts."""
    one = view("a")
    said = hear(one, ME, 2000, ALIVE, shown=card(2000, life=b"former--"))
    one.judged(Verdict(ME, 2001, ALIVE, ME), NOW)

    assert said == [Verdict(ME, 2000, ALIVE, "by")]
    assert hear(one, ME, 2000, ALIVE, shown=card(2000, life=b"former--")) == []


def test_a_life_that_gets_ahead_twice_is_a_clone() -> None:
    """Two live addresses with one id: said once a minute, and answered by no race of incarnations."""
    one = view("a")
    hear(one, ME, 2000, ALIVE, shown=card(2000, life=b"clone---"))
    one.judged(Verdict(ME, 2001, ALIVE, ME), NOW)
    second = hear(one, ME, 2002, ALIVE, shown=card(2002, life=b"clone---"))
    one.judged(Verdict(ME, 2003, ALIVE, ME), NOW)
    third = hear(one, ME, 2004, ALIVE, shown=card(2004, life=b"clone---"), at=NOW + 1)
    later = hear(one, ME, 2006, ALIVE, shown=card(2006, life=b"clone---"), at=NOW + 61)

    assert [type(effect) for effect in second] == [Cloned, Verdict]
    assert third == []
    assert [type(effect) for effect in later] == [Cloned, Verdict]


def test_two_live_nodes_with_one_identity_both_find_out() -> None:
    """A cloned SD card; each hears of the other through the rest of the grid."""
    world = World(9)
    nodes = world.grid(10)
    twins = [world.add("here", id="twin"), world.add("there", id="twin")]
    for twin, door in zip(twins, nodes, strict=False):
        twin.join(door.name)
    world.run(60)

    assert all(twin.clones for twin in twins)
    assert all(twin.liveness.incarnation < 1_800_000_020 for twin in twins)
    assert not [one for one in nodes if one.clones]


# ---- whole grids ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [30.0, 120.0])
def test_after_a_partition_all_views_are_equal_within_three_rounds_of_anti_entropy(seconds: float) -> None:
    """Also when it lasted longer than the dead are remembered."""
    world = World(4)
    nodes = world.grid(30)
    side = {node.name for node in nodes[:15]}
    world.run(5)
    world.cut = lambda a, b: (a in side) != (b in side)
    world.run(seconds)
    apart = [len(picture) for picture in world.pictures()]
    world.cut = nothing_is_cut
    healed_s = world.now
    while not (world.agree() and len(world.pictures()[0]) == 30) and world.now < healed_s + 90:
        world.run(3.0)
    print(f"partition of {seconds:.0f} s: equal {world.now - healed_s:.0f} s after it healed")

    assert 15 <= max(apart) <= 22
    assert world.agree()
    assert len(world.pictures()[0]) == 30


def test_a_hundred_nodes_that_join_at_once_know_each_other_soon() -> None:
    """All at one of three doors, with a tenth of the frames lost."""
    world = World(8, loss=0.1)
    doors = world.grid(3)
    for i in range(100):
        world.add(f"new-{i:03}").join(doors[i % 3].name)
    start = world.now
    while {len(picture) for picture in world.pictures()} != {103} and world.now < start + 90:
        world.run(3.0)
    rate = world.sent.total() / 103 / (world.now - start)
    print(f"join of 100: equal after {world.now - start:.0f} s, {rate:.0f} messages/s per node")

    assert {len(picture) for picture in world.pictures()} == {103}
    assert {dead for _, _, dead in world.deaths()} == set()


def test_a_restarted_node_wins_over_its_former_life() -> None:
    """Its incarnation is later, whatever was said of the former one."""
    one = view("a")
    hear(one, "a", 10, DEAD)
    said = hear(one, "a", 20, ALIVE, shown=card(20, life=b"second--"))

    assert said == [Verdict("a", 20, ALIVE, "by")]
    assert wire(Update("a", 20, ALIVE, "a", one.members["a"].known.card))[4][2] == b"second--"


def test_news_and_comparisons_go_to_whom_there_is_a_connection_with() -> None:
    """Many that vanished together and are not known to be dead yet take no news away from the living."""
    one = view(*(f"n{i}" for i in range(20)))
    one.reaches = lambda node: node == "n7"
    asked: set[str] = set()
    for tick in range(400):
        asked |= {effect.peer for effect in one.tick(NOW + tick * 0.2) if isinstance(effect, Send)}

    assert asked == {"n7"}
