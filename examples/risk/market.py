"""A model in a module of its own: shares that move together, and what is lost when they fall."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

NOTHING = 0.01


class Ruined(Exception):
    """A path on which nothing is left."""


@dataclass(frozen=True)
class Loss:
    """What one year cost."""

    path: int
    value: float

    def __lt__(self, other: Loss) -> bool:
        return self.value < other.value


class Market:
    """Shares as the file beside this module describes them; each path has random numbers of its own."""

    def __init__(self, days: int, seed: int) -> None:
        told = json.loads((Path(__file__).parent / "shares.json").read_text(encoding="utf-8"))
        self.days, self.seed = days, seed
        self.shares: dict[str, dict[str, float]] = told["shares"]
        self.common: float = told["common"]

    def year(self, path: int) -> Loss:
        """Walk one path; return what it cost."""
        draw = random.Random(self.seed * 1_000_003 + path).gauss
        logs = dict.fromkeys(self.shares, 0.0)
        for _ in range(self.days):
            together = draw(0, 1) * self.common
            for name, share in self.shares.items():
                alone = draw(0, 1) * math.sqrt(1 - self.common**2)
                logs[name] += share["drift"] / self.days + share["risk"] / math.sqrt(self.days) * (together + alone)
        value = sum(share["weight"] * math.exp(logs[name]) for name, share in self.shares.items())
        if value < NOTHING:
            raise Ruined(path)
        return Loss(path, 1 - value)
