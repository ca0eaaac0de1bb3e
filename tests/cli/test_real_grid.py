"""The verbs at a grid of real nodes, in the order in which somebody would meet them."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.client.grid import Grid
from tests.cli.processes import environment, left, p2pgrid, until

pytestmark = pytest.mark.slow

SEEN_WITHIN_S = 60.0
START_WITHIN_S = 60.0


class Node:
    """`p2pgrid node` in a directory of its own, and the other verbs at it."""

    def __init__(self, home: Path, name: str) -> None:
        self.home = home
        self.name = name
        self.dir = home / name
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run it, and wait until it answers."""
        words = ["node", "--dir", str(self.dir), "--name", self.name, "--slots", "1", "--listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "p2pgrid", *words, "--preset", "local"],
            cwd=self.home, env=environment(self.home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        process = self.process
        assert until(lambda: process.poll() is not None or self.run("status").returncode == 0, START_WITHIN_S)
        assert process.poll() is None

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a verb."""
        return p2pgrid(self.home, *words, "--dir", str(self.dir))

    def json(self, *words: str) -> Any:
        """Run a verb that must succeed; return its object."""
        done = self.run(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def sees(self) -> dict[str, str]:
        """Return the status of each member in its view, by name."""
        return {one["name"]: one["status"] for one in self.json("members")["members"]}

    def roles(self, name: str) -> set[str]:
        """Return the roles of a member in its view."""
        return next((set(one["roles"]) for one in self.json("members")["members"] if one["name"] == name), set())

    def end(self) -> None:
        """Leave nothing, whatever happened."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=240)
        finally:
            self.process.kill()
            self.process.wait()


Make = Callable[[str], Node]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """`make("fox")`: a directory for a node, which runs once it is started."""
    nodes: list[Node] = []

    def make(name: str) -> Node:
        nodes.append(Node(tmp_path, name))
        return nodes[-1]

    yield make
    for node in nodes:
        node.end()
    assert left(tmp_path) == []


def together(*nodes: Node, within_s: float = SEEN_WITHIN_S) -> bool:
    """Wait until each sees all alive."""
    wanted = {node.name: "alive" for node in nodes}
    return until(lambda: all(node.sees().items() >= wanted.items() for node in nodes), within_s)


def invite(node: Node, *flags: str) -> str:
    """Write an invite of its grid to a file; return the word that names it."""
    done = node.run("invite", *flags)
    assert done.returncode == 0, done.stderr
    path = node.home / "invite.txt"
    path.write_text(done.stdout, encoding="utf-8")
    return f"@{path}"


def say(number: int) -> int:
    """A task that prints."""
    print("this is", number)
    return number


def test_a_running_node_joins_and_works_at_every_node(make: Make) -> None:
    """By one invite; then any node lists, shows, explains, logs and cancels the job of another."""
    fox, owl = make("fox"), make("owl")
    fox.start()
    owl.start()

    joined = owl.json("join", invite(fox))
    again = owl.json("join", invite(fox))

    assert (joined["name"], joined["joined"], joined["running"]) == ("owl", True, True)
    assert again["joined"] is False
    assert together(fox, owl)
    assert owl.run("status", "--wait", "2").returncode == 0
    assert fox.json("grid", "show")["id"] == owl.json("grid", "show")["id"]

    with Grid(fox.dir, embedded=False) as grid:
        assert grid.start(say, range(3), name="three").wait(60)
        grid.options(resources={"gpu": 1}).start(say, range(4), name="never")

    assert {job["name"]: job["owner_name"] for job in owl.json("jobs")["jobs"]} == {"three": "fox", "never": "fox"}
    assert " AT " in owl.run("jobs").stdout
    assert owl.json("show", "three")["tasks"]["done"] == 3
    assert owl.run("logs", "three/2").stdout == "this is 2\n"
    assert "gpu" in owl.run("explain", "never").stdout
    assert owl.json("cancel", "never")["cancelled"] == 4
    assert fox.json("show", "never")["tasks"]["cancelled"] == 4
    assert {one["name"] for one in owl.json("top")["nodes"]} == {"fox", "owl"}
    assert owl.run("show", "nobody-knows-1").returncode == 4

    drained = owl.json("drain", "fox")["drain"]
    assert (drained["name"], drained["drained"]) == ("fox", True)
    assert until(lambda: {job["owner_name"] for job in fox.json("jobs")["jobs"]} == {"owl"}, SEEN_WITHIN_S)
    assert owl.run("drain", "fox", "--off").returncode == 0


def test_join_where_no_node_runs(make: Make) -> None:
    """The next `p2pgrid node` is in the grid."""
    fox, owl = make("fox"), make("owl")
    fox.start()

    done = owl.run("join", invite(fox))
    owl.start()

    assert done.stdout.splitlines()[-1] == f"now: p2pgrid node --dir {owl.dir}"
    assert together(fox, owl)


def test_roles_are_given_and_taken(make: Make) -> None:
    """A worker is no admin until it is promoted, within seconds and without a restart; then it is revoked."""
    fox, owl = make("fox"), make("owl")
    fox.start()
    owl.start()
    owl.json("join", invite(fox, "--roles", "work"))
    assert together(fox, owl)

    refused = owl.run("invite")
    promoted = fox.json("promote", "owl")

    assert (refused.returncode, refused.stdout) == (5, "")
    assert (promoted["name"], set(promoted["roles"])) == ("owl", {"submit", "work", "admin"})
    assert until(lambda: owl.run("invite").returncode == 0, SEEN_WITHIN_S)
    assert until(lambda: "admin" in fox.roles("owl"), SEEN_WITHIN_S)

    revoked = owl.json("revoke", "fox")

    assert [one["name"] for one in revoked["revoked"]] == ["fox"]
    assert [one["name"] for one in revoked["kept"]] in ([], ["owl"])
    assert until(lambda: owl.sees().get("fox") != "alive", SEEN_WITHIN_S)
    assert until(lambda: bool(fox.json("status")["warnings"]), SEEN_WITHIN_S)


def test_an_invite_is_closed_by_the_key_it_came_with(make: Make) -> None:
    """And whoever comes too late is told, exit 2."""
    fox, owl = make("fox"), make("owl")
    fox.start()
    owl.start()
    told = fox.json("invite")
    (fox.home / "invite.txt").write_text(told["invite"], encoding="utf-8")

    closed = fox.run("revoke", told["key"])
    late = owl.run("join", f"@{fox.home / 'invite.txt'}")

    assert closed.returncode == 0, closed.stderr
    assert (late.returncode, late.stdout) == (2, "")
    assert "revoked" in late.stderr
    assert set(owl.sees()) == {"owl"}


def test_an_exported_key_brings_admins_back(make: Make, tmp_path: Path) -> None:
    """A worker becomes an admin by the file, although the first node is gone."""
    fox, owl = make("fox"), make("owl")
    fox.start()
    owl.start()
    owl.json("join", invite(fox, "--roles", "work"))
    assert together(fox, owl)
    file, words = tmp_path / "admin.key", tmp_path / "words"
    words.write_text("open sesame\n", encoding="utf-8")

    exported = fox.json("grid", "export", str(file), "--passphrase-file", str(words))
    fox.end()
    wrong = owl.run("grid", "recover", str(file), "--passphrase-file", str(file))
    recovered = owl.json("grid", "recover", str(file), "--passphrase-file", str(words))

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert exported["key"]
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "admin" in recovered["roles"]
    assert owl.run("invite").returncode == 0


def test_leave_founds_another_grid(make: Make) -> None:
    """Of one; the others see it go."""
    fox, owl = make("fox"), make("owl")
    fox.start()
    owl.start()
    owl.json("join", invite(fox))
    assert together(fox, owl)

    left = owl.json("leave")

    assert left["left"] == fox.json("status")["grid"]["name"]
    assert left["grid"] == owl.json("status")["grid"]["name"]
    assert until(lambda: fox.sees().get("owl") != "alive", SEEN_WITHIN_S)
    assert set(owl.sees()) == {"owl"}
