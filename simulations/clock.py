"""A heap and a seed: virtual time, chance, and the log of what happened, as a hash.

Every choice comes from a generator named after what it is for, all drawn from one seed: what one node draws changes
nothing for another. The hash over all steps is the same in every process that runs the same seed, or something leaked
in that does not come from it (the order of a set, a clock, an address in memory).
"""

from __future__ import annotations

import heapq
import random
import struct
from collections.abc import Callable
from hashlib import sha256
from typing import Any

UNIX_0 = 1_800_000_000.0
"""Unix time at virtual second 0."""
_STEPS_PACKED = 2048
_STEPS = struct.Struct("<" + "dIII" * _STEPS_PACKED)
_LINE = 4
"""Numbers in a line of the log: when, who, what, and how that went."""
AT_ONCE_MAX = 100_000
"""Steps without time going on: whoever sets a timer for now, each time it fires, would go on for ever."""


class Standstill(Exception):
    """Time does not go on."""


class Clock:
    """Virtual time in seconds from 0, and what happens next."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = 0.0
        self.steps = 0
        self.check: Callable[[], None] | None = None
        """Called every `check_every` steps."""
        self.check_every = 64
        self._heap: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._count = 0
        self._log: list[float] = []
        """Numbers that are not in the hash yet."""
        self._hash = sha256()

    def rng(self, *names: object) -> random.Random:
        """Return the generator of that name."""
        return random.Random(" ".join(map(str, (self.seed, *names))))

    def at(self, delay_s: float, action: Callable[..., Any], *arguments: Any) -> None:
        """Do something that many seconds from now; what is due at one moment is done in the order it was asked for."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._count, action, arguments))

    def run(self, until: Callable[[], bool] | None = None, limit_s: float = 60.0, *, look_s: float = 0.0) -> bool:
        """Let time pass until a condition holds, or for `limit_s`; return whether it holds.

        It is asked after every step, or, if asking takes long, once per `look_s`.
        """
        heap, pop = self._heap, heapq.heappop
        end_s, ask_s = self.now + limit_s, self.now
        since_s, at_once = self.now, 0
        every, left = self.check_every, self.check_every - self.steps % self.check_every
        while heap and heap[0][0] <= end_s:
            if until is not None and self.now >= ask_s:
                if until():
                    return True
                ask_s = self.now + look_s
            self.now, _, action, arguments = pop(heap)
            action(*arguments)
            self.steps += 1
            at_once += 1
            if self.now > since_s:
                since_s, at_once = self.now, 0
            elif at_once > AT_ONCE_MAX:
                raise Standstill(f"{AT_ONCE_MAX} steps at {self.now:.4f} s")
            left -= 1
            if not left:
                left = every
                if self.check is not None:
                    self.check()
        if until is not None and until():
            return True
        self.now = max(self.now, end_s)
        return until is None

    def note(self, who: int, what: int, more: int) -> None:
        """Write a line of the log."""
        log = self._log
        log += (self.now, who, what, more & 0xFFFFFFFF)
        if len(log) >= _LINE * _STEPS_PACKED:
            self._hash.update(_STEPS.pack(*log))
            log.clear()

    def write(self, data: bytes) -> None:
        """Add bytes to the log."""
        self._settle()
        self._hash.update(data)

    def digest(self) -> str:
        """Return the hash of all that was logged so far, as hexadecimal."""
        self._settle()
        return self._hash.copy().hexdigest()

    def _settle(self) -> None:
        self._hash.update(struct.pack("<" + "dIII" * (len(self._log) // _LINE), *self._log))
        self._log.clear()
