"""`LocalGrid` of several real nodes, from Python: members, work everywhere, `run`, cancelled and killed."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import p2pgrid as pg
from p2pgrid.client.grid import Grid
from p2pgrid.client.localgrid import LocalGrid
from tests.waiting import SOON_S, wait_until

pytestmark = pytest.mark.slow

NODES = 3


@pytest.fixture(scope="module")
def shared() -> Iterator[LocalGrid]:
    """Three nodes of one slot for the tests that do them no harm."""
    with LocalGrid(nodes=NODES) as local:
        yield local


@pytest.fixture
def local() -> Iterator[LocalGrid]:
    """Three nodes of one slot for a test that kills some."""
    with LocalGrid(nodes=NODES) as local:
        yield local


def slow_square(x: int) -> int:
    time.sleep(0.05)
    return x * x


def cube(x: int) -> int:
    return x**3


def processes_with(marker: str) -> list[int]:
    """Return the processes whose command line has a text in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if marker.encode() in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def test_all_members_are_in_all_views(shared: LocalGrid) -> None:
    """When the with has been entered every node lists every other, reachable on loopback."""
    for i in range(NODES):
        with shared.grid(i) as grid:
            members = grid.members()

        assert sorted(one.id for one in members) == sorted(node.id for node in shared.nodes)
        assert sorted(one.name for one in members) == ["n0", "n1", "n2"]
        assert {one.status for one in members} == {"alive"}
        assert all(one.is_worker and one.slots == 1 for one in members)
        assert all(address.startswith("/ip4/127.0.0.1/tcp/") for one in members for address in one.addresses)


def test_the_grid_has_the_slots_of_all(shared: LocalGrid) -> None:
    """`_max_workers` counts every node's slots."""
    grid = shared.grid(1)
    wait_until(lambda: grid._max_workers == NODES)


def test_tasks_run_on_several_nodes(shared: LocalGrid) -> None:
    """Right values, and the node that made each is named; jobs are given to each node in turn."""
    for i in range(NODES):
        with shared.grid(i) as grid:
            futures = [grid.submit(slow_square, x) for x in range(60)]

            assert [future.result(SOON_S) for future in futures] == [x * x for x in range(60)]
            assert len({future.node for future in futures}) >= 2
            assert {future.node for future in futures} <= {"n0", "n1", "n2"}
            assert list(grid.map(cube, range(2000))) == [x**3 for x in range(2000)]


def test_run_reaches_every_node(shared: LocalGrid) -> None:
    """A function and a command, once on each, also while all of them are busy."""
    with shared.grid(0) as grid:
        busy = [grid.submit(time.sleep, 0.3) for _ in range(NODES)]
        pids = grid.run(os.getpid)
        said = grid.run(["sh", "-c", "echo $PPID"])
        some = grid.run(cube, 3, where="name != 'n1'")

        assert len({future.result(SOON_S) for future in pids.values()}) == NODES
        assert {key: future.node for key, future in pids.items()} == {"n0": "n0", "n1": "n1", "n2": "n2"}
        done = {key: future.result(SOON_S) for key, future in said.items()}
        assert sorted(done) == ["n0", "n1", "n2"]
        assert all(isinstance(one, subprocess.CompletedProcess) and int(one.stdout) > 1 for one in done.values())
        assert {key: future.result(SOON_S) for key, future in some.items()} == {"n0": 27, "n2": 27}
        with pytest.raises(pg.Unschedulable, match="name == 'n7' \\(none has it\\)"):
            grid.run(cube, 3, where="name == 'n7'")
        concurrent.futures.wait(busy, SOON_S)


def test_cancelling_kills_the_processes_everywhere(shared: LocalGrid) -> None:
    """What runs on other nodes dies too, down to what the tasks started."""
    marker = f"p2pgrid-test-{uuid.uuid4().hex}"
    grid = shared.grid(0)
    futures = grid.run(["sh", "-c", f"sleep 600; true {marker}"])
    wait_until(lambda: len(processes_with(marker)) == NODES)

    assert all(future.cancel() for future in futures.values())
    wait_until(lambda: not processes_with(marker))
    assert grid.submit(cube, 3).result(SOON_S) == 27


def third_fails(x: int) -> int:
    time.sleep(0.02)
    if x == 3:
        msg = f"{x} is none"
        raise ValueError(msg)
    return x * x


def block(i: int) -> bytes:
    return bytes([i]) * 3_000_000


def test_a_job_is_read_at_every_node_while_it_runs_and_afterwards(shared: LocalGrid) -> None:
    """By id, name and prefix; values, failures and places are the same everywhere."""
    name = f"thirds-{uuid.uuid4().hex[:8]}"
    with shared.grid(0) as grid, shared.grid(1) as amid, shared.grid(2) as after:
        job = grid.start(third_fails, range(100), name=name)
        other = amid.job(name)
        assert {future.index: future.exception() is None for future in other.as_completed(SOON_S)} == {
            i: i != 3 for i in range(100)
        }
        with pytest.raises(ValueError, match="3 is none"):
            list(other.results(SOON_S))
        assert job.wait(SOON_S)

        seen = after.job(job.id)
        assert (seen, seen.name, seen.state, seen.progress()) == (job, name, "failed", (99, 1, 100))
        assert job in after.jobs()
        assert seen.wait(0.5 + SOON_S)
        assert [future.index for future in seen.failed()] == [3]
        assert [after.future(f"{job.id}/{i}").result(SOON_S) for i in (0, 4, 99)] == [0, 16, 9801]
        with pytest.raises(ValueError, match="3 is none"):
            after.future(f"{job.id}/3").result(SOON_S)
        assert {after.future(f"{job.id}/{i}").node for i in range(0, 100, 10)} <= {"n0", "n1", "n2"}
        until = seen.expires + 3600
        seen.keep_until(until)
        assert job.expires == until
        seen.forget()
        for one in (grid, after):
            with pytest.raises(pg.NotFound, match="in this grid"):
                one.job(job.id)


