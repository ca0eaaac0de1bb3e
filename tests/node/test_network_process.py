"""Real nodes on loopback that become one grid: joining, moving, leaving, coming back, being shut out."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.client.grid import Grid
from p2pgrid.core import messages as m
from p2pgrid.core.invite import Membership, read_invite, write_invite
from p2pgrid.core.locate import socket_of
from p2pgrid.core.wire import Splitter, frame
from tests.cli.processes import environment
from tests.node.test_daemon_process import STAND_IN, Daemon
from tests.waiting import SOON_S

pytestmark = pytest.mark.slow

POLL_S = 0.02


class ToldError(Exception):
    """What a node answered with ERROR."""

    def __init__(self, told: dict[str, str]) -> None:
        super().__init__(told["message"])
        self.code = told["code"]


class Node:
    """One `p2pgrid node`, what it says, and what it is asked."""

    def __init__(self, home: Path, name: str) -> None:
        self.home = home
        self.name = name
        self.dir = home / name
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *words: str, **variables: str) -> Node:
        """Start it (again); in a directory of its own, which stays."""
        self.out, self.err = self.home / f"{self.name}.out", self.home / f"{self.name}.err"
        command = [sys.executable, "-m", "p2pgrid", "--json", "node", "--dir", str(self.dir), "--name", self.name]
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [*command, "--slots", "1", "--preset", "local", *words],
                cwd=self.home, env={**environment(self.home), **variables}, stdout=out, stderr=err,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        return self

    def events(self) -> list[dict[str, Any]]:
        """Return the JSON lines on stdout."""
        return [json.loads(line) for line in self.out.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def ready(self) -> dict[str, Any]:
        """Wait until it is; return what it said of itself."""
        assert self.process is not None
        process = self.process

        def look() -> dict[str, Any] | None:
            assert process.poll() is None, self.err.read_text()
            return next((event for event in self.events() if event["event"] == "ready"), None)

        said: dict[str, Any] = until(look)
        return said

    def ended(self) -> tuple[int, str]:
        """Wait for the end: (exit code, stderr)."""
        assert self.process is not None
        return self.process.wait(SOON_S), self.err.read_text()

    def stop(self) -> tuple[int, str]:
        assert self.process is not None
        self.process.terminate()
        return self.ended()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def ask(self, verb: str, **arguments: Any) -> Any:
        """Ask as the command line does. Raises ToldError."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(SOON_S)
            sock.connect(str(socket_of(self.dir)))
            hello = {"v": 1, "session": b"", "pid": os.getpid(), "program": "test"}
            sock.sendall(frame(m.HELLO, hello) + frame(m.REQUEST, [verb, arguments], 1))
            splitter = Splitter()
            while data := sock.recv(1 << 16):
                for heard in splitter.feed(data):
                    if heard.kind == m.ANSWER:
                        return heard.body
                    if heard.kind == m.ERROR:
                        raise ToldError(heard.body)
        raise AssertionError("the node closed the connection")

    def invite(self, **arguments: Any) -> str:
        return str(self.ask("invite", **arguments)["invite"])

    def alive(self) -> set[str]:
        """Return the names of the members that it sees alive."""
        return {row["name"] for row in self.ask("members")["members"] if row["status"] == "alive"}

    def row(self, name: str) -> dict[str, Any] | None:
        return next((row for row in self.ask("members")["members"] if row["name"] == name), None)

    def grid(self) -> str:
        return str(self.ask("status")["grid"]["name"])

    def connected(self) -> int:
        return int(self.ask("status")["network"]["connected"])


def until(look: Callable[[], Any], within_s: float = SOON_S) -> Any:
    """Look until there is something to see, and return it."""
    deadline = time.monotonic() + within_s
    while not (seen := look()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(POLL_S)
    return seen


def meet(*nodes: Node) -> None:
    """Wait until all of them see all of them alive."""
    names = {node.name for node in nodes}
    until(lambda: all(node.alive() == names for node in nodes))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Callable[[str], Node]]:
    """Makes nodes by name, and leaves none behind."""
    nodes: list[Node] = []

    def make(name: str) -> Node:
        nodes.append(Node(tmp_path, name))
        return nodes[-1]

    yield make
    for each in nodes:
        each.kill()


