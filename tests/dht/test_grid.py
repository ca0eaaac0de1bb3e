"""Whole networks of machines, in virtual time."""

from __future__ import annotations

from functools import cache
from statistics import mean
from typing import Any

import pytest

from p2pgrid.dht import events as e
from p2pgrid.dht.keys import key_of
from p2pgrid.dht.search import Search
from p2pgrid.dht.wire import Contact, Kind, Message, Record
from tests.dht.world import RTT_S, Node, World, contact, peer_id

NODES = 1000


def network(stale: float, seed: int = 7) -> tuple[World, list[Node]]:
    """Return a thousand living nodes in whose tables that part of the entries is dead."""
    world = World(seed)
    nodes = [world.node(number) for number in range(round(NODES / (1 - stale)))]
    world.fill_tables()
    for node in world.rng.sample(nodes, len(nodes) - NODES):
        node.alive = False
    return world, [node for node in nodes if node.alive]


@cache
def lasting(stale: float) -> tuple[World, list[Node]]:
    """As `network`, for tests that leave it as it is but for what they put: making one takes a second."""
    return network(stale)


def walk(world: World, node: Node, kind: Any, *words: Any) -> tuple[Any, Search, float]:
    """Return result, search, and duration in round trips."""
    ticket, begun_s = world.command(node, kind, *words), world.now
    (search,) = [each for each in node.machine._searches if each.ticket == ticket]
    while ticket not in node.results:
        world.step()
    return node.results[ticket], search, (node.ended_s[ticket] - begun_s) / RTT_S


@pytest.mark.parametrize(("stale", "lookups"), [(0.0, 100), (0.3, 300)])
def test_a_thousand_nodes_find_each_other_in_two_rounds(stale: float, lookups: int) -> None:
    """At most 2.2 rounds on average and every living peer found, be three of ten table entries dead or none."""
    world, nodes = lasting(stale)
    found, rounds, questions, trips = [], [], [], []
    for _ in range(lookups):
        one, other = world.rng.sample(nodes, 2)
        result, search, lasted = walk(world, one, e.Find, other.id)
        found.append(result.peer == other.contact)
        rounds.append(search.lookup.rounds)
        questions.append(search.lookup.asked)
        trips.append(lasted)
    print(
        f"{stale:.0%} stale: found {mean(found):.4f}, rounds {mean(rounds):.2f}, questions {mean(questions):.1f}, "
        f"in all {mean(trips):.1f} round trips (most {max(trips):.0f})"
    )

    assert mean(found) >= 0.999
    assert mean(rounds) <= 2.2
    assert mean(trips) <= (2.2 if not stale else 4.5)  # silent peers are waited for, by their own measure


def test_put_on_one_node_get_on_any_other() -> None:
    """Values and providers, with three of ten table entries dead: each is found from everywhere."""
    world, nodes = lasting(0.3)
    for number in range(25):
        name, (writer, reader, provider, seeker) = b"k%d" % number, world.rng.sample(nodes, 4)
        stored = world.ask(writer, e.Put, name, b"v%d" % number, renew=False)
        provided = world.ask(provider, e.Provide, name)

        assert (stored, provided) == (e.Stored(8), e.Stored(8))
        assert world.ask(reader, e.Get, name) == e.Value(b"v%d" % number)
        assert world.ask(seeker, e.FindProviders, name) == e.ProvidersFound((provider.contact,))


def test_put_stores_at_the_eight_nearest() -> None:
    """At the same region for every writer."""
    world, nodes = lasting(0.0)
    for number in range(10):
        name = b"region %d" % number
        world.ask(nodes[number], e.Put, name, b"v", renew=False)
        holders = [node for node in nodes if node.machine.values.get(name, world.now)]
        nearest = sorted(nodes, key=lambda node: key_of(node.id) ^ key_of(name))

        assert {node.id for node in holders} == {node.id for node in nearest[:8]}


@pytest.mark.parametrize("stale", [0.3, 0.5])
def test_a_key_that_nobody_has_is_answered_in_bounded_time(stale: float) -> None:
    """Well below the 30 s after which any search ends."""
    world, nodes = lasting(stale)
    for number in range(10):
        result, search, lasted = walk(world, nodes[number], e.Get, b"nothing %d" % number)

        assert result == e.Value(None)
        assert search.lookup.asked <= 128
        assert lasted * RTT_S < 5


def test_a_search_among_the_dead_ends() -> None:
    """All others are gone: every command ends, and says that nothing was found."""
    world, nodes = network(0.0)
    for node in nodes[1:]:
        node.alive = False

    assert world.ask(nodes[0], e.Get, b"x", within_s=31) == e.Value(None)
    assert world.ask(nodes[0], e.Find, nodes[1].id, within_s=31) == e.Found(None, ())
    assert world.ask(nodes[0], e.Put, b"x", b"v", within_s=31) == e.Stored(1)


