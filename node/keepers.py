"""Keepers: which nodes should hold a job's record, and which of them serves it (DESIGN §7).

They are derived, not elected: the accepting node while it lives, and the eligible nodes closest to the job's key, six
in all, in each holder's own view. Two views that differ give two sets that overlap; the record is merged, so that costs
work and loses nothing. First in *serving rank* is the accepting node, then rendezvous decides.

Rule: this file knows names of nodes and their cards, neither records nor frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from blake3 import blake3

from p2pgrid.core.chains import SUBMIT, WORK

K = 6
KEY_BITS = 128


class Candidate(NamedTuple):
    """A node as it is known here."""

    id: str
    lives: bool
    """It is taken for alive; else it is suspected, and what it holds is still waited for."""
    eligible: bool
    drains: bool = False
    """It hands over what it has."""
    serves: bool = True
    """Its certificate lets it hand out work: it may accept jobs, and go on with those of others."""


@lru_cache(4096)
def place(node: str) -> int:
    """Return where a node stands among the keys of jobs."""
    return int.from_bytes(blake3(node.encode()).digest(KEY_BITS // 8), "big")


def _rendezvous(job: bytes, node: str) -> bytes:
    return blake3(job + node.encode()).digest(8)


def keepers(job: bytes, accepting: str, candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return who should hold the record of a job, in serving rank; those that are suspected come last."""
    key = int.from_bytes(job, "big")
    known = [one for one in candidates if not one.drains]
    first = [one for one in known if one.id == accepting and one.serves]
    others = [one for one in known if one.eligible and one.id != accepting]
    if len(others) > K - len(first):
        others.sort(key=lambda one: place(one.id) ^ key)
        del others[K - len(first) :]
    others.sort(key=lambda one: _rendezvous(job, one.id))
    return sorted([*first, *others], key=lambda one: not one.lives)


def keeps(facts: Any, *, leaf: bool, roles: int) -> bool:
    """Whether a member may be a keeper: it works, can be dialled, keeps what others give it, and is to be believed.

    A keeper speaks for the job's owner: it says what the tasks are and hands them out. So it needs the role `submit`.
    """
    works = bool(roles & WORK and roles & SUBMIT)
    said = facts if isinstance(facts, dict) else {}
    return works and not leaf and said.get("reachable") is not False and said.get("keeps") is not False
