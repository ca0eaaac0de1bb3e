"""A grid of machines in virtual time: who sees whom, what a death costs, and what is answered elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from p2pgrid.core import messages as m
from p2pgrid.core.chains import ADMIN, OBSERVE, SUBMIT, WORK
from p2pgrid.core.member import ALIVE, DEAD, LEFT, SUSPECT, Card, Update
from p2pgrid.node import events as e
from p2pgrid.node.neighbours import CLONED_FOR_S
from p2pgrid.node.view import wire
from p2pgrid.simulations.node import CHAIN, GRID, NameSeal
from tests.node.desk import Desk
from tests.node.driver import Client, Task
from tests.node.grid_world import GridNode, GridWorld

JOB = b"j" * 16


def _client(node: GridNode, number: int = 1) -> Client:
    client = Client(node, number, bytes([number]) * 16)
    client.connect()
    return client


def _steady(seconds: float) -> Any:
    return lambda _: Task(seconds)


def _all_alive(world: GridWorld, nodes: list[GridNode], limit_s: float = 60.0) -> bool:
    return world.run(lambda: all(node.sees("alive") == len(nodes) for node in nodes), limit_s)


# ---- who is there ---------------------------------------------------------------------------------------------------


def test_five_nodes_that_join_by_one_all_connect_with_all() -> None:
    """Everybody is told only the first node's address."""
    world = GridWorld(1)
    nodes = world.grid(5)

    assert world.run(lambda: all(len(node.machine.peers) == 4 for node in nodes), 5.0)
    for node in nodes:
        rows = node.machine.member_rows(world.now)
        assert rows[0]["id"] == node.name
        assert {row["name"] for row in rows} == {"n0", "n1", "n2", "n3", "n4"}
        assert all(row["addresses"] and row["slots"] == 2 and "admin" in row["roles"] for row in rows)


@pytest.mark.parametrize(("reset", "within_s"), [(True, 7.5), (False, 7.5)])
def test_all_know_of_a_death(reset: bool, within_s: float) -> None:  # noqa: FBT001
    """DESIGN §13: within 7.5 s, whether its connections were reset or it just vanished."""
    world = GridWorld(2)
    nodes = world.grid(6)
    world.run(lambda: False, 5.0)
    nodes[3].crash(reset=reset)
    others = [node for node in nodes if node is not nodes[3]]

    assert world.run(lambda: all(node.rows().get("n3") == "dead" for node in others), within_s)


def test_a_node_that_comes_back_is_alive_again_everywhere() -> None:
    """With a higher incarnation, though everybody takes it for dead."""
    world = GridWorld(3)
    nodes = world.grid(4)
    nodes[2].crash(reset=False)
    assert world.run(lambda: all(n.rows().get("n2") == "dead" for n in nodes if n is not nodes[2]), 15.0)
    nodes[2].start()

    assert _all_alive(world, nodes, 10.0)


def test_a_node_that_stops_says_that_it_leaves() -> None:
    """Nobody suspects it first."""
    world = GridWorld(4)
    nodes = world.grid(4)
    nodes[1].handle(e.Stop(0.0))
    assert nodes[1].stopped == []
    others = [node for node in nodes if node is not nodes[1]]

    assert world.run(lambda: all(node.rows().get("n1") == "left" for node in others), 2.0)


def test_two_halves_find_each_other_after_longer_than_the_dead_are_remembered() -> None:
    """Cut for three minutes; dead members are listed for one."""
    world = GridWorld(5)
    nodes = world.grid(6)
    world.part(nodes[:3], nodes[3:])
    assert world.run(lambda: all(node.sees("alive") == 3 for node in nodes), 30.0)
    world.run(lambda: False, 180.0)
    assert all(node.sees("dead") == 0 for node in nodes)
    world.heal()

    assert _all_alive(world, nodes)


def test_whoever_is_cut_off_from_one_that_lives_is_apart() -> None:
    """By that a node says in the DHT what it has; where all are connected nobody does."""
    world = GridWorld(8)
    nodes = world.grid(4)
    assert world.run(lambda: not any(node.machine.is_apart() for node in nodes), 10.0)
    world.part([nodes[0]], [nodes[3]])

    assert world.run(lambda: [node.machine.is_apart() for node in nodes] == [True, False, False, True], 60.0)
    world.heal()
    assert world.run(lambda: not any(node.machine.is_apart() for node in nodes), 90.0)


