"""Members, `run` and what is known of a grid, against a node that follows a script."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.client.embedded import invite_text, secret_file
from p2pgrid.client.members import Member, call_of, chosen, members_from, only
from p2pgrid.core import messages as m
from p2pgrid.core.batch import decode_batch
from p2pgrid.core.errors import ExitCode, GridError, NotFound, Unschedulable
from p2pgrid.core.options import TaskOptions
from p2pgrid.core.where import WhereError
from p2pgrid.core.wire import Frame
from tests.client.conftest import Connect
from tests.client.scripted import ScriptedNode
from tests.waiting import SOON_S

COMMON = "12D3KooW"


def member(
    name: str, *, slots: int = 1, status: str = "alive", roles: str = "submit,work", **facts: Any
) -> dict[str, Any]:
    id_ = f"{COMMON}{name}{'x' * 20}"
    return {
        "id": id_, "name": name, "status": status, "addresses": [f"/ip4/127.0.0.1/tcp/1/p2p/{id_}"], "slots": slots,
        "roles": roles.split(","), "pythons": [{"path": "/usr/bin/python3", "version": "3.11.2"}], "version": "0.1.0",
        "facts": {"id": id_, "name": name, "slots": slots, "resources": {"cpu": slots}, "arch": "x86_64", **facts},
    }  # fmt: skip


def listing(*members: dict[str, Any]) -> dict[str, Any]:
    return {"members": list(members)}


THREE = listing(member("n0"), member("n1", arch="aarch64"), member("n2", slots=4))


def wheres(node: ScriptedNode) -> list[tuple[str, bool]]:
    """Return the condition of each task that was sent, and whether it is strict."""
    found = []
    for one in node.heard:
        if one.kind == m.INPUT:
            batch = decode_batch(one.body[1], one.body[2], one.body[3])
            for run in batch.runs:
                options = batch.opts[run.opts]
                found += [(options["where"], options["strict"])] * (run.hi - run.lo)
    return found


def double(x: int) -> int:
    return 2 * x


def test_members_are_as_the_node_lists_them(node: ScriptedNode, connect: Connect) -> None:
    """A member has the keys of the answer; what a newer node adds is passed over."""
    node.answers["members"] = listing({**member("n0", slots=2), "mood": "good"}, member("n1", status="dead"))

    first, second = connect().members()

    assert (first.name, first.slots, first.roles, first.facts["arch"]) == ("n0", 2, ("submit", "work"), "x86_64")
    assert repr(first) == f"<Member n0 alive, 2 slots, submit,work, {first.id}>"
    assert [first.is_worker, second.is_worker] == [True, False]


def test_run_goes_to_every_node_that_takes_work(node: ScriptedNode, connect: Connect) -> None:
    """One task for each alive node with the work role and a slot; each may run on that node only."""
    node.answers["members"] = listing(
        member("n2"), member("n0"), member("watcher", roles="observe"), member("small", slots=0),
        member("gone", status="dead"), member("shaky", status="suspect"),
    )  # fmt: skip

    futures = connect().run(double, 21)

    assert {key: future.result(SOON_S) for key, future in futures.items()} == {"n0": 42, "n2": 42}
    assert wheres(node) == [(f"name == '{n}' and id == '{COMMON}{n}{'x' * 20}'", True) for n in ("n0", "n2")]


def test_run_of_a_command(node: ScriptedNode, connect: Connect) -> None:
    """A list of texts runs as a process in the task; its code and text output come back, errors included."""
    node.answers["members"] = listing(member("n0"))
    grid = connect()
    program = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"

    done = grid.run([sys.executable, "-c", program])["n0"].result(SOON_S)
    missing = grid.run(("no-such-command-here",))["n0"]

    assert isinstance(done, subprocess.CompletedProcess)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert isinstance(missing.exception(SOON_S), FileNotFoundError)


@pytest.mark.parametrize("wrong", ["ls", [], ["ls", 1], 7])
def test_run_of_what_is_neither(node: ScriptedNode, connect: Connect, wrong: Any) -> None:
    """A text is no command: whether a shell was meant cannot be known."""
    node.answers["members"] = THREE
    with pytest.raises(TypeError, match="expected a function, or a command"):
        connect().run(wrong)


def test_command_has_its_arguments_in_the_list() -> None:
    """`run(["ls"], "-l")` would lose the argument."""
    with pytest.raises(TypeError, match="arguments in the list"):
        call_of(["ls"], ("-l",))


def test_run_where(node: ScriptedNode, connect: Connect) -> None:
    """`where=` and the options of the view choose among the nodes."""
    node.answers["members"] = THREE
    grid = connect()

    assert list(grid.run(double, 1, where="arch == 'x86_64'")) == ["n0", "n2"]
    assert list(grid.options(where="slots > 2").run(double, 1)) == ["n2"]
    assert list(grid.options(where="slots > 2").run(double, 1, where="arch == 'x86_64'")) == ["n2"]
    assert list(grid.options(resources={"cpu": 2}).run(double, 1)) == ["n2"]


@pytest.mark.parametrize(
    ("use", "says"),
    [
        (lambda: chosen(members_from(THREE), TaskOptions(), "arch == 'riscv'"), "arch == 'riscv' (none has it)"),
        (
            lambda: chosen(members_from(THREE), TaskOptions(where="slots > 2"), "arch == 'aarch64'"),
            "0 of 3 nodes: slots > 2 (1 of 3 has it); arch == 'aarch64' (1 of 3 has it)",
        ),
        (lambda: chosen(members_from(THREE), TaskOptions(resources={"gpu": 1}), None), "gpu ≥ 1 (none has it)"),
        (lambda: chosen(members_from(listing(member("n0", slots=0))), TaskOptions(), None), "no alive node"),
    ],
)
def test_nothing_to_run_on(use: Callable[[], object], says: str) -> None:
    """No node fits: the error names the clause that rules them out."""
    with pytest.raises(Unschedulable) as caught:
        use()

    assert says in caught.value.message


def test_where_that_is_none(node: ScriptedNode, connect: Connect) -> None:
    """A condition that cannot be read is refused before anything is sent."""
    node.answers["members"] = THREE
    with pytest.raises(WhereError):
        connect().run(double, 1, where="arch = 'x86_64'")

    assert m.INPUT not in node.kinds()


def test_two_nodes_of_one_name() -> None:
    """The second key tells them apart by a prefix of the id, as long as it takes."""
    same = [Member(f"{COMMON}aaaa{end}", "n0", "alive", slots=1, roles=("work",), facts={"resources": {"cpu": 1}})
            for end in "123"]  # fmt: skip

    keyed = chosen(same, TaskOptions(), None)

    assert list(keyed) == ["n0", f"n0#{COMMON}aaaa", f"n0#{COMMON}aaaa3"]
    assert [one.id[-1] for one in keyed.values()] == ["1", "2", "3"]


def test_condition_of_one_node_names_it_where_that_is_safe() -> None:
    """A name that could end the text is left out of the condition; the id alone is enough."""
    honest = Member("12D3", "n0", "alive", facts={"name": "n0"})
    unnamed = Member("12D3", "n0", "alive", facts={"name": None})
    sly = Member("12D3", "n0' or id != '", "alive", facts={"name": "n0' or id != '"})

    assert only(honest) == "name == 'n0' and id == '12D3'"
    assert only(unnamed) == only(sly) == "id == '12D3'"


def test_run_waits_for_connections(node: ScriptedNode, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that is alive and not yet connected is waited for; in the end it is tried all the same."""
    late = {**member("n1"), "connected": False, "roles": []}
    node.answers["members"] = listing(member("n0"), late)
    asked = itertools.count(1)

    def arrive(frame: Frame) -> None:
        if frame.kind == m.REQUEST and next(asked) == 2:
            node.answers["members"] = listing(member("n0"), member("n1"), member("n2", status="dead"))

    node.on_frame = arrive
    grid = connect()
    came = grid.run(double, 1)
    node.answers["members"] = listing(member("n0"), late)
    monkeypatch.setattr("p2pgrid.client.members.CONNECTED_WITHIN_S", 0.0)

    assert list(came) == list(grid.run(double, 1)) == ["n0", "n1"]