@pytest.fixture
def pair(node: Callable[[str], Node]) -> tuple[Node, Node]:
    """Two nodes in one grid: the founder and one that joined."""
    ant, bee = node("ant").start(), node("bee")
    ant.ready()
    bee.start(P2PGRID_JOIN=ant.invite())
    bee.ready()
    meet(ant, bee)
    return ant, bee


def slow_square(x: int) -> tuple[int, int]:
    time.sleep(0.05)
    return x * x, os.getppid()


# ---- coming ---------------------------------------------------------------------------------------------------------


def test_a_node_joins_at_its_start(node: Callable[[str], Node], tmp_path: Path) -> None:
    """By `--join @file`: ready with the grid's name and its addresses, `joined`, and each sees the other."""
    ant, bee = node("ant").start(), node("bee")
    founded = ant.ready()
    (tmp_path / "invite").write_text(ant.invite() + "\n")
    ready = bee.start("--join", f"@{tmp_path / 'invite'}").ready()
    meet(ant, bee)

    assert ready["grid"] == founded["grid"]
    assert ready["addresses"][0].startswith("/ip4/127.0.0.1/tcp/")
    assert ready["addresses"][0].endswith(f"/p2p/{ready['id']}")
    assert [event["event"] for event in bee.events()][:2] == ["ready", "joined"]
    assert "as this user" in bee.err.read_text()


def test_no_worker_sees_the_invite(pair: tuple[Node, Node]) -> None:
    """It came in the environment, which children inherit."""
    _, bee = pair
    (worker,) = bee.ask("workers")["workers"]
    environment = Path(f"/proc/{worker['pid']}/environ")
    variables = until(environment.read_bytes)  # there is none in the middle of an exec

    assert b"XDG_DATA_HOME" in variables
    assert b"JOIN" not in variables


def test_a_running_node_moves_with_its_job(node: Callable[[str], Node]) -> None:
    """A grid of one joins without a restart; what it was asked before ends as if nothing had happened."""
    ant, bee = node("ant").start(), node("bee").start()
    ant.ready()
    bee.ready()
    before = bee.grid()
    with Grid(bee.dir, embedded=False) as grid:
        results = grid.map(slow_square, range(60), chunksize=1)
        first = next(iter(results))
        told = bee.ask("join", invite=ant.invite(), leave=False)
        values = [first[0], *(value for value, _ in results)]

    assert values == [x * x for x in range(60)]
    assert told["joined"] is True
    assert told["reached"] == 1
    assert before != bee.grid() == ant.grid()
    meet(ant, bee)


def test_joining_twice_is_joining_once(pair: tuple[Node, Node]) -> None:
    """Also by another invite of the same grid."""
    ant, bee = pair
    told = bee.ask("join", invite=ant.invite(), leave=False)

    assert told["joined"] is False
    meet(ant, bee)


def test_a_grid_with_others_is_left_only_on_purpose(pair: tuple[Node, Node], node: Callable[[str], Node]) -> None:
    """Without `leave` it is refused and nothing has changed; with it, the others see it gone."""
    ant, bee = pair
    cat = node("cat").start()
    cat.ready()
    invite = cat.invite()
    with pytest.raises(ToldError, match="which has other members") as refused:
        bee.ask("join", invite=invite, leave=False)
    meet(ant, bee)
    bee.ask("join", invite=invite, leave=True)

    assert refused.value.code == "in-a-grid"
    meet(bee, cat)
    until(lambda: ant.alive() == {"ant"})


# ---- bad invites ----------------------------------------------------------------------------------------------------


def _bad_invites(ant: Node, other: Node) -> dict[str, str]:
    good = ant.invite()
    expired = ant.ask("invite", expires=1)
    revoked = ant.invite()
    ant.ask("revoke", target=revoked, with_admitted=False)
    ours, theirs = read_invite(good), read_invite(other.invite())
    foreign = write_invite(Membership(theirs.grid, ours.addresses, theirs.key, theirs.chain))
    until(lambda: time.time() > expired["join_until"] + 1)
    middle = len(good) // 2
    return {
        "this is not an invite": "hello",
        "the invite is cut short": good[:-5],
        "the invite is damaged": good[:middle] + ("A" if good[middle] != "A" else "B") + good[middle + 1 :],
        "the invite has expired": expired["invite"],
        "the invite was revoked": revoked,
        "the invite is of another grid": foreign,
    }


