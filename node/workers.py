"""The pool of worker processes, trio side. It obeys and decides nothing: effects in, events out.

    async with trio.open_nursery() as nursery:
        await nursery.start(pool.serve)              # in the main thread; WorkerReady events follow
        for effect in machine.handle(event, now):
            pool.run(effect)                         # or pool.recall(effect.worker), pool.kill(effect)
        pool.flush()                                 # once after each lot of effects
        pool.stop()

One task per worker waits for its socket and reads; what is sent leaves inline, without blocking, and a second task
only wakes where the socket is full. `deliver` gets the events of one read together, so that what follows from them can
be sent together as well.

A child serves one source tree and one number of threads, and is one interpreter. A run for another gets a fresh child
in the same slot, which only this file knows of: the spare, or the run waits in its slot until one is born.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic

import trio

from p2pgrid.core.errors import GridError, PeerError, error_to_wire
from p2pgrid.core.messages import W_AT, W_NEED, W_PLACE
from p2pgrid.core.wire import Frame, frame
from p2pgrid.node import reaper, workers_memory
from p2pgrid.node.events import Event, Kill, Log, Run, Show, WorkerDied, WorkerDone, WorkerReady
from p2pgrid.node.page import LOOK
from p2pgrid.node.workers_child import Birth, Child, Verdict
from p2pgrid.node.workers_home import Interpreter, ask_versions, fresh_home, link_packages
from p2pgrid.node.workers_limits import check_memory, check_time, recycle
from p2pgrid.node.workers_reaper import Reaper, ended
from p2pgrid.node.workers_slots import Failures, Rest, WorkerState, state_of
from p2pgrid.node.workers_trees import prune

WATCH_S = 0.1
WATCH_IDLE_S = 5.0
TAKE_BACK_S = 0.005
LAST_WORDS_MAX = 4096
LENT_MAX = 16
"""Children besides, while as many tasks wait for others that they have started."""
LENT_IDLE_S = 10.0
"""Such a child that has had nothing to do for so long ends."""
SPARE = -1
"""Stands for the slot of a child that has none yet."""
CLOSED_S = 0.5
"""A child whose pipe ended is given so long to end by itself, and to say how."""


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """What may be tuned."""

    memory_budget: int | None = None
    """Private memory of all workers together, in bytes; above it the largest is killed. None: 80 % of the RAM."""
    grown_max: int = 512 << 20
    """Private memory above which an idle child is replaced by a fresh one."""
    births_max: int = 5
    """So many deaths in a row before a child was ready, within `births_s`, and the next try waits …"""
    births_s: float = 5.0
    backoff_s: float = 1.0
    """… this long, and twice as long each time …"""
    backoff_max_s: float = 30.0
    """… up to this."""
    spare_s: float = 600.0
    """A spare child ends when for so long no run has come with a source tree."""
    rest_s: float | None = None
    """Children are born with the first run, and end when there was none for so long. None: they are there always."""


class WorkerPool:
    """`slots` children, numbered from 0; worker i runs in `python[i % len(python)]`."""

    def __init__(
        self,
        slots: int,
        python: Sequence[Path],
        dir: Path,  # noqa: A002 - the word of the interface
        node_name: str,
        deliver: Callable[[list[Event]], None],
        *,
        log: Callable[[Log], None],
        options: PoolOptions = PoolOptions(),
    ) -> None:
        """Remember; nothing is started yet. `dir` is the node's directory; all we write stays under it."""
        self.on_asks: Callable[[Child, list[Frame]], None] = self._share_nothing
        """Takes what a child says about objects."""
        self.on_buried: Callable[[Child], None] = lambda _: None
        self.on_visitor: Callable[[Child, socket.socket], None] = lambda _, visitor: visitor.close()
        """Takes a socket by which a task of a child speaks with the node."""
        self._python = list(python)
        self._packages = dir / "python"
        self._name = node_name
        self._scratch = dir / "scratch"
        self._trees = dir / "trees"
        self._deliver = deliver
        self._log = log
        self._options = options
        self._budget = options.memory_budget or workers_memory.total_bytes() * 8 // 10
        self._token = secrets.token_hex(8)
        self._births = 0
        self._own = slots
        self._children: list[Child | None] = [None] * (slots + (LENT_MAX if slots else 0))
        """Those from `slots` on are lent: they have a child while there is need."""
        self._lent: dict[int, float] = {}
        """Lent slots that are filled, and when they had something to do last."""
        self._place = [worker % len(self._python) for worker in range(len(self._children))]
        """Which interpreter each slot has."""
        self._living: list[Child] = []
        self._spares: dict[int, Child] = {}
        """By interpreter: a child without a slot, for the run that comes with another source tree."""
        self._tree_at_s = 0.0
        """When a run came last that has a source tree, or needed another child."""
        self._waiting: dict[int, list[Run]] = {}
        """Runs of slots whose child was replaced and whose next one is not born yet."""
        self.dirty: dict[int, None] = {}
        """Workers that something is queued for."""
        self._busy = trio.Event()
        self._rest = Rest(options.rest_s)
        self._stop = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._slots: trio.Nursery | None = None
        self._kill_all = False
        self._interpreters: list[Interpreter] | None = None

    # ---- effects --------------------------------------------------------------------------------------------------

    def run(self, effect: Run) -> None:
        """Queue a run for its worker; it leaves with the next `flush`."""
        if effect.worker in self._waiting:
            self._waiting[effect.worker].append(effect)
            return
        child = self._children[effect.worker]
        if child is None:  # it died meanwhile; WorkerDied is on its way, or was delivered just now
            if effect.worker >= self._own:
                self._lend(effect)
            elif self._rest.end(effect.worker):
                self._place[effect.worker] = effect.python
                self._waiting[effect.worker] = [effect]
            return
        if not child.serves(effect):
            if effect.inside is not None:
                self._nursery_of().start_soon(self._give_back, effect.worker, [effect])
                return
            child = self._replaced(child, effect)
            if child is None:
                self._waiting[effect.worker] = [effect]
                return
        self._give(child, effect)

    def _give(self, child: Child, effect: Run) -> None:
        if effect.tree is not None:
            self._tree_at_s = monotonic()
            if child.tree is None and self._nursery is not None:
                self._nursery.start_soon(self._look_after_trees, effect)
        child.queue(effect)
        self.dirty[effect.worker] = None
        self._busy.set()

    def _nursery_of(self) -> trio.Nursery:
        assert self._nursery is not None, "a run before there are children"
        return self._nursery

    def _lend(self, effect: Run) -> None:
        """Give a run to a slot that has no child so far, or not any more."""
        self._place[effect.worker] = effect.python
        self._waiting[effect.worker] = [effect]
        if effect.worker not in self._lent:
            self._lent[effect.worker] = math.inf
            self._nursery_of().start_soon(self._lent_slot, effect.worker)

    def show(self, effect: Show) -> None:
        """From now on somebody watches what the tasks of a job print, or nobody does."""
        for child in filter(None, self._children):
            for run in child.runs.values():
                if run.job == effect.job:
                    child.show(run.run, effect.what)

    def recall(self, worker: int) -> None:
        """Ask a worker to give back what it has not started. Takes effect at once."""
        waiting = self._waiting.get(worker)
        if waiting:
            back, waiting[:] = waiting.copy(), []
            if self._nursery is not None:
                self._nursery.start_soon(self._give_back, worker, back)
            return
        self.flush()
        child = self._children[worker]
        if child is not None:
            child.recall()
            if self._nursery is not None:
                self._nursery.start_soon(self._take_back, child)

    def kill(self, effect: Kill) -> None:
        """Kill the worker's group if what it runs now is meant, else recall. Takes effect at once."""
        child = self._children[effect.worker]
        if child is None:
            self.recall(effect.worker)
            return
        running = child.running()
        busy = [] if running is None else [running]
        busy += [run.inside for run in child.runs.values() if run.inside is not None]  # these wait below it
        meant = next((one for one in busy if _is_meant(one, effect)), None)
        if meant is not None:
            child.condemn(Verdict("killed", f"killed while it ran task {meant[1]}", None))
        else:
            self.recall(effect.worker)

    def flush(self) -> None:
        """Send what was queued by `run`, one send per worker. Call it after each lot of effects."""
        dirty, self.dirty = self.dirty, {}
        for worker in dirty:
            child = self._children[worker]
            if child is not None and not child.push():
                child.blocked.set()

    def push(self, child: Child) -> None:
        """Send what was queued for a child otherwise than by `run`."""
        self.dirty[child.worker] = None
        self.flush()

    def _share_nothing(self, child: Child, asks: list[Frame]) -> None:
        self.refuse(child, asks, GridError("no shared memory here", code="no-shared-memory", next="p2pgrid status"))

    def refuse(self, child: Child, asks: list[Frame], error: GridError) -> None:
        """Tell a child that asks for objects or places why it gets none."""
        for one in asks:
            if one.kind in (W_NEED, W_PLACE):
                child.tell(frame(W_AT, [one.body[0], 0, 0, dict(error_to_wire(error)), 0]))
        self.push(child)

    def stop(self, *, kill: bool = True) -> None:
        """End all: at once, or (kill=False) each child after the runs it has. `serve` returns then."""
        self._stop.set()
        self._rest.end_all()
        self._kill_all |= kill
        for child in self._living:
            if kill or child.worker == SPARE:
                child.condemn(Verdict("killed", "the node stops", None))
            else:
                child.end_input()

    # ---- facts ----------------------------------------------------------------------------------------------------

    async def interpreters(self) -> list[Interpreter]:
        """Ask each interpreter for its version, once. Raises GridError (code "usage") where one is none, or too old."""
        if self._interpreters is None:
            self._interpreters = await ask_versions(self._python)
        return self._interpreters

    def states(self) -> list[WorkerState]:
        """What each worker does now."""
        return [
            state_of(worker, child, rests=worker in self._rest)
            for worker, child in enumerate(self._children)
            if worker < self._own or child is not None
        ]

    # ---- life -----------------------------------------------------------------------------------------------------

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Spawn the children and serve them until `stop`; started once all are spawned (WorkerReady follows).

        `await nursery.start(pool.serve)`, from trio in the main thread. Returns once every process is gone. Cancelling
        it kills everything at once, too.
        """
        link_packages(self._packages)
        await trio.to_thread.run_sync(prune, self._trees, (), 0)  # of a former life: who needs them brings them
        with Reaper(self._token) as self._reaper:
            try:
                async with trio.open_nursery() as watch:
                    self._nursery = watch
                    watch.start_soon(self._watch)
                    async with trio.open_nursery() as slots:
                        self._slots = slots
                        for worker in range(self._own):
                            await slots.start(self._slot, worker)
                        task_status.started()
                    self._nursery = self._slots = None
                    watch.cancel_scope.cancel()
            finally:
                for child in self._living:  # none are left but after an error or a cancellation
                    child.condemn(None)
                    child.process.wait()
                    child.close()

    async def _slot(self, worker: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep one slot filled; started once its first process is."""
        options = self._options
        failures = Failures(options.births_max, options.births_s, options.backoff_s, options.backoff_max_s)
        if self._rest.after_s is None:
            born = await self._bear(worker)
        else:
            self._rest.begin(worker)
            self._deliver([WorkerReady(worker)])
            born = None
        task_status.started()
        while True:
            if born is None:
                await self._rest.over(worker)
                if self._stop.is_set():
                    return
                born = await self._bear(worker)
            if isinstance(born, Child):
                await born.vacated.wait()
                if worker in self._rest:
                    born = None
                    continue
                if (heir := self._children[worker]) is not None:
                    born = heir
                    continue
                ready, last_words = born.ready or born.replaced, born.last_words
            else:
                ready, last_words = False, str(born)
                self._children[worker] = None
                if self._waiting.pop(worker, None):
                    self._deliver([WorkerDied(worker, None, None, "killed", last_words)])
            if ready:
                failures.succeeded()
            elif pause_s := failures.failed(monotonic()):
                who = f"worker {worker} ({self._python[self._place[worker]]})"
                self._log(Log("warning", f"{who} does not start, next try in {pause_s:g} s: {last_words}"))
                with trio.move_on_after(pause_s):
                    await self._stop.wait()
            if self._stop.is_set():
                return
            born = await self._bear(worker)

    async def _lent_slot(self, worker: int) -> None:
        """Fill a lent slot while there are runs for it."""
        while worker in self._waiting:
            born = await self._bear(worker)
            if isinstance(born, OSError):
                if self._waiting.pop(worker, None):
                    self._deliver([WorkerDied(worker, None, None, "killed", str(born))])
                break
            self._lent[worker] = monotonic()
            child: Child | None = born
            while child is not None:
                await child.vacated.wait()
                child = self._children[worker]
        del self._lent[worker]

    async def _bear(self, worker: int) -> Child | OSError:
        """Start the child of a slot, and give it what waits there; or say why that is not possible."""
        child = await self._spawn(worker, self._place[worker], str(worker))
        if isinstance(child, Child):
            self._children[worker] = child
            for run in self._waiting.pop(worker, ()):
                self._give(child, run)
            self.flush()
        return child

    async def _bear_spare(self, place: int) -> None:
        """Start a child that waits for a slot."""
        child = await self._spawn(SPARE, place, f"spare-{self._births + 1}")
        if isinstance(child, Child):
            if place in self._spares:
                child.condemn(None)
            else:
                self._spares[place] = child

    async def _spawn(self, worker: int, place: int, home: str) -> Child | OSError:
        self._births += 1
        birth = Birth(
            worker,
            f"{self._name}/{home}",
            self._python[place],
            self._packages,
            await trio.to_thread.run_sync(fresh_home, self._scratch, home),
            f"{self._token}.{home}.{self._births}",
            self._trees,
            place,
        )
        if self._slots is None or (worker == SPARE and self._stop.is_set()):
            return OSError("the pool ends")
        try:
            child = Child(birth)  # here, in the main thread
        except OSError as error:
            return error
        self._living.append(child)
        self._busy.set()  # while nobody lives, the watch of a pool whose slots rest waits for that
        self._reaper.add(child.process.pid)
        self._slots.start_soon(self._live, child)
        return child

    def _replaced(self, child: Child, effect: Run) -> Child | None:
        """Put another child in the place of one that cannot take this run; None: it has to be born first."""
        worker, place = effect.worker, effect.python
        self._tree_at_s = monotonic()
        self._place[worker] = place
        spare = self._spares.pop(place, None)
        self._children[worker] = spare
        if spare is not None:
            spare.worker = worker
        if self._nursery is not None:
            self._nursery.start_soon(self._bear_spare, place)
        child.step_down()
        return spare

    async def _live(self, child: Child) -> None:
        """Serve a child until its burial."""
        if self._stop.is_set():
            child.condemn(None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read, child)
            nursery.start_soon(self._write, child)
            nursery.start_soon(self._open_door, child)
            await ended(child.process)
            nursery.cancel_scope.cancel()
        died = await self._bury(child)
        child.last_words = died.stderr[-LAST_WORDS_MAX:] or died.detail
        child.vacated.set()

    async def _read(self, child: Child) -> None:
        try:
            while True:
                await trio.lowlevel.wait_readable(child.sock)
                events = child.receive()
                if events is None:
                    break
                if events and child.worker != SPARE:
                    self._deliver(events)
                if child.asks:
                    asks, child.asks = child.asks, []
                    self.on_asks(child, asks)
        except PeerError as error:
            child.condemn(Verdict("exit", str(error), child.page.running()))
        # The pipe ended: the process is about to, or a task closed what was not its own.
        await trio.sleep(CLOSED_S)
        child.condemn(Verdict("exit", "closed its pipe to the node", child.page.running()))

    async def _open_door(self, child: Child) -> None:
        """Let in the sockets that tasks pass."""
        with contextlib.suppress(OSError):  # the end
            while True:
                await trio.lowlevel.wait_readable(child.door)
                visitor = child.visitor()
                if visitor is not None:
                    self.on_visitor(child, visitor)

    async def _write(self, child: Child) -> None:
        """Send on where an inline send found the socket full."""
        while True:
            await child.blocked.wait()
            await trio.lowlevel.wait_writable(child.sock)
            if child.push():
                child.blocked = trio.Event()

    async def _bury(self, child: Child) -> WorkerDied:
        """Tell of a child that ended: first what it had finished, then its end, once nothing of it lives."""
        try:
            events = child.drain()
        except PeerError:  # its end is news enough
            events = []
        child.condemn(None)
        await trio.to_thread.run_sync(reaper.kill_marked, child.mark)
        *printed, died = child.obituary()
        assert isinstance(died, WorkerDied)
        self._living.remove(child)
        if child.worker == SPARE:
            self._spares = {place: spare for place, spare in self._spares.items() if spare is not child}
        elif not child.replaced:
            self._children[child.worker] = None
        self.on_buried(child)
        self._reaper.remove(child.process.pid)
        child.close()
        if not child.ready and child.runs:  # it was to take another's place, and did not come to it
            died = replace(died, run=None, index=None, cause="killed")
        if (child.ready or child.runs) and child.worker != SPARE and not child.replaced and not self._kill_all:
            self._deliver([*events, *printed, died])
        if child.birth.worker == SPARE:
            await trio.to_thread.run_sync(partial(shutil.rmtree, child.birth.home, ignore_errors=True))
        return died

    # ---- source trees ---------------------------------------------------------------------------------------------

    async def _look_after_trees(self, effect: Run) -> None:
        """A child takes up a source tree: from now on one that has none is kept ready, and old trees go."""
        if effect.python not in self._spares and not self._stop.is_set():
            await self._bear_spare(effect.python)
        in_use = {child.tree for child in self._living if child.tree is not None}
        await trio.to_thread.run_sync(prune, self._trees, in_use)

    async def _give_back(self, worker: int, runs: Sequence[Run]) -> None:
        """Answer a recall of runs that no child has got."""
        self._deliver([
            WorkerDone(worker, run.run, (), final=True, returned=[(s.lo, s.hi) for s in run.segments], busy_s=0.0)
            for run in runs
        ])  # fmt: skip

    # ---- limits ---------------------------------------------------------------------------------------------------

    async def _take_back(self, child: Child) -> None:
        """Give the child a moment to answer a recall itself; then take back what it cannot start any more."""
        await trio.sleep(TAKE_BACK_S)
        if child is self._children[child.worker]:
            events = child.take_back()
            if events:
                self._deliver(events)

    async def _watch(self) -> None:
        """Look after time, memory and output, ten times a second while anything runs."""
        while True:
            children = [child for child in self._children if child is not None]
            busy = [child for child in children if child.runs]
            now = monotonic()
            events = [event for child in children for event in child.look(now)]
            if events:
                self._deliver(events)
            for child in busy:
                child.page.words[LOOK] = 1  # a slice that turned out slow reports what it has, and sees a recall
                check_time(child, now)
            check_memory(busy, self._budget)
            if self._spares and now - self._tree_at_s > self._options.spare_s:
                for spare in self._spares.values():
                    spare.condemn(None)
            if self._rest.due(children, now):
                self._go_to_rest()
            if self._lent:
                self._end_lent(now)
            for child in children:
                if not child.runs:
                    recycle(child, self._options.grown_max)
            if busy:
                await trio.sleep(WATCH_S)
            else:
                self._busy = trio.Event()
                with trio.move_on_after(WATCH_IDLE_S if self._living or self._rest.after_s is None else math.inf):
                    await self._busy.wait()

    def _end_lent(self, now: float) -> None:
        """End children of lent slots that have had nothing to do for a while."""
        for worker, since_s in list(self._lent.items()):
            child = self._children[worker]
            if child is None or child.runs or not child.ready:
                self._lent[worker] = now
            elif now - since_s > LENT_IDLE_S:
                self._children[worker] = None
                child.step_down()

    def _go_to_rest(self) -> None:
        """End all children: there is no work, and the next run has new ones born."""
        for worker, child in enumerate(self._children):
            if child is not None:
                self._children[worker] = None
                if worker < self._own:
                    self._rest.begin(worker)
                child.step_down()
        spares, self._spares = self._spares, {}
        for spare in spares.values():
            spare.condemn(None)


def _is_meant(running: tuple[int, int], effect: Kill) -> bool:
    run, index = running
    return run == effect.run and (effect.spans is None or any(lo <= index < hi for lo, hi in effect.spans))
