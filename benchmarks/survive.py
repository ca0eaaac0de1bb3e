"""A job whose client, whose node, and more nodes are killed: twelve real nodes, and what is left must know the answer.

    python -m benchmarks survive --runs 20 --seed 1
    python -m benchmarks survive --moments 200          one node of four killed at a random moment of each small job
    python -m benchmarks survive --blackouts 10         all five killed at 50 %, one disk lost, the other four started
    python -m benchmarks survive --beside               a worker, a head, a client: killed here and elsewhere
    python -m benchmarks survive --freezes 10           one of six, any, stands still for 20 s amid two jobs
    python -m benchmarks survive --halves 14 --runs 3   cut 7/7 in network namespaces for 20 s amid a job, then healed

A client submits 2,000 tasks of 50 ms to the third node with `grid.start` and prints the id. At 30 % both get SIGKILL
at once, then four more nodes that the seed names, one every 2 s. Then `p2pgrid result ID`, at a node that the
client never spoke with and, where there is one, that has nothing of the job on disk, prints what a loop would have
printed, every index once; or the run has failed. Nodes that were killed start again before the next run, on their
directories; no run is left out of the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.elsewhere import TASKS as TASKS_BESIDE
from benchmarks.elsewhere import run as run_beside
from p2pgrid.core.errors import GridError
from tests.system.grids import DidNotHappen, Node, Nodes
from tests.system.harm import (
    ALIVE_S,
    Cut,
    Frozen,
    Halves,
    Moment,
    blackout,
    cut_in_halves,
    freeze,
    moments,
    revive,
    strike,
)
from tests.system.survival import Sent, has_rows_of, stranger_to

NODES, TASKS, TASK_S = 12, 2000, 0.05
GIVEN_TO = 2
"""The third node takes the job."""
KILL_AT = 0.3
MORE = 4
SMALL_NODES = 4
TOGETHER = 4
"""Small jobs for each kill; each meets it at a moment of its own."""
FROZEN_NODES, FROZEN_TASKS, FROZEN_S = 6, 400, 20.0
CUT_TASKS_EACH, CUT_TASK_S, CUT_S = 100, 0.15, 20.0
DARK_NODES, DARK_TASKS, DARK_AT = 5, 400, 0.5


class Run(NamedTuple):
    """What became of one run."""

    right: bool
    killed: list[str]
    reader: str
    kept: bool
    """Whether that one had a copy of the job's record."""
    seconds: float
    """From the first kill until the result was printed."""
    again: int
    """Executions of tasks that were executed before."""
    later: int
    """The same after it was printed, until all who were killed are back."""
    why: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> Sequence[str]:
    """Add what only this benchmark wants; return the names."""
    parser.add_argument("--runs", type=int, default=1, help="survive: how often (default 1)")
    parser.add_argument("--seed", type=int, default=1, help="survive: of the first run; the next has the next")
    parser.add_argument("--moments", type=int, default=0, help="survive: instead, so many kills in small jobs")
    parser.add_argument("--blackouts", type=int, default=0, help="survive: instead, so many blackouts")
    parser.add_argument("--freezes", type=int, default=0, help="survive: instead, so often one node stopped for 20 s")
    parser.add_argument(
        "--halves", type=int, default=0, help="survive: instead, so many nodes cut in two, --runs times"
    )
    parser.add_argument("--beside", action="store_true", help="survive: instead, on Ray, Dask and Celery as well")
    parser.add_argument("--folder", type=Path, help="survive: leave the nodes' directories and logs here")
    return "runs", "seed", "moments", "blackouts", "freezes", "halves", "beside", "folder"


@contextlib.contextmanager
def place(folder: Path | None) -> Iterator[Path]:
    """Yield where nodes have their directories: what stays, or nothing that does."""
    if folder is None:
        with tempfile.TemporaryDirectory() as made:
            yield Path(made)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def play(nodes: Nodes, given_to: Node, seed: int, tasks: int, more: int) -> Run:
    """Play one run, and start again who was killed."""
    rng = random.Random(seed)
    with Sent(given_to, tasks, TASK_S) as sent:
        sent.wait(KILL_AT)
        began = time.monotonic()
        killed = strike(nodes.all, sent, given_to, rng, more)
        reader = stranger_to(sent, nodes.all, rng)
        kept = has_rows_of(reader, sent.id)
        why = ""
        try:
            sent.must_be_right(reader)
        except (AssertionError, OSError, TimeoutError) as error:
            why = str(error)
        seconds, again = time.monotonic() - began, sent.again
        revive(nodes)
        return Run(not why, killed, reader.name, kept, seconds, again, sent.again - again, why)


