"""What tasks printed: kept twice, found at every node, whoever served the job when (DESIGN §10)."""

from __future__ import annotations

from typing import Any

import pytest

from p2pgrid.core import messages as m
from p2pgrid.node import events as e
from p2pgrid.node.copying import Copying, CopyOptions
from p2pgrid.node.logs import ACTIVE_MAX, HERE, LOGS_BYTES_MAX, PATIENCE_S, READ_ROWS
from tests.node.desk import JOB
from tests.node.driver import Client, Task, line_of
from tests.node.grid_world import GridNode, GridWorld
from tests.node.test_machine_members import keeper

COUNT = 60
LINES = {index: line_of(index) for index in range(COUNT)}


def client_at(node: GridNode, number: int = 1) -> Client:
    client = Client(node, number, bytes([number]) * 16)
    client.connect()
    return client


def asked(world: GridWorld, node: GridNode, target: str, number: int) -> dict[int, bytes]:
    """Return what `p2pgrid logs` shows at a node."""
    client = client_at(node, number)
    client.ask("logs", target=target, within=10.0)
    assert world.run(lambda: bool(client.answers or client.errors), 30.0), "no answer"
    assert not client.errors
    (answer,) = client.answers.values()
    return {index: bytes(text) for index, text in answer["logs"]}


def printed(count: int, seed: int = 1, tasks: int = COUNT, **config: Any) -> tuple[GridWorld, list[GridNode]]:
    """Return nodes, and a job of the first one whose tasks all printed and ended, half of them elsewhere."""
    world = GridWorld(seed)
    world.prints = True
    nodes = world.grid(count, **config)
    client = client_at(nodes[0], 99)
    one = client.submit(JOB, tasks, lambda _: Task(0.05), detach=True)
    assert world.run(lambda: one.ended, 60)
    world.run(lambda: False, 1.0)
    return world, nodes


@pytest.mark.parametrize("at", [0, 1, 2])
def test_logs_are_found_at_every_node(at: int) -> None:
    """One that never saw the job as well; of one task, of some, of all."""
    world, nodes = printed(3)
    name = nodes[0].machine.keeping.jobs[JOB].name

    assert asked(world, nodes[at], JOB.hex(), 2) == LINES
    assert asked(world, nodes[at], f"{name}/7", 3) == {7: line_of(7)}
    assert asked(world, nodes[at], "last/3-9", 4) == {index: line_of(index) for index in range(3, 10)}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [2, 3, 9])
def test_logs_outlive_the_node_that_kept_them(count: int, seed: int) -> None:
    """It is gone with its disk; so many nodes that most hold no copy of the job."""
    world, nodes = printed(count, seed)
    nodes[0].crash(with_disk=False)
    assert world.run(lambda: any(node.machine.keeping.jobs[JOB].serving for node in nodes[1:] if _has(node)), 30)

    for number, node in enumerate(nodes[1:]):
        assert asked(world, node, JOB.hex(), number + 2) == LINES, node.name


def _has(node: GridNode) -> bool:
    return JOB in node.machine.keeping.jobs


