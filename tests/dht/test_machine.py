"""One node's machine, told by hand: what it answers, refuses, counts and renews."""

from __future__ import annotations

import random
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pgrid.dht import events as e
from p2pgrid.dht.keys import key_of, peer_id_of, shared_bits
from p2pgrid.dht.machine import Machine, Options
from p2pgrid.dht.records import Open, Reason, RecordOptions, Signed
from p2pgrid.dht.wire import Contact, Kind, Message, Record
from tests.dht.world import UNIX_S, World, contact, peer_id

GRID = bytes(32)
KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([n + 1]) * 32) for n in range(4)]
PUBLIC = [key.public_key().public_bytes_raw() for key in KEYS]
KEY = b"/p2pgrid/job/1"
OPTIONS = Options(records=RecordOptions(member_values_max=2, member_providers_max=2))


def belongs(public: bytes) -> bool:
    return public in PUBLIC[:3]


def machine() -> Machine:
    found = Machine(peer_id_of(PUBLIC[0]), {"p2pgrid": Signed(GRID, belongs, KEYS[0])}, random.Random(1), OPTIONS)
    found.handle(e.Clock(UNIX_S), 0.0)
    return found


def signed(number: int, key: bytes = KEY) -> Record:
    return Record(key, Signed(GRID, belongs, KEYS[number]).seal(key, b"payload", UNIX_S))


def request(to: Machine, message: Message | None, sender: Contact | None = None, now: float = 0.0) -> Message | None:
    """Return its answer."""
    effects = to.handle(e.Requested(7, sender or contact(1), message), now)
    (answer,) = [each for each in effects if isinstance(each, e.Answer)]
    return answer.message


def put(record: Record) -> Message:
    return Message(Kind.PUT_VALUE, record.key, record)


# ---- what is answered ------------------------------------------------------------------------------------------------


def test_a_value_put_is_echoed_and_served() -> None:
    """With the time at which it came, as the specification wants it."""
    one = machine()

    assert request(one, put(signed(1))) == put(signed(1))
    answer = request(one, Message(Kind.GET_VALUE, KEY))
    assert answer is not None
    assert answer.record == signed(1)._replace(received="2027-01-15T08:00:00.000000Z")


def test_a_provider_that_speaks_for_itself_is_named() -> None:
    """Its record is echoed and served."""
    one = machine()
    request(one, Message(Kind.ADD_PROVIDER, b"x", providers=(contact(1), contact(2))), contact(1))

    answer = request(one, Message(Kind.GET_PROVIDERS, b"x"))
    assert answer is not None
    assert answer.providers == (contact(1),)


def test_the_twenty_nearest_members_are_named_but_not_the_asker() -> None:
    """From the member view alone, before anybody has answered."""
    one = machine()
    for number in range(1, 40):
        one.handle(e.MemberUp(contact(number)), 0.0)
    target = key_of(b"x" * 34)
    expected = sorted((contact(n) for n in range(2, 40)), key=lambda each: key_of(each.id) ^ target)[:20]

    answer = request(one, Message(Kind.FIND_NODE, b"x" * 34), contact(1))
    assert answer is not None
    assert list(answer.closer) == expected


def test_nobody_is_named_to_itself() -> None:
    """Also if it is the very one that is looked for: a walk to the own key wants the others."""
    one = machine()
    for number in (1, 2):
        one.handle(e.MemberUp(contact(number)), 0.0)
    for kind in (Kind.FIND_NODE, Kind.GET_VALUE, Kind.GET_PROVIDERS):
        answer = request(one, Message(kind, contact(1).id), contact(1))

        assert answer is not None
        assert answer.closer == (contact(2),)


def test_a_leaf_is_named_only_to_whoever_looks_for_it() -> None:
    """It serves nobody, so it is no step on the way; so are we ourselves."""
    one = machine()
    one.handle(e.MemberUp(contact(2), serves=False), 0.0)
    one.handle(e.Listens((b"here",)), 0.0)

    def named(name: bytes) -> list[bytes]:
        answer = request(one, Message(Kind.FIND_NODE, name))
        return [each.id for each in answer.closer] if answer else []

    assert named(contact(2).id) == [contact(2).id]
    assert named(one.me.id) == [one.me.id]
    assert named(peer_id(3)) == []


