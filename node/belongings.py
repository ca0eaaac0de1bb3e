"""Belongings: which results and jobs need which objects, wherever these lie, and for how long.

A result of a worker of this node has a name first (`Name`), and stays until its job's keeper is known to know it. A
job that is kept here needs its large results and the Refs among its inputs (`Needs`) until it is `Freed`: they are
pinned if they are here, fetched if they are values that somebody here will read, kept by whoever has them in any case.

A value that the program which submitted the job has mapped is *taken*. It stays as long as it is looked at, and then
as long as nobody needs its room: the next result of its size takes its place, so that a loop over results goes on in
memory that is warm. What is still there some seconds later is written to disk, and goes when the quota is used up.

Rule: as `hands`, whose user this is.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import trio

from p2pgrid.core.errors import PeerError
from p2pgrid.core.large import LARGE, Large, read_large
from p2pgrid.core.pieces import ObjectId, is_id
from p2pgrid.core.units import format_size
from p2pgrid.node import events as e
from p2pgrid.node.hands import Hands
from p2pgrid.node.object_events import Key, Owner
from p2pgrid.node.visitors import Process, Visitors

COPIES = 2
COPIES_UNCOLLECTED = 3
SAFE_S = 1.0
"""A result that its program has not taken by then is written to disk and copied."""
SECURE_S = 60.0
"""So long what a detached job refers to may take to get here."""
SECURE_BEAT_S = 0.02
PULL: Owner = ("pull", b"")
INPUTS = b"in"
SPENT_S = 5.0
"""A taken result that nobody looks at is moved to disk after that."""


@dataclass(slots=True)
class Need:
    """One object that one job needs."""

    large: Large
    session: bytes
    copies: int
    since_s: float
    inputs: bool = False
    safe: bool = False


class Belongings:
    """What the results and jobs of one node need."""

    def __init__(
        self,
        hands: Hands,
        visitors: Visitors,
        deliver: Callable[[Sequence[e.Event]], None],
        progress: Callable[[bytes], tuple[int, int]],
    ) -> None:
        """`progress`: the first task of a job that is not over, and how many are known."""
        self.hands = hands
        self._progress = progress
        self.visitors = visitors
        self.shelf = hands.shelf
        self._deliver = deliver
        self._naming: dict[Key, e.Name] = {}
        self._made: dict[bytes, dict[int, Key]] = {}
        """Results for jobs of others, by job and task, until they are delivered."""
        self._needs: dict[bytes, dict[ObjectId, Need]] = {}
        self._needed: dict[ObjectId, dict[bytes, None]] = {}
        """The jobs that need an object."""
        self._ending: dict[tuple[bytes, ObjectId], int] = {}
        """Inputs to which their program has no Ref any more: once all tasks below that number are over, they may go."""
        self._early: dict[Key, bytes] = {}
        """Results that a program has mapped before they had a name, and the session of that program."""
        self._spent: OrderedDict[Key, float] = OrderedDict()
        """Taken results that nobody looks at: since when."""
        self._leaving: dict[Key, None] = {}
        """Those of them that are on their way to disk."""
        self._watching = False
        self._unsaved: dict[Key, None] = {}
        """Objects that the shell was busy with and that are not on disk."""
        self._pulls: dict[ObjectId, None] = {}
        hands.on_whole = self._whole
        hands.on_named, hands.on_unneeded = self._named, self._unlooked
        visitors.on_left = self._left
        visitors.make_way, visitors.on_mapped, visitors.on_unmapped = self.make_way, self._mapped, self._unlooked

    # ---- what the machine wants --------------------------------------------------------------------------------------

    def name(self, effect: e.Name) -> None:
        """Find out the id of a result that a worker wrote."""
        if not self.visitors.finished(effect.key):
            self._deliver([e.Named(effect.key, None)])
            return
        self._naming[effect.key] = effect
        self.shelf.items[effect.key].lingers = True
        if effect.durable:
            self.hands.perform(self.shelf.save(effect.key))
        else:
            self.hands.perform(self.hands.objects.serving.name(effect.key))

    def _named(self, key: Key) -> None:
        effect, item = self._naming.get(key), self.shelf.items.get(key)
        if item is not None and not item.disk:
            self._unsaved[key] = None
        else:
            self._unsaved.pop(key, None)
        if effect is None:
            self._leave_memory(key)
            return
        if item is not None and item.id is None:  # the disk is full: in memory it has an id as well
            self.hands.perform(self.hands.objects.serving.name(key))
            return
        del self._naming[key]
        self._deliver([e.Named(key, None if item is None else item.id)])
        self._early.pop(key, None)
        if effect.own:
            self._unpin(key, ("task", key))
        else:
            self._made.setdefault(effect.job, {})[effect.task] = key

    def delivered(self, effect: e.Delivered) -> None:
        """Let go of results that the keeper of their job knows, or does not want."""
        made = self._made.get(effect.job, {})
        spans = effect.spans
        for task in [t for t in made if spans is None or any(lo <= t < hi for lo, hi in spans)]:
            key = made.pop(task)
            self._unpin(key, ("task", key))
        if not made:
            self._made.pop(effect.job, None)

    def needs(self, effect: e.Needs) -> None:
        """Have these objects kept for a job."""
        now = time.monotonic()
        for large in effect.objects:
            if not is_id(large.name):
                continue
            id_ = ObjectId(large.name)
            copies = effect.copies or (COPIES if effect.session else COPIES_UNCOLLECTED)
            job = _needy(effect.job, inputs=effect.inputs)
            self._ending.pop((job, id_), None)  # it is named again
            if id_ in self._needs.get(job, ()):
                continue
            need = Need(large, effect.session, copies, now if effect.session else now - SAFE_S, effect.inputs)
            need.safe = effect.inputs and effect.session != b""  # it lives no longer than its program's memory here
            self._needs.setdefault(job, {})[id_] = need
            self._needed.setdefault(id_, {})[job] = None
            self._begin(job, id_, need, now)
        self._watch()

    def pull(self, effect: e.Pull) -> None:
        """Fetch what another node's worker returned."""
        id_ = ObjectId(effect.id)
        self._pulls[id_] = None
        self.hands.dial(effect.holders)
        self.hands.perform(self.hands.objects.want(id_, PULL, effect.holders, time.monotonic()))

    def _whole(self, id_: ObjectId, *, good: bool, full: bool = False) -> None:
        """An object that was wanted is here, or not to be had."""
        if self._pulls.pop(id_, 0) is None:
            self.hands.nursery.start_soon(self._say_pulled, e.Pulled(id_, good, full))

    async def _say_pulled(self, pulled: e.Pulled) -> None:
        """Tell the machine, not in the midst of what it does; in this turn it says who needs it."""
        id_ = ObjectId(pulled.id)
        self._deliver([pulled])
        self.hands.perform(self.hands.objects.unwant(id_, PULL))
        for key in self.shelf.twins(id_):
            self._unlooked(key)

    def _begin(self, job: bytes, id_: ObjectId, need: Need, now: float) -> None:
        twins = self.shelf.twins(id_)
        if need.session and not need.large.is_ref and any(self._early.get(key) == need.session for key in twins):
            self._drop_need(job, id_)
            return
        if twins:
            for key in twins:  # readers may have been told of either
                self.shelf.pin(key, ("job", job))
            return
        holders = [holder for holder in need.large.holders if holder != self.hands.me]
        self.hands.dial(holders)
        self.hands.perform(self.hands.objects.have_kept(id_, need.copies, holders, now))

    def freed(self, effect: e.Freed) -> None:
        """A job needs nothing any more."""
        job = _needy(effect.job, inputs=effect.inputs)
        for id_ in list(self._needs.get(job, ())):
            self._drop_need(job, id_, here=effect.here)

    def secure(self, effect: e.Secure) -> None:
        """Bring objects that a detached job refers to to safety: on disk here, and to others."""
        self.hands.nursery.start_soon(self._secure, effect)

    async def _secure(self, effect: e.Secure) -> None:
        job, until_s = _needy(effect.job, inputs=True), time.monotonic() + SECURE_S
        todo = dict.fromkeys(map(ObjectId, effect.ids))
        tried: dict[ObjectId, None] = {}
        why_not = ""
        while todo and not why_not:
            now = time.monotonic()
            for id_ in list(todo):
                need, key = self._needs.get(job, {}).get(id_), self.shelf.find(id_)
                item = None if key is None else self.shelf.items[key]
                if need is None or (item is not None and item.disk):
                    del todo[id_]
                elif key is None or item is None:
                    if id_ not in tried:
                        self.hands.perform(self.hands.objects.want(id_, ("job", job), need.large.holders, now))
                elif item.settled and id_ in tried and key in self._unsaved:
                    why_not = f"the disk has no room for an object of {format_size(item.size)} that the job refers to"
                elif item.settled:
                    self._make_safe(job, id_, need, now)
                tried[id_] = None
            if now > until_s and not why_not and todo:
                why_not = f"object {next(iter(todo)).hex()[2:14]}, to which the job refers, is not to be had"
            await trio.sleep(SECURE_BEAT_S)
        self._deliver([e.Secured(effect.token, why_not)])

    def _drop_need(self, job: bytes, id_: ObjectId, *, here: bool = False) -> None:
        """A job needs an object no longer; `here`: the copies that other nodes have of it stay."""
        needs = self._needs.get(job, {})
        self._ending.pop((job, id_), None)
        if needs.pop(id_, None) is None:
            return
        if not needs:
            del self._needs[job]
        jobs = self._needed[id_]
        del jobs[job]
        if not jobs:
            del self._needed[id_]
            if not here:
                self.hands.perform(self.hands.objects.free(id_))
        self.hands.perform(self.hands.objects.unwant(id_, ("job", job)))
        for key in self.shelf.twins(id_):
            self._unpin(key, ("job", job))

    def _unpin(self, key: Key, owner: Owner) -> None:
        self.shelf.unpin(key, owner)
        self._unlooked(key)

    # ---- results on their way to programs ----------------------------------------------------------------------------

    def shown(self, effect: e.Reply) -> e.Reply:
        """Return a RESULT in which objects come with their place, for a program that has the memory mapped."""
        job, entries = effect.body
        process = self.visitors.attached.get(effect.client)
        if process is None or not any(entry[2] == LARGE for entry in entries):
            return effect
        placed = [[*e[:3], self._with_place(process, e[3]), *e[4:]] if e[2] == LARGE else e for e in entries]
        return replace(effect, body=[job, placed])

    def _with_place(self, process: Process, data: bytes) -> bytes:
        try:
            large = read_large(data)
        except PeerError:
            return data
        key = self.hands.key_of(large.name)
        if key is None or large.is_ref:
            return data
        offset = self.visitors.map_now(process, key)
        return data if offset is None else large._replace(offset=offset).packed()

    def _mapped(self, process: Process, key: Key) -> None:
        """A program looks at an object: if that is the result of a job of its own, it has taken it."""
        self._spent.pop(key, None)
        if not process.session:
            return
        if key in self._naming:
            self._early[key] = process.session
        if (id_ := self.shelf.items[key].id) is not None:
            self._let_go(process.session, id_, is_ref=False)

    def _let_go(self, session: bytes, id_: ObjectId, *, is_ref: bool) -> None:
        """A program has the value that was its result, or lets go of the Ref."""
        for job in list(self._needed.get(id_, ())):
            need = self._needs[job][id_]
            if session and need.session == session and need.large.is_ref is is_ref and not need.inputs:
                self._drop_need(job, id_)

    def _left(self, process: Process, ids: Sequence[ObjectId] | None) -> None:
        """A program lets go of Refs (None: it left): what they stand for lives no longer than its Grid."""
        for id_ in list(self._needed) if ids is None else ids:
            self._let_go(process.session, id_, is_ref=True)
        for id_ in ids or ():
            for job in self._needed.get(id_, ()):
                need = self._needs[job][id_]
                if need.inputs and need.session and need.session == process.session:
                    self._ending[job, id_] = self._progress(job[: -len(INPUTS)])[1]
        self._end_needs()
        if self._ending:
            self._watch()

    def _end_needs(self) -> None:
        """Let go of inputs to which no Ref is left, and which no task will need."""
        first = {job: self._progress(job[: -len(INPUTS)])[0] for job, _ in self._ending}
        for job, id_ in [key for key, until in self._ending.items() if first[key[0]] >= until]:
            self._drop_need(job, id_)

    def _unlooked(self, key: Key) -> None:
        """Nobody may need an object any more: results stay while there is room, others go."""
        item = self.shelf.items.get(key)
        if item is None or item.pins or item.maps or key in self._spent:
            return
        if item.memory and item.lingers:
            self._spent[key] = time.monotonic()
            self._watch()
        else:
            self.hands.unneeded(key)

    def make_way(self, size: int) -> None:
        """Drop taken results, so that the next one finds warm memory; and inputs that were let go of."""
        self._end_needs()
        while size > 0 and self._spent:
            key, _ = self._spent.popitem(last=False)
            item = self.shelf.items.get(key)
            if item is not None and not (item.pins or item.maps):
                size -= item.size if item.memory else 0
                self.hands.perform(self.shelf.drop(key))

    # ---- time --------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        if not self._watching:
            self._watching = True
            self.hands.nursery.start_soon(self._look_after)

    async def _look_after(self) -> None:
        """Bring what jobs need to disk and to other members, and taken results to disk."""
        while self._spent or self._ending or any(not n.safe for needs in self._needs.values() for n in needs.values()):
            await trio.sleep(SAFE_S / 2)
            self._end_needs()
            now = time.monotonic()
            for job, needs in list(self._needs.items()):
                for id_, need in list(needs.items()):
                    if not need.safe and now - need.since_s >= SAFE_S:
                        self._make_safe(job, id_, need, now)
            while self._spent and now - next(iter(self._spent.values())) >= SPENT_S:
                key, _ = self._spent.popitem(last=False)
                self._put_away(key)
        self._watching = False

    def _make_safe(self, job: bytes, id_: ObjectId, need: Need, now: float) -> None:
        key = self.shelf.find(id_)
        item = None if key is None else self.shelf.items[key]
        if key is None or item is None:
            need.safe = True  # where it lies it is kept
            return
        if not item.settled:
            return
        need.safe = True
        self.hands.perform(self.shelf.save(key))
        if need.copies > 1:
            self.hands.perform(self.hands.objects.keep(id_, need.copies, now))

    def _put_away(self, key: Key) -> None:
        """Move a taken result to disk, where it lies until its room is needed."""
        item = self.shelf.items.get(key)
        if item is None or item.pins or item.maps:
            return
        self._leaving[key] = None
        saving = self.shelf.save(key)
        self.hands.perform(saving)
        if not saving:
            self._leave_memory(key)

    def _leave_memory(self, key: Key) -> None:
        item = self.shelf.items.get(key)
        if self._leaving.pop(key, 0) is None and item is not None:
            self.hands.perform(self.shelf.put_away(key) if item.disk else self.shelf.drop(key))


def _needy(job: bytes, *, inputs: bool) -> bytes:
    """Return under which name a job needs its results, or what its inputs name."""
    return job + INPUTS if inputs else job
