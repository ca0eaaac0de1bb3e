"""The interpreters that a node offers: one node may be fit by one of them and unfit by another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OFFERED_MAX = 16
"""Of one node; what a member says beyond that is passed over."""


def fact(path: str, version: tuple[int, ...]) -> dict[str, str]:
    """Return what a node says of one interpreter, in its fact `pythons`."""
    return {"path": path, "version": ".".join(map(str, version))}


def offered(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the facts of a node as they are for each of its interpreters; at least one.

    `python`, `minor` and `interpreter` are those of the interpreter. What it says may be anything.
    """
    pythons = facts.get("pythons")
    if not isinstance(pythons, list) or len(pythons) < 2:  # noqa: PLR2004 - with one, its facts say it all
        return [facts]
    found = [_of(facts, one) for one in pythons[:OFFERED_MAX]]
    return [one for one in found if one is not None] or [facts]


def _of(facts: Mapping[str, Any], one: Any) -> Mapping[str, Any] | None:
    match one:
        case {"path": str(path), "version": str(version)}:
            parts = version.split(".")
            if len(parts) > 1 and parts[1].isascii() and parts[1].isdigit():
                return {**facts, "python": version, "minor": int(parts[1]), "interpreter": path}
    return None
