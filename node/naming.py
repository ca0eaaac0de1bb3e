"""Naming: large results between their end and the record: until they have an id, and until they are here.

A worker knows no hash. What it wrote has a key, and its own node's readers are shown it under that at once: they map
it. Recorded, written down or sent to another node it is once the shell has found out its id, some milliseconds later;
until then the task is neither running nor done, and the pool does not have it.

A large value that another node's worker returned is taken in once it has been fetched: if its node vanishes before,
its claim lapses and the task runs again, as if it had not ended. What is to be read as a Ref stays where it is, and so
does what there is no room for here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from p2pgrid.core.errors import PeerError
from p2pgrid.core.large import LARGE, Large, read_large
from p2pgrid.node import events as e
from p2pgrid.node.kept import Kept, Promise, Source
from p2pgrid.node.outcomes import Outcomes
from p2pgrid.node.parts import Handler, Parts
from p2pgrid.node.pool import Taken


@dataclass(frozen=True, slots=True)
class Unnamed:
    """A result that has no id yet."""

    taken: Taken
    lo: int
    large: Large


Batch = tuple[bytes, str, int, int]
"""Job, node, incarnation and number: names one lot of results."""


@dataclass(slots=True)
class Coming:
    """Results of another node with large values that are not here yet."""

    job: bytes
    outcomes: list[e.Outcome]
    attempt: int
    source: Source
    promises: Sequence[Promise]
    missing: set[bytes]
    here: set[bytes] = field(default_factory=set)


class Naming(Handler):
    """All results that are objects, as long as they cannot be recorded."""

    def __init__(self, parts: Parts, outcomes: Outcomes) -> None:
        super().__init__(parts)
        self.outcomes = outcomes
        self._unnamed: dict[bytes, Unnamed] = {}
        self._coming: dict[Batch, Coming] = {}

    @property
    def busy(self) -> bool:
        """Whether results wait for their names."""
        return bool(self._unnamed)

    def sorted_out(self, taken: Taken, outcomes: Sequence[e.Outcome]) -> Sequence[e.Outcome]:
        """Return the outcomes that can be taken in at once; the others wait for their names."""
        for outcome in outcomes:  # not `any`: it runs for every result
            if outcome.shape == LARGE:
                return self._unnamed_out(taken, outcomes)
        return outcomes

    def _unnamed_out(self, taken: Taken, outcomes: Sequence[e.Outcome]) -> Sequence[e.Outcome]:
        rest = []
        for outcome in outcomes:
            if outcome.shape != LARGE:
                rest.append(outcome)
                continue
            try:
                large = read_large(outcome.data)
            except PeerError:  # a task that tampers with its worker's pipe: as if it had not run
                self.pool.put_back(taken, self.outcomes.wanted(taken.work, [(outcome.lo, outcome.hi)]))
                self.parts.hungry = True
                continue
            self._unnamed[large.name] = Unnamed(taken, outcome.lo, large)
            self._begin(taken, outcome, large)
        return rest

    def _begin(self, taken: Taken, outcome: e.Outcome, large: Large) -> None:
        work = taken.work
        kept = self.keeping.jobs.get(work.job) if work.keeper is None else None
        detached = kept is not None and kept.spec.detach
        # First: what is shown has to be whole.
        self.out.append(e.Name(large.name, work.job, outcome.lo, work.keeper is None, detached))
        if kept is not None and not large.is_ref:
            self.out += self.keeping.show(kept, outcome, taken.attempt)

    def named(self, event: e.Named, now: float) -> None:
        """Take in a result as any other, now that it has an id."""
        unnamed = self._unnamed.pop(event.key, None)
        if unnamed is None:
            return
        taken, lo, large = unnamed.taken, unnamed.lo, unnamed.large
        work = taken.work
        if event.id is None:
            self.pool.put_back(taken, self.outcomes.wanted(work, [(lo, lo + 1)]))
            return
        large = large._replace(name=event.id, holders=(self.config.node_id,))
        outcome = e.Outcome(lo, lo + 1, LARGE, large.packed())
        if work.keeper is not None:
            self.outcomes.owe(work, [outcome], taken.attempt, now)
        else:
            self.outcomes.report(work, [outcome], taken.attempt)

    # ---- results of other nodes --------------------------------------------------------------------------------------

    def is_coming(self, kept: Kept, source: Source) -> bool:
        """Whether these results were told before, and wait for their values."""
        return _batch(kept, source) in self._coming

    def accept(
        self, kept: Kept, outcomes: list[e.Outcome], attempt: int, source: Source, promises: Sequence[Promise]
    ) -> None:
        """Take in results of another node, once their large values are here."""
        missing: dict[bytes, None] = {}
        for lo, hi, shape, data in outcomes:
            if shape == LARGE and not kept.ended and kept.done.missing(lo, hi):
                large = read_large(data)
                if not large.is_ref:
                    missing[large.name] = None
        if not missing:
            self.outcomes.accept(kept, outcomes, attempt, source, promises)
            return
        self._coming[_batch(kept, source)] = Coming(kept.id, outcomes, attempt, source, promises, set(missing))
        self.out += [e.Pull(id_, [source.node]) for id_ in missing]

    def pulled(self, event: e.Pulled, now: float) -> None:
        """An object is here, or not to be had: then it is told again, if its node still has it."""
        for batch, coming in list(self._coming.items()):
            if event.id not in coming.missing:
                continue
            coming.missing.discard(event.id)
            if event.good:
                coming.here.add(event.id)
            there = event.good or event.full
            if there and coming.missing:
                continue
            del self._coming[batch]
            kept = self.keeping.jobs.get(coming.job)
            if kept is not None and there:
                outcomes = [self._at_home(outcome, coming.here) for outcome in coming.outcomes]
                self.outcomes.accept(kept, outcomes, coming.attempt, coming.source, coming.promises)

    def _at_home(self, outcome: e.Outcome, here: set[bytes]) -> e.Outcome:
        """Return an outcome; if its value is large and was fetched, it says so."""
        if outcome.shape != LARGE:
            return outcome
        large = read_large(outcome.data)
        if large.name not in here:
            return outcome
        return outcome._replace(data=large._replace(holders=(self.config.node_id,)).packed())


def _batch(kept: Kept, source: Source) -> Batch:
    return kept.id, source.node, source.incarnation, source.number
