"""`p2pgrid service`, and a node as systemd and as a container would run it."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.processes import environment, until

ORPHANS = """\
import os, subprocess, sys, time
from pathlib import Path
from p2pgrid.cli.pid_one import stand_aside
stand_aside()
assert os.getpid() != 1 and os.getppid() == 1
subprocess.run(["sh", "-c", "(sleep 0.05; sh -c 'exit 1') & exit 0"])
deadline = time.monotonic() + 30
while {int(one.name) for one in Path("/proc").glob("[0-9]*")} != {1, os.getpid()}:
    assert time.monotonic() < deadline, "zombies"
    time.sleep(0.01)
sys.exit(7)
"""


def verified(unit: str, folder: Path) -> str:
    """Return what systemd has to say against a unit."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    path = folder / "p2pgrid.service"
    path.write_text(unit)
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
    return "\n".join(line for line in done.stderr.splitlines() if "p2pgrid" in line)


@pytest.mark.parametrize(
    "words", [[], ["--user"], ["--run-as", "root"], ["--dir", "/srv/a b"], ["--", "--tag", "a=50% $x"]]
)
def test_systemd_accepts_the_unit(run: Run, tmp_path: Path, words: list[str]) -> None:
    """Each kind of it, by systemd's own word, which a mistake would not pass."""
    done = run("service", "print", *words)
    assert done.code == 0
    assert verified(done.out, tmp_path) == ""
    assert verified(done.out.replace("WatchdogSec=30", "WatchdogSec=soon"), tmp_path) != ""


def test_what_the_unit_says(run: Run) -> None:
    """Ready, watched, started again, delegated; the flags of the node arrive as they were given."""
    unit = json.loads(run("service", "print", "--json", "--", "--tag", "a=50% $x").out)
    lines = unit["unit"].splitlines()
    for line in ("Type=notify", "WatchdogSec=30", "Restart=on-failure", "Delegate=yes", "ProtectSystem=strict",
                 "StateDirectory=p2pgrid", "NoNewPrivileges=yes"):  # fmt: skip
        assert line in lines
    start = next(line for line in lines if line.startswith("ExecStart="))
    assert start == f'ExecStart={sys.executable} -m p2pgrid node --dir /var/lib/p2pgrid --tag "a=50%% $$x"'
    assert unit["path"] == "/etc/systemd/system/p2pgrid.service"


def test_what_cannot_be(run: Run) -> None:
    """Nobody of that name; both kinds at once; what comes later says so."""
    assert run("service", "print", "--run-as", "nobody-of-that-name").code == 2
    assert run("service", "print", "--user", "--run-as", "root").code == 2
    assert run("service", "print", "--", "--tag", "a\nb").code == 2
    assert run("service", "install", "--user", "--run-as", "root").code == 2


SYSTEMCTL = """\
#!/bin/sh
echo "$@" >> "$0.heard"
test ! -e "$0.fails" || { echo "Failed to connect to bus" >&2; exit 1; }
"""


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemd that notes what it is asked for, and whose unit files are in a folder of this test."""
    program = tmp_path / "bin" / "systemctl"
    program.parent.mkdir()
    program.write_text(SYSTEMCTL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return program


def test_the_unit_is_put_in_its_place_and_removed(run: Run, systemctl: Path, tmp_path: Path) -> None:
    """As it would have been printed; systemd hears of it and starts it."""
    unit = tmp_path / "config/systemd/user/p2pgrid.service"
    words = ["--user", "--dir", str(tmp_path / "node"), "--", "--slots", "4"]
    installed = run("service", "install", *words)

    assert (installed.code, installed.out) == (0, "")
    assert unit.read_text() == run("service", "print", *words).out
    assert json.loads(run("service", "install", "--json", *words).out)["path"] == str(unit)
    assert run("service", "uninstall", "--user").code == 0
    assert not unit.exists()
    heard = Path(f"{systemctl}.heard").read_text().splitlines()
    assert heard[:2] == ["--user daemon-reload", "--user enable --now p2pgrid"]
    assert heard[-2:] == ["--user disable --now p2pgrid", "--user daemon-reload"]
    assert run("service", "uninstall", "--user").code == 4


def test_what_systemd_says_is_passed_on(run: Run, systemctl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line; and where there is none, that."""
    Path(f"{systemctl}.fails").touch()
    failed = run("service", "install", "--user")
    monkeypatch.setenv("PATH", str(systemctl.parent / "nothing"))
    none = run("service", "install", "--user")

    assert failed.code == none.code == 1
    assert "systemctl --user daemon-reload: Failed to connect to bus; next: " in failed.err
    assert "there is no systemd here" in none.err


def test_only_root_writes_the_unit_of_the_machine(run: Run, systemctl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is done."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert [run("service", verb).code for verb in ("install", "uninstall")] == [5, 5]
    assert not Path(f"{systemctl}.heard").exists()


@pytest.mark.slow
def test_a_node_tells_its_manager(tmp_path: Path) -> None:
    """Ready when it is, alive again and again, stopping; its workers know nothing of it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        said = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "600000"}
        node = subprocess.Popen(
            [sys.executable, "-m", "p2pgrid", "node", "--dir", str(tmp_path / "n"), "--slots", "1", "--name", "otter"],
            env=environment(tmp_path) | said, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        try:
            heard: list[str] = []
            while not any(one.startswith("READY=1") for one in heard):
                heard.append(manager.recv(1000).decode())
            assert heard[-1].startswith("READY=1\nSTATUS=node otter of grid ")
            assert [manager.recv(1000) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            shown = subprocess.run(
                [sys.executable, "-m", "p2pgrid", "run", "--dir", str(tmp_path / "n"), "--", "env"],
                env=environment(tmp_path), capture_output=True, text=True, check=True,
            ).stdout  # fmt: skip
            assert "HOME=" in shown
            assert "WATCHDOG" not in shown
            assert "NOTIFY" not in shown
            while select.select([manager], [], [], 0)[0]:  # full, it would not take the last word
                assert manager.recv(1000) == b"WATCHDOG=1"
            node.terminate()
            while (last := manager.recv(1000)) == b"WATCHDOG=1":
                pass
            assert last == b"STOPPING=1"
            assert node.wait(60) == 0
        finally:
            node.kill()
            node.communicate()


def alone(*words: str) -> list[str]:
    """Return the command that runs as process 1 of a namespace of its own."""
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no namespaces of processes here")
    return [*unshare, *words]


@pytest.mark.slow
def test_process_1_buries_the_dead() -> None:
    """What lost its parent is no zombie, and the exit code is the node's."""
    done = subprocess.run(alone(sys.executable, "-c", ORPHANS), capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr


@pytest.mark.slow
def test_a_node_as_process_1(tmp_path: Path) -> None:
    """It gets ready, and ends in order when process 1 is told to."""
    node = subprocess.Popen(
        alone(sys.executable, "-m", "p2pgrid", "node", "--dir", str(tmp_path / "n"), "--slots", "1"),
        env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert node.stdout is not None
        assert node.stdout.readline().startswith("ready ")
        (first,) = Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()
        os.kill(int(first), signal.SIGTERM)
        _, err = node.communicate(timeout=240)
        assert node.returncode == 0, err
        assert until(lambda: not Path(f"/proc/{first}").exists(), 60)
    finally:
        node.kill()
        node.communicate()