def test_with_a_member_view_one_round_is_enough() -> None:
    """In a grid whose members all know each other, nobody has to name anybody."""
    world = World(3)
    nodes = [world.node(number) for number in range(60)]
    for node in nodes:
        for other in nodes:
            world.tell(node, e.MemberUp(other.contact))
    for number in range(30):
        result, search, _ = walk(world, nodes[number], e.Find, nodes[59 - number].id)

        assert result.peer == nodes[59 - number].contact
        assert search.lookup.rounds == 1


def test_nodes_that_join_one_by_one_find_each_other() -> None:
    """Each knows a single member at first; a walk to its own key makes both sides acquainted."""
    world = World(4)
    nodes = [world.node(0)]
    world.tell(nodes[0], e.Started())
    for number in range(1, 80):
        nodes.append(world.join(number, world.rng.choice(nodes)))
        world.run(1.0)
    world.run(60.0)
    for _ in range(60):
        one, other = world.rng.sample(nodes, 2)
        assert world.ask(one, e.Find, other.id).peer == other.contact


def test_a_wrong_or_missing_copy_is_corrected_by_whoever_reads() -> None:
    """Of the nearest that answered, those without the value get it from the reader."""
    world, nodes = lasting(0.0)
    world.ask(nodes[0], e.Put, b"corrected", b"v", renew=False)
    nearest = sorted(nodes, key=lambda node: key_of(node.id) ^ key_of(b"corrected"))[:3]
    for node in nearest[:2]:
        node.machine.values.expire(world.now + 901)
    assert world.ask(nodes[1], e.Get, b"corrected") == e.Value(b"v")
    world.run(1.0)

    assert all(node.machine.values.get(b"corrected", world.now) for node in nearest)


def test_values_and_providers_survive_a_churn_that_replaces_every_other_node() -> None:
    """In twenty minutes 12 of 30 nodes die without a word and 12 come: what living nodes put is found all along."""
    world = World(5)
    nodes = [world.node(0)]
    world.tell(nodes[0], e.Started())
    for number in range(1, 30):
        nodes.append(world.join(number, world.rng.choice(nodes)))
        world.run(0.5)
    keepers = nodes[:5]
    for number, keeper in enumerate(keepers):
        world.ask(keeper, e.Put, b"v%d" % number, b"payload")
        world.ask(keeper, e.Provide, b"p%d" % number)
    mortal, missed = nodes[10:22], 0
    living = list(nodes)
    for number, victim in enumerate(mortal):
        victim.alive = False
        living.remove(victim)
        living.append(world.join(200 + number, world.rng.choice(living)))
        world.run(100.0)
        reader, which = world.rng.choice(living), world.rng.randrange(5)
        missed += world.ask(reader, e.Get, b"v%d" % which) != e.Value(b"payload")
        found = world.ask(reader, e.FindProviders, b"p%d" % which)
        missed += keepers[which].contact not in found.providers

    assert missed == 0


def test_liars_neither_end_a_search_nor_get_into_it() -> None:
    """A fifth of the nodes answer with garbage: forged values, invented peers, other keys."""
    world, nodes = network(0.0)
    world.ask(nodes[0], e.Put, b"k", b"v", renew=False)
    liars = nodes[1::5]
    invented = tuple(contact(number) for number in range(5000, 5040))

    def lie(peer: Contact, message: Message | None, now: float) -> Message:
        return Message(message.kind if message else Kind.PING, b"k", Record(b"other", b"forged"), invented)

    for liar in liars:
        liar.machine._answer = lie  # type: ignore[method-assign]
    readers = [node for node in nodes if node not in liars]
    for number in range(20):
        assert world.ask(readers[number], e.Get, b"k") == e.Value(b"v")


def test_the_same_seed_gives_the_same_messages() -> None:
    """Nothing depends on the clock, on hashes of the process, or on chance but the seed's."""

    def story() -> tuple[int, float, dict[str, int]]:
        world = World(9)
        nodes = [world.node(0)]
        for number in range(1, 20):
            nodes.append(world.join(number, nodes[0]))
        world.run(400.0)
        world.ask(nodes[5], e.Find, peer_id(17))
        return world.messages, world.now, dict(nodes[7].machine.counts)

    assert story() == story()


def test_an_idle_network_is_quiet() -> None:
    """A node that nobody uses sends and answers less than one message a second."""
    world = World(6)
    nodes = [world.node(0)]
    world.tell(nodes[0], e.Started())
    for number in range(1, 40):
        nodes.append(world.join(number, nodes[0]))
    world.run(300.0)
    before = world.messages
    world.run(600.0)
    per_second = (world.messages - before) / 600 / 40
    print(f"{per_second:.2f} messages per node and second")

    assert per_second < 1.0