# ---- random moments --------------------------------------------------------------------------------------------------


def kills(nodes: Nodes, count: int, seed: int) -> list[Moment]:
    """Play until `count` jobs were taken and one node each was killed."""
    rng = random.Random(seed)
    found: list[Moment] = []
    while sum(one.taken for one in found) < count:
        found += moments(nodes, rng, TOGETHER)
        print(*found[-TOGETHER:], sep="\n", file=sys.stderr, flush=True)
        revive(nodes)
    return found


# ---- blackouts -------------------------------------------------------------------------------------------------------


class Dark(NamedTuple):
    """What became of a job after all nodes were killed and one directory was deleted."""

    right: bool
    lost: str
    """Whose directory; n1 had taken the job."""
    running: int
    """Executions that were under way when the lights went out, at most."""
    again: float
    """The share of tasks that were executed again."""
    seconds: float
    """From the start of the nodes until the result was printed."""
    why: str = ""


def dark(folder: Path, seed: int) -> Dark:
    """Play one blackout, in a grid of its own."""
    rng = random.Random(seed)
    with Nodes(folder) as nodes:
        made = nodes.grid([f"n{number}" for number in range(1, DARK_NODES + 1)])
        nodes.wait_all_alive(ALIVE_S)
        lost = rng.choice(made)
        with Sent(made[0], DARK_TASKS, TASK_S) as sent:
            sent.wait(DARK_AT)
            began = time.monotonic()
            back = blackout(nodes, sent, lost)
            why = ""
            try:
                sent.must_be_right(rng.choice(back))
            except (AssertionError, OSError, TimeoutError) as error:
                why = str(error)
            again = sent.again / DARK_TASKS
            return Dark(not why, lost.name, DARK_NODES, again, time.monotonic() - began, why)


def _run_blackouts(count: int, seed: int, folder: Path | None) -> dict[str, Any]:
    found = []
    with place(folder) as at:
        for number in range(seed, seed + count):
            (at / str(number)).mkdir()
            found.append(one := dark(at / str(number), number))
            print(
                f"seed {number:3}: {'ended' if one.right else 'LOST '}   without the disk of {one.lost}; "
                f"{one.again:.1%} executed again, {one.running / DARK_TASKS:.1%} of that were running at most; "
                f"{one.seconds:.1f} s {one.why}",
                file=sys.stderr, flush=True,
            )  # fmt: skip
    right = sum(one.right for one in found)
    median = statistics.median(one.again for one in found)
    print(f"{right} of {count} right; median {median:.1%} executed again", file=sys.stderr)
    return {
        "nodes": DARK_NODES,
        "seed": seed,
        "right": right,
        "again": median,
        "runs": [one._asdict() for one in found],
    }


# ---- freezes ---------------------------------------------------------------------------------------------------------


def _run_freezes(count: int, seed: int, folder: Path | None) -> dict[str, Any]:
    rng = random.Random(seed)
    found: list[Frozen] = []
    failed: list[str] = []
    with place(folder) as at, Nodes(at) as nodes:
        nodes.grid([f"n{number}" for number in range(1, FROZEN_NODES + 1)])
        nodes.wait_all_alive(ALIVE_S)
        for _ in range(count):
            try:
                found.append(freeze(nodes, rng.choice(nodes.all), rng, FROZEN_TASKS, FROZEN_S))
                print(found[-1], file=sys.stderr, flush=True)
            except (AssertionError, GridError, OSError, TimeoutError) as error:
                failed.append(repr(error))
                print(f"LOST  {error!r}", file=sys.stderr, flush=True)
            revive(nodes)
    print(f"{len(found)} of {count} right", file=sys.stderr)
    return {
        "nodes": FROZEN_NODES, "tasks": FROZEN_TASKS, "frozen_s": FROZEN_S, "seed": seed, "right": len(found),
        "failed": failed, "runs": [one._asdict() for one in found],
    }  # fmt: skip


# ---- halves ----------------------------------------------------------------------------------------------------------


