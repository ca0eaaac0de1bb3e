"""Real daemons in real processes: starting, stopping, dying, and two that want one directory.

They run a stand-in for the machine where a test wants one (`node_of`), so that each test is about the shell alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from p2pgrid.core import messages as m
from p2pgrid.core.locate import node_file, socket_of
from p2pgrid.core.wire import Frame, Splitter, frame
from tests.waiting import SOON_S

pytestmark = pytest.mark.slow

T = TypeVar("T")
REAL = "from p2pgrid.node.machine import Machine as Mind"
STAND_IN = """
from p2pgrid.core import messages as m
from p2pgrid.node import events as e

class Mind:
    def __init__(self, config, rng):
        self.config = config

    def steps(self, event, now):
        yield self.handle(event, now)

    def member_rows(self, now):
        return []

    def has_tasks_of_ours(self, peer):
        return False

    def handle(self, event, now):
        match event:
            case e.ClientJoined(client):
                return [e.Reply(client, m.WELCOME, 0, {"embedded": self.config.embedded})]
            case e.ClientSent(client, m.REQUEST, id_, ["stop", arguments]):
                return [e.Reply(client, m.ANSWER, id_, arguments), e.Stopped(())]
            case e.ClientSent(client, m.REQUEST, id_, ["crash", _]):
                raise AssertionError("a broken invariant")
            case e.ClientSent(client, m.REQUEST, id_, ["timer", {"in": delay}]):
                return [e.SetTimer(("answer", client, id_), now + delay)]
            case e.TimerFired(("answer", client, id_)):
                return [e.Reply(client, m.ANSWER, id_, "fired")]
            case e.ClientSent(client, m.REQUEST, id_, [verb, _]):
                return [e.Reply(client, m.ANSWER, id_, {"verb": verb, "workers": [{"worker": 0}]})]
            case e.Stop():
                return self.stop(event)
        return []

    def stop(self, event):
        return [e.Stopped(["calm-river-42 (120 of 300 done)"])]
"""
HANGS = STAND_IN.replace(
    'return [e.Stopped(["calm', 'return [e.Log("info", "it was asked to stop")] or [e.Stopped(["calm'
)


class Daemon:
    """One daemon process and what it says."""

    def __init__(self, folder: Path, mind: str, **flags: Any) -> None:
        flags = {"dir": str(folder), "slots": 1, **flags}
        program = f"{mind}\nimport sys\nfrom p2pgrid.node.config import from_flags\n"
        program += f"from p2pgrid.node.daemon import serve\nsys.exit(serve(from_flags({flags!r}), Mind))\n"
        self.folder = folder
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> str:
        """Wait for the first line."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], SOON_S)
        line = self.process.stdout.readline() if readable else ""
        assert line, self.ended()
        return line

    def ended(self) -> tuple[int, str, str]:
        """Wait for the end: (exit code, rest of stdout, stderr)."""
        out, err = self.process.communicate(timeout=SOON_S)
        return self.process.returncode, out, err

    def signalled(self, number: int) -> tuple[int, str, str]:
        self.process.send_signal(number)
        return self.ended()


class Client:
    """A program that talks to a daemon."""

    def __init__(self, folder: Path) -> None:
        path = until(lambda: socket_of(folder))
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(SOON_S)
        self.sock.connect(str(path))
        self.sock.sendall(frame(m.HELLO, {"v": 1, "session": b"", "pid": os.getpid(), "program": "test"}))
        self._splitter = Splitter()
        self._frames: list[Frame] = []
        assert self.heard().kind == m.WELCOME

    def heard(self) -> Frame:
        while not self._frames:
            data = self.sock.recv(1 << 16)
            assert data, "the daemon closed the connection"
            self._frames += self._splitter.feed(data)
        return self._frames.pop(0)

    def ask(self, verb: str, arguments: dict[str, Any] | None = None) -> Any:
        self.sock.sendall(frame(m.REQUEST, [verb, arguments or {}], 1))
        return self.heard().body


