"""What tasks print belongs to them, plain or async. Real processes."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from p2pgrid.core import current
from tests.node.pool_harness import ITEMS, TUPLES, Gate, Harness, pooled


def say(x: int) -> None:
    print("task", x)


def say_rarely(x: int) -> int:
    if x % 1000 == 0:
        print("task", x)
    return x


def say_everywhere() -> None:
    print("python", flush=True)
    subprocess.run(["sh", "-c", "echo out; echo err >&2"], check=True)
    print("stderr", file=sys.stderr)
    print("unfinished", end="")


def say_much() -> None:
    for line in range(50_000):
        print("line", line)


@pooled()
async def test_output_belongs_to_the_task_that_printed_it(h: Harness) -> None:
    """Calls, packed tasks, and a packed task that prints in the middle of a fast slice."""
    calls = await h.do(say, [(1,), (2,)])
    packed = await h.do(say, range(2000), shape=ITEMS)
    rare = await h.do(say_rarely, range(10_000), shape=ITEMS)

    assert calls.logs == {0: b"task 1\n", 1: b"task 2\n"}
    assert packed.logs == {x: b"task %d\n" % x for x in range(2000)}
    assert rare.logs == {x: b"task %d\n" % x for x in range(0, 10_000, 1000)}


@pooled()
async def test_output_of_subprocesses_is_caught(h: Harness) -> None:
    """Both streams, in the order written."""
    report = await h.do(say_everywhere, [()])

    assert report.logs[0] == b"python\nout\nerr\nstderr\nunfinished"


@pooled()
async def test_the_last_64_kib_are_kept(h: Harness) -> None:
    """A talkative task keeps its end."""
    report = await h.do(say_much, [()])

    assert len(report.logs[0]) == 64 * 1024
    assert report.logs[0].endswith(b"line 49999\n")


# ---- async -----------------------------------------------------------------------------------------------------------


async def meet(gate: str, x: int) -> int:
    reader, writer = await asyncio.open_unix_connection(gate)
    writer.write(str(x).encode())
    print("meet", x)
    await reader.read()
    writer.close()
    index = current.running_index()
    print("left", x)
    return index if index is not None else -1


@pooled()
async def test_async_tasks_run_together(h: Harness) -> None:
    """Five of them wait at one gate at the same time; each keeps its own output and its own index."""
    with Gate(h.pool._scratch.parent) as gate:
        number = h.start(meet, [(gate.path, x) for x in range(5)], shape=TUPLES)
        arrived = [await gate.arrival() for _ in range(5)]
        gate.open()
        report = await h.finished(number)

    assert sorted(arrived) == list("01234")
    assert report.values == {x: x for x in range(5)}
    assert report.logs == {x: b"meet %d\nleft %d\n" % (x, x) for x in range(5)}


async def leave(kind: str) -> str:
    match kind:
        case "exit":
            sys.exit(1)
        case "cancel":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        case _:
            return kind
    await asyncio.Event().wait()  # here the cancellation arrives
    return "never"


@pooled()
async def test_async_tasks_fail_alone(h: Harness) -> None:
    """SystemExit and cancellation are outcomes of their task, on a loop that goes on."""
    report = await h.do(leave, [("exit",), ("cancel",), ("well",)])

    assert {i: type(e) for i, e in report.errors.items()} == {0: SystemExit, 1: asyncio.CancelledError}
    assert report.values == {2: "well"}
