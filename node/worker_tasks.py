"""The hot path of the worker child: one run of tasks, from segments to outcomes.

What is exact for every task, however fast: the index on the shared page (so that a crash, a time limit or a kill names
its task), the exception, and which task printed what. What is done per *slice* of packed tasks, because it costs system
calls: the clock, the recall, repair of what a task did to the process. A slice is one task where tasks are slow, and
up to a millisecond of them where they are fast.
"""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import stat
from time import monotonic
from typing import Any

from p2pgrid.core import inside
from p2pgrid.core.inside import open_tasks
from p2pgrid.core.segments import Segment
from p2pgrid.node import worker_deps
from p2pgrid.node import worker_results as results
from p2pgrid.node.page import INDEX, LOOK, RECALL, START, Page
from p2pgrid.node.worker_functions import Function, Items, unfit_at
from p2pgrid.node.worker_output import Output
from p2pgrid.node.worker_report import Report
from p2pgrid.node.worker_scratch import Scratch

CALLS, ITEMS, TUPLES, DEPENDENT = 0, 1, 2, 3

Loads = Callable[[Any], Any]
"""Makes (args, kwargs) of an input."""

SLICE_S = 0.001
SLICE_TASKS_MAX = 4096
SLICE_ALONE_S = 0.0001
"""Tasks slower than this go one by one: looking around costs 3 µs, 3 % of it."""


@dataclass(slots=True)
class Work:
    """What the loops below share: one run in one child."""

    page: Page
    output: Output
    report: Report
    scratch: Scratch
    forked: list[bool]
    number: int
    attempt: int
    job: bytes = b""

    def over(self, index: int, *, failed: bool) -> None:
        """A task is over: what it has started in the grid, if anything, is waited for, or cancelled."""
        self.page.words[INDEX] = index
        inside.over(inside.Task(self.job, index, self.attempt), failed=failed)

    def recalled(self) -> bool:
        """Whether the daemon wants back what is not started."""
        return self.page.words[RECALL] >= self.number

    def tidy(self, first: int, *, shared: bool = False) -> bool:
        """Undo what tasks did to the process, collect what they printed; return whether there was damage.

        `first` is the task that output belongs to which nothing else claims. `shared`: others run in the same process.
        """
        if self.forked:
            # A task forked and the child of the fork came back as if it were the task: it may not speak for us.
            os._exit(0)
        scratch = self.scratch
        try:
            used = stat(".").st_mtime_ns != scratch.untouched or scratch.used  # noqa: PTH116 - for every task
        except OSError:  # the task removed the folder it went to
            used = True
        if used:
            used, line = scratch.tidy(first, shared=shared)
            if line:
                self.output.say(line)
        damaged = self.output.settle(self.number, first)
        signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm that a task set must not hit the next one
        return damaged or used


def run_segment(
    work: Work, segment: Segment, function: Function, items: Items | None,
    more: Callable[[], tuple[Segment, Callable[[int], Any]] | None],
) -> tuple[int, Segment]:  # fmt: skip
    """Run tasks [lo, hi) of a segment; return the first that was not started (hi: all were), and its segment.

    Tasks that are `async def` run together with those of the segments that `more` gives.
    """
    if function.is_async and function.broken is None:
        from p2pgrid.node import worker_async  # noqa: PLC0415 - asyncio costs 40 ms, and few jobs are async

        try:
            call = starter(work, segment, function, items)
        except BaseException as error:
            if unfit := unfit_at(error, segment.lo):
                raise unfit from error
            return fail_all(work, segment, error), segment
        return worker_async.run(work, segment, call, more)
    return _run_plain(work, segment, function, items), segment


def _run_plain(work: Work, segment: Segment, function: Function, items: Items | None) -> int:
    if function.broken is not None:
        return fail_all(work, segment, function.broken)
    cut: Sequence[Any] = segment.data
    loads: Loads = pickle.loads
    if items is not None:
        try:
            cut = items.cut(segment.offset, segment.hi - segment.lo, fresh=work.attempt > 1)
        except BaseException as error:
            if unfit := unfit_at(error, segment.lo):
                raise unfit from error
            return fail_all(work, segment, error)
    elif segment.shape == DEPENDENT:
        cut, loads = worker_deps.opened(segment.data)
    if items is None:
        return _calls(work, segment.lo, function.call, cut, loads)
    return _packed(work, segment, function.call, cut)


