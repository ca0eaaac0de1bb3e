"""The small grammar of `where=` (stub: signatures are final)."""

from collections.abc import Mapping
from dataclasses import dataclass


class WhereError(ValueError):
    """The text is not in the grammar; the message marks the column."""


@dataclass(frozen=True)
class Where:
    """A parsed condition and the text it came from."""

    text: str


def parse(text: str) -> Where:
    """Parse a condition; WhereError says where and why not."""
    raise NotImplementedError


def evaluate(where: Where, facts: Mapping[str, object]) -> bool:
    """Say whether the facts satisfy the condition; never an exception."""
    raise NotImplementedError


def clauses(where: Where) -> tuple[Where, ...]:
    """Split at the top-level `and`s; each clause is a `Where` with its own text."""
    raise NotImplementedError
