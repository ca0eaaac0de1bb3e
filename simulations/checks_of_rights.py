"""Checkers of who may do what: grants (I6), members whose role was taken (I8), members that may only look (I10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from p2pgrid.core import messages as m
from p2pgrid.core.chains import SUBMIT, WORK
from p2pgrid.core.ranges import RangeSet
from p2pgrid.node import events as e
from p2pgrid.node.rows import LOCAL
from p2pgrid.simulations.checking import Checker

if TYPE_CHECKING:
    from p2pgrid.simulations.node import Node
    from p2pgrid.simulations.world import World

HEARD_S = 5.0
"""So long after a role was taken from a member every other one that runs has heard of it (`faults.revoke`: 3 s)."""
WORK_GIVEN = frozenset({m.P_GRANT, m.P_HANDOVER})


class OneOwner(Checker):
    """I6: a question for work is answered by whom it was put to, and with one grant, however often it is said."""

    name = "I6 a grant has one owner"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._asked: dict[tuple[str, tuple[int, int]], tuple[int, str]] = {}
        """Which life of a node asked whom."""
        self._granted: dict[tuple[str, tuple[int, int]], tuple[bytes, RangeSet, Any]] = {}

    def said(self, node: Node, effect: e.Send) -> None:
        """Note who asks; see who answers."""
        if effect.kind == m.P_WANT:
            key = (node.name, tuple(effect.body[0]))
            if self._asked.get(key, (node.life, ""))[0] != node.life:
                self._granted.pop(key, None)  # its disk was wiped and its clock is wrong: it counts from one again
            self._asked[key] = (node.life, effect.peer)
        elif effect.kind == m.P_GRANT:
            rid, job, _, ranges, *_ = effect.body
            key = (effect.peer, tuple(rid))
            if effect.peer in self.world.forgers:
                return  # it may have asked under any number
            _, asked = self._asked.get(key, (0, ""))
            if asked != node.name:
                self.fail(f"{node.name} grants {effect.peer} under {rid} what it has asked {asked or 'nobody'}", node)
            given = RangeSet((one[0], one[1]) for one in ranges)
            holder = node.machine.leases.holders.get(effect.peer)
            was, before, then = self._granted.get(key, (job, given, holder))
            self._granted[key] = (job, given, holder)
            held = node.machine.leases.held(effect.peer, was) & before
            both = held - given if was == job else held
            if both and holder is then:  # else all that it held has lapsed meanwhile, and its keeper has forgotten it
                self.fail(f"{node.name} grants {effect.peer} {given} under {rid}, and before that {both}", node)


class Taken(Checker):
    """I8: a member from which the role `work` was taken gets no work any more, once that can have been heard."""

    name = "I8 no work without the role"

    def said(self, node: Node, effect: e.Send) -> None:
        """Look at whatever hands out work."""
        since_s = self.world.revoked.get(effect.peer)
        if since_s is not None and effect.kind in WORK_GIVEN and self.world.now > since_s + HEARD_S:
            waited_s = self.world.now - since_s
            self.fail(f"{node.name} gives work to {effect.peer}, which lost that role {waited_s:.1f} s ago", node)


class Lookers(Checker):
    """I10: what a member says that may neither submit nor work changes no record and starts nothing."""

    name = "I10 who may only look changes nothing"

    def handled(self, node: Node, peer: Node, kind: int, effects: list[Any]) -> None:
        """Look at what a frame of such a member has led to."""
        if peer.roles & (SUBMIT | WORK) or m.P_PING <= kind <= m.P_CLOCK_IS:
            return
        for effect in effects:
            match effect:
                case e.Run() | e.Kill():
                    what = "starts or ends tasks"
                case e.Store(rows=rows) if any(row.kind not in LOCAL for row in rows):
                    what = f"writes {', '.join(dict.fromkeys(row.kind for row in rows))}"
                case e.Send(kind=said) if said in WORK_GIVEN:
                    what = "hands out work"
                case _:
                    continue
            self.fail(f"{node.name} {what} at a frame {kind} of {peer.name}, which may only look", node, peer)
