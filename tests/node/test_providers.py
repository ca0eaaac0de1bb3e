"""Objects whose holders are not connected: announced in the DHT, found there, fetched; stale entries cost time only.

The nodes for objects are some of those of a Kademlia of their own machines, both on heaps and in virtual time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from p2pgrid.core import messages as m
from p2pgrid.core import pieces
from p2pgrid.core.pieces import ObjectId
from p2pgrid.dht import events as dht
from p2pgrid.dht.records import RecordOptions
from p2pgrid.node.beyond import name_of
from p2pgrid.node.object_events import Announce, Gone, Ready, Seek, Unsay
from p2pgrid.node.objects import ObjectsOptions
from p2pgrid.node.providing import Providing, ProvidingOptions
from p2pgrid.node.shelf import Shelf, ShelfOptions
from tests.dht.world import Node as DhtNode
from tests.dht.world import World as Dht
from tests.dht.world import contact
from tests.node.object_world import Node, World

PIECE = 64
MEMBERS = 300
STALE = 0.3


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(pieces, "PIECE_BYTES", PIECE)
    return iter(())


class Both:
    """A grid of many members, of whom some share objects; nobody is connected with anybody who is added `apart`."""

    def __init__(self, seed: int) -> None:
        self.dht = Dht(seed)
        for number in range(MEMBERS):
            self.dht.node(number)
        self.dht.fill_tables()
        self.world = World(seed, 0)
        self.world.seek = self._seek
        self.seeks = 0
        self._numbers: dict[str, int] = {}

    def add(self, name: str, *, apart: bool = True) -> Node:
        self._numbers[name] = len(self._numbers)
        return self.world.add(name, apart=apart)

    def in_dht(self, name: str) -> DhtNode:
        return self.dht.nodes[contact(self._numbers[name]).id]

    def have(self, holders: list[Node], data: bytes) -> ObjectId:
        """Let these have an object, and say so in the DHT."""
        (id_,) = {holder.put(data) for holder in holders}
        for holder in holders:
            found = self.dht.ask(self.in_dht(holder.name), dht.Provide, name_of(id_))
            assert isinstance(found, dht.Stored)
            assert found.copies >= 5
        return id_

    def kill(self, name: str) -> None:
        self.in_dht(name).alive = False
        self.world.kill(name)

    def make_stale(self, share: float) -> None:
        """So many of the members that share nothing are gone, and everybody's table still has them."""
        rest = range(len(self._numbers), MEMBERS)
        for number in self.dht.rng.sample(rest, int(share * len(rest))):
            self.dht.nodes[contact(number).id].alive = False

    def _seek(self, name: str, seek: Seek) -> tuple[list[str], float]:
        self.seeks += 1
        began_s = self.dht.now
        found = self.dht.ask(self.in_dht(name), dht.FindProviders, name_of(seek.id), within_s=40)
        assert isinstance(found, dht.ProvidersFound)
        names = {contact(number).id: name for name, number in self._numbers.items()}
        return [names[one.id] for one in found.providers if one.id in names], self.dht.now - began_s


