"""The daemon: everything that happens becomes an event, goes to the machine, and its effects are performed in order.

    socket, workers, journal, timers, signals  --events-->  Node.deliver  --effects-->  socket, workers, journal, timers

There is one inbox and one loop. Nothing here decides anything about jobs. What is done here is starting in order
(directory, lock, journal, identity, socket, banner, workers, `ready`), ending in reverse, and telling whose fault it is
when the node cannot go on: a `GridError` is the user's, anything else is a bug of ours and ends the node with a report;
jobs continue from the journal. Time passes in `Ticking`, other threads come in by `Arrivals`, `Ending` counts signals.

Signals: the first SIGINT, SIGTERM or SIGHUP stops the node, exit code 0 within grace + 5 s; the second ends it at once,
exit code 130. Either way nothing that was promised is lost.

`python -m p2pgrid.node.daemon '{"dir": …, "embedded": true}'` is how a client starts an embedded node: one JSON object
of flags (`config.from_flags`).
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import trio

from p2pgrid import __version__
from p2pgrid.core import messages as m
from p2pgrid.core.errors import ExitCode, GridError, PeerError
from p2pgrid.core.interpreters import fact
from p2pgrid.core.invite import see_invite
from p2pgrid.core.locate import NODE_FILE
from p2pgrid.node import events as e
from p2pgrid.node.arrivals import Arrivals
from p2pgrid.node.asked import VERBS, Asked
from p2pgrid.node.banner import Talk, banner, crash_report, last_line
from p2pgrid.node.charter import Charter
from p2pgrid.node.completing import Completing
from p2pgrid.node.config import NodeConfig, explained, from_flags, prepare_dir, remove_dir
from p2pgrid.node.disk import Journal
from p2pgrid.node.ending import Ending
from p2pgrid.node.identity import Identity, open_identity
from p2pgrid.node.local import DirectoryLock, LocalServer, take_directory, write_node_file
from p2pgrid.node.locations import Locations
from p2pgrid.node.machine import Machine, MachineConfig
from p2pgrid.node.network import Network
from p2pgrid.node.notify import Notifier
from p2pgrid.node.object_files import ids_in
from p2pgrid.node.on_demand import OnDemand
from p2pgrid.node.seal import CardSeal
from p2pgrid.node.ticking import Ticking
from p2pgrid.node.vitals import Standstill
from p2pgrid.node.workers import PoolOptions, WorkerPool
from p2pgrid.node.workers_home import Interpreter

if TYPE_CHECKING:
    from p2pgrid.node.sharing import Sharing

OF_OBJECTS = (e.Name, e.Pull, e.Needs, e.Secure, e.Freed, e.Delivered)
SPAWNED_WITHIN_S = 2.0
SWITCH_INTERVAL_S = 0.001
"""How long the journal's threads may keep the GIL from the loop; Python's own 5 ms would be seen in every latency."""
EDGE_REST_S = 300.0
"""After so long without work a node of the preset `edge` ends its workers; it starts them with the first task."""
EVENTS_REMEMBERED = 100
_OF_NETWORK = (e.Send, e.Connect, e.Disconnect, e.Drop, e.Introduce, e.GridClock)
_HOUSEKEEPING = frozenset({e.PeerSent, e.TimerFired, e.WallClock})
"""Events of an idle node; for their sake nobody measures how late the loop is."""


class Mind(Protocol):
    """What the shell knows of the machine."""

    def steps(self, event: e.Event, now: float) -> Iterable[Sequence[e.Effect]]:
        """Take in one event; yield what the shell shall do, in order, the urgent part first."""

    def member_rows(self, now: float) -> list[dict[str, Any]]:
        """Return every member that is known, this node first."""

    def is_apart(self) -> bool:
        """Whether a live member is not connected, and so cannot ask this node for anything."""

    def has_tasks_of_ours(self, peer: str) -> bool:
        """Whether a member was given tasks of jobs kept here, as far as is known."""

    def progress(self, job: bytes) -> tuple[int, int]:
        """Return the first task of a job that is not over, and the end of those that are known."""


MakeMind = Callable[[MachineConfig, random.Random], Mind]


def serve(config: NodeConfig, make: MakeMind = Machine) -> int:
    """Run a node until it is stopped. Says everything that is to be said, and returns the exit code."""
    talk = Talk(config)
    recent: deque[type] = deque(maxlen=EVENTS_REMEMBERED)
    try:
        return _serve(config, make, talk, recent)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the supervisor: ours to report, and nothing is swallowed
        users = _the_users(error)
        if users is not None:
            talk.error(users)
            return users.exit_code
        report = crash_report(config.dir, error, [kind.__name__ for kind in recent])
        talk.line(f"p2pgrid: a bug of ours ended this node; report: {report}; next: p2pgrid node continues its jobs")
        return ExitCode.BUG


def _serve(config: NodeConfig, make: MakeMind, talk: Talk, recent: deque[type]) -> int:
    if config.join:  # before a directory is made for what is no invite; whether it is still good, members say
        see_invite(config.join)
    prepare_dir(config)
    with contextlib.ExitStack() as stack:
        with explained(config.dir):
            if config.ephemeral:
                stack.callback(remove_dir, config)
            lock = DirectoryLock(config.dir)
            take_directory(lock, config.dir, embedded=config.embedded)
            stack.callback(lock.release)
            if config.embedded:
                talk.to_file(config.dir / "node.log")
            now = time.time()
            journal = Journal.open(config.dir, now)
            stack.callback(journal.close)
            for note in journal.notes:
                talk.line(f"p2pgrid: {note}")
            journal.quota = config.quota
            identity = open_identity(config.dir, config.name, now)
            charter = Charter(identity, config.dir, time.time)
            for note in charter.notes:
                talk.line(f"p2pgrid: {note}")
            node = Node(config, identity, journal, charter, talk, recent)
            stack.enter_context(node.listening())
        talk.line(banner(config, identity, node.network.addresses, len(charter.saved_peers()), node.joining))
        code = trio.run(node.run, make)
    if code == ExitCode.DONE:
        talk.line(last_line(config, node.waiting))
        talk.event(None, "stopped", waiting=list(node.waiting))
    return code


def _the_users(error: BaseException) -> GridError | None:
    """Return the GridError that an exception is, or that is all a group holds."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, GridError) else None


