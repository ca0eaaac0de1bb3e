"""Grids of real node processes, as a person starts them: `python -m p2pgrid node`, one invite for all.

    with Nodes(tmp_path) as nodes:
        a, b, c = nodes.grid("abc")                    # the first founds, the others join by its invite
        nodes.wait_all_see(each="alive")
        b.kill(); c.freeze()

Nothing here sleeps and hopes: `wait` looks until it is so, and fails with the last lines of every node's log. Whatever
happens, every process that was started is gone in the end, also when this program is killed (`_GUARD`).
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from p2pgrid.cli.link import Link, open_link
from p2pgrid.client.grid import Grid
from p2pgrid.core.errors import GridError
from tests.waiting import SOON_S

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
POLL_S = 0.02
READY_S = 60.0
STARTING = 5
"""Processes that start at once: each needs a second of CPU before it can say anything."""
STOP_S = 60.0
LOG_TAIL_LINES = 40
_GUARD = 'read -r _; kill -CONT "$1"; kill -KILL "$1"'
"""Reads a pipe that only this program writes to: its end means that this program is gone."""

_DISK = 'mount -t tmpfs -o "size=${1}m,mode=700" none "$0" && shift && exec "$@"'
"""A disk that nobody else sees, with the directory of the node on it. Wants root."""

CLOCK_FILE = "P2PGRID_TEST_CLOCK"
_CLOCK_PROGRAM = f"""
    # Makes `time.time()` of a process say what the file named in ${CLOCK_FILE} says: seconds to add. Looked at often.
    import os, time

    def _shifted(path, real=time.time, monotonic=time.monotonic):
        known = [0.0, 0.0]
        def now():
            at = monotonic()
            if at >= known[1]:
                with open(path) as file:
                    known[:] = float(file.read() or 0), at + 0.05
            return real() + known[0]
        return now

    if path := os.environ.get("{CLOCK_FILE}"):
        time.time = _shifted(path)