def until(look: Callable[[], T | None]) -> T:
    """Look until there is something to see."""
    deadline = time.monotonic() + SOON_S
    while (seen := look()) is None:
        assert time.monotonic() < deadline, "it did not happen"
        select.select([], [], [], 0.005)
    return seen


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Starts daemons, in `tmp_path/node` unless told otherwise, and leaves none behind."""
    daemons: list[Daemon] = []

    def begin(mind: str = STAND_IN, folder: Path = tmp_path / "node", **flags: Any) -> Daemon:
        daemons.append(Daemon(folder, mind, **flags))
        return daemons[-1]

    yield begin
    for daemon in daemons:
        daemon.process.kill()
        with contextlib.suppress(ValueError):
            daemon.process.communicate()


@pytest.mark.parametrize("mind", [STAND_IN, REAL], ids=["stand-in", "real"])
def test_a_node_starts_and_stops(start: Callable[..., Daemon], mind: str) -> None:
    """`ready ID NAME ADDRESS` alone on stdout, the rest on stderr, exit code 0, nothing left of socket and file."""
    daemon = start(mind, name="otter")
    ready = daemon.ready()
    path = socket_of(daemon.folder)
    said = node_file(daemon.folder)
    code, out, err = daemon.signalled(signal.SIGTERM)

    assert re.fullmatch(rf"ready {said['id']} otter /ip4/127\.0\.0\.1/tcp/\d+/p2p/{said['id']}\n", ready)
    assert (said["pid"], said["name"]) == (daemon.process.pid, "otter")
    assert (code, out) == (0, "")
    assert err.startswith("p2pgrid ")
    assert err.splitlines()[-1].startswith("stopped; ")
    assert path is not None
    assert not path.exists()
    assert socket_of(daemon.folder) is None


def test_the_last_line_names_the_jobs_that_wait(start: Callable[..., Daemon]) -> None:
    """On stderr, with the command that continues them."""
    daemon = start()
    daemon.ready()
    _, _, err = daemon.signalled(signal.SIGINT)
    expected = "stopped; 1 job waits in the journal: calm-river-42 (120 of 300 done); p2pgrid node"

    assert err.splitlines()[-1].startswith(expected)


def test_json_lines(start: Callable[..., Daemon]) -> None:
    """One object per line: ready, stopping, stopped."""
    daemon = start(json=True)
    ready = json.loads(daemon.ready())
    _, out, _ = daemon.signalled(signal.SIGTERM)
    events = [json.loads(line) for line in out.splitlines()]

    assert {"v", "event", "id", "name", "grid", "addresses"} == ready.keys()
    assert [event["event"] for event in events] == ["stopping", "stopped"]


def test_a_machine_that_never_stops_is_ended(start: Callable[..., Daemon]) -> None:
    """Within grace + 5 s by design (printed), exit code 0."""
    daemon = start(HANGS, grace=0.1)
    daemon.ready()
    began = time.monotonic()
    code, _, err = daemon.signalled(signal.SIGTERM)

    assert code == 0
    assert "ended before all was handed over" in err
    print(f"ended after {time.monotonic() - began:.1f} s")


def test_a_second_signal_ends_at_once(start: Callable[..., Daemon]) -> None:
    """Exit code 130, long before the grace is over."""
    daemon = start(HANGS, grace=3600)
    daemon.ready()
    daemon.process.send_signal(signal.SIGINT)
    assert daemon.process.stderr is not None
    while "it was asked to stop" not in daemon.process.stderr.readline():  # else the two signals may arrive as one
        assert daemon.process.poll() is None
    code, _, _ = daemon.signalled(signal.SIGINT)

    assert code == 130


def test_the_verb_stop_gets_the_grace_of_the_node(start: Callable[..., Daemon]) -> None:
    """`p2pgrid stop` needs no flag for it."""
    daemon = start(grace=1.5)
    answer = Client(daemon.folder).ask("stop")
    code, _, _ = daemon.ended()

    assert (answer, code) == ({"grace": 1.5}, 0)


def test_after_kill_the_node_starts_again_as_itself(start: Callable[..., Daemon]) -> None:
    """Same id, higher incarnation, stale socket and lock no obstacle; the workers of the dead one are gone."""
    first = start(REAL)
    ready = first.ready()
    client = Client(first.folder)
    pids = [worker["pid"] for worker in client.ask("workers")["workers"]]
    first.process.kill()
    first.ended()
    second = start(REAL)

    assert second.ready() == ready
    until(lambda: None if any(Path(f"/proc/{pid}").exists() for pid in pids) else True)
    second.signalled(signal.SIGTERM)
    with contextlib.closing(sqlite3.connect(first.folder / "journal.db")) as db:
        incarnation = int(db.execute("SELECT value FROM meta WHERE name = 'incarnation'").fetchone()[0])
    assert incarnation >= int(time.time()) - 100


def test_two_nodes_on_one_directory(start: Callable[..., Daemon]) -> None:
    """The second says who is there and ends with code 2; the first does not notice."""
    first = start(name="otter")
    first.ready()
    code, out, err = start().ended()

    assert (code, out) == (2, "")
    assert err.startswith(f"p2pgrid: {first.folder} is in use by node otter (pid {first.process.pid}); next: ")
    assert Client(first.folder).ask("status")["verb"] == "status"


def test_a_node_takes_an_embedded_one_over(start: Callable[..., Daemon]) -> None:
    """The embedded one is asked to stop, ends with code 0, and the new one goes on as the same node."""
    embedded = start(REAL, embedded=True)
    Client(embedded.folder)
    taker = start(REAL)
    ready = taker.ready()
    code, _, _ = embedded.ended()

    assert code == 0
    assert ready.split()[1] == node_file(embedded.folder)["id"]
    assert node_file(embedded.folder)["pid"] == taker.process.pid


def test_an_embedded_node_logs_to_a_file(start: Callable[..., Daemon]) -> None:
    """Its starter's terminal is left alone."""
    daemon = start(embedded=True)
    daemon.ready()
    code, _, err = daemon.signalled(signal.SIGTERM)

    assert (code, err) == (0, "")
    assert "stopped; 1 job waits" in (daemon.folder / "node.log").read_text()


