"""Whereabouts: which node has which ranges of a job, and how they came there, for people who ask.

Read-only views of the machine, like `answers`; ranges are never taken apart into tasks, of which there may be millions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from p2pgrid.core.ranges import RangeSet
from p2pgrid.node.kept import Kept
from p2pgrid.node.moves import Move

if TYPE_CHECKING:
    from p2pgrid.node.machine import Machine

RANGES_SHOWN = 20
"""Ranges that `explain JOB` names."""


def name_of(machine: Machine, node: str) -> str:
    """Return the name of a node as people know it."""
    return machine.config.name if node == machine.config.node_id else machine.parts.name_of(node)


def how(machine: Machine, move: Move, count: int, now: float) -> str:
    """Return since when `count` tasks are where they are, and why, as the end of a line."""
    held = f", held there for {now - move.since_s:.0f} s"
    if move.source:
        said = "a second copy: slow at" if move.is_copy else "stolen from"
        return f"{held}, {said} {name_of(machine, move.source)}"
    if not move.ahead:
        return f"{held}, granted to a free slot"
    return f"{held}, prefetched" if move.ahead >= min(count, move.spans.size) else f"{held}, part of it prefetched"


def newest(machine: Machine, kept: Kept, index: int, holders: Sequence[str]) -> str:
    """Return to which of these a task came last; empty if there is none."""
    moves = [(move, peer) for peer in holders if (move := machine.parts.moves.last(kept.id, index, peer)) is not None]
    return max(moves, key=lambda one: (one[0].since_s, one[0].source), default=(None, next(iter(holders), "")))[1]


def came(machine: Machine, kept: Kept, held: Mapping[str, RangeSet], now: float) -> dict[int, str]:
    """Return by task how it came to the node that has it, as far as that is known."""
    return {
        index: how(machine, move, 1, now)
        for node, spans in held.items()
        for part, move in _moved(machine, kept, node, spans)
        for lo, hi in part
        for index in range(lo, hi)
    }


def stolen(machine: Machine, kept: Kept, done: Mapping[str, RangeSet]) -> dict[int, str]:
    """Return by task that is over from whom it was taken, for those that were; `done` is by name of the node."""
    moves = machine.parts.moves
    return {
        index: f", stolen from {name_of(machine, move.source)}"
        for node in moves.counts(kept.id)
        for part, move in _moved(machine, kept, node, done.get(name_of(machine, node), RangeSet()))
        if move.source and not move.is_copy
        for lo, hi in part
        for index in range(lo, hi)
    }


def lines(machine: Machine, kept: Kept, now: float) -> list[str]:
    """Return a line for each range that is with a node and not over, up to RANGES_SHOWN of them."""
    found: list[tuple[int, int, str]] = []
    for lo, hi, where in sorted(_ranges(machine, kept, now)):
        if found and found[-1][1:] == (lo, where):  # they came at the same time, by several grants
            found[-1] = (found[-1][0], hi, where)
        else:
            found.append((lo, hi, where))
    shown = [f"{_named(lo, hi)}: at {where}" for lo, hi, where in islice(found, RANGES_SHOWN)]
    if len(found) > RANGES_SHOWN:
        lo, _, _ = found[RANGES_SHOWN]
        shown.append(
            f"and {len(found) - RANGES_SHOWN} ranges more: p2pgrid explain {kept.name}/{lo}-{found[-1][1] - 1}"
        )
    return shown


def grouped(told: list[tuple[int, str]]) -> Iterator[str]:
    """Yield a line for each row of neighbouring tasks of which the same is told."""
    at = 0
    while at < len(told):
        end = at + 1
        while end < len(told) and told[end] == (told[end - 1][0] + 1, told[at][1]):
            end += 1
        yield f"{_named(told[at][0], told[end - 1][0] + 1)}: {told[at][1]}"
        at = end


def _named(lo: int, hi: int) -> str:
    return f"task {lo}" if hi == lo + 1 else f"tasks {lo}-{hi - 1}"


def _ranges(machine: Machine, kept: Kept, now: float) -> Iterator[tuple[int, int, str]]:
    open_ones = (kept.known - kept.done) - kept.cancelled
    holders = [(machine.config.node_id, machine.running.spans(kept.id) & open_ones)]
    holders += machine.leases.covering(kept.id, open_ones)
    moved = [(move, part) for node, held in holders for part, move in _moved(machine, kept, node, held)]
    told = RangeSet()
    for move, part in sorted(moved, key=lambda one: (-one[0].since_s, not one[0].source)):
        # Whoever handed tasks over goes on naming them for a moment: they are where they came to last.
        for lo, hi in part if move.is_copy else part - told:
            yield lo, hi, name_of(machine, move.peer) + how(machine, move, hi - lo, now)
        if not move.is_copy:
            told.update(part)
    for node, held in holders:
        for lo, hi in held - told:
            yield lo, hi, name_of(machine, node)


def _moved(machine: Machine, kept: Kept, node: str, spans: RangeSet) -> Iterator[tuple[RangeSet, Move]]:
    """Yield which of these tasks came to a node by which move, its newest."""
    rest = spans
    for move in machine.parts.moves.newest(kept.id, node):
        if not rest:
            return
        part = rest & move.spans
        if part:
            rest = rest - part
            yield part, move
