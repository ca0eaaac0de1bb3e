"""`p2pgrid sim plot`: a picture of one seed, drawn by matplotlib, which is an optional extra."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2pgrid.core.errors import GridError

if TYPE_CHECKING:
    from p2pgrid.simulations.filming import Film
    from p2pgrid.simulations.running import Outcome

WIDE_IN, DPI = 12.0, 120
ROW_IN, GANTT_IN = 0.16, (2.0, 14.0)
"""Height of a worker's row, and least and most of all rows together, in inches."""
CURVE_IN = 1.8
COLOURS = {"first": "#4c78a8", "stolen": "#f2a33a", "again": "#d1495b", "down": "#d9d9d9"}
SAYS = {"first": "busy", "stolen": "stolen", "again": "run again", "down": "node down"}
LINES_MAX = 40
"""More records than that are shown as least, middle and most."""


def figure_class() -> Any:
    """Return matplotlib's Figure. Raises GridError that says what to install if there is none."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise GridError(
            "sim plot draws with matplotlib, which is not installed here", code="usage",
            next='python -m pip install "p2pgrid[plot]"',
        ) from error  # fmt: skip
    return Figure


def draw(film: Film, outcome: Outcome, figure_of: Any, to: Path) -> dict[str, int]:
    """Write the picture; return how many executions of which kind are in it. Raises GridError if it cannot."""
    nodes = list(film.world.nodes.values())
    rows: dict[tuple[str, int], int] = {}
    for node in nodes:
        for worker in range(max(node.slots, 1)):
            rows[node.name, worker] = len(rows)
    tall_in = min(max(ROW_IN * len(rows), GANTT_IN[0]), GANTT_IN[1])
    figure = figure_of(figsize=(WIDE_IN, tall_in + 2 * CURVE_IN + 1.2), dpi=DPI, layout="constrained")
    gantt, said, copies = figure.subplots(3, 1, sharex=True, height_ratios=[tall_in, CURVE_IN, CURVE_IN])
    counts = _gantt(gantt, film, rows)
    failed = f": {outcome.invariant}" if outcome.failed else ""
    gantt.set_title(loc="left", label=f"{outcome.scenario}, seed {outcome.seed}, {len(nodes)} nodes{failed}")
    rates = film.rates()
    said.plot([at for at, _ in rates], [rate for _, rate in rates], color="#4c78a8", linewidth=1)
    said.set_ylabel("messages/s")
    said.set_ylim(bottom=0)
    _copies(copies, film)
    copies.set_xlabel("virtual seconds")
    copies.set_xlim(0, max(film.world.now, 1e-3))
    partial = to.with_name(f".{to.name}.{os.getpid()}")
    try:
        figure.savefig(partial, format="png")
        partial.replace(to)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise GridError(f"{to} cannot be written: {error.strerror}", code="usage", next="--output FILE") from error
    return counts


def _gantt(axes: Any, film: Film, rows: dict[tuple[str, int], int]) -> dict[str, int]:
    """Draw nodes over time, a row per worker; return how many bars of each kind there are."""
    from matplotlib.patches import Patch

    lots: dict[str, dict[int, list[tuple[float, float]]]] = {kind: {} for kind in COLOURS}
    for bar in film.bars():
        lots[bar.kind].setdefault(rows[bar.node, bar.worker], []).append((bar.began_s, bar.ended_s - bar.began_s))
    workers: dict[str, list[int]] = {}
    for (name, _), row in rows.items():
        workers.setdefault(name, []).append(row)
    for down in film.all_downs():
        for row in workers[down.node]:
            lots["down"].setdefault(row, []).append((down.began_s, down.ended_s - down.began_s))
    for kind in ("down", "first", "stolen", "again"):
        for row, spans in lots[kind].items():
            high = 1.0 if kind == "down" else 0.8
            axes.broken_barh(spans, (row + (1 - high) / 2, high), facecolors=COLOURS[kind], linewidth=0)
    names = {name: sum(at) / len(at) + 0.5 for name, at in workers.items()}
    step = max(1, len(names) // 60)
    axes.set_yticks(list(names.values())[::step], list(names)[::step], fontsize=7)
    axes.set_ylim(len(rows), 0)
    axes.legend(
        handles=[Patch(color=colour, label=SAYS[kind]) for kind, colour in COLOURS.items()], loc="lower right",
        bbox_to_anchor=(1, 1), fontsize=8, ncols=len(COLOURS), frameon=False,
    )  # fmt: skip
    return {kind: sum(map(len, lots[kind].values())) for kind in ("first", "stolen", "again")}


def _copies(axes: Any, film: Film) -> None:
    """Draw how many live nodes have a copy of each record."""
    axes.set_ylabel("copies of a record")
    if len(film.copies) <= LINES_MAX:
        for seen in film.copies.values():
            axes.step([at for at, _ in seen], [count for _, count in seen], where="post", linewidth=1, alpha=0.7)
    else:
        by_time: dict[float, list[int]] = {}
        for seen in film.copies.values():
            for at, count in seen:
                by_time.setdefault(at, []).append(count)
        for name, pick in (("least", min), ("middle", lambda all_: sorted(all_)[len(all_) // 2]), ("most", max)):
            axes.step(list(by_time), [pick(all_) for all_ in by_time.values()], where="post", linewidth=1, label=name)
        axes.legend(fontsize=8)
    axes.set_ylim(bottom=0)