def test_a_bad_invite_is_told_and_changes_nothing(node: Callable[[str], Node]) -> None:
    """One line that says which it is, and no grid has changed."""
    ant, bee, cat = node("ant").start(), node("bee").start(), node("cat").start()
    for each in (ant, bee, cat):
        each.ready()
    before = bee.grid()
    for sentence, invite in _bad_invites(ant, cat).items():
        with pytest.raises(ToldError, match=sentence) as told:
            bee.ask("join", invite=invite, leave=False)

        assert (told.value.code, bee.grid()) == ("bad-invite", before)


def test_a_start_with_a_bad_invite_ends(node: Callable[[str], Node]) -> None:
    """Exit code 2, one line, whether the text is wrong or a member says no."""
    ant, bee = node("ant").start(), node("bee")
    ant.ready()
    good = ant.invite()
    ant.ask("revoke", target=good, with_admitted=False)
    for invite, sentence in {good[:-5]: "the invite is cut short", good: "the invite was revoked"}.items():
        code, err = bee.start(P2PGRID_JOIN=invite).ended()
        lines = [json.loads(line)["error"]["message"] for line in err.splitlines() if line.startswith("{")]

        assert (code, [line.partition(", or this node was")[0] for line in lines]) == (2, [sentence])
        assert not [event for event in bee.events() if event["event"] == "ready"]


def test_a_grid_that_does_not_answer_is_joined_all_the_same(node: Callable[[str], Node]) -> None:
    """The membership is good; the node keeps looking, also after a restart, and meets the grid when it is there."""
    ant, bee = node("ant").start(), node("bee").start()
    ant.ready()
    bee.ready()
    invite = ant.invite()
    ant.stop()
    told = bee.ask("join", invite=invite, leave=False)
    bee.stop()
    bee.start().ready()
    ant.start().ready()

    assert (told["joined"], told["reached"]) == (True, 0)
    meet(ant, bee)


# ---- coming back ----------------------------------------------------------------------------------------------------


def test_a_member_that_was_killed_comes_back(pair: tuple[Node, Node]) -> None:
    """As itself, without an invite."""
    ant, bee = pair
    before = bee.ready()
    bee.kill()
    until(lambda: ant.connected() == 0)
    after = bee.start().ready()

    assert (after["id"], after["addresses"]) == (before["id"], before["addresses"])
    meet(ant, bee)


def test_the_founder_comes_back(pair: tuple[Node, Node]) -> None:
    """On the port it had, which is where the others look for it; while it is away they know."""
    ant, bee = pair
    before = ant.ready()
    ant.kill()
    until(lambda: bee.alive() == {"bee"})
    after = ant.start().ready()

    assert after["addresses"] == before["addresses"]
    meet(ant, bee)