def test_large_results_are_read_at_another_node(shared: LocalGrid) -> None:
    """More than a window of them, in order."""
    with shared.grid(1) as grid, shared.grid(2) as other:
        job = grid.start(block, range(12))

        assert [value == block(i) for i, value in enumerate(other.job(job.id).results(SOON_S))] == [True] * 12


def test_the_command_line_prints_the_serial_answer_at_another_node(shared: LocalGrid) -> None:
    """While the job runs there: every index once, in order; then the same again, and a job that failed."""
    with shared.grid(0) as grid:
        job = grid.start(slow_square, range(60))
        failing = grid.start(third_fails, range(6))

    def p2pgrid(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "p2pgrid", *words, "--dir", str(shared.nodes[2].dir)]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=SOON_S)

    serial = "".join(f"{x * x}\n" for x in range(60))
    for _ in range(2):
        ran = p2pgrid("result", job.id)
        assert (ran.returncode, ran.stdout) == (0, serial), ran.stderr
    assert p2pgrid("wait", failing.id).returncode == 1
    failed = p2pgrid("result", failing.id, "--format", "jsonl")
    assert [json.loads(line)["state"] for line in failed.stdout.splitlines()] == ["done"] * 3 + ["failed"] + [
        "done"
    ] * 2
    assert failed.returncode == 1


def test_an_id_nobody_knows_is_not_found_at_once_where_all_are_there(shared: LocalGrid) -> None:
    """Never pending."""
    began = time.monotonic()
    with shared.grid(1) as grid, pytest.raises(pg.NotFound, match="no job 'calm-nothing-1/3' in this grid"):
        grid.future("calm-nothing-1/3")
    assert time.monotonic() - began < SOON_S


def test_a_program_joins_by_an_invite(shared: LocalGrid, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`Grid(join=)` starts a node here that is a member before work begins, and leaves no invite behind."""
    invite = shared.nodes[1].invite()
    with Grid(tmp_path / "node", join=invite, embedded=True) as grid:
        others = {node.id for node in shared.nodes}
        wait_until(lambda: len(grid.members()) == NODES + 1)
        mine = next(one for one in grid.members() if one.id not in others)
        everywhere = grid.run(cube, 2)

        assert {future.result(SOON_S) for future in everywhere.values()} == {8}
        assert set(everywhere) == {"n0", "n1", "n2", mine.name}
        assert not (tmp_path / "node" / "invite").exists()
        assert not processes_with(invite)
        assert "node, which was not there): started one" in capsys.readouterr().err
    with contextlib.suppress(pg.GridError):
        shared.wait_members(NODES, 30.0)


def test_a_killed_node_changes_no_result(local: LocalGrid) -> None:
    """A node that did not accept the job dies in its middle; it comes back as a member."""
    grid = local.grid(0)
    results = iter(grid.map(slow_square, range(120)))
    first = [next(results) for _ in range(20)]
    local.nodes[2].kill()

    assert first + list(results) == [x * x for x in range(120)]
    local.nodes[2].start()
    local.wait_members(NODES)
    assert {future.result(SOON_S) for future in grid.run(cube, 2).values()} == {8}


def test_what_was_bound_to_a_killed_node_fails(local: LocalGrid) -> None:
    """The future of that node says which node is missing; the others have their results."""
    grid = local.grid(0)
    marker = f"p2pgrid-test-{uuid.uuid4().hex}"
    futures = grid.run(["sh", "-c", f"sleep 600; true {marker}"])
    wait_until(lambda: len(processes_with(marker)) == NODES)
    local.nodes[1].kill()

    with pytest.raises(pg.Unschedulable, match=local.nodes[1].id):
        futures["n1"].result(SOON_S)
    assert not futures["n0"].done()
    for future in futures.values():
        future.cancel()


def test_five_clients_at_five_nodes() -> None:
    """A hundred tasks from each at once: five hundred right results; then nothing is left of any of it."""
    with LocalGrid(nodes=5) as local:
        pids = [node.pid for node in local.nodes]
        root = local.nodes[0].dir.parent
        grids = [local.grid(i) for i in range(5)]

        def work(i: int) -> list[int]:
            return [future.result(SOON_S) for future in [grids[i].submit(cube, 100 * i + x) for x in range(100)]]

        with concurrent.futures.ThreadPoolExecutor(5) as threads:
            values = list(threads.map(work, range(5)))

    assert [one for part in values for one in part] == [x**3 for x in range(500)]
    assert not root.exists()
    wait_until(lambda: not processes_with(str(root)))  # their reapers end after them
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
