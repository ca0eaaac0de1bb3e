"""What a node answered, read with care: much of it came from other members, who may lie or be of a later version.

Rule: these functions raise nothing; what is not of the kind that is wanted reads as if it were absent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

DEPTH_MAX = 16


def text(value: object, default: str = "") -> str:
    """Return a text."""
    return value if isinstance(value, str) else default


def number(value: object, default: float = 0) -> float:
    """Return a number that is finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return default
    return value


def whole(value: object, default: int = 0) -> int:
    """Return a whole number."""
    return int(number(value, default))


def mapping(value: object) -> dict[str, Any]:
    """Return an object."""
    return value if isinstance(value, dict) else {}


def rows(value: object) -> list[dict[str, Any]]:
    """Return the objects in a list."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list | tuple) else []


def texts(value: object) -> list[str]:
    """Return the texts in a list."""
    return [one for one in value if isinstance(one, str)] if isinstance(value, list | tuple) else []


def jsonable(value: object, depth: int = DEPTH_MAX) -> Any:
    """Return what JSON can say of a value: bytes as hexadecimal digits, what is no number as null."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case bytes():
            return value.hex()
        case _ if depth == 0:
            return None
        case Mapping():
            return {str(key): jsonable(one, depth - 1) for key, one in value.items()}
        case list() | tuple():
            return [jsonable(one, depth - 1) for one in value]
    return str(value)
