"""Shares that move together, and what is lost when they fall."""

from __future__ import annotations

import functools
import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@functools.cache
def described() -> Any:
    """Return what the file beside this module says, read once per process."""
    return json.loads((Path(__file__).parent / "shares.json").read_text(encoding="utf-8"))


class Market:
    """Shares as the file describes them; each path has random numbers of its own."""

    def __init__(self, days: int, seed: int) -> None:
        self.days, self.seed = days, seed

    def year(self, path: int) -> Loss:
        """Walk one path; return what it cost."""
        shares: dict[str, dict[str, float]] = described()["shares"]
        common: float = described()["common"]
        draw = random.Random(self.seed * 1_000_003 + path).gauss
        logs = dict.fromkeys(shares, 0.0)
        for _ in range(self.days):
            together = draw(0, 1) * common
            for name, share in shares.items():
                alone = draw(0, 1) * math.sqrt(1 - common**2)
                logs[name] += share["drift"] / self.days + share["risk"] / math.sqrt(self.days) * (together + alone)
        value = sum(share["weight"] * math.exp(logs[name]) for name, share in shares.items())
        if value < NOTHING:
            raise Ruined(path)
        return Loss(path, 1 - value)
