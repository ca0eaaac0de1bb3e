"""What is left when a daemon vanishes: nothing. Real processes, real SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pgrid.node import reaper
from p2pgrid.node.workers_reaper import Reaper
from tests.node.pool_harness import all_gone
from tests.waiting import SOON_S

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """A program with busy workers: its process, its pool's token, its reaper."""
    command = [sys.executable, "-m", "tests.node.pool_victim", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        token, pid = process.stdout.readline().split()
        yield process, token, int(pid)
        process.kill()
    reaper.kill_marked(token)


def _family(token: str) -> list[int]:
    """Return all six processes: one that is between fork and exec shows no environment for a moment."""
    deadline = time.monotonic() + SOON_S
    while len(pids := reaper.marked(token)) < 6 and time.monotonic() < deadline:
        pass
    return pids


def _kill_and_time(pid: int, number: signal.Signals, pids: list[int]) -> float:
    started = time.monotonic()
    os.kill(pid, number)
    assert all_gone(pids)
    return time.monotonic() - started


def test_after_kill_9_of_the_daemon_nothing_of_it_lives(victim: tuple[subprocess.Popen[str], str, int]) -> None:
    """Workers in busy loops, sleepers, sleepers in sessions of their own, and the reaper itself."""
    process, token, reaper_pid = victim
    pids = _family(token)
    took = _kill_and_time(process.pid, signal.SIGKILL, [*pids, reaper_pid])

    print(f"{len(pids)} processes gone {took * 1000:.0f} ms after kill -9 of the daemon")
    assert len(pids) >= 6
    assert reaper.marked(token) == []


def test_without_a_reaper_the_workers_still_go(victim: tuple[subprocess.Popen[str], str, int]) -> None:
    """Reaper and daemon killed together: each worker takes its own group with it."""
    process, token, reaper_pid = victim
    workers = [pid for pid in _family(token) if os.getpgid(pid) == pid and os.getsid(pid) != pid]
    os.kill(reaper_pid, signal.SIGKILL)
    took = _kill_and_time(process.pid, signal.SIGKILL, workers)

    print(f"{len(workers)} workers gone {took * 1000:.0f} ms after kill -9 of daemon and reaper")
    assert len(workers) == 2


def _ignores(pid: int, number: signal.Signals) -> bool:
    (mask,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigIgn"))
    return bool(int(mask.split()[1], 16) >> (number - 1) & 1)


def test_the_reaper_ignores_what_ends_others() -> None:
    """Ctrl-C in the daemon's terminal, and a polite kill, must not end the one who cleans up."""
    with Reaper("no-such-token") as guard:
        process = guard._process
        assert process is not None
        sleeper = subprocess.Popen(["sleep", "600"], process_group=0)
        guard.add(sleeper.pid)
        deadline = time.monotonic() + SOON_S
        while not _ignores(process.pid, signal.SIGHUP):
            assert time.monotonic() < deadline
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(process.pid, number)

    assert sleeper.wait(SOON_S) == -signal.SIGKILL


def test_a_reaper_that_is_killed_is_replaced() -> None:
    """The next word to it starts another, which knows all groups."""
    with Reaper("no-such-token") as guard:
        first = guard._process
        assert first is not None
        sleepers = [subprocess.Popen(["sleep", "600"], process_group=0) for _ in range(2)]
        guard.add(sleepers[0].pid)
        first.kill()
        first.wait()
        guard.add(sleepers[1].pid)

    assert [sleeper.wait(SOON_S) for sleeper in sleepers] == [-signal.SIGKILL] * 2


def test_a_group_that_ended_is_left_alone() -> None:
    """Its number may be somebody else's by now."""
    with Reaper("no-such-token") as guard:
        sleeper = subprocess.Popen(["sleep", "600"], process_group=0)
        guard.add(sleeper.pid)
        guard.remove(sleeper.pid)

    assert sleeper.poll() is None
    sleeper.kill()
    sleeper.wait()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at /proc")
def test_who_is_in_the_middle_of_an_exec_is_not_overlooked() -> None:
    """It has neither environment nor arguments for a moment: one look alone finds nobody."""
    token = f"exec-{os.getpid()}"
    again = 'i=$((i+1)); exec sh -c "$0" "$0"'
    process = subprocess.Popen(["sh", "-c", again, again], env={**os.environ, reaper.MARK: token})
    try:
        for _ in range(20):
            assert reaper._look(token) != ([], False)
    finally:
        reaper.kill_marked(token)

    assert process.wait(SOON_S) == -signal.SIGKILL