@pytest.mark.parametrize("seed", range(4))
def test_two_halves_that_meet_through_any_single_pair_become_one_view(seed: int) -> None:
    """Seven and seven that know nothing of each other; one of these dials one of those, and all see fourteen."""
    world = GridWorld(seed)
    halves = [[world.join(f"{half}{i}", *([f"{half}0"] if i else [])) for i in range(7)] for half in "ab"]
    for half in halves:
        assert world.run(lambda half=half: all(node.sees("alive") == 7 for node in half), 10.0)  # type: ignore[misc]
    one, other = (world.rng.choice(half) for half in halves)
    met = world.now
    one.wanted.add(other.name)
    nodes = [*halves[0], *halves[1]]

    assert world.run(lambda: all(node.sees("alive") == 14 for node in nodes), 60.0)
    print(f"{one.name} met {other.name}: one view after {world.now - met:.1f} s")
    world.run(lambda: False, 60.0)
    assert all(node.sees("alive") == 14 for node in nodes)
    assert all(len(node.up) == 13 for node in nodes), "some were heard of and never dialled"


def test_a_node_that_stood_still_is_suspected_and_forgiven() -> None:
    """SIGSTOP for 20 s: afterwards all are alive in all views, its own included."""
    world = GridWorld(6)
    nodes = world.grid(5)
    nodes[4].freeze()
    world.run(lambda: False, 20.0)
    nodes[4].thaw()

    assert _all_alive(world, nodes, 15.0)
    world.run(lambda: False, 20.0)
    assert all(node.sees("alive") == 5 for node in nodes)


def test_an_idle_grid_is_quiet() -> None:
    """Budget: at most 5 messages a second and node; and none at all where a node is alone."""
    world = GridWorld(7)
    world.grid(9)
    world.run(lambda: False, 60.0)
    before = world.sent.total()
    world.run(lambda: False, 60.0)
    per_second = (world.sent.total() - before) / 60 / 9
    assert per_second <= 5.0

    alone = GridWorld(7)
    alone.grid(1)
    alone.run(lambda: False, 60.0)
    assert alone.sent.total() == 0


def test_another_grid_is_another_beginning() -> None:
    """Of the members of the former one nothing is left."""
    world = GridWorld(8)
    nodes = world.grid(3)
    node = nodes[2]
    for peer in ("n0", "n1"):
        node.handle(e.PeerDown(peer, reset=False))
    node.handle(e.Belongs(b"h" * 32, "other-grid", ADMIN))

    assert node.rows() == {"n2": "alive"}
    assert node.wanted == set()
    assert _client(node).welcome["grid"] == "other-grid"


# ---- clocks ---------------------------------------------------------------------------------------------------------


def test_grid_time_is_what_most_clocks_say() -> None:
    """One node lives 8 days ahead: it is told, warns, and deletes nothing."""
    world = GridWorld(9)
    nodes = [
        world.join("n0"),
        world.join("n1", "n0"),
        world.join("n2", "n0"),
        world.join("n3", "n0", clock_s=8 * 86400.0),
    ]
    assert _all_alive(world, nodes, 10.0)
    client = _client(nodes[3])
    client.submit(JOB, 3, _steady(0.01), detach=True)
    assert world.run(lambda: client.jobs[JOB].ended, 10.0)

    assert nodes[3].offset_s == pytest.approx(-8 * 86400.0, abs=5)
    assert any("ahead of the grid's" in line for line in nodes[3].logs)
    nodes[3].handle(e.TimerFired(("expire",)))
    assert JOB in nodes[3].machine.keeping.jobs
    assert abs(nodes[0].offset_s or 0) < 5


# ---- work -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [True, False])
def test_a_killed_worker_node_loses_nothing(reset: bool) -> None:  # noqa: FBT001
    """Its ranges run elsewhere."""
    world = GridWorld(10)
    nodes = world.grid(4, slots=1)
    client = _client(nodes[0])
    job = client.submit(JOB, 100, _steady(0.2))
    assert world.run(lambda: len(job.got) > 20, 60.0)
    nodes[2].crash(reset=reset)

    assert world.run(lambda: job.ended, 60.0)
    assert job.state == "done"
    assert set(job.got) == set(range(100))
    assert all(count == 1 for count in job.delivered.values())


def test_a_suspect_gets_no_new_work() -> None:
    """Until it is cleared."""
    world = GridWorld(11)
    nodes = world.grid(3)
    nodes[1].freeze()
    assert world.run(lambda: "n1" in nodes[0].machine.parts.suspects, 10.0)
    nodes[1].thaw()

    assert world.run(lambda: not nodes[0].machine.parts.suspects, 10.0)


# ---- two with one identity ------------------------------------------------------------------------------------------


