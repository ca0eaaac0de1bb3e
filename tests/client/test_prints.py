"""Lines of tasks, as a client shows them: prefixed, in order, bounded, and nobody waits for whoever reads them."""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import sys
import threading
import time

import pytest

from p2pgrid.client.prints import WAITING_MAX, Prints
from p2pgrid.core import messages as m
from p2pgrid.core.ids import job_name
from p2pgrid.core.prints import LINES_PER_S, PRINTS, PROGRESS, Throttle
from tests.client.conftest import Connect
from tests.client.scripted import ScriptedNode
from tests.waiting import wait_until

JOB = b"j" * 16


def test_output_goes_to_output_and_errors_to_errors(capsys: pytest.CaptureFixture[str]) -> None:
    """With the node and the task in front."""
    shown = Prints("")
    shown.took(JOB, "heron", [[17, 1, "hello", 0, ""], [17, 2, "oh", 0, ""], [3, 1, "", 0, ""]], 0)
    shown.close()
    said = capsys.readouterr()

    assert (said.out, said.err) == ("heron#17 hello\nheron#3 \n", "heron#17 oh\n")


def test_a_flood_ends_in_one_line_that_says_where_the_rest_is(capsys: pytest.CaptureFixture[str]) -> None:
    """What the node left out and what came too fast, together."""
    shown = Prints(" --dir /d")
    shown.took(JOB, "heron", [[0, 1, str(i), 0, ""] for i in range(LINES_PER_S + 40)], 1200)
    shown.close()
    said = capsys.readouterr()

    assert len(said.out.splitlines()) == LINES_PER_S
    assert said.err == f"… 1,240 more: p2pgrid logs {job_name(JOB)} --dir /d\n"


def test_the_rest_is_told_after_a_second_without_a_further_word(capsys: pytest.CaptureFixture[str]) -> None:
    """A burst, then silence."""
    shown = Prints("")
    shown.took(JOB, "heron", [], 7)
    told: list[str] = []

    def is_told() -> bool:
        told.append(capsys.readouterr().err)
        return "… 7 more" in "".join(told)

    wait_until(is_told)


def test_records_go_to_the_logger_of_their_name(caplog: pytest.LogCaptureFixture) -> None:
    """With their level; what that logger does not want is not shown."""
    with caplog.at_level(logging.WARNING, logger="sim"):
        shown = Prints("")
        shown.took(JOB, "heron", [[1, 2, "careful", 30, "sim"], [1, 2, "by the way", 20, "sim"]], 0)
        shown.close()

    assert [(one.name, one.levelno, one.getMessage()) for one in caplog.records] == [("sim", 30, "heron#1 careful")]


def test_records_are_printed_where_logging_is_not_set_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From warnings on, as Python does."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    shown = Prints("")
    shown.took(JOB, "heron", [[1, 2, "careful", 30, "sim"], [1, 2, "by the way", 20, "sim"]], 0)
    shown.close()

    assert capsys.readouterr().err == "heron#1 WARNING:sim:careful\n"


def test_a_reader_that_stopped_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output that leads into a full pipe: lines wait, then are counted; whoever brings them goes on."""
    read, write = os.pipe()
    fcntl.fcntl(write, 1031, 4096)  # F_SETPIPE_SZ
    pipe = io.TextIOWrapper(io.FileIO(write, "w"), write_through=True)
    monkeypatch.setattr(sys, "stdout", pipe)
    shown = Prints("")
    shown._throttle = Throttle(10**9)

    def flood() -> None:
        for i in range(4 * WAITING_MAX):
            shown.took(JOB, "heron", [[0, 1, f"{i} " + "x" * 90, 0, ""]], 0)

    thread = threading.Thread(target=flood, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert shown._more[JOB] > WAITING_MAX
    os.set_blocking(read, False)
    got = b""
    deadline = time.monotonic() + 60
    while got.count(b"\n") < WAITING_MAX:
        assert time.monotonic() < deadline
        with contextlib.suppress(BlockingIOError):
            got += os.read(read, 1 << 16)
    shown.close()
    monkeypatch.undo()
    numbers = [int(line.split()[1]) for line in got.decode().splitlines()]

    assert numbers == sorted(numbers)
    pipe.close()
    os.close(read)


def double(x: int) -> int:
    return 2 * x


def test_a_grid_asks_for_lines_and_with_a_bar_for_progress(node: ScriptedNode, connect: Connect) -> None:
    """The wish goes along with the wish for results."""
    grid = connect()
    assert list(grid.map(double, [1, 2])) == [2, 4]
    assert list(grid.map(double, [1, 2], progress=True)) == [2, 4]
    asked = [one.body[3] for one in node.heard if one.kind == m.WATCH]

    assert asked == [PRINTS, PRINTS | PROGRESS]


def test_lines_that_come_before_a_result_are_shown_before_it(
    node: ScriptedNode, connect: Connect, capsys: pytest.CaptureFixture[str]
) -> None:
    """So a program that prints what it got prints it below."""
    node.runs = False
    future = connect().submit(double, 4)
    node.wait_for(lambda: m.INPUT in node.kinds())
    node.send(m.PRINTED, [bytes(future._tasks.id), "heron", [[0, 1, "working", 0, ""]], 0, []])
    node.release()
    print(future.result(60))

    assert capsys.readouterr().out == "heron#0 working\n8\n"
