"""Objects between nodes on the heap: whatever is lost, lies or dies, what arrives is what was put, or is said lost."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest

from p2pgrid.core import messages as m
from p2pgrid.core import pieces
from p2pgrid.core.errors import PeerError
from p2pgrid.core.object_shapes import of_objects
from p2pgrid.core.pieces import ObjectId, manifest_of
from p2pgrid.node.copies import CopiesOptions
from p2pgrid.node.fetching import FetchOptions
from p2pgrid.node.object_events import Gone, NoRoom, Ready, SendPieces, Suspect
from p2pgrid.node.objects import COPY, ObjectsOptions
from p2pgrid.node.shelf import ShelfOptions
from tests.node.object_world import Node, World, whole

PIECE = 64


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(pieces, "PIECE_BYTES", PIECE)
    return iter(())


def data_of(count: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(count * PIECE - 5)


def put(nodes: Sequence[Node], data: bytes) -> ObjectId:
    (id_,) = {node.put(data) for node in nodes}
    return id_


def test_one_fetches_from_one() -> None:
    """Find, list, want, pieces: few frames beside the pieces, and the bytes are those that were put."""
    world = World(1, 2)
    one, two = world.nodes.values()
    id_ = one.put(data_of(100))
    two.want(id_, ["n0"])

    assert world.run(5, whole([two], id_))
    assert two.memory[id_] == data_of(100)
    assert two.heard(Ready) == [Ready(id_)]
    assert world.sent[m.O_PIECE] == 100
    assert sum(world.sent.values()) - world.sent[m.O_PIECE] < 60


@pytest.mark.parametrize("loss", [0.0, 0.05])
def test_one_fetches_from_several_at_once(loss: float) -> None:
    """Each gives its share, so it takes a share of the time."""
    world = World(2, 6, loss=loss, rate=100_000)
    nodes = list(world.nodes.values())
    id_ = put(nodes[:5], data_of(400))
    start = world.now
    nodes[5].want(id_)

    assert world.run(60, whole(nodes, id_))
    took_s, alone_s = world.now - start, 400 * PIECE / 100_000
    senders = [node.name for node in nodes[:5] if node.heard(SendPieces)]
    assert len(senders) == 5 if not loss else len(senders) >= 2
    if not loss:
        assert took_s < 0.35 * alone_s
        assert world.sent[m.O_PIECE] <= 400 * 1.05


def test_a_swarm_is_not_bound_by_its_source() -> None:
    """Twelve nodes fetch from one, and from each other while they do: near the bound, far from twelve times."""
    world = World(3, 13, rate=5_000)
    nodes = list(world.nodes.values())
    id_ = nodes[0].put(data_of(300))
    start = world.now
    for node in nodes[1:]:
        node.want(id_)

    assert world.run(120, whole(nodes, id_))
    times = (world.now - start) / (300 * PIECE / 5_000)
    print(f"12 nodes: {times:.2f} times what one takes")
    assert times < 1.6
    assert sum(hi - lo for e in nodes[0].heard(SendPieces) for lo, hi in e.pieces) < 1.1 * 300
    assert all(node.memory[id_] == data_of(300) for node in nodes)


def test_a_liar_is_found_out_by_one_piece() -> None:
    """Dropped, its sender not asked again, fetched elsewhere."""
    world = World(4, 4)
    nodes = list(world.nodes.values())
    id_ = put(nodes[:3], data_of(200))
    nodes[1].lies = 1.0
    nodes[3].want(id_)

    assert world.run(30, whole(nodes, id_))
    assert nodes[3].memory[id_] == data_of(200)
    assert {suspect.peer for suspect in nodes[3].heard(Suspect)} == {"n1"}
    assert nodes[3].objects.wrong_pieces["n1"] <= 32


def test_only_liars_is_nobody() -> None:
    """Then it is lost, and nothing wrong was handed out."""
    world = World(5, 3)
    nodes = list(world.nodes.values())
    id_ = put(nodes[:2], data_of(50))
    for node in nodes[:2]:
        node.lies = 1.0
    nodes[2].want(id_)

    assert world.run(30, lambda: bool(nodes[2].heard(Gone)))
    assert sorted(nodes[2].heard(Gone)[0].last_holders) == ["n0", "n1"]
    assert not nodes[2].memory
    assert nodes[2].objects.shelf.held_bytes == 0


def test_a_holder_that_dies_costs_nothing_that_has_come() -> None:
    """Another goes on from the verified pieces."""
    world = World(6, 3, rate=50_000)
    nodes = list(world.nodes.values())
    id_ = put(nodes[:2], data_of(400))
    nodes[2].want(id_, ["n0"])
    world.run(0.2)
    fetch = nodes[2].objects.sought[id_].fetch
    assert fetch is not None
    had = fetch.verified.size
    assert 50 < had < 350
    world.kill("n0")

    assert world.run(30, whole(nodes, id_))
    assert nodes[2].memory[id_] == data_of(400)
    assert world.sent[m.O_PIECE] <= 400 + 64
    assert len(nodes[1].heard(SendPieces)) > 0


def test_the_last_holder_comes_back() -> None:
    """A fetch without holders waits for a while, and goes on when there is one again."""
    world = World(7, 2, rate=50_000)
    one, two = world.nodes.values()
    id_ = one.put(data_of(400))
    two.want(id_)
    world.run(0.2)
    world.cut("n0", "n1")

    assert world.run(10, whole([two], id_))
    assert not two.heard(Gone)
    assert world.sent[m.O_PIECE] <= 400 + 64


def test_what_nobody_has_is_lost_in_bounded_time() -> None:
    """With the names of those who had it last."""
    world = World(8, 4)
    id_ = manifest_of(b"nowhere").id
    world.nodes["n0"].want(id_, ["n3", "stranger"])

    assert world.run(30, lambda: bool(world.nodes["n0"].heard(Gone)))
    assert world.nodes["n0"].heard(Gone) == [Gone(id_, ["n3", "stranger"])]
    assert world.now < 1000 + 12
    assert not world.nodes["n0"].objects.busy


def test_what_comes_late_is_found() -> None:
    """A member that joins with the object while it is sought, and one that gets it itself only now."""
    world = World(9, 3)
    data = data_of(30)
    id_ = manifest_of(data).id
    for name in ("n0", "n1"):
        world.nodes[name].want(id_)
    world.run(3)
    late = world.add("late")
    late.put(data)
    world.run(3)
    world.cut("late", "n0")

    assert world.run(8, whole([world.nodes["n0"], world.nodes["n1"]], id_))


def test_no_room_is_said_before_anything_is_fetched() -> None:
    """Quota: the one who wants it hears it."""
    world = World(10, 1)
    small = world.add("small", shelf=ShelfOptions(1000, 1000))
    id_ = world.nodes["n0"].put(data_of(100))
    small.want(id_)
    world.run(3)

    assert [type(effect) for effect in small.heard(NoRoom)] == [NoRoom]
    assert world.sent[m.O_PIECE] == 0
    assert not small.objects.sought


def test_nobody_waits_for_what_nobody_wants() -> None:
    """The last owner goes: what was under way is called off, its room is free."""
    world = World(11, 2, rate=20_000)
    one, two = world.nodes.values()
    id_ = one.put(data_of(400))
    two.want(id_, owner=b"j")
    two.want(id_, owner=b"k")
    world.run(0.3)
    two.perform(two.objects.unwant(id_, ("job", b"j")))
    assert two.memory
    two.perform(two.objects.unwant(id_, ("job", b"k")))
    sent = world.sent[m.O_PIECE]
    world.run(5)

    assert not two.memory
    assert two.objects.shelf.held_bytes == 0
    assert world.sent[m.O_PIECE] <= sent + 2
    assert world.sent[m.O_SKIP] >= 1


def test_what_was_spilled_is_served() -> None:
    """From disk, and after a new life without a manifest in memory."""
    world = World(12, 0)
    one = world.add("one", shelf=ShelfOptions(8000, 100_000))
    two = world.add("two")
    id_ = one.put(data_of(100))
    one.put(data_of(100, seed=2))
    assert id_ in one.files
    assert id_ not in one.memory
    two.want(id_)

    assert world.run(5, whole([two], id_))
    assert two.memory[id_] == data_of(100)


def test_too_many_pieces_at_once_are_put_off() -> None:
    """A member that asks for everything is told to come back, and others are served meanwhile."""
    world = World(13, 1)
    node = world.nodes["n0"]
    id_ = node.put(data_of(400))
    world.add("greedy")
    node.arrived("greedy", m.O_WANT, of_objects(m.O_WANT, [id_, [0, 100]]))
    node.arrived("greedy", m.O_WANT, of_objects(m.O_WANT, [id_, [100, 200]]))
    node.arrived("other", m.O_WANT, of_objects(m.O_WANT, [id_, [100, 200]]))

    assert [effect.peer for effect in node.heard(SendPieces)] == ["greedy", "other"]
    assert world.sent[m.O_BUSY] == 1


# ---- copies ---------------------------------------------------------------------------------------------------------

QUICK = ObjectsOptions(copies=CopiesOptions(away_s=3.0, ask_again_s=5.0))


def grid(seed: int, count: int) -> World:
    world = World(seed, 0)
    for number in range(count):
        world.add(f"n{number}", QUICK)
    return world


def holders(world: World, id_: ObjectId) -> list[str]:
    return [name for name, node in world.nodes.items() if node.running and node.has(id_)]


def test_copies_are_made_and_made_again() -> None:
    """Three wished: three there are, and three again after two of them died."""
    world = grid(20, 8)
    id_ = world.nodes["n0"].put(data_of(20))
    world.nodes["n0"].perform(world.nodes["n0"].objects.keep(id_, 3, world.now))
    assert world.run(10, lambda: len(holders(world, id_)) == 3)
    world.run(10)
    assert len(holders(world, id_)) == 3
    dead = ["n0", next(name for name in holders(world, id_) if name != "n0")]
    for name in dead:
        world.kill(name)

    assert world.run(30, lambda: len(holders(world, id_)) == 3)
    world.run(60)
    assert len(holders(world, id_)) == 3
    assert not set(dead) & set(holders(world, id_))


def test_a_short_absence_is_no_reason() -> None:
    """Nothing is copied for a connection that is back in a moment."""
    world = grid(21, 6)
    id_ = world.nodes["n0"].put(data_of(20))
    world.nodes["n0"].perform(world.nodes["n0"].objects.keep(id_, 2, world.now))
    assert world.run(10, lambda: len(holders(world, id_)) == 2)
    other = next(name for name in holders(world, id_) if name != "n0")
    world.cut("n0", other)
    world.run(20)

    assert holders(world, id_) == sorted(["n0", other])


def test_freed_copies_may_go() -> None:
    """They are unpinned everywhere, and quiet."""
    world = grid(22, 5)
    id_ = world.nodes["n0"].put(data_of(20))
    world.nodes["n0"].perform(world.nodes["n0"].objects.keep(id_, 3, world.now))
    world.run(5)
    world.nodes["n0"].perform(world.nodes["n0"].objects.free(id_))
    world.run(1)
    sent = sum(world.sent.values())
    world.run(20)

    items = [node.objects.shelf.items[id_] for node in world.nodes.values() if node.has(id_)]
    assert len(items) == 3
    assert all(COPY not in item.pins for item in items)
    assert sum(world.sent.values()) == sent


@pytest.mark.parametrize("seed", range(25))
def test_storm(seed: int) -> None:
    """Loss, liars, cuts, deaths at once: every node that wanted an object has it, right, or hears that it is lost."""
    rng = random.Random(seed)
    world = World(seed, 0, loss=rng.choice([0.0, 0.02, 0.1]), rate=rng.choice([30_000, 1e6]))
    options = ObjectsOptions(fetch=FetchOptions(patience_s=2.0), copies=CopiesOptions(away_s=2.0, ask_again_s=4.0))
    for number in range(8):
        world.add(f"n{number}", options, ShelfOptions(60_000, 100_000))
    nodes = list(world.nodes.values())
    nodes[rng.randrange(8)].lies = rng.choice([0.0, 0.05, 1.0])
    truth = {}
    for number in range(4):
        data = data_of(rng.randrange(1, 200), seed=number)
        owner = nodes[rng.randrange(8)]
        truth[owner.put(data)] = data
        owner.perform(owner.objects.keep(manifest_of(data).id, rng.randrange(1, 4), world.now))
    wanted = []
    for _ in range(20):
        node, id_ = rng.choice(nodes), rng.choice(list(truth))
        world.run(rng.random() * 0.3)
        if node.running:
            node.want(id_, rng.sample(sorted(world.nodes), 2))
            wanted.append((node, id_))
        match rng.randrange(8):
            case 0:
                running = [n.name for n in nodes if n.running]
                if len(running) > 4:
                    world.kill(rng.choice(running))
            case 1 | 2:
                a, b = rng.sample([n.name for n in nodes if n.running], 2)
                world.cut(a, b)
    world.run(300)

    for node, id_ in wanted:
        if not node.running:
            continue
        told = [e for e in node.heard(Gone) if e.id == id_] or [e for e in node.heard(NoRoom) if e.key == id_]
        assert node.has(id_) or told
        sought = node.objects.sought.get(id_)
        assert sought is None or list(sought.owners) == [COPY]  # a liar that has it asks again and again to keep it
        held = node.memory.get(id_, node.files.get(id_)) if node.has(id_) else None
        assert held is None or held == truth[id_]
    for node in nodes:
        shelf = node.objects.shelf
        if node.running:
            assert shelf.memory_bytes == sum(map(len, node.memory.values()))
            assert shelf.held_bytes <= 100_000


BAD = [
    (m.O_FIND, [[b"x"]]), (m.O_FIND, [b"\x01" * 33]), (m.O_FIND, [[bytes([1] * 33)] * 1025]),
    (m.O_HAVE, [bytes([1] * 33), 0, None]), (m.O_HAVE, [bytes([1] * 33), 5, [3, 1]]),
    (m.O_HAVE, [bytes([1] * 33), 5, [0, 1 << 40]]), (m.O_LACK, [bytes([1] * 33)]), (m.O_LIST, [None]),
    (m.O_LISTED, [bytes([1] * 33), b"no manifest"]), (m.O_WANT, [bytes([1] * 33), None]),
    (m.O_PIECE, [bytes([1] * 33), -1, b""]), (m.O_PIECE, [bytes([1] * 33), 1, "text"]),
    (m.O_BUSY, [bytes([1] * 33), [0, 1], float("nan")]), (m.O_COPY, [bytes([1] * 33), 0, []]),
    (m.O_COPY, [bytes([1] * 33), 2, ["é"]]), (m.O_FREE, []), (m.O_SKIP, 5),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "body"), BAD)
def test_malformed_frames(kind: int, body: object) -> None:
    """Each is refused as a whole."""
    with pytest.raises(PeerError):
        of_objects(kind, body)


def test_frames_of_others_are_not_ours() -> None:
    """A type that is not about objects is left to whoever reads it."""
    assert of_objects(m.P_PING, []) is None
    assert of_objects(m.O_FIND, [[]]) == ([],)


def test_frames_about_what_is_not_here_do_nothing() -> None:
    """Late ones, and those nobody asked for."""
    world = World(30, 2)
    node = world.nodes["n0"]
    manifest = manifest_of(data_of(3))
    id_ = manifest.id
    bodies = {
        m.O_HAVE: [id_, 5, None], m.O_LACK: [id_, None], m.O_LISTED: [id_, manifest.packed()],
        m.O_BUSY: [id_, [0, 1], 0.1], m.O_SKIP: [id_, [0, 1]], m.O_FREE: [id_], m.O_PIECE: [id_, 0, b"x"],
    }  # fmt: skip
    for kind, body in bodies.items():
        node.arrived("n1", kind, of_objects(kind, body))
    assert not node.objects.sought
    assert not node.objects.shelf.items