def test_a_ping_is_answered() -> None:
    """Deprecated, and still sent by py-libp2p."""
    assert request(machine(), Message(Kind.PING)) == Message(Kind.PING)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (None, Reason.MALFORMED),
        (Message(Kind.FIND_NODE), Reason.MALFORMED),
        (Message(Kind.GET_VALUE, bytes(129)), Reason.MALFORMED),
        (Message(Kind.PUT_VALUE, KEY), Reason.MALFORMED),
        (put(signed(1))._replace(key=b"/p2pgrid/job/2"), Reason.MALFORMED),
        (put(signed(1)._replace(value=b"garbage")), Reason.MALFORMED),
        (put(signed(1)._replace(value=signed(1).value[:-1] + b"x")), Reason.SIGNATURE),
        (put(signed(3)), Reason.STRANGER),
        (put(Record(b"/ipns/x", b"x")), Reason.NAMESPACE),
        (Message(Kind.ADD_PROVIDER, b"x"), Reason.NOT_SENDER),
        (Message(Kind.ADD_PROVIDER, b"x", providers=(contact(2),)), Reason.NOT_SENDER),
    ],
)
def test_what_is_not_in_order_is_refused_counted_and_not_stored(message: Message | None, reason: Reason) -> None:
    """The stream is reset, one counter is one more, the stores are empty."""
    one = machine()

    assert request(one, message) is None
    assert one.refused == {reason: 1}
    assert (len(one.values), len(one.providers), len(one.table)) == (0, 0, 0)


def test_too_many_records_from_one_member_are_refused_and_counted() -> None:
    """Two values and two provided keys are its share here; whoever carries them, and others keep theirs."""
    one = machine()
    for number in range(4):
        request(one, put(signed(1, b"/p2pgrid/%d" % number)), contact(number))
        request(one, Message(Kind.ADD_PROVIDER, b"%d" % number, providers=(contact(1),)), contact(1))
    request(one, put(signed(2, b"/p2pgrid/x")))

    assert one.refused == {Reason.TOO_MANY: 4}
    assert (len(one.values), len(one.providers)) == (3, 2)


def test_a_peer_that_only_asks_does_not_get_into_the_table() -> None:
    """It is asked itself, once; if it answers it is in."""
    one = machine()
    asks = [each for n in range(3) for each in one.handle(e.Requested(n, contact(1), Message(Kind.PING)), float(n))]
    (ask,) = [each for each in asks if isinstance(each, e.Ask)]
    assert len(one.table) == 0
    one.handle(e.Answered(ask.token, Message(Kind.FIND_NODE)), 3.0)

    assert len(one.table) == 1


def test_where_a_peer_of_the_table_is_may_be_said_later() -> None:
    """Whoever asks before its identify is through gets in without an address; it is named with one after that."""
    one = machine()
    bare = contact(1)._replace(addresses=())
    (ask,) = [each for each in one.handle(e.Requested(1, bare, Message(Kind.PING)), 0.0) if isinstance(each, e.Ask)]
    one.handle(e.Answered(ask.token, Message(Kind.FIND_NODE)), 0.1)
    request(one, Message(Kind.PING), contact(1)._replace(addresses=(b"there",)), 1.0)
    request(one, Message(Kind.PING), bare, 2.0)

    answer = request(one, Message(Kind.FIND_NODE, contact(1).id), contact(2), 3.0)
    assert answer is not None
    assert answer.closer == (Contact(contact(1).id, (b"there",)),)


def test_only_so_many_askers_are_checked_at_once() -> None:
    """A crowd of strangers does not make us dial all of them."""
    one = machine()
    effects = [each for n in range(1, 50) for each in one.handle(e.Requested(n, contact(n), Message(Kind.PING)), 0.0)]

    assert sum(isinstance(each, e.Ask) for each in effects) == OPTIONS.checks_max


def test_an_answer_of_another_kind_is_no_answer() -> None:
    """Its sender has not answered: it is counted and does not enter the table."""
    one = machine()
    one.handle(e.MemberUp(contact(1)), 0.0)
    (ask,) = [each for each in one.handle(e.Find(1, peer_id(5)), 0.0) if isinstance(each, e.Ask)]
    effects = one.handle(e.Answered(ask.token, Message(Kind.GET_VALUE, KEY)), 0.1)

    assert e.Done(1, e.Found(None, ())) in effects
    assert one.refused == {Reason.MALFORMED: 1}
    assert len(one.table) == 0


def test_what_others_name_is_asked_only_if_it_can_be_a_peer() -> None:
    """Of garbage ids, ourselves and a crowd of names, the first 21 at most are looked at."""
    one = machine()
    one.handle(e.MemberUp(contact(1)), 0.0)
    (ask,) = [each for each in one.handle(e.Find(1, peer_id(5)), 0.0) if isinstance(each, e.Ask)]
    named = (Contact(b"garbage"), one.me, Contact(b""), contact(2), *map(contact, range(10, 60)))
    effects = one.handle(e.Answered(ask.token, Message(Kind.FIND_NODE, closer=named)), 0.1)
    asked = {each.peer.id for each in effects if isinstance(each, e.Ask)}

    assert asked <= {contact(2).id, *(peer_id(n) for n in range(10, 27))}
    assert len(asked) == 10


