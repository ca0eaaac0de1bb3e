"""Views that go on: redrawn in place on a terminal, else one piece of output per change. Only this file knows rich.

Rule: nothing that came from a node reaches rich but as text of `output.plain`: no markup, no control characters.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from time import monotonic, sleep
from typing import TYPE_CHECKING, TypeVar

from p2pgrid.cli.output import plain
from p2pgrid.core.errors import ExitCode

if TYPE_CHECKING:
    from rich.console import RenderableType

T = TypeVar("T")

EVERY_S = 1.0
BAR_WIDTH = 20


def on_terminal() -> bool:
    """Whether stdout can be redrawn."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def each_second(sample: Callable[[], T]) -> Iterator[T]:
    """Yield samples until Ctrl-C."""
    while True:
        began = monotonic()
        yield sample()
        sleep(max(0.0, EVERY_S - (monotonic() - began)))


def redraw(sample: Callable[[], T], draw: Callable[[T], RenderableType]) -> int:
    """Show samples in place until Ctrl-C; returns the exit code of that."""
    from rich.console import Console
    from rich.live import Live

    try:
        with Live(console=Console(), auto_refresh=False) as live:
            for one in each_second(sample):
                live.update(draw(one), refresh=True)
    except KeyboardInterrupt:
        pass
    return ExitCode.INTERRUPTED


def changes(sample: Callable[[], T], show: Callable[[T], None]) -> int:
    """Show a sample whenever it differs from the one before, until Ctrl-C; returns the exit code of that."""
    last: T | None = None
    try:
        for one in each_second(sample):
            if one != last:
                show(one)
                sys.stdout.flush()
            last = one
    except KeyboardInterrupt:
        pass
    return ExitCode.INTERRUPTED


def grid_of(rows: Sequence[Sequence[object]], shrinks: Sequence[str] = ()) -> RenderableType:
    """Return a table; the first row is the head. Where there is too little room the columns in `shrinks` lose it."""
    from rich.table import Table
    from rich.text import Text

    texts = [[plain(cell) for cell in row] for row in rows]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in zip(*texts, strict=True):
        width = None if column[0] in shrinks else max(map(len, column))
        # rich takes room only from columns that may wrap, so the cells say that they do not.
        table.add_column(Text(column[0]), no_wrap=column[0] not in shrinks, min_width=width)
    for row in texts[1:]:
        table.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in row))
    return table


def stacked(parts: Sequence[RenderableType]) -> RenderableType:
    """Return one below the other."""
    from rich.console import Group

    return Group(*parts)


def line(words: str) -> RenderableType:
    """Return a line of text."""
    from rich.text import Text

    return Text(plain(words), no_wrap=True, overflow="ellipsis")


def bar(done: float, total: float | None) -> str:
    """Return how far something is, in characters."""
    if not total:
        return ""
    share = min(1.0, max(0.0, done / total))
    full = int(share * BAR_WIDTH)
    return f"{'█' * full}{'░' * (BAR_WIDTH - full)} {share:4.0%}"