def _run_halves(count: int, runs: int, folder: Path | None) -> dict[str, Any]:
    """Cut a grid in two, heal it, and again; raises AssertionError if one of the three jobs is not right at the end."""
    cuts: list[Cut] = []
    tasks = count * CUT_TASKS_EACH
    with place(folder) as at, Halves(at, [f"n{number}" for number in range(1, count + 1)]) as halves:
        if halves.why_not:
            print(f"skipped: {halves.why_not}", file=sys.stderr)
            return {"nodes": count, "skipped": halves.why_not}
        for _ in range(runs):
            halves.nodes.wait_all_alive(ALIVE_S)
            cuts.append(cut := cut_in_halves(halves, tasks, CUT_TASK_S, CUT_S))
            print(
                f"{count} nodes cut for {CUT_S:g} s: the halves' own jobs had ended {cut.ended_apart[0]:.1f} and "
                f"{cut.ended_apart[1]:.1f} s after the cut; all saw all {cut.met_s:.1f} s after it healed, all listed "
                f"the same jobs, all done, after {cut.agreed_s:.1f} s; {cut.again[0]} of {tasks} executed again",
                file=sys.stderr, flush=True,
            )  # fmt: skip
    return {"nodes": count, "tasks": tasks, "cut_s": CUT_S, "runs": [cut._asdict() for cut in cuts]}


# ---- the run ---------------------------------------------------------------------------------------------------------


def run(rounds: int, runs: int, seed: int, *, folder: Path | None, beside: bool, **counts: int) -> dict[str, Any]:
    """Run it; prints a line for each run on stderr."""
    if moments := counts["moments"]:
        return _run_moments(moments, seed, folder)
    if blackouts := counts["blackouts"]:
        return _run_blackouts(blackouts, seed, folder)
    if beside:
        return {"tasks": TASKS_BESIDE, "killed": run_beside()}
    if freezes := counts["freezes"]:
        return _run_freezes(freezes, seed, folder)
    if halves := counts["halves"]:
        return _run_halves(halves, runs, folder)
    found: list[Run] = []
    with place(folder) as at, Nodes(at) as nodes:
        made = nodes.grid([f"n{number}" for number in range(1, NODES + 1)])
        nodes.wait_all_alive(ALIVE_S)
        for number in range(seed, seed + runs):
            try:
                one = play(nodes, made[GIVEN_TO], number, TASKS, MORE)
            except (DidNotHappen, GridError) as error:
                one = Run(False, [], "", False, 0.0, 0, 0, str(error))  # noqa: FBT003
                found.append(one)
                print(f"seed {number}: {one.why}", file=sys.stderr)
                break  # the grid itself is not whole: nothing that follows would be this run
            found.append(one)
            print(f"seed {number:3}: {_told(one)}", file=sys.stderr, flush=True)
    right = sum(one.right for one in found)
    print(f"{right} of {len(found)} right", file=sys.stderr)
    return {
        "nodes": NODES, "tasks": TASKS, "task_s": TASK_S, "seed": seed, "runs": [one._asdict() for one in found],
        "right": right, "seconds": statistics.median(one.seconds for one in found),
    }  # fmt: skip


def _told(one: Run) -> str:
    place = f"{one.reader}, {'a keeper' if one.kept else 'which had nothing of it'}"
    return (
        f"{'ended' if one.right else 'LOST '}   killed {' '.join(one.killed)}   read at {place}, {one.seconds:.1f} s "
        f"after the first kill; {one.again} of {TASKS} executed again, and {one.later} when those were back {one.why}"
    )


def _run_moments(count: int, seed: int, folder: Path | None) -> dict[str, Any]:
    with place(folder) as at, Nodes(at) as nodes:
        nodes.grid([f"n{number}" for number in range(1, SMALL_NODES + 1)])
        nodes.wait_all_alive(ALIVE_S)
        found = kills(nodes, count, seed)
    taken = [one for one in found if one.taken]
    right = sum(one.right for one in taken)
    print(
        f"{right} of {len(taken)} jobs ended right; {len(found) - len(taken)} more were killed before they were taken, "
        f"and their clients told so",
        file=sys.stderr,
    )
    return {"nodes": SMALL_NODES, "seed": seed, "taken": len(taken), "right": right, "kills": len(found)}
