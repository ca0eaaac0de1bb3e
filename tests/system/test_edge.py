"""A node of the preset `edge`: little memory, workers only for work, one writable folder, and nothing left of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pgrid.client.localgrid import LocalGrid
from tests.cli.processes import environment
from tests.waiting import SOON_S, wait_until

pytestmark = pytest.mark.slow

TREE_MAX = 160_000_000
"""Bytes of memory (PSS) of all processes of an idle edge node: 85 to 110 MB, by how many others share its pages."""
READ_ONLY = """
mount --make-rprivate / && mount --bind "$1" "$1" || exit 77
for at in $(cut -d' ' -f5 /proc/self/mountinfo | sort -u)
do case $at in "$1"|/proc*|/sys*|/dev|/dev/*) ;; *) mount -o remount,bind,ro "$at" 2>/dev/null ;; esac
done
mount -o remount,bind,ro /dev/shm 2>/dev/null
test ! -w /tmp -a -w "$1" || exit 77
shift && exec "$@"
"""
"""As process of a namespace of its own: makes all folders read-only but one, and goes on as a command."""


def read_only() -> list[str]:
    return ["unshare", "-m", "sh", "-c", READ_ONLY, "sh"]


def processes(pid: int) -> list[int]:
    """Return a process and all below it."""
    children: list[int] = []
    with contextlib.suppress(OSError):  # it, or one of its threads, has just ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    return [pid, *(below for child in children for below in processes(child))]


def pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def alone(pid: int) -> int:
    """Return the bytes that a process would take if no other shared its libraries."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Rss:")) * 1024


def workers(pid: int) -> list[int]:
    return [one for one in processes(pid) if b"worker" in command(one)]


@pytest.fixture
def local() -> Iterator[LocalGrid]:
    with LocalGrid(nodes=1) as local:
        yield local


def writes() -> tuple[str, bool]:
    """Write into the task's folder; say where it is, and whether one can write elsewhere."""
    Path("mine.txt").write_text("x")
    return str(Path.cwd()), os.access("/tmp", os.W_OK)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="measures with /proc")
def test_an_edge_node_is_small_writes_to_one_folder_and_leaves_nothing(local: LocalGrid, tmp_path: Path) -> None:
    """On a root that is read-only, where this machine lets one have that; how much memory it takes is printed."""
    prefix: list[str] = []
    if os.geteuid() == 0 and shutil.which("unshare"):
        shown = subprocess.run([*read_only(), str(tmp_path), "true"], check=False)
        prefix = [*read_only(), str(tmp_path)] if shown.returncode == 0 else []
    invite = tmp_path / "invite"
    invite.write_text(local.nodes[0].invite())
    flags = ["--dir", str(tmp_path / "edge"), "--name", "e0", "--slots", "1", "--listen", "127.0.0.1:0"]
    words = [sys.executable, "-m", "p2pgrid", "node", *flags, "--json", "--preset", "edge", "--ephemeral"]
    node = subprocess.Popen(
        [*prefix, *words, "--no-mdns", "--join", f"@{invite}"],
        stdout=subprocess.PIPE, stderr=(tmp_path / "err").open("w"), text=True,
        env=environment(tmp_path), cwd=tmp_path,
    )  # fmt: skip
    try:
        assert node.stdout is not None
        assert json.loads(node.stdout.readline())["event"] == "ready", (tmp_path / "err").read_text()
        local.wait_members(2)
        sizes = [pss(pid) for pid in processes(node.pid)]
        print(
            f"edge, idle, {'read-only root' if prefix else 'as it is'}: {sum(sizes) / 1e6:.0f} MB, {sizes}; "
            f"its daemon, if nobody shared its libraries: {max(map(alone, processes(node.pid))) / 1e6:.0f} MB"
        )
        assert not workers(node.pid)
        assert sum(sizes) <= TREE_MAX
        with local.grid(0) as grid:
            where, writable = grid.options(where="name == 'e0'").submit(writes).result(SOON_S)
        assert Path(where).is_relative_to(tmp_path / "edge")
        assert writable == (not prefix)
        assert workers(node.pid)
        sockets = [Path(json.loads((tmp_path / "edge" / "node.json").read_bytes())["socket"])]
    finally:
        node.send_signal(signal.SIGTERM)
        node.communicate(timeout=SOON_S)

    wait_until(lambda: not (tmp_path / "edge").exists())
    assert node.returncode == 0
    assert not [path for path in sockets if path.exists()]