def test_view_waits_for_what_ran_through_it(node: ScriptedNode, connect: Connect) -> None:
    """Leaving a view as a context manager waits for the tasks of its `run`."""
    node.answers["members"] = THREE
    with connect().options(priority=1) as view:
        futures = view.run(double, 4)

    assert [future.done() for future in futures.values()] == [True, True, True]


def test_slots_of_the_grid_are_asked_for_now_and_then(
    node: ScriptedNode, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`_max_workers` follows the grid, and asks at most once in two seconds."""
    node.answers["status"] = {"grid": {"name": "blue-otter", "nodes": 5, "slots": 22}}
    grid = connect()
    first = grid._max_workers
    monkeypatch.setattr("p2pgrid.client.session.REFRESH_S", 0.0)
    second = grid._max_workers
    monkeypatch.setattr("p2pgrid.client.session.REFRESH_S", 1000.0)
    node.answers["status"] = {"grid": {"name": "blue-otter", "nodes": 6, "slots": 24}}

    assert [first, second, grid._max_workers] == [2, 22, 22]
    assert "22 slots" in repr(grid)


def test_a_job_nobody_knows_is_not_found(node: ScriptedNode, connect: Connect) -> None:
    """The one line of the node is what the program sees, whatever it wanted of the job."""
    message = "no job 'calm-river-42' in this grid; not heard: n2"
    node.answers["find"] = {"code": "not-found", "message": message, "next": "p2pgrid jobs"}
    node.answers["jobs"] = {"jobs": [{"hex": "00" * 16, "name": ""}]}
    grid = connect()
    (job,) = grid.jobs()
    uses: list[Callable[[], Any]] = [
        lambda: grid.job("calm-river-42"), lambda: grid.future("calm-river-42/3"), job.results, job.wait,
        lambda: list(job.as_completed()),
    ]  # fmt: skip

    for use in uses:
        with pytest.raises(NotFound) as caught:
            use()
        assert (caught.value.message, caught.value.code) == (message, "not-found")
        assert caught.value.exit_code == ExitCode.NOT_FOUND


def test_joining_comes_before_work(node: ScriptedNode, connect: Connect) -> None:
    """`Grid(join=)` returns once the node has joined; what the node has against the invite is raised."""
    node.answers["join"] = {"grid": "blue-otter", "id": "x", "name": "n0", "reached": 2, "joined": True}
    connect(join=" p2pgrid1abc\n")
    node.answers["join"] = {"code": "bad-invite", "message": "the invite ended yesterday", "next": "p2pgrid invite"}
    with pytest.raises(GridError, match="ended yesterday"):
        connect(join="p2pgrid1abc")

    asked = [one.body for one in node.heard if one.kind == m.REQUEST]
    assert asked == [["join", {"invite": "p2pgrid1abc", "leave": False}]] * 2


def test_invite_from_a_file(tmp_path: Path) -> None:
    """`@file` names a file, which the flag of a node does as well; what is no invite is refused."""
    named = secret_file(tmp_path / "invite", "p2pgrid1abc")

    assert invite_text(named) == "p2pgrid1abc"
    assert (tmp_path / "invite").stat().st_mode & 0o777 == 0o600
    for wrong in (f"@{tmp_path}/nothing", " ", f"@{tmp_path}"):
        with pytest.raises(GridError) as caught:
            invite_text(wrong)
        assert caught.value.code == "bad-invite"