def test_an_embedded_node_ends_after_its_last_client(start: Callable[..., Daemon]) -> None:
    """Two seconds later, by itself."""
    daemon = start(REAL, embedded=True)
    Client(daemon.folder).sock.close()
    code, _, _ = daemon.ended()

    assert code == 0


def test_status_says_what_the_process_costs(start: Callable[..., Daemon]) -> None:
    """What only the shell knows is added to the machine's answer."""
    daemon = start()
    daemon.ready()
    process = Client(daemon.folder).ask("status")["process"]

    assert process["pid"] == daemon.process.pid
    assert 1_000_000 < process["pss"] <= process["rss"]
    assert process["fds"] > 3
    assert process["tasks"] > 3


def test_workers_are_named_with_their_pids(start: Callable[..., Daemon]) -> None:
    """The demo kills one of them."""
    daemon = start()
    daemon.ready()
    (worker,) = Client(daemon.folder).ask("workers")["workers"]

    assert Path(f"/proc/{worker['pid']}").exists()


def test_timers_fire(start: Callable[..., Daemon]) -> None:
    """The later one set first does not hold the earlier one up."""
    daemon = start()
    slow, quick = Client(daemon.folder), Client(daemon.folder)
    slow.sock.sendall(frame(m.REQUEST, ["timer", {"in": 3600.0}], 1))

    assert quick.ask("timer", {"in": 0.01}) == "fired"


def test_garbage_on_the_socket_harms_nobody(start: Callable[..., Daemon]) -> None:
    """The line is in the log, the next client is served."""
    daemon = start()
    daemon.ready()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(SOON_S)
        sock.connect(str(socket_of(daemon.folder)))
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")

        assert sock.recv(100) == b""
    refused = Client(daemon.folder).ask("status")["process"]["refused"]
    _, _, err = daemon.signalled(signal.SIGTERM)

    assert refused == 1
    assert "dropped a program on the local socket" in err


