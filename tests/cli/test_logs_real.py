"""`p2pgrid logs` at real nodes: at every one, and as it is printed."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from p2pgrid.client.localgrid import LocalGrid
from tests.cli.conftest import Run

SOON_S = 90.0


def say(number: int) -> int:
    print("this is", number)
    return number


def _says(number: int) -> int:
    print("began", number, flush=True)
    time.sleep(1.0)
    print("ended", number)
    return number


@pytest.fixture(scope="module")
def local() -> Iterator[LocalGrid]:
    """Three nodes of one slot."""
    with LocalGrid(nodes=3) as local:
        yield local


@pytest.mark.slow
def test_logs_at_a_node_that_did_not_accept_the_job(local: LocalGrid, run: Run) -> None:
    """From the command line, from a future, from a job; followed while it runs; and after the accepting node died."""
    with local.grid(0) as grid:
        job = grid.start(_says, range(4))
        grid.start(say, range(30), name="talk").wait(timeout=SOON_S)
    followed = run("logs", "-f", job.id, "--dir", str(local.nodes[1].dir))
    expected = {index: f"this is {index}\n" for index in range(30)}
    with local.grid(2) as grid:
        assert grid.job("talk").logs() == expected
        talk = grid.job("talk").id
        assert grid.future(f"{talk}/7").logs() == expected[7]

    local.nodes[0].kill()
    try:
        with local.grid(2) as grid:
            found = grid.job(talk)
            assert list(found.results(timeout=SOON_S)) == list(range(30))
            assert found.logs() == expected
            assert grid.future(f"{talk}/8").logs() == expected[8]
        shown = run("logs", f"{talk}/3", "--dir", str(local.nodes[1].dir))
        assert (shown.code, shown.out) == (0, "this is 3\n")
    finally:
        local.nodes[0].start()
        local.wait_members(3, SOON_S)
    lines = sorted(followed.out.splitlines())
    assert lines == sorted(f"{index} | {what} {index}" for index in range(4) for what in ("began", "ended"))