def test_two_lives_of_one_identity_refuse_work_until_one_is_gone() -> None:
    """A cloned disk: another life under our id that gets ahead of us twice is alive."""
    desk = Desk(slots=1)
    desk.ready()
    desk.do(e.Belongs(GRID, "g", ADMIN | SUBMIT | WORK))
    desk.do(e.PeerUp("p", {"name": "p", "slots": 1}, Card(5, 0, b"p" * 8, False, (), {"name": "p"}, ()), WORK))  # noqa: FBT003
    for _ in range(2):
        card = desk.machine.neighbours.view.card  # type: ignore[union-attr]
        later = Card(card.incarnation + 1, 0, b"c" * 8, False, ("/ip4/10.9.9.9/tcp/1",), {}, ())  # noqa: FBT003
        said = wire(Update("n", later.incarnation, ALIVE, "n", later))
        desk.do(e.PeerSent("p", m.P_GOSSIP, [[said]]))

    assert "10.9.9.9" in desk.machine.parts.refusing
    assert any("identity" in one.text for one in desk.all if isinstance(one, e.Log))
    desk.join()
    desk.submit(1)
    refused = [one.body[3]["code"] for one in desk.all if isinstance(one, e.Reply) and one.kind == m.REFUSED]
    assert refused == ["not-authorized"]
    desk.do(e.TimerFired(("cloned",)))
    assert desk.machine.parts.refusing == ""
    assert CLONED_FOR_S > 60


# ---- what members say of others -------------------------------------------------------------------------------------


def _slandered(seed: int, said: Any) -> tuple[GridWorld, list[GridNode]]:
    """Three nodes; the first hears from the second what `said(third's card)` returns."""
    world = GridWorld(seed)
    nodes = world.grid(3)
    world.run(lambda: False, 2.0)
    card = nodes[2].card
    assert card is not None
    nodes[0].handle(e.PeerSent("n1", m.P_GOSSIP, [[wire(update) for update in said(card)]]))
    return world, nodes


def test_a_card_that_its_member_did_not_sign_is_not_believed() -> None:
    """Neither other addresses, nor a later incarnation, nor a higher counter in the same."""
    later = Card(1 << 50, 0, b"liarliar", False, ("/ip4/10.6.6.6/tcp/1",), {"name": "evil"}, (), CHAIN, b"")  # noqa: FBT003

    def forged(card: Card) -> list[Update]:
        same = card._replace(seq=card.seq + 9, addresses=later.addresses)
        return [Update("n2", later.incarnation, ALIVE, "n2", later), Update("n2", same.incarnation, ALIVE, "n2", same)]

    _, nodes = _slandered(30, forged)
    (row,) = [row for row in nodes[0].machine.member_rows(0.0) if row["id"] == "n2"]

    assert row["name"] == "n2"
    assert "10.6.6.6" not in str(row["addresses"])
    assert not any("10.6.6.6" in str(node.wanted) for node in nodes)


def test_a_member_that_nobody_let_in_is_not_taken_up() -> None:
    """Whoever invents nodes has no certificate for them; they cost no connection."""
    stranger = Card(5, 0, b"strange!", False, ("/ip4/10.6.6.6/tcp/1",), {"name": "x"}, (), b"another grid's", b"")  # noqa: FBT003
    proven = stranger._replace(proof=NameSeal("ghost").sign(stranger))
    _, nodes = _slandered(31, lambda _: [Update("ghost", 5, ALIVE, "ghost", proven)])

    assert "ghost" not in nodes[0].rows()
    assert "ghost" not in nodes[0].wanted


@pytest.mark.parametrize("status", [ALIVE, SUSPECT, DEAD, LEFT])
def test_nobody_raises_the_incarnation_of_another(status: int) -> None:
    """What is said of a life that its member has not shown yet is passed over."""
    world, nodes = _slandered(32, lambda _: [Update("n2", 1 << 52, status, "n1", None)])
    world.run(lambda: False, 3.0)

    assert nodes[0].rows()["n2"] == "alive"
    assert nodes[2].card is not None
    assert nodes[2].card.incarnation < 1 << 40


def test_nobody_but_a_clone_makes_a_node_refuse_work() -> None:
    """Two cards with another life, forged, once made it believe that it had one."""
    world = GridWorld(33)
    nodes = world.grid(2)
    for more in (1, 2):
        card = nodes[0].card
        assert card is not None
        forged = card._replace(incarnation=card.incarnation + more, life=b"another!")
        nodes[0].handle(e.PeerSent("n1", m.P_GOSSIP, [[wire(Update("n0", forged.incarnation, ALIVE, "n0", forged))]]))

    assert nodes[0].machine.parts.refusing == ""


def test_a_new_certificate_comes_onto_the_card() -> None:
    """Everybody else has to know it."""
    world = GridWorld(34)
    nodes = world.grid(2)
    before = nodes[0].card
    nodes[0].handle(e.Belongs(GRID, "test-grid", ADMIN, CHAIN + b"2"))
    assert nodes[0].card is not None
    assert before is not None

    assert nodes[0].card.chain == CHAIN + b"2"
    assert nodes[0].card.proof != before.proof
    assert nodes[0].card.seq == before.seq + 1


