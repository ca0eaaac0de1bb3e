"""How verbs print: what was asked for on stdout, talk on stderr; for people, or one JSON object.

Texts that came from elsewhere (names, programs, reasons) go through `plain`, or into JSON as escapes: a name must not
move the cursor.
"""

from __future__ import annotations

import json as json_module
import math
import re
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import cycle
from typing import Any

import click

from p2pgrid.cli.reading import number
from p2pgrid.core.errors import GridError, error_to_wire

V = 1
_COLOUR_OR_LINE = re.compile(r"(\x1b\[[0-9;]{0,32}m|[\t\r\n])")
_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def emit(body: Mapping[str, Any]) -> None:
    """Print the one object of a verb."""
    click.echo(_line({"v": V, **body}))


def emit_error(error: GridError, *, json: bool) -> None:
    """Print an error as one line, or as an object; both say what to do next."""
    if json:
        more = {"more": error.page} if error.page else {}
        click.echo(_line({"v": V, "error": {**error_to_wire(error), **more}}), err=True)
    else:
        click.echo(f"p2pgrid: {plain(str(error))}", err=True)


def _line(body: Mapping[str, Any]) -> str:
    """Return JSON in which everything a terminal would obey is an escape."""
    line = json_module.dumps(body, ensure_ascii=False)
    return line if line.isprintable() else "".join(c if c.isprintable() else json_module.dumps(c)[1:-1] for c in line)


def warn(text: object) -> None:
    """Say a warning."""
    talk(f"warning: {plain(text)}")


def talk(text: str) -> None:
    """Say something that was not asked for."""
    click.echo(text, err=True)


def plain(text: object) -> str:
    """Return a text in one line without what a terminal would obey."""
    return "".join(char if char.isprintable() else "·" for char in str(text))


def clip(text: object, width: int) -> str:
    """Return a text that takes no more room than that."""
    line = str(text)
    return line if len(line) <= width else line[: width - 1] + "…"


def table(rows: Sequence[Sequence[object]]) -> str:
    """Return rows as columns; the first row is the head."""
    texts = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in texts
    )


def count(many: float, noun: str) -> str:
    """Return `1 job`, `2 jobs`."""
    return f"{many} {noun}" if many == 1 else f"{many} {noun}s"


def when(unix_s: object) -> str | None:
    """Return a time as RFC 3339 in UTC; None if it is none."""
    try:
        found = datetime.fromtimestamp(number(unix_s, math.nan), UTC)
    except (ValueError, OverflowError, OSError):  # not a number, or not in the years 1 to 9999
        return None
    return found.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def ago(unix_s: object) -> str:
    """Return how long ago that was, in one unit; nothing if it is no time."""
    at = number(unix_s, math.nan)
    if math.isnan(at):
        return ""
    seconds = max(0, int(time.time() - at))
    for unit, size in _UNITS:
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return "now"


def write_raw(data: bytes) -> None:
    """Write bytes to stdout as they are; to a terminal only lines and colours, for other machines' tasks wrote them."""
    if sys.stdout.isatty():
        shown = _COLOUR_OR_LINE.split(data.decode(errors="replace"))
        data = "".join(part if odd else plain(part) for odd, part in zip(cycle((False, True)), shown)).encode()
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