def starter(work: Work, segment: Segment, function: Function, items: Items | None) -> Callable[[int], Any]:
    """Return what calls the function for the task at a place of a segment. Raises what unpickling the items raises."""
    call = function.call
    loads: Loads = pickle.loads
    inputs: Sequence[Any] = segment.data
    if items is not None:
        inputs = items.cut(segment.offset, segment.hi - segment.lo, fresh=work.attempt > 1)
    elif segment.shape == DEPENDENT:
        inputs, loads = worker_deps.opened(segment.data)

    def start(place: int) -> Any:
        match segment.shape:
            case 0 | 3 if inputs[place]:
                args, kwargs = loads(inputs[place])
                return call(*args, **kwargs)
            case 0:
                return call()
            case 1:
                return call(inputs[place])
            case _:
                return call(*inputs[place])

    return start


def fail_all(work: Work, segment: Segment, error: BaseException) -> int:
    """Fail all tasks of a segment; return its end, as `run_segment` does."""
    data = results.failure(error, skip_frames=1)
    for index in range(segment.lo, segment.hi):
        work.report.failed(index, data)
    return segment.hi


def _calls(work: Work, lo: int, call: Callable[..., Any], inputs: Sequence[Any], loads: Loads) -> int:
    """Shapes 0 and 3: every task has its own pickled arguments and gives its own pickle."""
    words, floats, report = work.page.words, work.page.floats, work.report
    encoded = report.encoded
    now = monotonic()
    for index, data in enumerate(inputs, lo):
        floats[START] = started = now
        words[INDEX] = index
        if words[RECALL] >= work.number:
            return index
        try:
            if data:
                args, kwargs = loads(data)
                result = call(*args, **kwargs)
            else:
                result = call()
            if open_tasks:
                work.over(index, failed=False)
            result = encoded(result)
        except BaseException as error:
            if open_tasks:
                work.over(index, failed=True)
            if unfit := unfit_at(error, index):
                work.tidy(index)
                raise unfit from error
            report.failed(index, results.failure(error, skip_frames=1))
        else:
            report.returned(index, result)
        work.tidy(index)
        now = monotonic()
        report.busy_s += now - started
        report.send_if_due(now)
    return lo + len(inputs)


def _packed(work: Work, segment: Segment, call: Callable[..., Any], items: Sequence[Any]) -> int:
    """Shapes 1 and 2: one pickled list of arguments, and lists of values back."""
    at, size = segment.lo, 1
    one_by_one = False
    loop = _slice if segment.shape == ITEMS else _slice_starred
    words, floats, report = work.page.words, work.page.floats, work.report
    now = monotonic()
    while at < segment.hi:
        words[LOOK] = 0  # first take back, then read: a recall that comes between is seen in the next slice
        words[INDEX] = at
        if words[RECALL] >= work.number:
            return at
        floats[START] = started = now
        place = at - segment.lo
        values, error = loop(call, items[place : place + size], at, words)
        if open_tasks:  # such a task is the last of its slice
            work.over(at + len(values) - (error is None), failed=error is not None)
        damaged = work.tidy(at)
        one_by_one = one_by_one or damaged
        if values:
            report.values(at, values)
            at += len(values)
        if error is not None and (unfit := unfit_at(error, at)):
            raise unfit from error
        if error is not None:
            report.failed(at, results.failure(error, skip_frames=1))
            at += 1
        now = monotonic()
        report.busy_s += now - started
        report.send_if_due(now)
        done = at - segment.lo - place  # none, if the daemon had us look around before the first
        size = 1 if one_by_one or not done else _next_size(size, (now - started) / done)
    return at


def _next_size(size: int, task_s: float) -> int:
    if task_s > SLICE_ALONE_S:
        return 1
    return max(1, min(size * 8, int(SLICE_S / task_s), SLICE_TASKS_MAX))


# The next two are the innermost loops. Against a list comprehension they cost 50 ns a task more, for an index that is
# always right. One loop over `map(call, part)` would do for both, were it not for tasks that raise StopIteration.


def _slice(
    call: Callable[..., Any], part: Sequence[Any], lo: int, words: memoryview[int]
) -> tuple[list[Any], BaseException | None]:
    values: list[Any] = []
    append = values.append
    try:
        for index, item in enumerate(part, lo):
            words[INDEX] = index
            if words[LOOK]:
                break
            append(call(item))
    except BaseException as error:  # noqa: BLE001 - as in _calls
        return values, error
    return values, None


def _slice_starred(
    call: Callable[..., Any], part: Sequence[Any], lo: int, words: memoryview[int]
) -> tuple[list[Any], BaseException | None]:
    values: list[Any] = []
    append = values.append
    try:
        for index, item in enumerate(part, lo):
            words[INDEX] = index
            if words[LOOK]:
                break
            append(call(*item))
    except BaseException as error:  # noqa: BLE001 - as in _calls
        return values, error
    return values, None
