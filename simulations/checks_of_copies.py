"""Checkers of copies of records.

Nobody drops one that others lack (I9). In the end there are as many as there should be (L4), all alike (L2), every
value can be read from two disks (L5), and what was forgotten is nowhere (L7).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from p2pgrid.core.chains import SUBMIT, WORK
from p2pgrid.node.keepers import K, keepers
from p2pgrid.node.rows import LOCAL
from p2pgrid.simulations.checking import Checker
from p2pgrid.simulations.world import Violation

if TYPE_CHECKING:
    from p2pgrid.node import events as e
    from p2pgrid.node.kept import Kept
    from p2pgrid.simulations.node import Node
    from p2pgrid.simulations.world import World

LOOK_S = 0.5
READABLE = 2
"""So many disks a value should be on, where there are that many keepers."""
SETTLED_S = 1.0
"""Who lives for less may have lost its disk, and not everybody has heard that it was away."""
OF_OPEN_JOBS = frozenset({"code", "input", "refs", "attempt", "try"})
"""Rows that go when a job has ended."""


class Last(Checker):
    """I9: a copy is dropped only when all who should have one, and live, have all of it; what is forgotten may go."""

    name = "I9 nobody drops what others lack"

    def storing(self, node: Node, effect: e.Store) -> None:
        """A node asks for a commit: see what that deletes."""
        for row in effect.rows:
            if row.kind == "*" and row.job not in self.world.forgotten:
                self._dropped(node, row.job)

    def _dropped(self, node: Node, job: bytes) -> None:
        mine = {key[1:] for key in node.disk.rows if key[0] == job and key[1] not in LOCAL}
        for one in self._keepers(node, job):
            theirs = {key[1:] for key in one.disk.rows if key[0] == job}
            ended = any(kind == "state" for kind, _ in theirs)
            lacks = sorted(f"{kind} {key.hex()}" for kind, key in mine - theirs if not (ended and kind in OF_OPEN_JOBS))
            if lacks:
                what = f"{node.name} dropped {job.hex()[:6]} before {one.name} had {len(lacks)} of its rows: {lacks[0]}"
                self.fail(what, node, one)

    def _keepers(self, node: Node, job: bytes) -> list[Node]:
        """Return who should have the record, as the node sees it, and has lived for a while."""
        nodes = self.world.nodes
        copies = (one.machine.keeping.jobs.get(job) for one in nodes.values() if one.alive)
        accepted = next((copy.accepted for copy in copies if copy is not None), "")
        group = keepers(job, accepted, node.machine.neighbours.candidates())
        living = [nodes[one.id] for one in group if one.lives and one.id != node.name and nodes[one.id].alive]
        # Who has just said that it keeps no more has let go itself, and not everybody has heard.
        return [one for one in living if one.began_s < self.world.now - SETTLED_S and _may_keep(one)]


# ---- once the faults have ended -------------------------------------------------------------------------------------


def must_be_copied(world: World, limit_s: float) -> None:
    """L2, L4, L5: records have all their copies, alike, and on disk."""
    if world.run(lambda: wrong_with_copies(world) is None, limit_s, look_s=LOOK_S):
        return
    found = wrong_with_copies(world)
    if found is not None:
        raise Violation(*found)


def wrong_with_copies(world: World) -> tuple[str, str, list[Node]] | None:
    """Return the invariant that does not hold yet, what of it, and the nodes concerned."""
    alive = [node for node in world.nodes.values() if node.alive]
    able = [node for node in alive if _may_keep(node)]
    for one in world.jobs:
        if one.forgotten:
            has = [node for node in alive if one.job in node.machine.keeping.jobs]
            if has:
                what = f"{one.job.hex()[:6]} is at {', '.join(node.name for node in has)} again"
                return "L7 what was forgotten stays so", what, has
    jobs: dict[bytes, dict[str, Kept]] = {}
    for node in alive:
        for job, kept in node.machine.keeping.jobs.items():
            jobs.setdefault(job, {})[node.name] = kept
    for job, copies in jobs.items():
        name, at = job.hex()[:6], ", ".join(copies)
        nodes = [world.nodes[one] for one in copies]
        least = min(K, len(able))
        accepted = next(iter(copies.values())).accepted
        extra = accepted in copies and world.nodes[accepted] not in able
        if not least <= len(copies) <= max(least + extra, 1):
            return "L4 as many copies as there should be", f"{name} is at {at}; {least} nodes should have it", nodes
        digests = {one: kept.rows.digest() for one, kept in copies.items()}
        if len(set(digests.values())) > 1:
            told = ", ".join(
                f"{one} {digest.hex()[:6]} ({len(copies[one].rows)} rows)" for one, digest in digests.items()
            )
            return "L2 copies are alike", f"{name}: {told}", nodes
        for key in _values(next(iter(copies.values()))):
            disks = sum((job, *key) in node.disk.rows and (job, *key) not in node.disk.damaged for node in nodes)
            if disks < min(READABLE, len(nodes)):
                what = f"{key[0]} {key[1].hex()} of {name} can be read at {disks} of {len(nodes)} nodes that keep it"
                return "L5 every value is on two disks", what, nodes
    return None


def _may_keep(node: Node) -> bool:
    facts: dict[str, Any] = {} if node.card is None else dict(node.card.facts)
    is_leaf = node.more.get("preset") == "edge"
    return bool(node.roles & WORK and node.roles & SUBMIT) and not is_leaf and facts.get("keeps") is not False


def _values(kept: Kept) -> list[tuple[str, bytes]]:
    return [(kind, key) for kind in ("spec", "code", "input", "result") for key in kept.rows.keys_of(kind)]