"""


class DidNotHappen(AssertionError):
    """What was waited for did not come in time."""


def wait(ready: Callable[[], T], within_s: float, what: str) -> T:
    """Look until it is true and return what it is; errors of nodes that are starting or ending count as "not yet".

    Raises:
        DidNotHappen: it is not so after `within_s` seconds.
    """
    deadline = time.monotonic() + within_s
    last: object = None
    while True:
        try:
            found = ready()
        except (GridError, OSError) as error:
            last = error
        else:
            if found:
                return found
            last = found
        if time.monotonic() > deadline:
            raise DidNotHappen(f"not within {within_s:g} s: {what} (last: {last!r})")
        time.sleep(POLL_S)


class Node:
    """One node process with a directory of its own.

    Attributes:
        events: what it has said on stdout up to `ready`.
        said: its `ready` event.
        clock: a file that holds how many seconds its clock is ahead; None: it has that of the machine.
        netns: the network namespace it runs in.
        disk_mb: the size of a disk of its own for its directory, which ends with it; None: it has the machine's.
    """

    def __init__(
        self, name: str, folder: Path, flags: Sequence[str], netns: str | None, disk_mb: int | None, *, clock: bool
    ) -> None:  # fmt: skip
        self.name = name
        self.disk_mb = disk_mb
        self.log_file = folder / f"{name}.log"
        self.flags = list(flags)
        self.netns = netns
        self.events: list[dict[str, Any]] = []
        self.said: dict[str, Any] = {}
        self.clock = folder / f"{name}.clock" if clock else None
        self._child: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._link: Link | None = None
        self._folder = folder
        self._dir = folder / name
        self._frozen = False

    # ---- its process ------------------------------------------------------------------------------------------------

    @property
    def dir(self) -> Path:
        """Its directory, as seen from here."""
        return Path(f"/proc/{self.pid}/root{self._dir}") if self.disk_mb and self.runs else self._dir

    @property
    def pid(self) -> int:
        assert self._child is not None, f"{self.name} was not started"
        return self._child.pid

    @property
    def runs(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def answers(self) -> bool:
        """Whether it can be asked: neither ended nor frozen."""
        return self.runs and not self._frozen

    def spawn(self, invite: str | None = None) -> None:
        """Start the process; do not wait for it."""
        assert not self.runs
        words = [sys.executable, "-m", "p2pgrid", "node", "--json", "--dir", str(self.dir), "--name", self.name]
        words += self.flags if "--python" in self.flags else ["--python", sys.executable, *self.flags]
        if invite is not None:
            file = self._folder / f"{self.name}.invite"
            file.write_text(invite)
            words += ["--join", f"@{file}"]
        if self.netns is not None:
            words = ["ip", "netns", "exec", self.netns, *words]
        if self.disk_mb is not None:
            self._dir.mkdir(exist_ok=True)
            words = ["unshare", "--mount", "sh", "-c", _DISK, str(self._dir), str(self.disk_mb), *words]
        with self.log_file.open("ab") as log:
            self._child = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, cwd=self._folder,
                env=self.environment(), start_new_session=True, bufsize=0,
            )  # fmt: skip
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "sh", str(self._child.pid)], stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def environment(self) -> dict[str, str]:
        """Return the environment of its process, and of commands and programs on its machine."""
        ours = {key: value for key, value in os.environ.items() if not key.startswith("P2PGRID_")}
        path = [str(ROOT)]
        if self.clock is not None:
            folder = self._folder / "clock"
            folder.mkdir(exist_ok=True)
            (folder / "sitecustomize.py").write_text(textwrap.dedent(_CLOCK_PROGRAM))
            if not self.clock.exists():
                self.set_clock(0)
            ours[CLOCK_FILE] = str(self.clock)
            path.insert(0, str(folder))
        return {**ours, "PYTHONPATH": os.pathsep.join(path), "XDG_DATA_HOME": str(self._folder / "data")}

    def wait_ready(self, within_s: float = READY_S) -> Self:
        """Return once it has said `ready`."""
        assert self._child is not None
        output = self._child.stdout
        assert output is not None
        deadline, said = time.monotonic() + within_s, b""
        while b'"ready"' not in said or not said.endswith(b"\n"):
            readable, _, _ = select.select([output], [], [], max(deadline - time.monotonic(), 0))
            data = output.read(65536) if readable else b""
            if not data:
                raise DidNotHappen(f"{self.name} is not ready after {within_s:g} s; exit code {self._child.poll()}")
            said += data
        self.events = [json.loads(line) for line in said.splitlines()]
        (self.said,) = (event for event in self.events if event["event"] == "ready")
        return self

    def start(self, invite: str | None = None) -> Self:
        self.spawn(invite)
        return self.wait_ready()

    def kill(self) -> None:
        """SIGKILL: its connections are reset or end, its reaper ends what its workers run."""
        assert self._child is not None
        self._child.kill()
        self._reap()

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        assert self._child is not None
        self._child.terminate()
        code = self._child.wait(STOP_S)
        self._reap()
        return code

    def freeze(self) -> None:
        """SIGSTOP: the daemon alone; its workers go on computing, as in a machine whose network died."""
        os.kill(self.pid, signal.SIGSTOP)
        self._frozen = True

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self._frozen = False

    def end(self) -> None:
        """Whatever state it is in: gone."""
        if self._child is not None:
            with suppress(ProcessLookupError):
                self.thaw()
            self._child.kill()
            self._reap()

    def _reap(self) -> None:
        assert self._child is not None
        self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()
        self._hang_up()
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.kill()
            guard.communicate()

    def set_clock(self, ahead_s: float) -> None:
        """Move its clock, also while it runs."""
        assert self.clock is not None
        fresh = self.clock.with_suffix(".new")
        fresh.write_text(str(ahead_s))
        fresh.replace(self.clock)

    # ---- what it says -----------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        return str(self.said["id"])

    @property
    def addresses(self) -> list[str]:
        return list(self.said["addresses"])

    @property
    def port(self) -> int:
        """The TCP port it listens on."""
        words = self.addresses[0].split("/")
        return int(words[words.index("tcp") + 1])

    def ask(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """Ask over its local socket; the link is kept, for a new one costs the node more than the answer."""
        if self._link is None:
            self._link = open_link(self.dir, "tests")
        try:
            return self._link.ask(verb, **arguments)
        except GridError as error:
            if error.code in {"node-gone", "timed-out", "version-mismatch"}:
                self._hang_up()
            raise

    def _hang_up(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def status(self) -> dict[str, Any]:
        return self.ask("status")

    def process(self) -> dict[str, Any]:
        found: dict[str, Any] = self.status()["process"]
        return found

    def network(self) -> dict[str, Any]:
        found: dict[str, Any] = self.status().get("network", {})
        return found

    def warnings(self) -> str:
        return "\n".join(map(str, self.status().get("warnings", ())))

    def members(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("members")["members"]
        return found

    def view(self) -> dict[str, str]:
        """Return the status of every member by its name."""
        return {each["name"]: each["status"] for each in self.members()}

    def invite(self, **arguments: Any) -> str:
        asked = {"roles": "submit,work,admin", "expires": 7 * 86400.0, "member_until": 0, **arguments}
        return str(self.ask("invite", **asked)["invite"])

    def command(self, *words: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        """Run `p2pgrid WORDS` on its directory."""
        return subprocess.run(
            [sys.executable, "-m", "p2pgrid", "--dir", str(self.dir), *words], cwd=self._folder,
            env=self.environment(), capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def grid(self, **options: Any) -> Grid:
        """Return a program's view of it."""
        return Grid(self.dir, embedded=False, **options)

    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Nodes:
    """Node processes under one folder; a context manager that ends them all."""

    def __init__(self, folder: Path, preset: str = "local", slots: int = 1) -> None:
        self.folder = folder
        self.preset = preset
        self.slots = slots
        self.all: list[Node] = []

    def node(
        self,
        name: str,
        *flags: str,
        slots: int | None = None,
        netns: str | None = None,
        listen: str = "127.0.0.1:0",
        disk_mb: int | None = None,
        clock: bool = False,
        mdns: bool = False,
    ) -> Node:
        """Describe one more node; `start` starts it."""
        words = ["--slots", str(slots or self.slots), "--preset", self.preset, "--listen", listen, *flags]
        words += [] if mdns else ["--no-mdns"]
        made = Node(name, self.folder, words, netns, disk_mb, clock=clock)
        self.all.append(made)
        return made

    def grid(self, names: Iterable[str]) -> list[Node]:
        """Start nodes; the first founds a grid, the others join at once by one invite."""
        return self.begin([self.node(name) for name in names])

    def begin(self, made: list[Node]) -> list[Node]:
        """Start these; the first founds a grid, the others join at once by one invite."""
        first, *others = made
        first.start()
        invite = first.invite() if others else None
        for at in range(0, len(others), STARTING):
            for other in others[at : at + STARTING]:
                other.spawn(invite)
            for other in others[at : at + STARTING]:
                other.wait_ready()
        return made

    def views(self, among: Iterable[Node] | None = None) -> Mapping[str, Mapping[str, str]]:
        """Return what each running node thinks of each."""
        return {node.name: node.view() for node in (among or self.all) if node.answers}

    def wait_all_see(
        self, expected: Mapping[str, str], within_s: float = SOON_S, among: Iterable[Node] | None = None
    ) -> float:
        """Wait until every running node sees these members so; return how long that took.

        `expected` gives the status by name; "absent" is also met by "dead" and "left" ("dead": by "absent").
        """
        started = time.monotonic()

        def meets(view: Mapping[str, str], name: str, status: str) -> bool:
            seen = view.get(name, "absent")
            return seen == status or (status in {"absent", "dead"} and seen in {"absent", "dead", "left"})

        def all_see() -> bool:
            views = self.views(among)
            return all(meets(view, *each) for view in views.values() for each in expected.items())

        try:
            wait(all_see, within_s, f"every node sees {dict(expected)}")
        except DidNotHappen as error:
            raise DidNotHappen(f"{error}; views: {_views_or_error(self, among)}") from None
        return time.monotonic() - started

    def wait_all_alive(self, within_s: float = SOON_S) -> float:
        """Wait until every running node sees every running node alive."""
        return self.wait_all_see({node.name: "alive" for node in self.all if node.runs}, within_s)

    def logs(self) -> str:
        """Return the last lines of every node, and its reports of bugs of ours."""
        tails = [f"--- {node.name}\n" + "\n".join(node.log().splitlines()[-LOG_TAIL_LINES:]) for node in self.all]
        reports = [path for node in self.all for path in sorted(node.dir.glob("crash-*.txt"))]
        tails += [f"--- {path.parent.name} {path.name}\n{path.read_text(errors='replace')}" for path in reports]
        return "\n".join(tails)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is not None:
            print(f"views: {_views_or_error(self, None)}\n{self.logs()}")
        for node in self.all:
            node.end()


def _views_or_error(nodes: Nodes, among: Iterable[Node] | None) -> object:
    found: dict[str, object] = {}
    for node in among or nodes.all:
        if node.answers:
            try:
                found[node.name] = node.view()
            except (GridError, OSError) as error:
                found[node.name] = error
    return found