# ---- commands --------------------------------------------------------------------------------------------------------


def result(to: Machine, command: Any, now: float = 0.0) -> e.Result:
    (done,) = [each for each in to.handle(command, now) if isinstance(each, e.Done)]
    return done.result


def test_a_node_alone_keeps_what_it_puts() -> None:
    """A grid of one is a working grid."""
    one = machine()

    assert result(one, e.Put(1, KEY, b"v")) == e.Stored(1)
    assert result(one, e.Get(2, KEY)) == e.Value(b"v")
    assert result(one, e.Provide(3, b"x")) == e.Stored(1)
    assert result(one, e.FindProviders(4, b"x")) == e.ProvidersFound((one.me,))
    assert result(one, e.Get(5, b"/p2pgrid/nothing")) == e.Value(None)


def test_of_what_is_answered_the_latest_good_value_counts_and_the_others_are_corrected() -> None:
    """Three answer: with an old value, a forged one, and the latest; the first two are sent the latest."""
    one = machine()
    for number in (1, 2, 3):
        one.handle(e.MemberUp(contact(number)), 0.0)
    asks = [each for each in one.handle(e.Get(1, KEY), 0.0) if isinstance(each, e.Ask)]
    latest = Record(KEY, Signed(GRID, belongs, KEYS[1]).seal(KEY, b"latest", UNIX_S + 1))
    forged = signed(2)._replace(value=signed(2).value[:-1] + b"x")
    effects: list[e.Effect] = []
    for ask, record in zip(asks, (signed(1), forged, latest), strict=True):
        effects += one.handle(e.Answered(ask.token, Message(Kind.GET_VALUE, KEY, record)), 0.1)

    assert e.Done(1, e.Value(b"latest")) in effects
    corrected = {each.peer: each.message for each in effects if isinstance(each, e.Ask)}
    assert corrected == {asks[0].peer: put(latest), asks[1].peer: put(latest)}
    assert one.refused == {Reason.SIGNATURE: 1}


def asks_all(one: Machine, command: Any, numbers: range, now: float = 0.0) -> list[e.Ask]:
    """Return the questions to all these members, the nearest to the command's key first."""
    for number in numbers:
        one.handle(e.MemberUp(contact(number)), now)
    asks = [each for each in one.handle(command, now) if isinstance(each, e.Ask)]
    assert len(asks) == len(numbers)
    return asks


def test_a_get_that_found_nothing_at_three_asks_the_eight_before_it_says_so() -> None:
    """The value is with the farthest of eight."""
    one = machine()
    asks = asks_all(one, e.Get(1, KEY), range(1, 9))
    for ask in asks[:7]:
        effects = one.handle(e.Answered(ask.token, Message(Kind.GET_VALUE, KEY)), 0.1)
        assert not any(isinstance(each, e.Done) for each in effects)
    effects = one.handle(e.Answered(asks[7].token, Message(Kind.GET_VALUE, KEY, signed(1))), 0.1)

    assert e.Done(1, e.Value(b"payload")) in effects


def test_a_search_for_providers_ends_when_enough_are_found() -> None:
    """One was wanted: the first answer that names one ends it."""
    one = machine()
    asks = asks_all(one, e.FindProviders(1, b"x", 1), range(1, 9))
    named = Message(Kind.GET_PROVIDERS, b"x", providers=(contact(30),))
    effects = one.handle(e.Answered(asks[5].token, named), 0.1)

    assert e.Done(1, e.ProvidersFound((contact(30),))) in effects


def test_a_search_ends_in_time_whoever_is_still_waited_for() -> None:
    """With what it has: here the one that answered, of nine."""
    options = Options(search_s=0.5)
    one = Machine(peer_id(0), {"": Open()}, random.Random(1), options)
    asks = asks_all(one, e.Find(1, peer_id(50)), range(1, 9))
    one.handle(e.Answered(asks[4].token, Message(Kind.FIND_NODE)), 0.1)
    effects = one.handle(e.Tick(), 0.5)

    assert e.Done(1, e.Found(None, (asks[4].peer,))) in effects