def test_who_comes_back_finds_what_was_printed_without_him() -> None:
    """The node that took the job is away for half of it, serves it again, and has only its own half on disk."""
    world = GridWorld(4)
    world.prints = True
    nodes = world.grid(3)
    for node in nodes:
        node.known = tuple(one.name for one in nodes if one is not node)
    one = client_at(nodes[0], 99).submit(JOB, COUNT, lambda _: Task(0.2), detach=True)
    assert world.run(lambda: sum(one.delivered.values()) > COUNT // 4, 60)
    nodes[0].crash()
    assert world.run(lambda: any(node.machine.keeping.jobs[JOB].ended for node in nodes[1:]), 60)
    nodes[0].start()
    assert world.run(lambda: _has(nodes[0]) and nodes[0].machine.keeping.jobs[JOB].serving, 60)
    mine = nodes[0].machine.keeping.jobs[JOB].logs

    assert mine.size < COUNT
    for number, node in enumerate(nodes):
        assert asked(world, node, JOB.hex(), number + 2) == LINES, node.name


def test_who_joins_later_has_what_was_printed_before() -> None:
    """A node that was alone with its job gets a second copy of it, and of its output."""
    world, nodes = printed(1)
    nodes.append(world.join("n1", "n0"))
    assert world.run(lambda: _has(nodes[1]) and nodes[1].machine.keeping.jobs[JOB].logs.size == COUNT, 30)
    nodes[0].crash(with_disk=False)
    assert world.run(lambda: nodes[1].machine.keeping.jobs[JOB].serving, 30)

    assert asked(world, nodes[1], JOB.hex(), 2) == LINES


def test_a_keeper_that_is_silent_is_not_waited_for() -> None:
    """What the others have is told after a second."""
    world, nodes = printed(3)
    world.part([nodes[0]], nodes[1:])
    began = world.now

    assert asked(world, nodes[0], JOB.hex(), 2) == LINES
    assert world.now - began < 2 * PATIENCE_S


def test_what_is_read_at_once_is_bounded_whoever_asks_for_how_much() -> None:
    """A few requests at a time, each in lots, and no more of it than one answer takes; all are answered in the end."""
    desk = keeper()
    kept = desk.machine.keeping.jobs[JOB]
    kept.logs.add(0, 5000)
    text = b"x" * (64 << 10)
    asks = [e.PeerSent("p", m.P_ASK, [[7, number], "logs", {"target": JOB.hex(), HERE: True}]) for number in range(20)]
    open_ = [one for ask in asks for one in desk.do(ask) if isinstance(one, e.Fetch)]
    answers: list[Any] = []
    rows = 0
    while open_:
        assert len(open_) <= ACTIVE_MAX
        fetch = open_.pop(0)
        assert len(fetch.keys) <= READ_ROWS
        rows += len(fetch.keys)
        told = desk.do(e.Fetched(fetch.token, [e.Row(*key, b"", text) for key in fetch.keys]))
        answers += [one.body[0] for one in told if isinstance(one, e.Send) and one.kind == m.P_ANSWER]
        open_ += [one for one in told if isinstance(one, e.Fetch)]

    assert sorted(answers) == [[7, number] for number in range(20)]
    assert rows <= 20 * (LOGS_BYTES_MAX // len(text) + 2 * READ_ROWS)


def row(index: int, text: bytes, key: bytes | None = None) -> list[Any]:
    return [JOB, "log", index.to_bytes(8, "big") if key is None else key, b"", text]


def test_logs_of_others_are_bounded_and_never_replace_those_of_who_serves() -> None:
    """Unknown tasks and odd names are passed over, long texts cut; what this node took in itself stands."""
    desk = keeper()
    kept = desk.machine.keeping.jobs[JOB]
    desk.machine.keeping.log(kept, [(0, b"mine")])
    rows = [row(0, b"theirs"), row(1, b"x" * (1 << 17)), row(7, b"of no task"), row(0, b"y", b"odd"), row(1, b"")]
    stored = [one for one in desk.do(e.PeerSent("p", m.P_ROWS, [1, rows])) if isinstance(one, e.Store)]

    logs = [(one.key, len(one.value or b"")) for store in stored for one in store.rows if one.kind == "log"]
    assert logs == [((1).to_bytes(8, "big"), 64 << 10)]


def test_a_queue_that_is_long_takes_no_logs() -> None:
    """Results and inputs go first; a copy of what was printed is left out rather than waited for."""
    copying = Copying(CopyOptions(light_bytes=100))
    copying.up("p")
    copying.push("p", [e.Row(JOB, "result", b"k", b"", b"x" * 200)])
    copying.push_light("p", [e.Row(JOB, "log", b"k", b"", b"text")])
    sent = [kind for send in copying.frames(0.0) for _, kind, *_ in send.body[1]]

    assert sent == ["result"]
