"""A disk that keeps what was synced, and of what was not at most the beginning.

Commits end one after the other, as a journal's do. A crash loses those under way; with `torn` some of the first of them
are on disk although nobody was told. `full` fails every commit, `slow_s` delays them, `damage` makes rows unreadable.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from p2pgrid.node import events as e

Key = tuple[bytes, str, bytes]
SYNC_S = (0.002, 0.02)
READ_S = (0.0005, 0.004)


@dataclass
class Disk:
    """What one node has on disk; it outlives the node's lives."""

    rng: random.Random
    rows: dict[Key, e.Row] = field(default_factory=dict)
    incarnation: int = 0
    full: bool = False
    slow_s: float = 0.0
    damaged: dict[Key, None] = field(default_factory=dict)
    pending: deque[e.Store] = field(default_factory=deque)
    """Commits under way, oldest first."""
    _free_s: float = 0.0

    def begin(self, wall_s: float) -> int:
        """Start a life; return its incarnation, which is on disk already."""
        self.pending.clear()
        self._free_s = 0.0
        self.incarnation = max(self.incarnation + 1, int(wall_s))
        return self.incarnation

    def loaded(self) -> list[e.Row]:
        """Return the rows as a start reads them."""
        return [row._replace(value=b"") if row.kind in e.HEAVY else row for row in self.rows.values()]

    def store(self, effect: e.Store, now: float) -> float:
        """Begin a commit; return when it ends."""
        self.pending.append(effect)
        self._free_s = max(self._free_s, now + self.rng.uniform(*SYNC_S) + self.slow_s)
        return self._free_s

    def commit(self) -> tuple[e.Store, bool]:
        """End the oldest commit; return it, and whether it is on disk."""
        effect = self.pending.popleft()
        if not self.full:
            self._write(effect.rows)
        return effect, not self.full

    def _write(self, rows: Iterable[e.Row]) -> None:
        for row in rows:
            if row.kind == "*":
                self.rows = {key: kept for key, kept in self.rows.items() if key[0] != row.job}
            elif row.value is None:
                self.rows.pop((row.job, row.kind, row.key), None)
            else:
                self.rows[row.job, row.kind, row.key] = row
                self.damaged.pop((row.job, row.kind, row.key), None)

    def fetch(self, keys: Sequence[Key]) -> list[e.Row]:
        """Return the rows asked for, those under way included; damaged ones are not found."""
        under_way = {(r.job, r.kind, r.key): r for effect in self.pending for r in effect.rows}
        found = [under_way.get(key) or self.rows.get(key) for key in keys if key not in self.damaged]
        return [row for row in found if row is not None]

    def crash(self, *, torn: bool) -> None:
        """Lose what is under way; if `torn`, some of it was written after all."""
        if torn and self.pending and not self.full:
            for effect in list(self.pending)[: self.rng.randrange(len(self.pending) + 1)]:
                self._write(effect.rows)
        self.pending.clear()

    def copy(self) -> tuple[dict[Key, e.Row], int]:
        """Return what an image of this disk would hold."""
        return dict(self.rows), self.incarnation

    def restore(self, image: tuple[dict[Key, e.Row], int]) -> None:
        """Put an old image back."""
        self.rows, self.incarnation = dict(image[0]), image[1]

    def damage(self, share: float, kinds: frozenset[str] = e.HEAVY) -> int:
        """Make a share of the rows of these kinds unreadable; return how many."""
        hit = [key for key in self.rows if key[1] in kinds and self.rng.random() < share]
        self.damaged.update(dict.fromkeys(hit))
        return len(hit)
