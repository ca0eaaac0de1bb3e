"""`Grid`: an Executor whose workers are the grid's.

A `Grid` and the views that `options` makes of it share one session, its jobs and its functions.
"""

import atexit
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from types import TracebackType
from typing import Any, Literal, Self

from p2pgrid.client.calls import Calls, JobOver
from p2pgrid.client.discovery import LocalFinder
from p2pgrid.client.embedded import invite_text
from p2pgrid.client.feed import Feed
from p2pgrid.client.future import Future
from p2pgrid.client.job import Job, find, future_of
from p2pgrid.client.mapping import MapWay, total_of
from p2pgrid.client.members import Member, call_of, chosen, connected, members_from, only
from p2pgrid.client.notebook import shell
from p2pgrid.client.pickling import Call, Function, Functions, Packed, pickled_call, refs_seen, seen
from p2pgrid.client.results import NoResults, Results
from p2pgrid.client.session import LEAVE_S, Session, sessions
from p2pgrid.client.stream import Stream
from p2pgrid.client.upload import Upload
from p2pgrid.core import inside
from p2pgrid.core.batch import CALLS, ITEMS, TUPLES, encode_batch
from p2pgrid.core.errors import GridError
from p2pgrid.core.options import TaskOptions
from p2pgrid.core.record import Spec
from p2pgrid.core.ref import Ref
from p2pgrid.core.units import parse_duration

JOB_ID_BYTES = 16
BUFFER_DEFAULT = 100_000
JOIN_S = 60.0
"""How long joining may take: the network is started for it, and every address of the invite is tried."""


