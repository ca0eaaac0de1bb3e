"""How verbs print: what was asked for on stdout, talk on stderr; for people, or one JSON object.

Texts that came from elsewhere (names, programs, reasons) go through `plain`: a name must not move the cursor.
"""

from __future__ import annotations

import json as json_module
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from p2pgrid.core.errors import GridError, error_to_wire

V = 1
_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def emit(body: Mapping[str, Any]) -> None:
    """Print the one object of a verb."""
    click.echo(json_module.dumps({"v": V, **body}, ensure_ascii=False))


def emit_error(error: GridError, *, json: bool) -> None:
    """Print an error as one line, or as an object; both say what to do next."""
    if json:
        click.echo(json_module.dumps({"v": V, "error": error_to_wire(error)}, ensure_ascii=False), err=True)
    else:
        click.echo(f"p2pgrid: {plain(str(error))}", err=True)


def talk(text: str) -> None:
    """Say something that was not asked for."""
    click.echo(text, err=True)


def plain(text: object) -> str:
    """Return a text in one line without what a terminal would obey."""
    return "".join(char if char.isprintable() else "·" for char in str(text))


def table(rows: Sequence[Sequence[object]]) -> str:
    """Return rows as columns; the first row is the head."""
    texts = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in texts
    )


def count(number: int, noun: str) -> str:
    """Return `1 job`, `2 jobs`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def when(unix_s: float | None) -> str | None:
    """Return a time as RFC 3339 in UTC."""
    if unix_s is None:
        return None
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def ago(unix_s: float | None) -> str:
    """Return how long ago that was, in one unit."""
    if unix_s is None:
        return ""
    seconds = max(0, int(time.time() - unix_s))
    for unit, size in _UNITS:
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return "now"


def write_raw(data: bytes) -> None:
    """Write bytes to stdout as they are."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
