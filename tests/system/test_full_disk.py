"""A node whose disk is full: it says so, new work is refused there, and what it had taken ends by the other copies."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pgrid.core.errors import QuotaExceeded
from tests.system.grids import Node, Nodes, wait
from tests.system.harm import ALIVE_S
from tests.system.survival import Sent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DISK_MB = 32
CHUNK = bytes(1 << 20)
LARGE = 6 << 20
"""Bytes in one argument: more than the journal could still take into pages that it has."""


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    """Three nodes, the first with a small disk of its own."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a disk of its own wants root and `unshare` (util-linux)")
    with Nodes(tmp_path) as nodes:
        nodes.begin([nodes.node("a", disk_mb=DISK_MB), nodes.node("b"), nodes.node("c")])
        nodes.wait_all_alive(ALIVE_S)
        yield nodes


def _fill(node: Node) -> Path:
    """Leave no room on its disk; return the file that takes it."""
    path = node.dir / "filler"
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        for size in (len(CHUNK), 4096, 1):
            try:
                while True:
                    os.write(file, CHUNK[:size])
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    finally:
        os.close(file)
    return path


def _length(data: bytes) -> int:
    return len(data)


_length.__module__ = "__main__"  # it travels by itself


def test_a_job_ends_although_the_disk_of_its_node_is_full(nodes: Nodes) -> None:
    """What was promised before comes true, new work is refused in one line, and taken once there is room again."""
    full, other, third = nodes.all
    with Sent(full, 200, 0.05) as sent:
        sent.wait(0.2)
        filler = _fill(full)
        sent.must_be_right(third, ALIVE_S)
        sent.must_be_right(full, ALIVE_S)

    _fill(full)
    large = [bytes([number]) * LARGE for number in range(3)]
    with full.grid() as session, pytest.raises(QuotaExceeded) as refused:
        session.start(_length, large)
    with other.grid() as session:
        assert list(session.start(_length, large).results(ALIVE_S)) == [LARGE] * 3
    print(f"{sent.again} of 200 executed again; it said: {refused.value}\n{full.warnings()}\n{full.log()}")
    assert "disk is full" in str(refused.value)

    filler.unlink()
    with full.grid() as session:
        assert list(session.start(_length, [bytes(100_000)] * 3).results(ALIVE_S)) == [100_000] * 3
    wait(lambda: full.answers, ALIVE_S, "it runs")
