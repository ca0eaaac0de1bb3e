"""No machine is one that only one can replace: the first node's disk is gone, a member is stolen, a clock is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pgrid.core.errors import GridError
from tests.system.grids import DidNotHappen, Node, Nodes, wait
from tests.system.uneven import shared_by
from tests.waiting import SOON_S

pytestmark = pytest.mark.slow

DAY_S = 86_400.0
SIGNED_S = 60.0
"""How long an admin may take to sign a joiner, and a promotion to be shown."""


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with Nodes(tmp_path) as nodes:
        yield nodes


def roles_seen(by: Node, name: str) -> set[str]:
    return next((set(each["roles"]) for each in by.members() if each["name"] == name), set())


def invite_once_signed(node: Node, **arguments: str) -> str:
    """A joiner may invite as soon as an admin has signed it; until then it says so."""
    return wait(lambda: node.invite(**arguments), SIGNED_S, f"{node.name} may invite")


def run_everywhere(session_at: Node, names: str) -> None:
    with session_at.grid() as session:
        shared_by(session, set(names), 40 * len(names), 1.5 * len(names))


def test_the_first_nodes_disk_is_destroyed(nodes: Nodes) -> None:
    """The others invite, promote and revoke; that the first is revoked cuts nobody off, also after restarts."""
    a, b, c = nodes.grid("abc")
    nodes.wait_all_alive()
    invite_once_signed(b)
    invite_once_signed(c)
    a.kill()
    shutil.rmtree(a.dir)

    d = nodes.node("d").start(b.invite())
    e = nodes.node("e").start(c.invite(roles="work"))
    nodes.wait_all_alive()
    with pytest.raises(GridError):
        e.invite()
    c.ask("promote", target="e", roles="submit,work,admin")
    try:
        wait(lambda: all("admin" in roles_seen(each, "e") for each in (b, c, d, e)), SIGNED_S, "e is an admin for all")
    except DidNotHappen as error:
        raise DidNotHappen(f"{error}: {[(each, roles_seen(each, 'e')) for each in (b, c, d, e)]}") from None
    f = nodes.node("f").start(invite_once_signed(e))
    nodes.wait_all_alive()

    answer = b.ask("revoke", target=a.id, with_admitted=False)
    assert not [each for each in answer.get("cut", ()) if each.get("name") in {"b", "c", "d", "e", "f"}], answer
    for node in (c, d, e, f):
        wait(lambda node=node: node.ask("grid")["revoked"], SIGNED_S, f"{node.name} has heard of the revocation")  # type: ignore[misc]
    nodes.wait_all_alive()
    for node in (b, c, d, e, f):
        node.stop()
        node.start()
        nodes.wait_all_alive()
    run_everywhere(c, "bcdef")


def test_a_stolen_machine_does_not_come_back(nodes: Nodes) -> None:
    """Revoked, it is refused with its key, and with a new one by the invite that was found on it."""
    a, b, thief = nodes.grid(["a", "b", "thief"])
    nodes.wait_all_alive()
    invite = (nodes.folder / "thief.invite").read_text()
    invite_once_signed(b)

    answer = b.ask("revoke", target="thief", with_admitted=False)
    print(answer)
    nodes.wait_all_see({"a": "alive", "b": "alive", "thief": "absent"}, among=[a, b])
    for again in ("with its own key", "after a restart"):
        nodes.wait_all_see({"a": "alive", "b": "alive", "thief": "absent"}, among=[a, b])
        if again == "with its own key":
            thief.stop()
            thief.start()
            wait(lambda: "thief" in thief.view(), SOON_S, "it runs, alone")
            wait(lambda: set(thief.view().values()) - {"dead", "left"} == {"alive"}, SOON_S, "it sees nobody else")
    thief.kill()
    other = nodes.node("other")
    other.spawn(invite)
    assert other._child is not None
    assert other._child.wait(60) == 2
    last = other.log().strip().splitlines()[-1]
    print(f"the invite: {last}")
    assert "invite" in last
    assert "revoked" in last
    nodes.wait_all_see({"a": "alive", "b": "alive", "other": "absent"}, among=[a, b])
    run_everywhere(b, "ab")


def test_a_clock_that_runs_eight_days_ahead(nodes: Nodes) -> None:
    """After joining: the node goes on, invites, comes back after a restart, works, and warns."""
    a, b = nodes.grid("ab")
    late = nodes.node("late", clock=True)
    late.start(a.invite())
    nodes.wait_all_alive()
    invite_once_signed(late)

    late.set_clock(8 * DAY_S)
    nodes.wait_all_alive()
    late.stop()
    late.start()
    nodes.wait_all_alive()
    wait(lambda: "clock" in late.warnings(), 90, "it warns")
    with late.grid() as session:
        shared_by(session, {"a", "b", "late"}, 60, 3.0)
    nodes.node("d").start(late.invite())
    nodes.wait_all_alive()
    assert b.runs