# ---- requests of other nodes ----------------------------------------------------------------------------------------


def _three_with_a_job(seed: int, **config: Any) -> tuple[GridWorld, list[GridNode], Client, Client]:
    """Three nodes; the first has a job of ten long tasks, and a client at the last looks at it."""
    world = GridWorld(seed)
    nodes = [world.join("n0"), world.join("n1", "n0"), world.join("n2", "n0", **config)]
    assert _all_alive(world, nodes, 10.0)
    owner, other = _client(nodes[0]), _client(nodes[2], 2)
    owner.submit(JOB, 10, _steady(100.0))
    world.run(lambda: False, 1.0)
    return world, nodes, owner, other


def _asked(world: GridWorld, client: Client, verb: str, **arguments: Any) -> Any:
    count = len(client.answers) + len(client.errors)
    client.ask(verb, **arguments)
    assert world.run(lambda: len(client.answers) + len(client.errors) > count, 10.0), "no answer"
    return client.errors[-1] if client.errors else client.answers[max(client.answers)]


def test_every_node_lists_the_jobs_of_all() -> None:
    """With the node that has each."""
    world, _, _, other = _three_with_a_job(12)
    (row,) = _asked(world, other, "jobs")["jobs"]

    assert (row["hex"], row["owner"], row["owner_name"]) == (JOB.hex(), "n0", "n0")


def test_a_job_is_shown_explained_and_cancelled_from_elsewhere() -> None:
    """By `last`, by prefix, by id: the request goes to the node that has it."""
    world, nodes, owner, other = _three_with_a_job(13)

    assert _asked(world, other, "show", target="last")["job"]["hex"] == JOB.hex()
    assert _asked(world, other, "explain", target=JOB.hex()[:6])["lines"]
    assert _asked(world, other, "cancel", target=JOB.hex() + "/3")["cancelled"] == 1
    assert 3 in nodes[0].machine.keeping.jobs[JOB].cancelled
    assert _asked(world, other, "cancel", target="all")["cancelled"] == 9
    assert world.run(lambda: owner.jobs[JOB].state == "cancelled", 5.0)
    assert world.run(lambda: not any(node.machine.running.busy() for node in nodes), 5.0), "something still runs"


def test_who_does_not_answer_is_named() -> None:
    """After two seconds, not never."""
    world, nodes, _, other = _three_with_a_job(15)
    nodes[0].freeze()
    answer = _asked(world, other, "jobs")

    assert answer["unanswered"] == ["n0"]
    assert [(row["hex"], row["owner"], row["state"]) for row in answer["jobs"]] == [(JOB.hex(), "n0", "running")]
    assert "n0, which has it, does not answer" in answer["jobs"][0]["waiting"]
    error = _asked(world, other, "show", target="last")
    assert error["code"] == "timed-out"


def test_an_unknown_target_is_not_found() -> None:
    """In the whole grid."""
    world, _, _, other = _three_with_a_job(16)

    assert _asked(world, other, "show", target="nothing-of-the-kind")["code"] == "not-found"


def test_whose_role_does_not_allow_it_is_refused() -> None:
    """Who may only observe may look and not cancel."""
    world, _, owner, other = _three_with_a_job(17, roles=OBSERVE)

    assert _asked(world, other, "show", target="last")["job"]["hex"] == JOB.hex()
    assert _asked(world, other, "cancel", target="last")["code"] == "not-authorized"
    assert owner.jobs[JOB].state == ""


def test_who_may_only_work_may_not_read() -> None:
    """A device sees no jobs but those it is given."""
    world, _, _, other = _three_with_a_job(18, roles=WORK)

    for verb in ("jobs", "top"):
        error = _asked(world, other, verb)
        assert error["code"] == "not-authorized"
        assert "the role of n2" in error["message"]


def test_top_shows_what_every_node_does() -> None:
    """Busy slots and queues, by name."""
    world, _, _, other = _three_with_a_job(19)
    nodes = _asked(world, other, "top")["nodes"]

    assert [node["name"] for node in nodes] == ["n0", "n1", "n2"]
    assert sum(node["busy"] for node in nodes) == 6


@pytest.mark.parametrize(("roles", "says"), [(WORK, "its role is work"), (0, "does not belong")])
def test_a_node_that_may_not_submit_refuses_its_own_programs(roles: int, says: str) -> None:
    """A device that may only work, and a node that was revoked: one line, and what to do."""
    desk = Desk(slots=1)
    desk.ready()
    desk.do(e.Belongs(GRID, "blue-otter", roles))
    desk.join()
    desk.submit(1)
    errors = [one.body[3] for one in desk.all if isinstance(one, e.Reply) and one.kind == m.REFUSED]

    assert [error["code"] for error in errors] == ["not-authorized"]
    assert says in errors[0]["message"]
