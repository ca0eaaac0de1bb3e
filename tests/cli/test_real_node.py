"""The verbs at a real node, in the order of a day's work."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.client.grid import Grid
from tests.cli.processes import environment, left, p2pgrid, until

pytestmark = pytest.mark.slow


class Node:
    """`p2pgrid node` in a directory, and the other verbs at it."""

    def __init__(self, home: Path, *flags: str) -> None:
        self.home = home
        self.dir = home / "n"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "p2pgrid", "node", "--dir", str(self.dir), "--slots", "2", *flags],
            cwd=home, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a verb."""
        return p2pgrid(self.home, *words, "--dir", str(self.dir))

    def json(self, *words: str) -> Any:
        """Run a verb that must succeed; return its object."""
        done = self.run(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def end(self) -> None:
        """Leave nothing, whatever happened."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.communicate(timeout=240)
        finally:
            self.process.kill()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node that answers."""
    node = Node(tmp_path)
    try:
        assert node.run("status", "--wait").returncode == 0
        yield node
    finally:
        node.end()
    assert left(tmp_path) == []


def talk(number: int) -> int:
    """A task that prints, and fails at 3."""
    print("this is", number)
    if number == 3:
        raise ValueError("not three")
    return number


def test_a_job_from_jobs_to_logs(node: Node) -> None:
    """What the verbs say of a job with a failure, by each kind of target."""
    with Grid(node.dir, embedded=False) as grid:
        job = grid.start(talk, range(6), name="six")
        assert job.wait(60)

    (listed,) = node.json("jobs")["jobs"]
    assert (listed["id"], listed["name"], listed["state"]) == (job.id, "six", "failed")
    assert (listed["done"], listed["failed"], listed["total"], listed["detached"]) == (5, 1, 6, True)
    for target in ("six", "last", job.id, listed["hex"], listed["hex"][:8]):
        assert node.json("show", target)["job"] == listed
    task = node.json("show", f"{job.id}/3")["task"]
    assert (task["index"], task["state"], task["attempts"]) == (3, "failed", 1)
    assert [one["state"] for one in node.json("show", "six/2-3")["listed"]] == ["done", "failed"]
    assert node.run("logs", "six/4").stdout == "this is 4\n"
    assert [one["index"] for one in node.json("logs", "six")["logs"]] == list(range(6))
    assert "task 3: failed" in node.run("explain", "six/3").stdout


def test_a_job_that_waits_says_why_everywhere(node: Node) -> None:
    """`jobs`, `show` and `explain` name the clause; then it is cancelled."""
    with Grid(node.dir, embedded=False) as grid:
        grid.options(resources={"gpu": 1}).start(talk, range(3), name="never")

    reason = "0 of 1 nodes: gpu ≥ 1 (none has it)"
    assert until(lambda: node.json("jobs")["jobs"][0]["waiting"] == reason, 60.0)
    for verb in (["jobs"], ["show", "never"], ["explain", "never"]):
        assert reason in node.run(*verb).stdout
    assert node.json("cancel", "never") == {"v": 1, "cancelled": 3, "unanswered": []}
    assert node.json("show", "never")["tasks"]["cancelled"] == 3


def test_unknown_and_ambiguous_targets(node: Node) -> None:
    """Exit 4; of several candidates all are listed."""
    with Grid(node.dir, embedded=False) as grid:
        ids = [grid.start(talk, [1], name="twin").id for _ in range(2)]

    unknown, ambiguous = node.run("show", "nobody-knows-1"), node.run("show", "twin")

    assert (unknown.returncode, unknown.stdout) == (4, "")
    assert "; next: " in unknown.stderr
    assert (ambiguous.returncode, ambiguous.stdout) == (4, "")
    assert all(one in ambiguous.stderr for one in ids)


def test_status_of_a_real_node(node: Node) -> None:
    """Its process is the one we started."""
    found = node.json("status")

    assert found["node"]["slots"] == 2
    assert found["node"]["dir"] == str(node.dir)
    assert found["grid"]["nodes"] == 1
    assert found["process"]["pid"] == node.process.pid


def test_stop_returns_when_the_directory_is_free(node: Node) -> None:
    """The next `p2pgrid node` on it starts at once; where none runs, `stop` is exit 3."""
    assert node.run("stop").returncode == 0
    out, err = node.process.communicate(timeout=240)
    assert node.process.returncode == 0
    assert out.startswith("ready 12D3KooW")
    assert out.count("\n") == 1
    assert err.splitlines()[-1].startswith("stopped; no job waits")

    again = Node(node.home)
    assert again.run("status", "--wait").returncode == 0
    again.end()
    assert again.run("stop").returncode == 3


def test_second_node_on_a_directory_says_so(node: Node) -> None:
    """Exit 2, with the name of the first."""
    second = node.run("node")

    assert (second.returncode, second.stdout) == (2, "")
    assert "in use by node" in second.stderr


def test_node_as_json_lines(tmp_path: Path) -> None:
    """The first line is `ready`, the last `stopped`."""
    node = Node(tmp_path, "--json", "--ephemeral", "--name", "own-name", "--tag", "a=b", "--resource", "gpu=1")
    assert p2pgrid(tmp_path, "status", "--wait", "--dir", str(node.dir)).returncode == 0

    assert node.run("stop").returncode == 0
    out, _ = node.process.communicate(timeout=240)

    events = [json.loads(line) for line in out.splitlines()]
    assert [events[0]["event"], events[-1]["event"]] == ["ready", "stopped"]
    assert events[0]["name"] == "own-name"
    assert not node.dir.exists()
