"""A job is found by its id at every node of a grid in which not everybody is connected with everybody."""

from __future__ import annotations

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pgrid.core.ids import job_name
from p2pgrid.core.member import positions
from p2pgrid.core.record import Spec
from p2pgrid.core.wire import pack
from p2pgrid.dht.records import GRID_NAMESPACE, Signed, Values
from p2pgrid.dht.wire import Record
from p2pgrid.node import events as e
from p2pgrid.node import rings
from p2pgrid.node.locating import PUBLISHED_MAX
from p2pgrid.node.locations import Locations, key_of, read
from tests.node.driver import UNIX_0, Client, Submitted, Task
from tests.node.grid_world import GridNode, GridWorld

JOB = b"J" * 16
COUNT = 18


@pytest.fixture(autouse=True)
def _few_observers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever observes is connected; with eight observers each, a grid would have to be large to have far nodes."""
    monkeypatch.setattr(rings, "RINGS", 2)
    monkeypatch.setattr(rings, "positions", lambda node: positions(node)[:2])


def _world(seed: int, connected: int = 3) -> tuple[GridWorld, list[GridNode]]:
    """Nodes that are connected with some others each, and know of all."""
    world = GridWorld(seed)
    nodes = [
        world.join(f"n{i:02}", *([f"n{i - 1:02}"] if i else []), connected_max=connected, slots=1, preset="local")
        for i in range(COUNT)
    ]
    assert world.run(lambda: all(node.sees("alive") == COUNT for node in nodes), 60), "they never met"
    assert any(node.machine.neighbours.is_large() for node in nodes)
    return world, nodes


def _submitted(node: GridNode, count: int = 40, seconds: float = 0.2) -> Submitted:
    client = Client(node, 1, b"s" * 16)
    client.connect()
    return client.submit(JOB, count, lambda _: Task(seconds), detach=True)


def _far(nodes: list[GridNode]) -> list[GridNode]:
    """Return the nodes that are connected with nobody who has the job."""
    holders = {node.name for node in nodes if JOB in node.machine.keeping.jobs}
    return [node for node in nodes if node.name not in holders and not holders & node.machine.peers.keys()]


def _forgets_the_list(node: GridNode) -> None:
    """Make the list of jobs one that has no room for this one."""
    entry = node.machine.listing.list.jobs.get(JOB)
    if entry is not None:
        node.machine.listing.list._remove(entry)
    node.machine.relays._places.clear()


@pytest.mark.parametrize("knows", ["list", "dht"])
@pytest.mark.parametrize("seed", range(3))
def test_results_are_read_at_every_node(seed: int, knows: str) -> None:
    world, nodes = _world(seed)
    one = _submitted(nodes[seed])
    assert world.run(lambda: one.ended, 60)
    world.run(lambda: False, 20.0)
    far = _far(nodes)
    reads = []
    for number, node in enumerate(far):
        if knows == "dht":
            _forgets_the_list(node)
            node.machine.locating._likely = lambda _: ()
        client = Client(node, 50 + number, b"r" * 16)
        client.connect()
        reads.append(client.read(JOB))

    assert world.run(lambda: all(read.ended for read in reads), 20), [(read.state, len(read.got)) for read in reads]
    assert all(set(read.got) == set(range(40)) for read in reads)
    assert far, "everybody is near"


@pytest.mark.parametrize("target", [JOB.hex(), job_name(JOB)])
def test_it_is_shown_at_a_node_that_joined_later(target: str) -> None:
    """One that knows nobody who has it, asked by its words or by its digits."""
    world, nodes = _world(5)
    one = _submitted(nodes[1])
    assert world.run(lambda: one.ended, 60)
    world.run(lambda: False, 20.0)
    late = world.join("late", "n05", connected_max=3, slots=1, preset="local")
    assert world.run(lambda: late.sees("alive") == COUNT + 1, 30)
    client = Client(late, 9, b"r" * 16)
    client.connect()
    client.ask("show", target=target, within=10.0)

    assert world.run(lambda: bool(client.answers or client.errors), 20)
    assert not client.errors
    (answer,) = client.answers.values()
    assert answer["job"]["state"] == "done"


def test_what_nobody_has_is_not_found_soon() -> None:
    """An honest answer when all hints are used up, not only when all patience is."""
    world, nodes = _world(6)
    client = Client(nodes[3], 9, b"r" * 16)
    client.connect()
    read = client.read(b"X" * 16)
    client.ask("show", target=(b"X" * 16).hex(), within=10.0)

    assert world.run(lambda: read.state == "unknown" and bool(client.errors), 4.0), (read.state, client.errors)
    assert client.errors[0]["code"] == "not-found"


def test_a_wrong_record_finds_nothing_and_costs_a_moment() -> None:
    """Whoever may write into the DHT may write nonsense; nobody believes more than that it is worth a question."""
    world, nodes = _world(7)
    world.dht[b"X" * 16] = ("nobody", nodes[9].name, nodes[10].name)
    client = Client(nodes[3], 9, b"r" * 16)
    client.connect()
    read = client.read(b"X" * 16)

    assert world.run(lambda: read.state == "unknown", 12.0)
    assert not any(b"X" * 16 in node.machine.keeping.jobs for node in nodes)


def test_a_guest_is_let_go_and_a_small_grid_publishes_nothing() -> None:
    world, nodes = _world(8)
    one = _submitted(nodes[0])
    assert world.run(lambda: one.ended, 60)
    world.run(lambda: False, 20.0)
    assert set(world.dht) == {JOB}
    assert set(world.dht[JOB]) == {node.name for node in nodes if JOB in node.machine.keeping.jobs}
    for node in _far(nodes)[:1]:
        client = Client(node, 50, b"r" * 16)
        client.connect()
        read = client.read(JOB)
        assert world.run(lambda: read.ended, 20)  # noqa: B023
        assert node.machine.neighbours._guests
        world.run(lambda: False, 200.0)
        assert not node.machine.neighbours._guests

    small = GridWorld(9)
    few = small.grid(4)
    one = _submitted(few[0])
    assert small.run(lambda: one.ended, 60)
    small.run(lambda: False, 40.0)
    assert not small.dht
    assert not any(("locating",) in node.machine.parts.timers for node in few)


def test_keepers_that_are_not_near_are_met() -> None:
    """All that should hold a record do, though the one that took the job was connected with few of them."""
    world, nodes = _world(10)
    one = _submitted(nodes[2], seconds=1.0)
    assert world.run(lambda: ("close", 0) in one.acks, 20)

    assert world.run(lambda: sum(JOB in node.machine.keeping.jobs for node in nodes) == 6, 60)
    assert world.run(lambda: one.ended, 120)


def test_the_newest_jobs_of_a_node_are_published() -> None:
    world, nodes = _world(11)
    machine = nodes[0].machine
    for number in range(PUBLISHED_MAX + 20):
        kept, _ = machine.keeping.open(number.to_bytes(16, "big"), _spec(number), 1)
        assert kept.serving
    machine.locating.tick(world.now)
    said = [effect.job for effect in machine.out if isinstance(effect, e.Publish)]
    machine.out.clear()

    assert len(said) == PUBLISHED_MAX
    assert (19).to_bytes(16, "big") not in said
    assert (20).to_bytes(16, "big") in said


def _spec(number: int) -> bytes:
    return Spec("map", "", b"s" * 16, 1_800_000_000.0 + number, 1e6).packed()


@pytest.mark.parametrize(
    "payload", [None, b"", b"\xff", pack(5), pack([1]), pack([["n"]]), pack(["n"] * 17), pack([""])]
)
def test_a_malformed_record_names_nobody(payload: bytes | None) -> None:
    assert read(payload) == ()


def test_a_record_names_its_keepers() -> None:
    assert read(pack(["a", "b"])) == ("a", "b")
    assert key_of(JOB) == b"/p2pgrid/job/" + JOB.hex().encode()


class _Net:
    """A network whose DHT is one member's store, with its own rules for what is kept."""

    def __init__(self, nursery: trio.Nursery) -> None:
        key = Ed25519PrivateKey.from_private_bytes(bytes(32))
        self.kad: _Net | None = self
        self.values = Values({GRID_NAMESPACE: Signed(b"g" * 32, lambda _: True, key)})
        self.told: list[e.Event] = []
        self.came = trio.Event()
        self.soon = nursery.start_soon

    def publish(self, key: bytes, payload: bytes) -> None:
        self.values.put(Record(key, self.values.seal(key, payload, UNIX_0)), b"me", 0.0, UNIX_0)

    def withdraw(self, key: bytes) -> None:
        self.values._drop(key)

    async def value(self, key: bytes) -> bytes | None:
        await trio.lowlevel.checkpoint()
        kept = self.values.get(key, 1.0)
        return None if kept is None else self.values.check(key, kept[0], UNIX_0).payload

    def later(self, event: e.Event) -> None:
        self.told.append(event)
        self.came.set()
        self.came = trio.Event()


def test_a_record_goes_into_the_dht_and_comes_back() -> None:
    """As large as it may be, signed, under a key that the grid's namespace allows."""
    trio.run(_there_and_back)


async def _there_and_back() -> None:
    async with trio.open_nursery() as nursery:
        net = _Net(nursery)
        locations = Locations(net)  # type: ignore[arg-type]
        keepers = tuple(f"12D3KooW{number:044}" for number in range(16))
        locations.publish(e.Publish(JOB, keepers))
        for expected in (keepers, ()):
            came = net.came
            locations.locate(e.Locate(JOB))
            with trio.fail_after(60):
                await came.wait()
            assert net.told.pop() == e.Located(JOB, expected)
            locations.publish(e.Publish(JOB, ()))
        net.kad = None
        locations.publish(e.Publish(JOB, keepers))
        locations.locate(e.Locate(JOB))
        assert net.told == [e.Located(JOB, ())]