def test_what_was_looked_up_needs_no_refresh() -> None:
    """A command's walk counts as well as a chore's."""
    one = machine()
    far = next(n for n in range(1, 50) if shared_bits(key_of(peer_id(n)), key_of(one.me.id)) == 0)
    one.table.answered(contact(far), 0.0)
    assert one.table.idle(400.0) == [0]
    (ask,) = [each for each in one.handle(e.Find(1, peer_id(far)), 400.0) if isinstance(each, e.Ask)]
    one.handle(e.Answered(ask.token, Message(Kind.FIND_NODE)), 400.1)

    assert one.table.idle(401.0) == []


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (e.Put(1, b"/pk/x", b"v"), Reason.NAMESPACE),
        (e.Put(1, KEY, bytes(9000)), Reason.TOO_LARGE),
        (e.Put(1, KEY, b""), Reason.MALFORMED),
        (e.Get(1, b""), Reason.MALFORMED),
        (e.Find(1, bytes(200)), Reason.MALFORMED),
    ],
)
def test_a_command_that_cannot_be_carried_out_says_why(command: Any, reason: Reason) -> None:
    """At once, and nothing of it is renewed later."""
    one = machine()

    assert result(one, command) == e.Refused(reason)
    assert one._published == {}


def test_renewing_ends_with_withdraw() -> None:
    """An hour later a value and a provider record are still there; after a withdrawal they expire."""
    world = World()
    one = world.node(1)
    world.tell(one, e.Started())
    world.ask(one, e.Put, b"k", b"v")
    world.ask(one, e.Provide, b"x")
    world.run(3600)
    assert world.ask(one, e.Get, b"k") == e.Value(b"v")
    assert world.ask(one, e.FindProviders, b"x") == e.ProvidersFound((one.contact,))
    world.tell(one, e.Withdraw(b"k"))
    world.tell(one, e.Withdraw(b"x"))
    assert world.ask(one, e.FindProviders, b"x") == e.ProvidersFound(())
    world.run(1000)

    assert world.ask(one, e.Get, b"k") == e.Value(None)


def test_what_is_put_again_and_again_is_renewed_once() -> None:
    """However often it was withdrawn in between: one store per interval, one timer."""
    world = World()
    one, other = world.node(1), world.node(2)
    world.tell(one, e.MemberUp(other.contact))
    for _ in range(5):
        world.ask(one, e.Put, b"k", b"v")
        world.ask(one, e.Provide, b"x")
        world.tell(one, e.Withdraw(b"k"))
        world.tell(one, e.Withdraw(b"x"))
    world.ask(one, e.Put, b"k", b"v")
    world.ask(one, e.Provide, b"x")
    before = one.machine.counts["searches"]
    world.run(3000)

    assert one.machine.counts["searches"] - before in range(9 + 4, 12 + 6)


def test_a_node_that_loses_and_finds_its_members_walks_no_more_often_for_it() -> None:
    """Each reunion is a reason to walk, and none a new habit."""
    world = World()
    one, other = world.node(1), world.node(2)
    world.tell(one, e.Started())
    for _ in range(20):
        world.tell(one, e.MemberUp(other.contact))
        world.run(2)
        world.tell(one, e.MemberDown(other.id))
    world.tell(one, e.MemberUp(other.contact))
    world.run(300)

    assert sum(what in ("refresh", "walk") for _, _, what, _ in one.machine._due.heap) == 1


def test_commands_do_not_wait_for_chores() -> None:
    """With all the machine's own searches stuck at a silent peer, a command starts at once."""
    one = Machine(peer_id(0), {"": Open()}, random.Random(1))
    one.handle(e.Started(), 0.0)
    one.handle(e.MemberUp(contact(1)), 0.0)
    for number in range(40):
        one._chores.append(e.Find(0, peer_id(100 + number)))
    one.handle(e.Tick(), 1.0)
    assert one._own == one.options.own_max
    effects = one.handle(e.Find(5, peer_id(3)), 1.0)

    assert [each.message for each in effects if isinstance(each, e.Ask)] == [Message(Kind.FIND_NODE, peer_id(3))]


def test_a_timer_is_set_for_every_question() -> None:
    """Its peer is given up when the time comes, without a word from the shell."""
    one = machine()
    one.handle(e.MemberUp(contact(1)), 0.0)
    effects = one.handle(e.Find(1, peer_id(5)), 0.0)
    assert one._timer_s is not None
    for _ in range(9):
        effects = one.handle(e.Tick(), one._timer_s)
        if any(isinstance(each, e.Done) for each in effects):
            break

    assert e.Done(1, e.Found(None, ())) in effects
    assert one.counts["timeouts"] == 1