class Shared:
    """What a grid and its views share."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.functions = Functions()
        self.calls: dict[tuple[object, ...], Calls] = {}
        self.lock = threading.Lock()


class Grid(Executor):
    """The grid, from Python: an Executor over the node of this machine, which is started if none runs.

    A function is pickled once and again whenever a name it uses, a closure cell or a default is bound to another
    object. Changes *inside* such an object (a list that grows) are not seen: pass it as an argument.

    Use it in a `with`: leaving waits for everything submitted; an exception or Ctrl-C cancels it.
    """

    def __new__(cls, *_: Any, **__: Any) -> "Grid":  # noqa: PYI034 - inside a task it is of another class
        """Make one; inside a task it is the grid that runs it, which needs no node to be found."""
        if inside.host is not None and cls is Grid:
            from p2pgrid.client.inside import TaskGrid

            return object.__new__(TaskGrid)
        return object.__new__(cls)

    def __init__(
        self,
        dir: str | os.PathLike[str] | None = None,  # noqa: A002 - the contract's name
        *,
        join: str | None = None,
        embedded: bool | None = None,
        reconnect: bool = True,
        timeout: float = 10.0,
        unpickle: Literal["members", "never"] = "members",
    ) -> None:
        """Find a node of this machine, or start one.

        Args:
            dir: the directory of the node; else `$P2PGRID_DIR`, the user's data folder, `/run/p2pgrid`.
            join: an invite, or `@file`: the node joins that grid before this returns. One that is started for it can
                be reached by the others then, not from this machine alone; one that runs takes its jobs along, unless
                it is in a grid with others already.
            embedded: False never starts a node; True starts or attaches on `dir` and looks nowhere else.
            reconnect: wait up to `timeout` for a node that went away, instead of raising NodeGone at once.
            timeout: seconds that anything may take which needs no work done.
            unpickle: "never": values are left packed, for whoever made one could run code here by it. Tasks end as they
                do, errors and None arrive; any other value raises GridError, code `not-unpickled`.

        Raises:
            NoNode: none answers and none was to be started, or it did not start.
            GridError: it cannot join: `bad-invite`, nobody of that grid answers, …
        """
        invite = None if join is None else invite_text(join)
        if unpickle not in ("members", "never"):
            msg = f"unpickle={unpickle!r}: expected 'members' or 'never'"
            raise ValueError(msg)
        finder = LocalFinder(dir, embedded=embedded, timeout_s=timeout, invite=invite)
        session = Session(finder, timeout_s=timeout, reconnect=reconnect, unpickles=unpickle == "members")
        if invite is not None:
            try:
                session.request("join", {"invite": invite, "leave": False}, max(timeout, JOIN_S))
            except BaseException:
                session.leave()
                raise
        self._share(Shared(session), TaskOptions(), is_view=False)

    def _share(self, shared: Shared, options: TaskOptions, *, is_view: bool) -> None:
        self._shared = shared
        self._session = shared.session
        self._functions = shared.functions
        self._options = options
        self._wire = options.to_wire()
        self._overlapping: tuple[dict[str, Any], dict[str, Any]] | None = None
        self._is_view = is_view
        self._calls: Calls | None = None
        self._own: list[Future | Results] | None = None
        self._shut = False

    # ---- submitting --------------------------------------------------------------------------------------------------

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Call `fn(*args, **kwargs)` somewhere in the grid; return its Future at once.

        Futures and Refs anywhere in the arguments (any depth of lists, tuples and dicts) arrive as their values: the
        grid waits for them, not this program. If one of them fails, so does this task, as DependencyFailed.

        Raises:
            NotSerializable: the function or an argument cannot be pickled; the message names the part.
            QuotaExceeded: the arguments are larger than 256 MiB.
            TypeError: an argument is a Future, but not one of a Grid.
        """
        session = self._session
        if session.over or session.down is not None or self._shut:
            self._check()
        function = self._functions.get(fn)
        data = pickled_call(args, kwargs)
        session.wait_for_room()
        after: Packed | None = None
        if isinstance(data, Packed):
            if not function.serves(data.needs):
                function = self._functions.get(fn, data.needs)
            if data.futures:
                after = data
            data = data.data
        refs = list(refs_seen()) if seen else ()
        while True:
            calls = self._calls
            if calls is None or calls.over:
                calls = self._open_calls()
            if after is not None:
                calls.let_go_before(after.futures)
            try:
                if after is None:
                    future = calls.submit(function, self._wire_of(function), data, refs)
                else:
                    future = calls.submit_after(function, self._wire_of(function), data, after.tasks, refs)
            except JobOver:
                continue
            break
        if self._own is not None:
            self._own.append(future)
        return future

    def _wire_of(self, function: Function) -> dict[str, Any]:
        """Return the options as they travel with tasks of a function; equal ones are the same object."""
        wire = self._wire
        if not function.overlaps:
            return wire
        made = self._overlapping
        if made is None or made[0] is not wire:
            made = self._overlapping = wire, {**wire, "overlap": True}
        return made[1]

    def _check(self) -> None:
        if self._shut:
            msg = "cannot schedule new futures after shutdown"
            raise RuntimeError(msg)
        self._session.check()

    def _open_calls(self) -> Calls:
        """Return the open job for single calls that live as long as ours: same name, same fate, same expiry."""
        options = self._options
        key = (options.name, options.detach, parse_duration(options.keep_for), options.copies)
        with self._shared.lock:
            calls = self._shared.calls.get(key)
            if calls is None or calls.over:
                spec = self._spec("calls")
                calls = self._shared.calls[key] = Calls(self._session, os.urandom(JOB_ID_BYTES), spec)
                self._session.add(calls, calls.upload)
        self._calls = calls
        return calls

    def _spec(self, kind: str, *, detach: bool = False) -> Spec:
        options = self._options
        return Spec(
            kind=kind,
            name=options.name or "",
            session=self._session.id,
            submitted_s=time.time(),
            ttl_s=parse_duration(options.keep_for),
            detach=detach or options.detach,
            copies=options.copies or 0,
            program=self._session.program,
        )

    def map(
        self,
        fn: Callable[..., Any],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | Literal["auto"] = "auto",
        buffersize: int | None = None,
        progress: bool | str | None = None,
    ) -> Results:
        """Call `fn` on every item (on the items of several iterables side by side); return the Results in order.

        Args:
            fn: what to call.
            iterables: the items; the shortest ends it. Sized ones are submitted whole, others ahead of the consumer.
            timeout: seconds from now until iterating raises TimeoutError.
            chunksize: how many items are pickled together; it does not bound how work is divided.
            buffersize: how many tasks may be ahead of the consumer (unsized inputs: 100,000).
            progress: show a bar on stderr, with this label if it is a text; tasks move theirs with `pg.progress`.
        """
        way = MapWay(timeout, chunksize, buffersize, progress)
        if len(iterables) == 1:
            return self._map(fn, iterables[0], ITEMS, total_of(iterables), way)
        return self._map(fn, zip(*iterables, strict=False), TUPLES, total_of(iterables), way)

    def starmap(
        self,
        fn: Callable[..., Any],
        tuples: Iterable[Iterable[Any]],
        /,
        *,
        timeout: float | None = None,
        chunksize: int | Literal["auto"] = "auto",
        buffersize: int | None = None,
        progress: bool | str | None = None,
    ) -> Results:
        """Call `fn(*arguments)` for every tuple of arguments; otherwise as `map`."""
        way = MapWay(timeout, chunksize, buffersize, progress)
        return self._map(fn, tuples, TUPLES, total_of((tuples,)), way)

    def imap_unordered(
        self,
        fn: Callable[..., Any],
        iterable: Iterable[Any],
        /,
        *,
        timeout: float | None = None,
        chunksize: int | Literal["auto"] = "auto",
        buffersize: int | None = None,
        progress: bool | str | None = None,
    ) -> Results:
        """As `map`, but results come in the order in which they are made."""
        way = MapWay(timeout, chunksize, buffersize, progress, ordered=False)
        return self._map(fn, iterable, ITEMS, total_of((iterable,)), way)

    def _map(
        self, fn: Callable[..., Any], source: Iterable[Any], shape: int, total: int | None, way: MapWay
    ) -> Results:
        self._check()
        way.check()
        function = self._functions.get(fn, look=True)
        if total == 0:
            return NoResults()
        call = Call(function, self._wire_of(function), self._functions.widened(fn))
        job = os.urandom(JOB_ID_BYTES)
        session = self._session
        upload = Upload(job, self._spec("map"))
        stream = Stream(session, job, mine=True, ordered=way.ordered)
        stream.detach = self._options.detach
        if way.progress:
            from p2pgrid.client.bars import bar

            label = way.progress if isinstance(way.progress, str) else getattr(fn, "__name__", "map")
            stream.follow(bar(label, total))
        feed = Feed(
            session, upload, call, source, lambda: session.add(stream, upload), shape=shape,
            total=total, items_per_list=None if way.chunksize == "auto" else way.chunksize,
        )  # fmt: skip
        buffer = way.buffersize or BUFFER_DEFAULT
        results = Results(session, job, stream, feed, buffer=buffer, timeout=way.timeout)
        try:
            if total is not None and way.buffersize is None:
                feed.all()
            else:
                feed.some(buffer)
        except BaseException:
            stream.stop(cancel=True)
            raise
        if feed.exhausted and feed.sent == 0:
            stream.stop(cancel=True)
            return NoResults()
        if not feed.exhausted:
            stream.feed = feed
        if self._own is not None:
            self._own.append(results)
        return results

    def start(self, fn: Callable[..., Any], /, *iterables: Iterable[Any], name: str | None = None) -> Job:
        """Start a detached map (without iterables: one call); return once the grid holds all of it on disk."""
        view = self if name is None else self.options(name=name)
        view._check()  # noqa: SLF001 - a view of our own
        return view._start(fn, iterables)  # noqa: SLF001

    def _start(self, fn: Callable[..., Any], iterables: tuple[Iterable[Any], ...]) -> Job:
        session = self._session
        function = self._functions.get(fn, look=True)
        call = Call(function, self._wire_of(function), self._functions.widened(fn))
        job = os.urandom(JOB_ID_BYTES)
        upload = Upload(job, self._spec("map" if iterables else "calls", detach=True))
        try:
            if iterables:
                one = len(iterables) == 1
                source = iterables[0] if one else zip(*iterables, strict=False)
                feed = Feed(
                    session, upload, call, source, lambda: session.open(upload),
                    shape=ITEMS if one else TUPLES, total=total_of(iterables),
                )  # fmt: skip
                feed.all()
            else:
                self._start_one(upload, function)
            session.wait_acknowledged(upload)
        except BaseException:
            session.cancel(job, None)
            raise
        return Job(session, job, self._options.name or "")

    def _start_one(self, upload: Upload, function: Any) -> None:
        session = self._session
        session.open(upload)
        batch = encode_batch([function.id], [self._wire_of(function)], [(1, 0, 0, CALLS, [b""])])
        with session.lock:
            session.keep(len(batch))
            session.say(upload.code(function) + upload.append(0, 1, batch) + upload.close(1))

    def options(self, **options: Any) -> "Grid":
        """Return a view of the same session whose tasks have these options (and those of this one).

        Raises:
            TypeError: no such option; the nearest is named.
            ValueError: a value that is out of range.
        """
        view = object.__new__(type(self))
        view._share(self._shared, self._options.replace(**options), is_view=True)
        return view

    def flush(self, timeout: float | None = None) -> None:
        """Return once everything submitted so far is on the node's disk.

        Raises:
            TimeoutError: it is not after `timeout` seconds.
        """
        for calls in list(self._shared.calls.values()):
            calls.awaited()
        if not self._session.wait(lambda: self._session.ledger.settled, timeout):
            raise TimeoutError

    # ---- asking ------------------------------------------------------------------------------------------------------

    def jobs(self, mine: bool = False) -> list[Job]:  # noqa: FBT001, FBT002 - the contract's signature
        """Return the jobs the grid knows, newest first; `mine`: only those of this session.

        In a notebook `mine` are also those that the same notebook submitted at this node before its kernel was
        restarted. What was neither started nor detached is cancelled a minute after the restart.
        """
        session = self._session
        found = session.request("jobs", {"mine": session.id if mine else None})["jobs"]
        if mine and shell() is not None:
            known = {one["hex"] for one in found}
            found += [
                one for one in session.request("jobs", {"mine": None})["jobs"] if one["hex"] not in known
                and (one["program"], one["owner"]) == (session.program, session.welcome.id)
            ]  # fmt: skip
        return [Job(session, bytes.fromhex(one["hex"]), one["name"]) for one in found]

    def job(self, job_id: str) -> Job:
        """Return a job by its id, a unique prefix of it, its name, or `last`. Raises NotFound."""
        job, _ = find(self._session, job_id, self._session.timeout_s)
        shown = self._session.about("show", job.hex())["job"]
        return Job(self._session, job, shown["name"])

    def future(self, task_id: str) -> Future:
        """Return the future of a task by its id, `calm-river-42/17`. Raises NotFound."""
        return future_of(self._session, task_id)

    @property
    def is_shut(self) -> bool:
        """Whether nothing can be submitted any more."""
        return self._shut or bool(self._session.over)

    @property
    def _max_workers(self) -> int:
        """Slots in the grid now; Dask reads it."""
        return self._session.slots()

    def put(self, value: Any) -> Ref:
        """Write a value into the shared memory of this machine's node; return its Ref.

        It lives while this Grid does, or until the last Ref to it is gone; a Ref that was pickled keeps it until the
        Grid is left. Do not change the value meanwhile.

        Raises:
            NotSerializable: it cannot be pickled; the message names the part.
            QuotaExceeded: the node has no room for it.
        """
        self._check()
        return self._session.sharing().put(value)

    def get(self, ref_or_refs: Ref | Iterable[Ref]) -> Any:
        """Return the value of a Ref, or a list of the values of several. Arrays in it are read-only and not copied.

        Raises:
            ObjectLost: nobody has it any more.
            TypeError: something else than Refs.
        """
        self._check()
        one = isinstance(ref_or_refs, Ref)
        refs = [ref_or_refs] if isinstance(ref_or_refs, Ref) else list(ref_or_refs)
        for ref in refs:
            if not isinstance(ref, Ref):
                msg = f"get takes a Ref or several, not {type(ref).__name__}: a Future has .result()"
                raise TypeError(msg)
        self._session.check_unpickles()
        values = self._session.sharing().get(refs)
        return values[0] if one else values

    def run(
        self, fn_or_argv: Callable[..., Any] | Sequence[str], /, *args: Any, where: str | None = None
    ) -> dict[str, Future]:
        """Run something once on every alive node that takes work, busy or not; return a Future for each.

        A node that goes away first: its Future fails as Unschedulable once it has been gone for ten seconds (it may
        come back), or at once if it was gone before its task was accepted.

        Args:
            fn_or_argv: a function, or a command as a list of texts; then each result is a
                `subprocess.CompletedProcess` with text output, whatever the command's exit code. A script or executable
                that is given by its path goes along.
            args: arguments of the function.
            where: only nodes that satisfy this, as in `options`.

        Returns:
            Futures by node name; a second node of one name is `name#` and a prefix of its id.

        Raises:
            Unschedulable: no node satisfies `where` and the options of this view; the message says which clause.
        """
        fn, args, kwargs = call_of(fn_or_argv, args)
        futures = {}
        for key, member in chosen(connected(self.members), self._options, where).items():
            view = self.options(where=only(member), strict=True)
            futures[key] = view.submit(fn, *args, **kwargs)
        if self._own is not None:
            self._own += futures.values()
        return futures

    def members(self) -> list[Member]:
        """Return who is in the grid, this node included, as it knows them now; dead and left ones for 60 s."""
        return members_from(self._session.request("members", {}))

    # ---- leaving -----------------------------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - Executor's
        """Take no more work; wait for what was submitted, or for nothing, or cancel it. A view: only its own."""
        self._shut = True
        if self._is_view:
            self._shut_view(wait=wait, cancel=cancel_futures)
            return
        session = self._session
        if session.over:
            return
        if cancel_futures:
            self._cancel_all()
        if not wait:
            session.leave_when_idle()
            return
        try:
            self._wait_for_all()
        except BaseException:
            # Ctrl-C while waiting; a second one ends this as well.
            self._cancel_and_leave()
            raise
        session.leave()

    def _shut_view(self, *, wait: bool, cancel: bool) -> None:
        own, self._own = self._own or [], None
        for one in own:
            if cancel:
                _cancel_one(one)
        if not wait:
            return
        try:
            for one in own:
                if isinstance(one, Future):
                    _wait_quietly(one)
                else:
                    one.wait_for_all()
        except BaseException:
            for one in own:
                _cancel_one(one)
            raise

    def _wait_for_all(self) -> None:
        session = self._session
        for calls in list(self._shared.calls.values()):
            calls.awaited()
        for receiver in session.mine():
            if isinstance(receiver, Stream):
                receiver.let_all_come()
        with contextlib.suppress(GridError):  # the node is gone: every future says so itself
            session.wait(lambda: session.ledger.idle, None)

    def _cancel_all(self) -> None:
        """Cancel what this client submitted and did not detach."""
        for calls in list(self._shared.calls.values()):
            if not calls.detach:
                calls.cancel_all()
        for receiver in self._session.mine():
            if isinstance(receiver, Stream) and not receiver.detach:
                receiver.stop(cancel=True)

    def _cancel_and_leave(self) -> None:
        session = self._session
        if session.over:
            return
        try:
            self._cancel_all()
            with contextlib.suppress(GridError):
                session.wait(lambda: session.ledger.cancels_settled, LEAVE_S)
        finally:
            # After a second Ctrl-C as well: leaving takes no time, and the node cancels what a client leaves behind.
            session.leave()

    def abandon(self) -> None:
        """Leave now, whatever is still running; what is not detached is cancelled by the node."""
        self._shut = True
        self._session.leave()

    def __enter__(self) -> Self:
        """Leaving waits for everything submitted (a view: through it), or cancels it after an exception."""
        if self._is_view:
            self._own = []
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait; or cancel, after an exception or Ctrl-C."""
        if kind is None:
            self.shutdown(wait=True)
        elif self._is_view:
            self._shut = True
            self._shut_view(wait=False, cancel=True)
        else:
            self._shut = True
            self._cancel_and_leave()

    def __reduce__(self) -> tuple[Any, ...]:
        """Be, in a task that uses this Grid as an argument or by a name, the grid that runs the task."""
        from p2pgrid.client.inside import unpickled

        return unpickled, (self._options.chosen(),)

    def _repr_html_(self) -> str:
        """Show in a notebook who is there."""
        from p2pgrid.client import html

        try:
            members = self.members()
        except GridError:
            return html.plain(repr(self))
        rows = [
            [one.name, one.status, one.slots, ",".join(one.roles), " ".join(str(p.get("version")) for p in one.pythons)]
            for one in members
        ]
        return html.table(f"Grid {self._session.welcome.grid}", ["node", "status", "slots", "roles", "Python"], rows)

    def __repr__(self) -> str:
        welcome = self._session.welcome
        return f"<Grid {welcome.grid} at node {welcome.name}, {welcome.slots} slots>"


def _cancel_one(one: Future | Results) -> None:
    if isinstance(one, Future):
        one.cancel()
    else:
        one.close()


def _wait_quietly(future: Future) -> None:
    with contextlib.suppress(Exception):  # what the task raised is for whoever asks the future
        future.exception()


def _at_exit() -> None:
    """Wait for what was submitted, as Executors do; after an uncaught exception or Ctrl-C cancel it instead."""
    crashed = hasattr(sys, "last_type") and not hasattr(sys, "ps1")
    for session in sessions():
        grid = object.__new__(Grid)
        shared = Shared(session)
        shared.calls = {(calls.job,): calls for calls in session.held if isinstance(calls, Calls)}
        grid._share(shared, TaskOptions(), is_view=False)
        with contextlib.suppress(KeyboardInterrupt):
            if crashed:
                grid._cancel_and_leave()
            else:
                grid.shutdown()


atexit.register(_at_exit)
