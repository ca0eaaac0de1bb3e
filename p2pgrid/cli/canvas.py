"""What the demo shows while it works: the picture in half-blocks on a terminal, plain lines anywhere else.

A row is shown in the colour of the node that made it; what it shows of the picture is brightness.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.style import Style

HUES = ((255, 176, 59), (64, 186, 255), (126, 224, 110), (255, 110, 150), (190, 140, 255), (80, 230, 210))
"""Colours of nodes; then again from the first."""
DARKEST = 40
FRAME_S = 0.2
COLUMNS_MAX = 100
LINES_MAX = 32
LINES_LEFT = 12
"""Lines of the terminal that are left for the acts above and below the picture."""
STEP = 10
"""Plain lines: one for each so many percent."""

Colour = tuple[int, int, int]


def hue(number: int) -> Colour:
    """Return the colour of the `number`-th node."""
    return HUES[number % len(HUES)]


def tinted(rgb: bytes, colour: Colour) -> bytes:
    """Return pixels in shades of one colour, as bright as they were."""
    shades = [
        bytes((DARKEST + level * (255 - DARKEST) // 255) * part // 255 for part in colour) for level in range(256)
    ]
    lights = ((r * 2 + g * 5 + b) // 8 for r, g, b in zip(rgb[::3], rgb[1::3], rgb[2::3], strict=True))
    return b"".join([shades[light] for light in lights])


class Progress(Protocol):
    """Shows rows as they come."""

    watched: bool
    """Whether somebody may be watching, who can be asked."""

    def add(self, y: int, rgb: bytes, node: int) -> None:
        """Show a row, made by the `node`-th."""

    def say(self, text: str) -> None:
        """Say a line without tearing the picture."""


class Lines(AbstractContextManager["Lines"]):
    """For pipes and files: a line now and then."""

    watched = False

    def __init__(self, height: int, out: TextIO, names: Sequence[str]) -> None:
        self._height = height
        self._out = out
        self._rows = dict.fromkeys(names, 0)
        self._names = names
        self._shown = 0

    def add(self, y: int, rgb: bytes, node: int) -> None:
        """Count the row."""
        self._rows[self._names[node]] += 1
        done = sum(self._rows.values())
        percent = done * 100 // self._height // STEP * STEP
        if percent > self._shown:
            self._shown = percent
            shares = ", ".join(f"{name} {rows}" for name, rows in self._rows.items() if rows)
            self.say(f"   {percent:>3} %   {done} rows   {shares}")

    def say(self, text: str) -> None:
        """Print it."""
        print(text, file=self._out, flush=True)

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        """Nothing is left open."""


class Picture(AbstractContextManager["Picture"]):
    """For terminals: the picture grows. Two pixels are one character, `▀` in two colours."""

    watched = True

    def __init__(self, width: int, height: int, console: Console) -> None:
        self._width = width
        self._height = height
        lines = max(4, min(LINES_MAX, console.height - LINES_LEFT))
        columns = min(COLUMNS_MAX, console.width - 4, 2 * lines * width // height)
        self._columns = max(columns, 1)
        self._lines = max(1, self._columns * height // width // 2)
        self._sampled = {self._row_of(line): line for line in range(2 * self._lines)}
        self._pixels: list[list[Colour] | None] = [None] * (2 * self._lines)
        self._live = Live(self, console=console, auto_refresh=False, transient=False)
        self._shown_at = 0.0

    def _row_of(self, line: int) -> int:
        return (2 * line + 1) * self._height // (4 * self._lines)

    def add(self, y: int, rgb: bytes, node: int) -> None:
        """Take the row if it is one of those shown."""
        line = self._sampled.get(y)
        if line is None:
            return
        places = [(2 * column + 1) * self._width // (2 * self._columns) * 3 for column in range(self._columns)]
        tint = tinted(b"".join(rgb[place : place + 3] for place in places), hue(node))
        self._pixels[line] = [(tint[i], tint[i + 1], tint[i + 2]) for i in range(0, len(tint), 3)]
        if time.monotonic() - self._shown_at > FRAME_S:
            self._live.refresh()
            self._shown_at = time.monotonic()

    def say(self, text: str) -> None:
        """Print it above the picture."""
        self._live.console.print(text, markup=False, highlight=False)

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._live.start(refresh=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        """Draw it a last time, and give the cursor back."""
        self._live.refresh()
        self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw."""
        return self._segments()

    def _segments(self) -> Iterator[Segment]:
        nothing: list[Colour] = [(0, 0, 0)] * self._columns
        for line in range(self._lines):
            upper, lower = self._pixels[2 * line], self._pixels[2 * line + 1]
            yield Segment("   ")
            for top, bottom in zip(upper or nothing, lower or nothing, strict=True):
                yield Segment("▀", Style(color=Color.from_rgb(*top), bgcolor=Color.from_rgb(*bottom)))
            yield Segment.line()


def canvas(width: int, height: int, out: TextIO, names: Sequence[str]) -> Lines | Picture:
    """Return what can be shown on `out`: without colours the rows could not be told apart, so lines then."""
    console = Console(file=out)
    if not console.is_terminal or console.is_dumb_terminal or console.no_color or out is not sys.stdout:
        return Lines(height, out, names)
    return Picture(width, height, console)
