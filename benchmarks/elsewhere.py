"""The same kills on Ray, Dask and Celery, where they are installed: has the job ended, or is it lost.

A program submits 300 tasks of 50 ms to three workers of one slot; at 30 % one of three is killed with SIGKILL, with all
that it started, and is not started again: a worker, the process that the system has once (Ray's head, Dask's scheduler,
Celery's broker; here the node that took the job), or the program that asked. `ended` means: within two and a half
minutes somebody has all results, right; the program itself if it lives, else another one that is told what the first
one could have written down. Each system is set up as its documentation advises for that:
Dask's futures are published, Celery acknowledges late and its broker gives tasks out again after five seconds, looking
for them at every turn instead of every tenth.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from tests.system.grids import ROOT, DidNotHappen, Nodes, wait
from tests.system.survival import Sent, answer

TASKS, TASK_S, WORKERS = 300, 0.05, 3
KILL_AT, READY_S, ENDS_S = 0.3, 90.0, 150.0
LOG_LINES = 30
ROLES = ("worker", "single", "client")

_TASK = """
    import os, time

    def answer(index):
        fd = os.open({executed!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, b"x\\n")
        os.close(fd)
        time.sleep({seconds})
        return index * 2654435761 % 2**32
"""
_COLLECT = """
    def collected(results):
        with open({out!r} + ".new", "w") as file:
            json.dump(results, file)
        os.replace({out!r} + ".new", {out!r})
"""
_RAY = """
    import json, os, sys
    import ray
    from task import answer
    {collect}
    ray.init(address="127.0.0.1:{port}", log_to_driver=False)
    task = ray.remote(answer)
    if sys.argv[1] == "ask":
        collected(ray.get([task.remote(index) for index in range({tasks})]))
    else:
        sys.exit("Ray: results end with the program that owns them")
"""
_DASK = """
    import json, sys, os
    from distributed import Client
    from task import answer
    {collect}
    client = Client("tcp://127.0.0.1:{port}")
    if sys.argv[1] == "ask":
        futures = client.map(answer, range({tasks}), pure=False)
        client.publish_dataset(results=futures)
        collected(client.gather(futures))
    else:
        collected(client.gather(client.get_dataset("results")))
"""
_CELERY_APP = """
    from celery import Celery
    import task

    app = Celery("app", broker="redis://127.0.0.1:{port}/0", backend="redis://127.0.0.1:{port}/1")
    app.conf.update(
        task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=1,
        broker_transport_options={{"visibility_timeout": 5, "unacked_restore_throttle": 1}},
    )
    answer = app.task(task.answer, name="answer")
"""
_CELERY = """
    import json, os, sys
    from app import answer
    {collect}
    if sys.argv[1] == "ask":
        asked = [answer.delay(index) for index in range({tasks})]
        with open("ids", "w") as file:
            json.dump([one.id for one in asked], file)
    with open("ids") as file:
        ids = json.load(file)
    collected([answer.AsyncResult(one).get(timeout=120) for one in ids])
"""


class System(NamedTuple):
    """A system beside ours."""

    name: str
    modules: tuple[str, ...]
    commands: tuple[str, ...]
    single: str
    """What it has once."""
    begin: Callable[[Place], dict[str, subprocess.Popen[bytes]]]
    """Start it; what may be killed, by role."""
    program: str
    files: dict[str, str]

    @property
    def missing(self) -> str:
        """What is not installed; empty: nothing."""
        lacking = [one for one in self.modules if importlib.util.find_spec(one) is None]
        return ", ".join([*lacking, *(one for one in self.commands if shutil.which(one) is None)])

    @property
    def versions(self) -> str:
        """What is installed: `celery 5.7.0, …`."""
        found = [f"{one} {metadata.version(one)}" for one in self.modules]
        asked = [
            subprocess.run([one, "--version"], capture_output=True, text=True, check=True) for one in self.commands
        ]
        return ", ".join([*found, *(one.stdout.strip() for one in asked)])


class Place:
    """A folder and the processes that were started for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = _free_port()
        token = folder / "ray-token"  # Ray would write one into the user's home
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        self.environment = {
            **os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token),
        }  # fmt: skip
        self.children: list[subprocess.Popen[bytes]] = []
        self.folders: list[str] = []
        """Beside `folder`; deleted at the end."""

    def write(self, name: str, text: str) -> None:
        words: dict[str, object] = {"port": self.port, "tasks": TASKS, "seconds": TASK_S}
        words |= {"executed": str(self.folder / "executed"), "out": str(self.folder / "out")}
        collect = textwrap.dedent(_COLLECT).format(**words)
        (self.folder / name).write_text(textwrap.dedent(text).format(**words, collect=collect))

    def spawn(self, *words: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            child = subprocess.Popen(
                words, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self.children.append(child)
        return child

    def python(self, *words: str) -> subprocess.Popen[bytes]:
        return self.spawn(sys.executable, *words)

    @property
    def begun(self) -> int:
        file = self.folder / "executed"
        return file.read_bytes().count(b"\n") if file.exists() else 0

    def is_right(self) -> bool:
        """Whether somebody has written all results down, right."""
        file = self.folder / "out"
        return file.exists() and json.loads(file.read_text()) == [answer(index) for index in range(TASKS)]

    def said(self) -> str:
        """Return the last of what all of them have said."""
        return "\n".join((self.folder / "log").read_text(errors="replace").splitlines()[-LOG_LINES:])

    def end(self) -> None:
        for child in self.children:
            kill(child)
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)


def kill(child: subprocess.Popen[bytes]) -> None:
    """SIGKILL of a process and of all that it started, as when its machine dies."""
    for pid in [child.pid, *_descendants(child.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    child.wait()


def _descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError, IndexError):
            parents.setdefault(int((entry / "stat").read_text().rpartition(")")[2].split()[1]), []).append(
                int(entry.name)
            )
    found, left = [], [pid]
    while left:
        fresh = parents.get(left.pop(), [])
        found += fresh
        left += fresh
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---- the systems -----------------------------------------------------------------------------------------------------


def _ray(place: Place) -> dict[str, subprocess.Popen[bytes]]:
    ray = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block"]
    # Its sockets must have short names.
    short = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    place.folders.append(short)
    head = place.spawn(
        *ray, "--head", f"--port={place.port}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={short}",
        "--node-ip-address=127.0.0.1", "--object-store-memory=100000000",
    )  # fmt: skip
    wait(lambda: _listens(place.port), READY_S, "Ray's head listens")
    workers = [
        place.spawn(
            *ray, f"--address=127.0.0.1:{place.port}", "--num-cpus=1", "--object-store-memory=100000000",
            "--node-ip-address=127.0.0.1",
        )
        for _ in range(WORKERS)
    ]  # fmt: skip
    return {"single": head, "worker": workers[0]}


def _dask(place: Place) -> dict[str, subprocess.Popen[bytes]]:
    where = ["--host", "127.0.0.1"]
    head = place.python("-m", "distributed.cli.dask_scheduler", *where, "--port", str(place.port), "--no-dashboard")
    wait(lambda: _listens(place.port), READY_S, "Dask's scheduler listens")
    one = ["-m", "distributed.cli.dask_worker", f"tcp://127.0.0.1:{place.port}", "--nthreads", "1", "--no-dashboard"]
    workers = [place.python(*one, *where, "--local-directory", str(place.folder)) for _ in range(WORKERS)]
    return {"single": head, "worker": workers[0]}


def _celery(place: Place) -> dict[str, subprocess.Popen[bytes]]:
    broker = place.spawn("redis-server", "--port", str(place.port), "--bind", "127.0.0.1")
    wait(lambda: _listens(place.port), READY_S, "the broker listens")
    one = ["-m", "celery", "-A", "app", "worker", "--concurrency", "1"]
    workers = [place.python(*one, "-n", f"w{number}@here") for number in range(WORKERS)]
    return {"single": broker, "worker": workers[0]}


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
        return True
    return False


SYSTEMS = (
    System("Ray", ("ray",), (), "head", _ray, _RAY, {}),
    System("Dask", ("dask", "distributed"), (), "scheduler", _dask, _DASK, {}),
    System(
        "Celery", ("celery", "kombu", "redis"), ("redis-server",), "broker", _celery, _CELERY,
        {"app.py": _CELERY_APP},
    ),
)  # fmt: skip


# ---- what happens ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _placed() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        place = Place(Path(folder))
        try:
            yield place
        finally:
            place.end()


def ends(system: System, role: str) -> bool:
    """Play one kill. Raises DidNotHappen: it did not even begin."""
    with _placed() as place:
        place.write("task.py", _TASK)
        place.write("program.py", system.program)
        for name, text in system.files.items():
            place.write(name, text)
        processes = system.begin(place)
        client = place.python("program.py", "ask")
        try:
            wait(lambda: place.begun >= KILL_AT * TASKS, READY_S, f"{system.name} has begun")
        except DidNotHappen as error:
            raise DidNotHappen(f"{error}\n{place.said()}") from None
        kill({**processes, "client": client}[role])
        if role == "client":
            place.python("program.py", "collect")
        with suppress(DidNotHappen):
            wait(place.is_right, ENDS_S, f"the end of the job on {system.name}")
        return place.is_right()


def ours_ends(role: str) -> bool:
    """The same on a grid of four nodes; the fourth is read at."""
    with tempfile.TemporaryDirectory() as folder, Nodes(Path(folder)) as nodes:
        first, second, _, last = nodes.grid(["a", "b", "c", "d"])
        nodes.wait_all_alive(READY_S)
        with Sent(first, TASKS, TASK_S) as sent:
            sent.wait(KILL_AT)
            {"worker": second.kill, "single": first.kill, "client": sent.kill}[role]()
            try:
                sent.must_be_right(last, ENDS_S)
            except (AssertionError, subprocess.TimeoutExpired):
                return False
            return True


def run() -> dict[str, dict[str, str]]:
    """Play every kill on every system that is here; prints a line for each on stderr."""
    found: dict[str, dict[str, str]] = {}

    def play(name: str, role: str, what: str, play_one: Callable[[], bool]) -> None:
        try:
            verdict = "ended" if play_one() else "lost"
        except DidNotHappen as error:
            verdict = f"did not begin: {error}"
        found.setdefault(name, {})[role] = verdict
        print(f"{name:8} kill -9 of {what:28} {verdict}", file=sys.stderr, flush=True)

    for role, what in zip(ROLES, ("a worker node", "the node that took the job", "the program"), strict=True):
        play("p2pgrid", role, what, lambda role=role: ours_ends(role))  # type: ignore[misc]
    for system in SYSTEMS:
        if lacking := system.missing:
            print(f"{system.name:8} skipped: {lacking} not installed", file=sys.stderr)
            continue
        print(f"{system.name:8} {system.versions}", file=sys.stderr, flush=True)
        found[system.name] = {"versions": system.versions}
        for role, what in zip(ROLES, ("a worker", f"the {system.single}", "the program"), strict=True):
            play(system.name, role, what, lambda system=system, role=role: ends(system, role))  # type: ignore[misc]
    return found