class Node:
    """The inbox and the hands.

    Attributes:
        waiting: which jobs wait in the journal, once it has stopped.
        joining: the name of the grid that it was told to join, and is not in yet.
    """

    def __init__(
        self,
        config: NodeConfig,
        identity: Identity,
        journal: Journal,
        charter: Charter,
        talk: Talk,
        recent: deque[type],
    ) -> None:
        self.config = config
        self.identity = identity
        self.journal = journal
        self.charter = charter
        self.talk = talk
        self.network = Network(config, identity, charter, talk, self.deliver)
        locations = Locations(self.network)
        self.asked = Asked(self.network, self._rows, self._answer)
        self.waiting: Sequence[str] = ()
        self.joining = ""
        self.server = LocalServer(config.socket, self.deliver, talk.log, self._room)
        self.pool = WorkerPool(
            config.slots if config.work else 0, config.python, config.dir, identity.name, self.deliver, log=talk.log,
            options=PoolOptions(rest_s=EDGE_REST_S if config.preset == "edge" else None),
        )  # fmt: skip
        self.objects = OnDemand(self._make_sharing, self.server, self.pool, talk)
        self.network.make_keeper = self.objects.keeper
        self.network.has_tasks_of_ours = lambda peer: self.mind is not None and self.mind.has_tasks_of_ours(peer)
        self.pool.on_asks, self.pool.on_buried = self.objects.worker_asks, self.objects.worker_gone
        self.pool.on_visitor = lambda child, visitor: self.server.adopt(visitor, lambda: child.worker)
        self.manager = Notifier(silent=config.embedded)
        self._standstill = Standstill()
        self.ticking = Ticking(self.network, journal, self.manager, self._standstill, self.deliver)
        self.arrivals = Arrivals(talk, self.deliver)
        self.ending = Ending(
            config.grace_s, talk, lambda: self.deliver([e.Stop(config.grace_s)]), self.arrivals.fail
        )  # fmt: skip
        self.mind: Mind | None = None
        self._nursery: trio.Nursery | None = None
        self._steps: Callable[[e.Event, float], Iterable[Sequence[e.Effect]]] = _unborn
        self._inbox: deque[e.Event] = deque()
        self._recent = recent
        self._delivering = False
        self.completing = Completing(self.network, self.server, self.pool, self.ticking.lag, self._rows)
        self.completing.objects = self.objects.stats
        self._perform: dict[type, Callable[[Any], None]] = {
            e.Reply: self._reply,
            **dict.fromkeys(_OF_NETWORK, self.network.perform),
            e.Publish: locations.publish,
            e.Locate: locations.locate,
            e.Store: self._store,
            e.Fetch: lambda effect: journal.fetch(effect.token, effect.keys),
            e.Run: self.pool.run,
            e.Show: self.pool.show,
            e.Recall: lambda effect: self.pool.recall(effect.worker),
            e.Kill: self.pool.kill,
            **dict.fromkeys(OF_OBJECTS, self.objects.perform),
            e.SetTimer: self.ticking.set_timer,
            e.Log: talk.log,
            e.Stopped: self._on_stopped,
        }

    # ---- the inbox --------------------------------------------------------------------------------------------------

    def deliver(self, events: Sequence[e.Event]) -> None:
        """The one way in: hand events to the machine, perform what it wants, send what was queued for others.

        What performing an effect itself makes happen waits in the inbox until the effects before it are done.
        """
        ending = self.ending
        if ending.ended:
            return
        inbox = self._inbox
        if self._delivering:
            inbox.extend(events)
            return
        if stood_s := self._standstill.look():
            inbox.append(e.Stalled(stood_s))  # before anything that queued meanwhile
        inbox.extend(events)
        self._delivering = True
        perform, recent = self._perform, self._recent
        working, delivered = False, 0
        now = time.monotonic()
        while inbox:
            while inbox and not ending.ended:
                event = inbox.popleft()
                kind = type(event)
                recent.append(kind)
                if kind not in _HOUSEKEEPING:
                    working = True
                delivered += 1
                for effects in self._effects(event, now):
                    for effect in effects:
                        perform[type(effect)](effect)
                    if effects and not inbox:  # whoever waits for the first part gets it before the second is begun
                        self._flush()
            self._flush()
            if ending.ended:
                break
        self._delivering = False
        self.ticking.delivered += delivered
        if working:
            self.ticking.worked()

    def _flush(self) -> None:
        if self.pool.dirty:
            self.pool.flush()
        if self.server.dirty:
            self.server.flush()
        self.network.flush()

    def _effects(self, event: e.Event, now: float) -> Iterator[Sequence[e.Effect]]:
        if type(event) is e.ClientSent and event.kind == m.REQUEST:
            known = self._request(event)
            if known is None:
                return
            event = known
        try:
            yield from self._steps(event, now)
        except PeerError as error:
            if type(event) is e.ClientSent:
                self.server.drop(event.client, str(error))
            elif type(event) is e.PeerSent:
                self.network.drop(event.peer, str(error), broke=True)
            else:
                raise

    # ---- effects ----------------------------------------------------------------------------------------------------

    def _reply(self, effect: e.Reply) -> None:
        self.server.reply(self.completing.completed(self.objects.shown(effect)))

    def _answer(self, answer: e.Reply) -> None:
        """Answer a request that the machine has not seen."""
        self.server.reply(answer)
        self.server.flush()

    def _store(self, effect: e.Store) -> None:
        failed = self.journal.store(effect.token, effect.rows)
        if failed is not None and failed.token:
            self._inbox.append(failed)

    def _on_stopped(self, effect: e.Stopped) -> None:
        self.waiting = effect.waiting
        self.ending.over()

    def _request(self, event: e.ClientSent) -> e.ClientSent | None:
        """Look at a request on its way to the machine; None: it is none of the machine's business."""
        match event.body:
            case [str(verb), dict(arguments)] if verb in VERBS:
                assert self._nursery is not None, "a request before the loop runs"
                self._nursery.start_soon(self.asked.answer, event.client, event.id, verb, arguments)
                return None
            case [str(verb), dict(arguments)] if verb in m.OBJECT_REQUESTS:
                self.objects.answer(event.client, event.id, verb, arguments)
                return None
            case ["stop", dict(arguments)]:
                self.ending.begin()
                return replace(event, body=["stop", {"grace": self.config.grace_s, **arguments}])
        self.completing.asked(event)
        return event

    def _make_sharing(self) -> Sharing:
        from p2pgrid.node.sharing import Sharing  # noqa: PLC0415 - a node whose programs put nothing needs none

        assert self._nursery is not None, "a request before the loop runs"
        assert self.mind is not None, "a request before there is a machine"
        return Sharing(
            self.config, self.identity.id, self.server, self.network, self._nursery, self.talk.log, self.deliver,
            self.mind,
        )  # fmt: skip

    def _rows(self) -> list[dict[str, Any]]:
        """Return the members as the machine sees them."""
        return [] if self.mind is None else self.mind.member_rows(time.monotonic())

    # ---- a life -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Open the socket and say where it is, and the ports of the network; all are gone afterwards."""
        if self.config.join:  # what is wrong with the text is said before anything else
            joining = self.charter.join(self.config.join)
            self.joining = "" if joining.already else joining.grid_name
            self.network.migration.may_leave(joining, leave=False)
        if self.config.join or not self.config.embedded:
            self.network.open()
        self.server.listen()
        try:
            said = {
                "pid": os.getpid(), "socket": str(self.server.path), "id": self.identity.id,
                "name": self.identity.name, "version": __version__, "started": time.time(),
            }  # fmt: skip
            write_node_file(self.config.dir, said)
            yield
        finally:
            self.network.listening.close()
            self.server.close()
            with contextlib.suppress(OSError):
                (self.config.dir / NODE_FILE).unlink()

    async def run(self, make: MakeMind) -> int:
        """Live until stopped; return the exit code."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        token = trio.lowlevel.current_trio_token()
        self.arrivals.bind(token)
        self.journal.start(self.arrivals.hear, self.arrivals.crashed)
        scope = trio.CancelScope()
        with self.ending.signals(token, scope), scope:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self.arrivals.raise_failures)
                self.mind = await self._mind(make)
                self._steps = self.mind.steps
                charter = self.charter
                self._standstill.look()  # to start may take long, and nothing stood still for that
                self.deliver([
                    e.Loaded(
                        self.journal.load(), time.time() - time.monotonic(), self.journal.incarnation,
                        frozenset(ids_in(self.config.dir)),
                    ),
                    e.Belongs(charter.grid, charter.grid_name, charter.roles, charter.certificate),
                ])  # fmt: skip
                gc.freeze()  # what is there now stays: the collector need not look at it again
                self.ticking.start(nursery)
                nursery.start_soon(self.server.serve)
                nursery.start_soon(self.network.serve)
                await nursery.start(self.pool.serve)
                await self._be_ready()
                await self.ending.wait()
                self.talk.event(None, "stopping")
                self.manager.stopping()
                self.ending.ended = True
                self.pool.stop(kill=True)
                await self.network.close()
                await self.server.drained(within_s=0.5)
                nursery.cancel_scope.cancel()
        self.network.keep_now()
        return self.ending.code

    async def _be_ready(self) -> None:
        """Wait for workers and network, go where an invite leads, and say that this node can be used."""
        if self.config.join or not self.config.embedded:
            await self.network.ready()
        await self._spawned()
        if self.config.join:
            await self.network.migration.follow(self.config.join)
        said = {"id": self.identity.id, "name": self.identity.name, "grid": self.charter.grid_name}
        addresses = self.network.dialled
        plain = " ".join(["ready", said["id"], said["name"], *addresses])
        self.talk.event(plain, "ready", **said, addresses=addresses)
        self.network.migration.announce()
        self.talk.started()
        self.manager.ready(f"node {said['name']} of grid {said['grid']}")

    async def _mind(self, make: MakeMind) -> Mind:
        config, identity = self.config, self.identity
        pythons = (
            await self.pool.interpreters() if config.work else [Interpreter(config.python[0], sys.version_info[:3])]
        )
        version = pythons[0].version
        options = MachineConfig(
            node_id=identity.id,
            name=identity.name,
            grid=identity.grid_name,
            slots=config.slots if config.work else 0,
            facts={
                **config.facts(version),
                "interpreter": str(pythons[0].path),
                "id": identity.id,
                "name": identity.name,
                "version": __version__,
                "pythons": [fact(str(one.path), one.version) for one in pythons],
            },
            seal=CardSeal(self.charter, identity.key, identity.id),
            preset=config.preset,
            embedded=config.embedded,
            version=__version__,
            python=version[:2],
            pid=os.getpid(),
            speculate=config.speculate,
            **{
                name: told
                for name in ("queue_s", "guided", "connected_max")
                if (told := getattr(config, name)) is not None
            },
        )
        return make(options, random.Random(os.urandom(16)))

    async def _spawned(self) -> None:
        """Wait until every worker is a process. One that cannot be spawned is the pool's to report and to try again."""
        with trio.move_on_after(SPAWNED_WITHIN_S):
            while any(state.pid is None and state.state != "resting" for state in self.pool.states()):  # noqa: ASYNC110 - once, at the start
                await trio.sleep(0.005)

    # ---- what runs beside -------------------------------------------------------------------------------------------

    def _room(self) -> Awaitable[None] | None:
        return self._until_room() if self.journal.congested else None

    async def _until_room(self) -> None:
        while self.journal.congested:  # noqa: ASYNC110 - rare, and the writer knows no trio
            await trio.sleep(0.01)


def _unborn(event: e.Event, _now: float) -> Iterable[Sequence[e.Effect]]:
    """Stand in for the machine until there is one: a signal may come earlier."""
    return [[e.Stopped()]] if isinstance(event, e.Stop) else []


def main() -> int:
    """Run a node as a program: one argument, a JSON object of flags."""
    try:
        flags = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
        config = from_flags(flags)
    except (ValueError, GridError) as error:
        print(f"p2pgrid: {error}", file=sys.stderr)  # noqa: T201 - a program that cannot even begin
        return ExitCode.WRONG
    return serve(config)


if __name__ == "__main__":
    sys.exit(main())