def test_a_port_that_is_taken(node: Callable[[str], Node]) -> None:
    """One line that names it, exit code 2."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code, err = node("ant").start("--listen", f"127.0.0.1:{port}").ended()

    assert (code, len(err.splitlines())) == (2, 1)
    assert f"127.0.0.1:{port}" in err


# ---- roles, and going -----------------------------------------------------------------------------------------------


def test_roles_change_at_once(node: Callable[[str], Node]) -> None:
    """A worker is promoted and invites a third; then it is shut out, and whom it let in stays."""
    ant, bee, cat = node("ant").start(), node("bee"), node("cat")
    ant.ready()
    bee.start(P2PGRID_JOIN=ant.invite(roles="work")).ready()
    meet(ant, bee)
    until(lambda: ant.row("bee")["roles"] == ["work"])  # type: ignore[index]
    with pytest.raises(ToldError) as refused:
        bee.invite()
    told = ant.ask("promote", target="bee", roles="admin")
    invite = until(lambda: _try(bee.invite))
    cat.start(P2PGRID_JOIN=invite).ready()
    meet(ant, bee, cat)
    until(lambda: cat.ask("grid")["provisional"] is False)
    shut = ant.ask("revoke", target="bee", with_admitted=False)

    assert refused.value.code == "not-authorized"
    assert told["roles"] == ["work", "admin"]
    assert (shut["revoked"]["name"], [one["name"] for one in shut["kept"]], shut["cut"]) == ("bee", ["cat"], [])
    until(lambda: bee.connected() == 0)
    until(lambda: any("revoked" in text for text in bee.ask("status")["warnings"]))
    assert bee.ask("status")["grid"]["revoked"] is True
    assert ant.ask("status")["grid"]["revoked"] is False
    until(lambda: ant.alive() == cat.alive() == {"ant", "cat"})
    bee.stop()
    bee.start().ready()
    until(lambda: ant.connected() == 1)


def test_who_was_cut_off_with_another_comes_back_by_an_invite(node: Callable[[str], Node]) -> None:
    """Its own key was not revoked, so it looks for members again at once, without a restart."""
    ant, bee, cat = node("ant").start(), node("bee"), node("cat")
    ant.ready()
    bee.start(P2PGRID_JOIN=ant.invite()).ready()
    invite = until(lambda: _try(bee.invite))
    cat.start(P2PGRID_JOIN=invite).ready()
    meet(ant, bee, cat)
    cut = ant.ask("revoke", target="bee", with_admitted=True)["cut"]
    until(lambda: cat.connected() == 0 and any("revoked" in text for text in cat.ask("status")["warnings"]))
    invite = ant.invite()
    ant.stop()  # it would dial cat sooner or later
    told = cat.ask("join", invite=invite, leave=False)
    ant.start().ready()

    assert [one["name"] for one in cut] == ["cat"]
    assert told["joined"] is True
    until(lambda: ant.row("cat") is not None and ant.row("cat")["connected"])  # type: ignore[index]
    cat.kill()
    ant.stop()
    cat.start().ready()
    ant.start().ready()
    meet(ant, cat)


def _try(look: Callable[[], Any]) -> Any:
    with contextlib.suppress(ToldError):
        return look()
    return None


def test_a_node_leaves(pair: tuple[Node, Node]) -> None:
    """It is alone in a grid of its own, at once and after a restart; those it left see it go."""
    ant, bee = pair
    former = bee.grid()
    told = bee.ask("leave")
    until(lambda: (ant.row("bee") or {}).get("status") == "left")
    alone = bee.alive()
    bee.stop()
    again = bee.start().ready()

    assert (told["left"], told["grid"]) == (former, again["grid"])
    assert alone == {"bee"}
    assert again["grid"] != former
    assert bee.connected() == 0


def test_the_key_of_a_grid_in_a_file(pair: tuple[Node, Node], node: Callable[[str], Node]) -> None:
    """Exported at one node, it makes another machine an admin, although the first two are strangers to it."""
    ant, bee = pair
    cat = node("cat").start()
    cat.ready()
    text = ant.ask("export", passphrase="open sesame")["text"]
    with pytest.raises(ToldError, match="the passphrase is wrong"):
        cat.ask("recover", text=text, passphrase="open barley")
    told = cat.ask("recover", text=text, passphrase="open sesame")

    assert "admin" in told["roles"]
    meet(ant, bee, cat)


def test_status_tells_of_the_network(pair: tuple[Node, Node]) -> None:
    """Where it listens, who is connected, what went over the wire."""
    ant, _ = pair
    until(lambda: ant.connected() == 1)
    status = ant.ask("status")
    network = status["network"]

    assert network["addresses"] == ant.ready()["addresses"]
    assert network["messages_sent"] > 0
    assert network["messages_received"] > 0
    assert len(bytes.fromhex(status["grid"]["id"])) == 32


# ---- time -----------------------------------------------------------------------------------------------------------

NOTICES = STAND_IN.replace(
    "            case e.Stop():",
    "            case e.Stalled(seconds):\n"
    "                return [e.Log('info', f'stood still for {seconds:.3f}')]\n"
    "            case e.Stop():",
)


def test_a_node_that_was_stopped_knows(tmp_path: Path) -> None:
    """SIGSTOP and SIGCONT: the machine is told before it gets anything that queued meanwhile."""
    daemon = Daemon(tmp_path / "ant", NOTICES)
    daemon.ready()
    began = time.monotonic()
    daemon.process.send_signal(signal.SIGSTOP)
    until(lambda: time.monotonic() > began + 4)
    daemon.process.send_signal(signal.SIGCONT)
    _, _, err = daemon.signalled(signal.SIGTERM)
    seconds = [float(line.split()[-1]) for line in err.splitlines() if "stood still for" in line]

    assert seconds[0] >= 4
