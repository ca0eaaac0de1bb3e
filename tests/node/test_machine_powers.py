"""What a member's certificate does not allow it cannot bring about by any message (ALGORITHMS §7.2, I10)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from p2pgrid.core import messages as m
from p2pgrid.core.batch import content_id, encode_batch
from p2pgrid.core.chains import ADMIN, ALL_ROLES, OBSERVE, SUBMIT, WORK
from p2pgrid.core.listed import forgotten, wire
from p2pgrid.core.record import Spec
from p2pgrid.core.wire import pack
from p2pgrid.node import events as e
from p2pgrid.node.keepers import Candidate, keepers, keeps
from tests.node.driver import CODE, UNION, UNIX_0, Client, Task, value_of
from tests.node.grid_world import GridNode, GridWorld

JOB, OTHER = b"J" * 16, b"O" * 16
LIAR = "n2"
SPEC = Spec("map", "", b"s" * 16, UNIX_0 + 1000.0, 1e6, owner=LIAR.encode(), detach=True).packed()


def _row(job: bytes, kind: str, key: bytes, meta: Any, value: bytes = b"") -> list[Any]:
    return [job, kind, key, meta if isinstance(meta, bytes) else pack(meta), value]


def _result(value: bytes) -> list[Any]:
    batch = [LIAR, 5, 1]
    meta = [*batch, 0, 30, False, 1, content_id(value), True, len(value), LIAR]
    return _row(JOB, "result", pack(batch), meta, value)


_BATCH = encode_batch([CODE], [{}], [(1, 0, 0, 0, [b"0"])])
_GRANT = [OTHER, "map", [[0, 1, 1, False]], [[CODE, UNION]], [[0, 1, _BATCH]]]
_STATE = pack(["cancelled", "no"])
_RESULTS = [[JOB, [5, 1], 1, [[0, 30, 0, [value_of(JOB, i) for i in range(30)]]], [], 0.1]]

WRITES: dict[str, tuple[int, Any]] = {
    "results in a row": (m.P_ROWS, [1, [_result(pack([0, [value_of(JOB, i) for i in range(30)]]))]]),
    "an end": (m.P_ROWS, [1, [_row(JOB, "state", content_id(_STATE), _STATE)]]),
    "a cancel": (m.P_ROWS, [1, [_row(JOB, "cancel", content_id(pack([None, "no"])), [None, "no"])]]),
    "a job in rows": (m.P_ROWS, [1, [_row(OTHER, "spec", b"", SPEC)]]),
    "a digest that asks for a copy": (m.P_COPIES, [[OTHER, b"d" * 16, True, True]]),
    "that it serves": (m.P_COPIES, [[JOB, b"d" * 16, True, False]]),
    "that claims go there": (m.P_KEEPER, [[JOB, LIAR]]),
    "what it is about to run": (m.P_RUNS, [[JOB, [0, 30]]]),
    "a tombstone": (m.P_JOBS, [[wire(forgotten(JOB, UNIX_0 + 1000.0, UNIX_0 + 2e6))]]),
    "work": (m.P_WORK, []),
    "a grant": (m.P_GRANT, [[5, 1], *_GRANT]),
    "a hand-over": (m.P_HANDOVER, [[5, 1], LIAR, *_GRANT]),
    "cancel": (m.P_ASK, [[5, 1], "cancel", {"target": JOB.hex()}]),
    "forget": (m.P_ASK, [[5, 1], "forget", {"target": JOB.hex()}]),
    "keep": (m.P_ASK, [[5, 1], "keep", {"target": JOB.hex(), "until": UNIX_0 + 1e8}]),
    "drain": (m.P_ASK, [[5, 1], "drain", {}]),
    "drop what you hold": (m.P_DROP, [JOB, None]),
}
"""What may change a record, who serves a job, or what runs where."""

WORKS: dict[str, tuple[int, Any]] = {
    "a claim": (m.P_CLAIM, [5, 1, 1.0, [[JOB, [0, 30], [], []]], 0, 1]),
    "results": (m.P_RESULTS, _RESULTS),
    "output": (m.P_PRINTED, [JOB, [], 0, [], [[0, b"printed"]]]),
}
"""What only a member with the role `work` may say."""


def _state(nodes: list[GridNode]) -> list[str]:
    """Return all that a message could change for others: records, jobs, who serves, what is held and runs where."""
    out: list[Any] = []
    for node in nodes:
        machine = node.machine
        for kept in machine.keeping.jobs.values():
            out.append((kept.id, kept.rows.digest(), kept.state, kept.done, kept.cancelled, kept.serving, kept.server))
            out.append((kept.named, kept.logs, kept.expires_s))
        out += [(work.job, work.keeper) for work in machine.pool.works.values()]
        out += [(peer, debt.held) for peer, debt in machine.holding.debts.items()]
        out += [(peer, holder.covered) for peer, holder in machine.leases.holders.items()]
        out.append((sorted(machine.listing.tombs), machine.parts.draining, sorted(machine.holding.hints)))
        out += [(job, entry.forgotten) for job, entry in machine.listing.list.jobs.items()]
    return [repr(one) for one in out]


@pytest.fixture(scope="module")
def grid() -> Callable[[int], list[GridNode]]:
    def make(roles: int) -> list[GridNode]:
        world = GridWorld(1)
        nodes = [world.join("n0"), world.join("n1", "n0"), world.join(LIAR, "n0", roles=roles, slots=0)]
        assert world.run(lambda: all(node.sees("alive") == 3 for node in nodes), 10)
        client = Client(nodes[0], 1, b"s" * 16)
        client.connect()
        one = client.submit(JOB, 30, lambda _: Task(1000.0), detach=True)
        assert world.run(lambda: ("close", 0) in one.acks, 10)
        world.run(lambda: False, 2.0)
        assert nodes[1].machine.holding.debts["n0"].held, "nothing is held anywhere"
        return nodes

    return make


@pytest.mark.parametrize("roles", [WORK, OBSERVE, ADMIN | OBSERVE])
def test_who_may_not_submit_cannot_write_serve_grant_or_remove(
    grid: Callable[[int], list[GridNode]], roles: int
) -> None:
    nodes = grid(roles)
    before = _state(nodes[:2])
    for name, (kind, body) in WRITES.items():
        if name == "drain" and roles & ADMIN:
            continue
        for node in nodes[:2]:
            node.hear(e.PeerSent(LIAR, kind, body))
        assert _state(nodes[:2]) == before, f"{name} was believed of a member with the roles {roles}"
    assert not [why for node in nodes for _, why in node.dropped], "some of it was malformed"


@pytest.mark.parametrize("roles", [SUBMIT, OBSERVE, ADMIN])
def test_who_may_not_work_cannot_claim_deliver_or_print(grid: Callable[[int], list[GridNode]], roles: int) -> None:
    nodes = grid(roles)
    nodes[0].machine.leases.inherited.add(JOB)  # whom the tasks were given to is not known here
    before = _state(nodes[:1])
    for name, (kind, body) in WORKS.items():
        nodes[0].hear(e.PeerSent(LIAR, kind, body))
        assert _state(nodes[:1]) == before, f"{name} was believed of a member with the roles {roles}"
    assert not nodes[0].dropped, "some of it was malformed"


@pytest.mark.parametrize("name", sorted({*WRITES, *WORKS} - {"work", "a hand-over", "drop what you hold"}))
def test_the_same_of_a_member_that_may_is_believed(grid: Callable[[int], list[GridNode]], name: str) -> None:
    """Or the tests above would show nothing. (Of the others a member's word counts only for what it gave itself.)"""
    nodes = grid(ALL_ROLES)
    nodes[0].machine.leases.inherited.add(JOB)
    before = _state(nodes[:2])
    kind, body = {**WRITES, **WORKS}[name]
    for node in nodes[:2]:
        if kind == m.P_GRANT:
            node.hear(e.PeerSent(LIAR, m.P_WORK, []))
        node.hear(e.PeerSent(LIAR, kind, body))
    nodes[0].world.run(lambda: False, 0.5)
    if name == "a digest that asks for a copy":
        assert nodes[0].world.sent[m.P_TAGS]
    else:
        assert _state(nodes[:2]) != before
    assert not nodes[0].dropped


def test_a_copy_at_who_may_only_work_is_no_second_disk() -> None:
    """Keepers speak for owners: they need both roles. So with one such node there is one disk, and nobody waits."""
    assert keeps({}, leaf=False, roles=SUBMIT | WORK)
    assert not keeps({}, leaf=False, roles=WORK)
    assert not keeps({}, leaf=False, roles=SUBMIT)
    both, demoted = Candidate("a", lives=True, eligible=True), Candidate("b", lives=True, eligible=False, serves=False)
    assert keepers(JOB, "b", [both, demoted]) == [both]

    world = GridWorld(2)
    nodes = [world.join("n0"), world.join("n1", "n0", roles=WORK)]
    assert world.run(lambda: all(node.sees("alive") == 2 for node in nodes), 10)
    client = Client(nodes[0], 1, b"s" * 16)
    client.connect()
    one = client.submit(JOB, 60, lambda _: Task(0.1), detach=True)
    assert world.run(lambda: ("close", 0) in one.acks, 2)
    assert world.run(lambda: one.ended, 60)
    assert {place for place, _ in one.places.values()} == {"n0", "n1"}, "it does not work for it"
    assert JOB not in nodes[1].machine.keeping.jobs


def test_whose_results_may_be_long_is_who_was_given_tasks() -> None:
    """Also when they are over: a second copy may still be on its way. In the next life anybody may owe some."""
    world = GridWorld(2)
    nodes = [world.join("n0"), world.join("n1", "n0", roles=WORK), world.join("n2", "n0", roles=WORK, slots=0)]
    assert world.run(lambda: all(node.sees("alive") == 3 for node in nodes), 10)
    assert [nodes[0].machine.has_tasks_of_ours(name) for name in ("n1", "n2")] == [False, False]
    client = Client(nodes[0], 1, b"s" * 16)
    client.connect()
    one = client.submit(JOB, 60, lambda _: Task(0.1), detach=True)
    assert world.run(lambda: one.ended, 60)
    assert {place for place, _ in one.places.values()} == {"n0", "n1"}
    assert [nodes[0].machine.has_tasks_of_ours(name) for name in ("n1", "n2")] == [True, False]
    assert not nodes[1].machine.has_tasks_of_ours("n0")
    again = client.submit(OTHER, 60, lambda _: Task(5.0), detach=True)
    assert world.run(lambda: ("close", 0) in again.acks, 10)
    nodes[0].crash()
    nodes[0].start()
    assert world.run(lambda: nodes[0].machine.has_tasks_of_ours("n1"), 10)
