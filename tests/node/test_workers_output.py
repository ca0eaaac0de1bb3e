"""What the daemon reads of its workers' output: whose it is, lines as they come, records, last words.

Real processes.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from p2pgrid.core.prints import PRINTS, PROGRESS, Line
from p2pgrid.node.events import Show
from p2pgrid.node.workers_output import READ_MAX, WorkerOutput
from tests.node.pool_harness import JOB, Gate, Harness, pooled, wait_at


def lines_of(h: Harness) -> list[Line]:
    return [line for event in h.printed for line in event.lines]


def texts(h: Harness, stream: int) -> list[str]:
    return [line.text for line in lines_of(h) if line.stream == stream and not line.level]


def say_and_wait(gate: str) -> None:
    print("before")
    print("oops", file=sys.stderr)
    subprocess.run(["sh", "-c", "echo raw; echo worse >&2"], check=True)
    wait_at(gate, 0)
    print("after")
    print("no line end", end="")


@pytest.mark.slow
def test_lines_come_while_the_task_runs(tmp_path: Path) -> None:
    """Both streams, of its subprocesses too; what has no line end when the task ends is a line as well."""

    @pooled()
    async def listen(h: Harness) -> None:
        gate = Gate(tmp_path)
        run = h.start(say_and_wait, [(gate.path,)], show=PRINTS)
        await gate.arrival()
        await h.until(lambda: len(lines_of(h)) >= 4)
        assert (texts(h, 1), texts(h, 2)) == (["before", "raw"], ["oops", "worse"])
        gate.open()
        await h.finished(run)

        assert texts(h, 1)[2:] == ["after", "no line end"]
        assert h.reports[run].logs == {0: b"before\noops\nworse\nraw\nafter\nno line end"}

    listen(tmp_path)


@pytest.mark.slow
def test_nothing_is_shown_that_nobody_watches(tmp_path: Path) -> None:
    """Neither a job without watchers nor tasks with `prints=False`; who begins to watch later sees the rest."""

    @pooled()
    async def listen(h: Harness) -> None:
        await h.do(print, [("unseen",)])
        await h.do(print, [("unwanted",)], show=PRINTS, prints=False)
        gate = Gate(tmp_path)
        run = h.start(say_and_wait, [(gate.path,)])
        await gate.arrival()
        h.pool.show(Show(JOB, PRINTS))
        await h.until(lambda: lines_of(h))
        gate.open()
        await h.finished(run)

        assert "unseen" not in texts(h, 1)
        assert "unwanted" not in texts(h, 1)
        assert texts(h, 1)[-2:] == ["after", "no line end"]

    listen(tmp_path)


def log_much(x: int) -> None:
    logging.getLogger("sim.core").warning("careful %d\nsecond line", x)
    logging.getLogger("sim").info("by the way")
    logging.getLogger("sim").debug("nobody wants to know")
    try:
        raise ValueError("bad")
    except ValueError:
        logging.exception("it failed")  # noqa: LOG015
    print("done")


@pooled()
async def test_records_of_logging_keep_their_levels(h: Harness) -> None:
    """And their logger and their traceback; the log that is kept names both."""
    report = await h.do(log_much, [(5,)], show=PRINTS)
    records = [(line.level, line.logger, line.text.splitlines()[0]) for line in lines_of(h) if line.level]

    assert records == [(30, "sim.core", "careful 5"), (20, "sim", "by the way"), (40, "root", "it failed")]
    assert report.logs[0].startswith(
        b"WARNING:sim.core:careful 5\nsecond line\nINFO:sim:by the way\nERROR:root:it failed"
    )
    assert b"ValueError: bad" in report.logs[0]
    assert texts(h, 1) == ["done"]


def log_by_own_handler() -> None:
    root = logging.getLogger()
    handler = logging.StreamHandler(sys.stdout)
    root.addHandler(handler)
    try:
        root.warning("mine")
    finally:
        root.removeHandler(handler)


def log_by_basic_config() -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stdout)
    logging.getLogger("x").warning("configured")


@pooled()
async def test_a_task_that_sets_logging_up_has_its_way(h: Harness) -> None:
    """Its own handler, format and stream; nothing comes twice."""
    own = await h.do(log_by_own_handler, [()], show=PRINTS)
    basic = await h.do(log_by_basic_config, [()], show=PRINTS)

    assert (own.logs[0], basic.logs[0]) == (b"mine\n", b"WARNING: configured\n")
    assert lines_of(h) == [Line(0, 1, "mine"), Line(0, 1, "WARNING: configured")]


def bar() -> None:
    for i in range(5):
        sys.stderr.write(f"\r{i * 25} %")
    sys.stderr.write("\n")


@pooled()
async def test_of_a_line_that_overwrites_itself_the_last_is_shown(h: Harness) -> None:
    """A bar of tqdm, say."""
    await h.do(bar, [()], show=PRINTS)

    assert texts(h, 2) == ["100 %"]


def print_and_hang(gate: str) -> None:
    print("working")
    print("still")
    wait_at(gate, 0)


@pytest.mark.slow
def test_what_a_killed_task_printed_is_not_lost(tmp_path: Path) -> None:
    """Whatever killed it: its log and its last words come with the news of its death."""

    @pooled()
    async def listen(h: Harness) -> None:
        gate = Gate(tmp_path)
        await h.do(print, [("of another task",)])
        run = h.start(print_and_hang, [(gate.path,)])
        await gate.arrival()
        h.kill(run)
        died = await h.death()

        assert died.logs == [(run, 0, b"working\nstill\n")]
        assert died.stderr == "working\nstill"

    listen(tmp_path)


@pytest.mark.slow
def test_the_log_of_a_long_task_is_handed_on_while_it_runs(tmp_path: Path) -> None:
    """So `p2pgrid logs` shows something before it ends, and a node that dies does not take it along."""

    @pooled()
    async def listen(h: Harness) -> None:
        gate = Gate(tmp_path)
        run = h.start(print_and_hang, [(gate.path,)])
        await gate.arrival()
        await h.until(lambda: [event for event in h.printed if event.logs])
        gate.open()
        await h.finished(run)

        assert [event.logs for event in h.printed if event.logs] == [[(0, b"working\nstill\n")]]

    listen(tmp_path)


def say_progress(gate: str) -> None:
    import p2pgrid as pg  # noqa: PLC0415

    pg.progress(1, 4, "first")
    wait_at(gate, 0)
    pg.progress(2)
    wait_at(gate, 0)


@pytest.mark.slow
def test_progress_is_told_once_for_each_word(tmp_path: Path) -> None:
    """Only where somebody shows it."""

    @pooled()
    async def listen(h: Harness) -> None:
        gate = Gate(tmp_path)
        run = h.start(say_progress, [(gate.path,)], show=PROGRESS)
        for count in (1, 2):
            await gate.arrival()
            await h.until(lambda: len([e for e in h.printed if e.progress]) >= count)  # noqa: B023 - at once
            gate.open()
        await h.finished(run)

        said = [tuple(one) for event in h.printed for one in event.progress]
        assert said == [(0, 1.0, 4.0, "first"), (0, 2.0, -1.0, "")]

    listen(tmp_path)


def print_in_threads() -> None:
    threads = [threading.Thread(target=lambda: [print("x" * 50) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def print_in_fork() -> None:
    print("parent")
    if (pid := os.fork()) == 0:
        print("child", flush=True)
        os._exit(0)
    os.waitpid(pid, 0)


@pooled()
async def test_threads_and_forks_of_a_task_print_for_it(h: Harness) -> None:
    """No mark of ours is left in what people see."""
    threads, fork = await h.do(print_in_threads, [()]), await h.do(print_in_fork, [()])

    assert sorted(set(threads.logs[0].split(b"\n"))) == [b"", b"x" * 50]
    assert fork.logs[0] == b"parent\nchild\n"


# ---- the reader alone -----------------------------------------------------------------------------------------------


def output(tmp_path: Path) -> tuple[WorkerOutput, str]:
    """Return a reader whose run 1 is watched, and what its marks begin with."""
    made = WorkerOutput(tmp_path, lambda run: run == 1)
    return made, "\x1e" + os.pread(made.out_fd, 16, 0).decode() + ";"


def test_a_mark_that_arrives_in_halves_is_waited_for(tmp_path: Path) -> None:
    """However its bytes are cut."""
    made, mark = output(tmp_path)
    whole = f"{mark}17;p;1;7;;\x1fhello\n".encode()
    for at in range(len(whole)):
        os.write(made.out_fd, whole[at : at + 1])
        made.look(None, watched=True)

    assert [one for printed in made.printed() for one in printed.lines] == [Line(7, 1, "hello")]
    assert made.logs_left() == [(1, 7, b"hello\n")]
    made.close()


@pytest.mark.parametrize("junk", ["", "1;p;1;2;;", "x;p;1;7;;\x1f", "17;p;1\x1f", "17;p;one;7;;\x1f", "\x1f"])
def test_what_only_looks_like_a_mark_breaks_nothing(tmp_path: Path, junk: str) -> None:
    """A task can read the file and write what it wants into it."""
    made, mark = output(tmp_path)
    os.write(made.out_fd, f"{mark}17;p;1;7;;\x1fa\n{mark}{junk}b\n".encode())
    made.last_look((1, 7))
    left = made.logs_left()

    assert left[0][2].startswith(b"a\n")
    made.close()


def test_of_a_flood_the_end_is_kept_and_the_file_holds_no_memory(tmp_path: Path) -> None:
    """A look reads so much and no more."""
    made, mark = output(tmp_path)
    os.write(made.out_fd, f"{mark}17;p;1;7;;\x1f".encode())
    line = b"y" * 999 + b"\n"
    for _ in range(4):
        os.write(made.out_fd, line * (READ_MAX // 1000 // 2))
    made.look((1, 7), watched=True)
    ((run, index, text),) = made.logs_left()
    (printed,) = made.printed()

    assert (run, index, len(text), text[-2:]) == (1, 7, 64 * 1024, b"y\n")
    assert len(printed.lines) <= 64
    assert printed.more > 100
    assert os.fstat(made.out_fd).st_blocks * 512 < 1 << 20 or sys.platform != "linux"
    made.close()


def test_unwatched_output_is_left_lying_until_it_is_much(tmp_path: Path) -> None:
    """Ten times a second nobody reads what nobody wants."""
    made, mark = output(tmp_path)
    os.write(made.out_fd, f"{mark}17;p;2;7;;\x1fquiet\n".encode())
    made.look((2, 7), watched=False)
    assert made.logs_left() == []
    made.last_look(None)

    assert made.logs_left() == [(2, 7, b"quiet\n")]
    made.close()