def data_of(count: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(count * PIECE - 5)


@pytest.mark.parametrize("seed", range(5))
def test_a_copy_elsewhere_is_found_where_all_named_holders_are_gone(seed: int) -> None:
    """Three of the four that announced it are dead, and so are three of ten members of the DHT."""
    both = Both(seed)
    holders = [both.add(f"holder{number}") for number in range(4)]
    neighbour = both.add("neighbour", apart=False)
    one = both.add("one", apart=True)
    both.world._join("one", "neighbour")
    data = data_of(30)
    id_ = both.have(holders, data)
    both.make_stale(STALE)
    for holder in holders[:3]:
        both.kill(holder.name)
    one.want(id_, [holder.name for holder in holders[:2]])

    assert both.world.run(30, lambda: one.has(id_))
    assert one.memory[id_] == data
    assert one.heard(Ready) == [Ready(id_)]
    assert not neighbour.heard(Ready)
    assert both.seeks == 1


def test_nobody_looks_in_the_dht_for_what_a_neighbour_has() -> None:
    both = Both(7)
    one, two = both.add("one", apart=False), both.add("two", apart=False)
    ids = [two.put(data_of(3, seed)) for seed in range(50)]
    for id_ in ids:
        one.want(id_, ["two"])
    assert both.world.run(30, lambda: all(map(one.has, ids)))
    assert both.seeks == 0


def test_what_nobody_has_is_lost_in_bounded_time() -> None:
    """A few searches, one after the other; and thousands that are sought at once do not search at once."""
    both = Both(8)
    one = both.add("one", apart=False)
    both.add("two", apart=False)
    both.make_stale(STALE)
    ids = [ObjectId(b"\x01" + number.to_bytes(32, "big")) for number in range(40)]
    start_s = both.world.now
    for id_ in ids:
        one.want(id_, ["nobody"])

    assert both.world.run(60, lambda: len(one.heard(Gone)) == len(ids))
    assert both.world.now - start_s < 40
    assert 0 < both.seeks <= 3 * len(ids)
    assert not one.objects.sought
    assert not one.objects.seeks.running


def test_liars_in_the_dht_prolong_nothing_but_once() -> None:
    """Others name themselves as providers, at every search new ones, and have nothing."""
    both = Both(9)
    one = both.add("one", apart=False)
    liars = iter(range(10_000))

    def sworn(_name: str, _seek: Seek) -> tuple[list[str], float]:
        both.seeks += 1
        return [f"liar{next(liars)}" for _ in range(8)], 0.1

    both.world.seek = sworn
    one.want(ObjectId(b"\x01" + bytes(32)), [])
    start_s = both.world.now
    assert both.world.run(120, lambda: bool(one.heard(Gone)))
    assert both.world.now - start_s < 2 * ObjectsOptions().lost_s + 5


def test_whoever_says_so_in_the_dht_and_does_not_have_it_is_not_believed() -> None:
    """Stale records: two have dropped it; the third still has it."""
    both = Both(10)
    holders = [both.add(f"holder{number}") for number in range(3)]
    one = both.add("one")
    data = data_of(5)
    id_ = both.have(holders, data)
    for holder in holders[:2]:
        holder.perform(holder.objects.shelf.process_gone(0))
        holder.objects.shelf.unpin(id_, ("session", b"s"))
        holder.perform(holder.objects.shelf.drop(id_))
        assert not holder.has(id_)
    one.want(id_, [])
    assert both.world.run(30, lambda: one.has(id_))
    assert both.world.sent[m.O_LACK] >= 2


# ---- what is announced ----------------------------------------------------------------------------------------------


def shelf_with(sizes: list[int]) -> tuple[Shelf, list[ObjectId]]:
    shelf = Shelf(ShelfOptions(10**9, 10**9))
    ids = []
    for number, size in enumerate(sizes):
        id_ = ObjectId(b"\x01" + number.to_bytes(32, "big"))
        shelf.admit(id_, size, ("job", b"j"), 0.0)
        shelf.allocated(id_)
        shelf.written(id_, id_)
        ids.append(id_)
    return shelf, ids


def test_nothing_is_announced_where_everybody_can_ask() -> None:
    shelf, _ = shelf_with([1000] * 10)
    providing = Providing(shelf)
    for now in range(0, 100, 2):
        assert providing.look(now, apart=False) == []


def test_what_is_in_use_for_a_while_is_announced_and_unsaid_at_its_end() -> None:
    shelf, (id_, other) = shelf_with([1000, 2000])
    providing = Providing(shelf)
    assert providing.look(0.0, apart=True) == []
    assert providing.look(4.0, apart=True) == []
    assert providing.look(6.0, apart=True) == [Announce(other), Announce(id_)]  # the larger one first
    assert providing.look(8.0, apart=True) == []
    shelf.unpin(id_, ("job", b"j"))
    assert providing.look(10.0, apart=True) == [Unsay(id_)]
    assert providing.look(12.0, apart=False) == []  # whom it has told this is connected for a while
    assert providing.look(130.0, apart=False) == []
    assert providing.look(131.0, apart=False) == [Unsay(other)]
    assert not providing.announced


def test_many_small_objects_do_not_flood() -> None:
    """So many at a time and so many at most; the large ones are among them."""
    sizes = [100] * 6000 + [10**6] * 50
    shelf, ids = shelf_with(sizes)
    providing = Providing(shelf, ProvidingOptions())
    said = 0
    for now in range(0, 200, 2):
        told = providing.look(now, apart=True)
        assert len(told) <= ProvidingOptions().per_look
        said += len(told)
    assert said == len(providing.announced) == ProvidingOptions().announced_max
    assert len(providing._since_s) <= ProvidingOptions().scanned_max
    for id_ in ids[6000:]:
        shelf.unpin(id_, ("job", b"j"))
    for now in range(200, 220, 2):
        providing.look(now, apart=True)
    assert not providing.announced.keys() & set(ids[6000:])


def test_what_nodes_announce_fits_into_what_others_keep() -> None:
    """Every member is allowed more records at each keeper than it ever announces."""
    assert ProvidingOptions().announced_max < RecordOptions().member_providers_max
