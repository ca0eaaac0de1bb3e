"""Fitness: which nodes may run the tasks of a lane, and in words why none may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from p2pgrid.core.chains import WORK
from p2pgrid.core.interpreters import offered
from p2pgrid.core.options import unmet, why_nowhere
from p2pgrid.node.parts import Parts
from p2pgrid.node.pool import Lane


class Fitness:
    """What this node and the members it knows can run."""

    def __init__(self, parts: Parts) -> None:
        self.config = parts.config
        self.peers = parts.peers
        self.parts = parts
        self._here = offered({**parts.config.facts, "minor": parts.config.python[1]})

    def fits(self, lane: Lane, peer: str) -> bool:
        if not self.parts.may(peer, WORK):
            return False
        facts = self.peers.get(peer, {})
        return peer not in lane.unfit and any(not self._lacks(lane, one) for one in offered(facts))

    def eligible(self, lane: Lane) -> bool:
        if lane.fits is None:
            able = [i for i, facts in enumerate(self._here) if i not in lane.cannot and not self._lacks(lane, facts)]
            lane.pythons = None if len(able) == len(self._here) else tuple(able)
            lane.fits = bool(able)
        return lane.fits and self.config.node_id not in lane.unfit

    def somewhere(self, lane: Lane) -> bool:
        """Whether any member known now may run the tasks of a lane."""
        if self.eligible(lane):
            return True
        return any(self.fits(lane, peer) for peer in self.peers)

    def why(self, lane: Lane) -> str:
        """Return, clause by clause, why no node may run the tasks of a lane."""
        workers = [facts for peer, facts in self.peers.items() if self.parts.may(peer, WORK)]
        everyone = [self._nearest(lane, offers) for offers in (self._here, *map(offered, workers))]
        text = why_nowhere(lane.options, everyone)
        if lane.minor is not None and lane.minor != everyone[0].get("minor"):
            having = sum(facts.get("minor") == lane.minor for facts in everyone[1:])
            need = f"Python 3.{lane.minor} for its function ({having or 'none'} of {len(everyone)} has it)"
            text = f"{text}; {need}" if ":" in text else f"{having} of {len(everyone)} nodes: {need}"
        return text

    @classmethod
    def _nearest(cls, lane: Lane, offers: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """Return the facts of a node by the interpreter that lacks least."""

        def lacks(facts: Mapping[str, Any]) -> tuple[int, int]:
            wanting = unmet(lane.options.resources, lane.options.where, facts)
            return len(wanting), len(cls._lacks(lane, facts))

        return min(offers, key=lacks)

    @staticmethod
    def _lacks(lane: Lane, facts: Mapping[str, Any]) -> list[str]:
        missing = unmet(lane.options.resources, lane.options.where, facts)
        minor = facts.get("minor")
        if lane.minor is not None and minor is not None and lane.minor != minor:
            missing.append(f"Python 3.{lane.minor} for a function pickled there (workers here run 3.{minor})")
        return missing
