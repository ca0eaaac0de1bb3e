"""Locating: who keeps a job that neither this node has nor those it is connected with; in large grids (DESIGN §7).

Up to `connected_max` members everybody is connected with everybody, and whoever looks for a job asks all. Above that a
node does three things: it keeps connections with the other keepers of its jobs; it says in the DHT who keeps the jobs
that it serves, the newest ones, and says so again when that changes (the DHT renews it every five minutes and lets it
end after fifteen); and what nobody near knows it looks for at the node that accepted it by the list of jobs, at those
that should keep it by its own view, and at those that the DHT names. With these it connects, and asks as ever.

Rule: where a job is said to be is a hint. A wrong one costs a connection for a while, and finds nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from p2pgrid.node import events as e
from p2pgrid.node.kept import Job, Kept
from p2pgrid.node.parts import Handler, Parts

TIMER = "locating"
BEAT_S = 15.0
"""How often it is looked whether something else is to be said."""
SOON_S = 2.0
SEEK_S = 10.0
"""For the DHT to answer, and for those that it names to be connected and asked."""
REST_S = 30.0
"""For so long what was looked for in vain is not looked for again."""
SOUGHT_MAX = 256
PUBLISHED_MAX = 512
"""Jobs of this node that are in the DHT; whoever stores it takes 1,024 values of a member."""
KEEPERS_MAX = 16
"""Of those that a record names."""


@dataclass(slots=True)
class Search:
    """A job that is looked for."""

    until_s: float
    hints: set[str]
    """Who may have it, and was not connected when that was heard."""
    answered: bool = False
    """Whether the DHT has said what it knows."""


class Locating(Handler):
    """Where jobs are, beyond those with whom this node is connected."""

    def __init__(
        self, parts: Parts, is_large: Callable[[], bool], meet: Callable[[str, float], bool],
        likely: Callable[[Job], Iterable[str]], others: Callable[[Kept], Sequence[str]],
    ) -> None:  # fmt: skip
        """Decide by what the neighbours and the replicas know.

        Args:
            parts: of the machine.
            is_large: whether there are live members that this node does not want to be connected with.
            meet: has a member connected for a while; False: it is not known to live.
            likely: who may have a job by the list of jobs and by the view.
            others: the other keepers of a job of this node.
        """
        super().__init__(parts)
        self._is_large = is_large
        self._meet = meet
        self._likely = likely
        self._others = others
        self.place: Callable[[Job, str], None] = lambda *_: None
        """Hears who may have a job."""
        self.in_vain: Callable[[Job, float], None] = lambda *_: None
        """Hears that nobody is to be asked any more."""
        self._grid = b""
        self._published: dict[Job, tuple[str, ...]] = {}
        self._sought: OrderedDict[Job, Search] = OrderedDict()

    def belongs(self, event: e.Belongs) -> None:
        """In another grid there is another DHT, which knows nothing."""
        if event.grid != self._grid:
            self._grid = event.grid
            self._published.clear()
            self._sought.clear()

    # ---- what this node says -----------------------------------------------------------------------------------------

    def regrouped(self, now: float) -> None:
        """Members came or went: keepers may be others, or the grid larger than before."""
        if self._is_large():
            self.parts.timer_unless_set((TIMER,), now + SOON_S)

    def tick(self, now: float) -> None:
        """Connect with the other keepers, and say in the DHT what has changed."""
        said: dict[Job, tuple[str, ...]] = {}
        if self._is_large():
            self.parts.timer((TIMER,), now + BEAT_S)
            for kept in self.keeping.jobs.values():
                for peer in self._others(kept):
                    if peer not in self.peers:
                        self._meet(peer, now)
            ours = sorted((kept for kept in self.keeping.jobs.values() if kept.serving), key=_age)[-PUBLISHED_MAX:]
            said = {kept.id: (self.config.node_id, *sorted(self._others(kept))) for kept in ours}
        for job in [job for job in self._published if job not in said]:
            self.out.append(e.Publish(job, ()))
        for job, keepers in said.items():
            if self._published.get(job) != keepers:
                self.out.append(e.Publish(job, keepers[:KEEPERS_MAX]))
        self._published = said

    # ---- what is looked for here -------------------------------------------------------------------------------------

    def seeks(self, job: Job, now: float) -> bool:
        """Look for a job, unless that was done; return whether there is hope. Nobody who is connected has it."""
        search = self._sought.get(job)
        if search is not None and now < search.until_s + REST_S:
            if search.answered and search.hints <= self.peers.keys():
                search.until_s = min(search.until_s, now)
            return now < search.until_s
        if not self._is_large():
            return False
        while self._sought and (len(self._sought) >= SOUGHT_MAX or self._is_over(next(iter(self._sought)), now)):
            self._sought.popitem(last=False)
        self._sought.pop(job, None)
        search = self._sought[job] = Search(now + SEEK_S, set())
        self._hint(job, search, self._likely(job), now)
        self.out.append(e.Locate(job))
        return True

    def _is_over(self, job: Job, now: float) -> bool:
        return self._sought[job].until_s + REST_S <= now

    def _hint(self, job: Job, search: Search, nodes: Iterable[str], now: float) -> None:
        for node in nodes:
            if node not in self.peers and node != self.config.node_id and self._meet(node, now):
                search.hints.add(node)
                self.place(job, node)

    def located(self, event: e.Located, now: float) -> None:
        """The DHT has said who keeps it."""
        search = self._sought.get(event.job)
        if search is None:
            return
        search.answered = True
        self._hint(event.job, search, event.keepers[:KEEPERS_MAX], now)
        if search.hints <= self.peers.keys() and now < search.until_s:  # these are being asked, or were
            search.until_s = now
            self.in_vain(event.job, now)


def _age(kept: Kept) -> tuple[float, Job]:
    return kept.spec.submitted_s, kept.id
