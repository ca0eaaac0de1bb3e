"""Invites as people use and misuse them: one line that says what is wrong, and a running node that moves house."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from tests.system.grids import Node, Nodes, wait
from tests.system.uneven import Running, linger, shares
from tests.waiting import SOON_S

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with Nodes(tmp_path_factory.mktemp("grid")) as nodes:
        nodes.grid("ab")
        nodes.wait_all_alive()
        yield nodes


def expired(inviter: Node) -> str:
    invite = inviter.invite(expires=1.0)
    until = time.monotonic() + 3
    wait(lambda: time.monotonic() > until, SOON_S, "it is over")
    return invite


def revoked(inviter: Node) -> str:
    made = inviter.ask("invite", roles="submit,work", expires=3600.0, member_until=0)
    names = [str(value) for key, value in made.items() if key in {"id", "key", "voucher"}]
    assert names, f"an invite that cannot be named cannot be revoked: {sorted(made)}"
    inviter.ask("revoke", target=names[0], with_admitted=False)
    return str(made["invite"])


def mistyped(invite: str) -> str:
    at = len(invite) // 2
    return invite[:at] + ("a" if invite[at] != "a" else "b") + invite[at + 1 :]


BAD: dict[str, tuple[Callable[[Node], str], str]] = {
    "wrong": (lambda _: "hello", "not an invite"),
    "empty": (lambda _: "", "invite"),
    "truncated": (lambda inviter: inviter.invite()[:-20], "cut short"),
    "mistyped": (lambda inviter: mistyped(inviter.invite()), "damaged"),
    "expired": (expired, "expired"),
    "revoked": (revoked, "revoked"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_invite_is_one_line_and_exit_2(kind: str, nodes: Nodes) -> None:
    """`p2pgrid node --join` and `p2pgrid join` at a running node say which; the running node stays as it was."""
    make, word = BAD[kind]
    inviter = nodes.all[0]
    invite = make(inviter)
    newcomer = nodes.node(f"new-{kind}")
    newcomer.spawn(invite)
    assert newcomer._child is not None
    assert newcomer._child.wait(60) == 2
    said = [line for line in newcomer.log().splitlines() if '"error"' in line]
    print(said)
    assert len(said) == 1, newcomer.log()
    assert word in said[0]
    newcomer.end()

    alone = nodes.node(f"alone-{kind}").start()
    grid = alone.status()["grid"]["name"]
    file = nodes.folder / "bad"
    file.write_text(invite)
    done = alone.command("join", f"@{file}")
    print(done.stderr)
    assert done.returncode == 2
    assert word in done.stderr
    assert alone.status()["grid"]["name"] == grid
    with alone.grid() as session:
        assert session.submit(pow, 2, 5).result(20) == 32
    alone.end()


def test_a_node_that_works_joins_without_a_restart(nodes: Nodes) -> None:
    """Its job goes on, and from then on the others help."""
    inviter, other = nodes.all[:2]
    mover = nodes.node("mover").start()
    joined = nodes.folder / "joined"

    def patient(job: tuple[int, float]) -> tuple[int, int, str, float]:
        while job[0] >= 25 and not joined.exists():  # however long joining takes, there is work left
            time.sleep(0.02)
        return linger(job)

    with mover.grid() as session:
        job = Running(session, 200, 10.0, patient)
        job.wait(20)
        pid = mover.pid
        file = nodes.folder / "invite"
        file.write_text(inviter.invite())
        done = mover.command("join", f"@{file}")
        assert done.returncode == 0, done.stderr
        nodes.wait_all_alive()
        joined.touch()
        parts = shares(job.right())

    print(f"{done.stderr.strip()}; shares {parts}")
    assert mover.pid == pid
    assert {inviter.name, other.name, "mover"} == parts.keys()
    mover.stop()