MALFORMED: list[object] = [None, 0, [], {}, "x", [b"short"], [b"j" * 16, None, None, None], [None] * 9, [[[]]] * 3]


def test_malformed_bodies_cost_their_sender_the_connection(start: Callable[..., Daemon]) -> None:
    """Every type of frame with every kind of nonsense as its body: the node lives."""
    daemon = start(REAL)
    daemon.ready()
    for kind in (*range(1, 14), 32, 64, 99):
        for body in MALFORMED:
            client = Client(daemon.folder)
            client.sock.sendall(frame(kind, body, 1))
            client.sock.close()

    assert "process" in Client(daemon.folder).ask("status")
    assert daemon.signalled(signal.SIGTERM)[0] == 0


def test_a_bug_ends_the_node_with_a_report(start: Callable[..., Daemon]) -> None:
    """Exit code 70, one line with the path; the report has the traceback and kinds of events, no values."""
    daemon = start()
    client = Client(daemon.folder)
    client.sock.sendall(frame(m.REQUEST, ["crash", {"secret": "hunter2"}], 1))
    code, _, err = daemon.ended()
    (report,) = daemon.folder.glob("crash-*.txt")
    text = report.read_text()

    assert code == 70
    assert f"report: {report};" in err.splitlines()[-1]
    assert "a broken invariant" in text
    assert text.rstrip().endswith("ClientSent")
    assert "hunter2" not in text


def test_a_newer_journal(start: Callable[..., Daemon]) -> None:
    """One line, a next step, exit code 2, untouched."""
    first = start()
    first.ready()
    first.signalled(signal.SIGTERM)
    path = first.folder / "journal.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    code, _, err = start().ended()

    assert (code, path.read_bytes()) == (2, before)
    assert err.startswith(f"p2pgrid: the journal {path} was written by a newer p2pgrid (schema 99")
    assert len(err.splitlines()) == 1


def test_a_corrupt_journal(start: Callable[..., Daemon]) -> None:
    """Set aside and told; the node runs."""
    first = start()
    first.ready()
    first.signalled(signal.SIGTERM)
    (first.folder / "journal.db").write_bytes(b"garbage" * 1000)
    second = start()
    second.ready()
    code, _, err = second.signalled(signal.SIGTERM)

    assert code == 0
    assert err.startswith("p2pgrid: the journal was damaged: 0 rows saved")
    assert (first.folder / "journal.corrupt-1").exists()


def test_a_directory_that_cannot_be_made(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """One line, a next step, exit code 2."""
    (tmp_path / "file").touch()
    code, out, err = start(folder=tmp_path / "file" / "node").ended()

    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "; next: " in err


def test_a_disk_that_is_full_at_the_start(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """One line, a next step, exit code 2."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(mount, check=False).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        with (folder / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        code, _, err = start(folder=folder).ended()
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)

    assert (code, len(err.splitlines())) == (2, 1)
    assert "; next: " in err


def test_an_ephemeral_node_leaves_nothing(start: Callable[..., Daemon]) -> None:
    """Its directory is gone with it."""
    daemon = start(ephemeral=True)
    daemon.ready()
    there = daemon.folder.exists()
    code, _, _ = daemon.signalled(signal.SIGTERM)

    assert (there, code, daemon.folder.exists()) == (True, 0, False)


def test_the_daemon_is_light(start: Callable[..., Daemon]) -> None:
    """Neither libp2p nor numpy nor rich nor click is imported by a node of one."""
    heavy = "print([name for name in ('libp2p', 'numpy', 'rich', 'click', 'cloudpickle') if name in sys.modules])"
    program = f"import sys, p2pgrid.node.daemon; {heavy}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


def test_the_socket_answers_soon(start: Callable[..., Daemon]) -> None:
    """The budget is 0.5 s from the start of the process (printed)."""
    daemon = start(REAL)
    Client(daemon.folder)

    print(f"answers after {time.monotonic() - daemon.started:.2f} s")
