"""`p2pgrid sim run`, `sim list`, `sim plot`: the machines of this program in virtual time, with faults, from a seed.

What a seed does is the business of `p2pgrid.simulations`; here are processes, the clock on the wall and the terminal.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pgrid import __version__
from p2pgrid.cli.output import count, emit, plain, talk, warn
from p2pgrid.cli.verb import Family, Setting, Verb
from p2pgrid.core.errors import ExitCode

if TYPE_CHECKING:
    from p2pgrid.simulations.running import Less, Outcome

_SEED = re.compile(r"(\d{1,18})(?:@(\S{1,40}))?")
NODES_MAX = 5000
SEEDS_MAX = 1_000_000
SHOWN = 5
"""Violations that are printed in full."""
NO_DIR = "Not looked at: nothing of a simulation is on disk."


@click.group("sim", cls=Family, example="p2pgrid sim run smoke --seeds 200\np2pgrid sim list", dir_help=NO_DIR)
def sim(**_: Any) -> None:
    """Run the machines in virtual time, with faults, from a seed; nothing real is touched."""


def _seed(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, str]:
    """Read `17` or `17@0.1.0`, as reproducers say it."""
    match = _SEED.fullmatch(value)
    if match is None:
        raise click.BadParameter(f"{value!r} is no seed, like 17 or 17@{__version__}", ctx, param)
    return int(match[1]), match[2] or __version__


@sim.command(
    "run", cls=Verb, dir_help=NO_DIR,
    example="p2pgrid sim run smoke --seeds 200\np2pgrid sim run churn --seed 17 --shrink",
)  # fmt: skip
@click.argument("scenario")
@click.option("--seed", default="1", show_default=True, callback=_seed, metavar="S", help="The first seed.")
@click.option("--seeds", type=click.IntRange(1, SEEDS_MAX), default=1, show_default=True, help="How many, from there.")
@click.option("--nodes", type=click.IntRange(1, NODES_MAX), default=None, help="So many nodes instead.")
@click.option(
    "--procs", type=click.IntRange(1, 1024), default=None, help="Processes to share the seeds; default: cores."
)
@click.option("--shrink", is_flag=True, help="Make the first failing run as small as it still fails.")
@click.option("--tasks", type=click.FloatRange(0, 1, min_open=True), default=1.0, help="Times as many tasks.")
@click.option("--without", multiple=True, metavar="fault:KIND|work:KIND", help="Leave that out; may be repeated.")
@click.pass_obj
def run(setting: Setting, /, scenario: str, seed: tuple[int, str], seeds: int, **how: Any) -> int:
    """Run seeds of a scenario, shipped or a .toml file; exit 1 if an invariant did not hold."""
    from p2pgrid.simulations.running import Less
    from p2pgrid.simulations.scenario import load

    found = load(scenario)
    first = _same_version(seed)
    less = Less(how["nodes"], how["tasks"], _known(how["without"]))
    began_s = time.perf_counter()
    outcomes = list(
        _watched(_all(scenario, range(first, first + seeds), less, how["procs"] or _cores()), seeds, setting)
    )
    outcomes.sort(key=lambda one: one.seed)
    took_s = time.perf_counter() - began_s
    failed = [one for one in outcomes if one.failed]
    shrunk = _shrink(found, failed[0], setting) if how["shrink"] and failed else None
    if setting.json:
        emit(_json(scenario, outcomes, shrunk, took_s))
    else:
        _print(scenario, outcomes, took_s)
        for one in failed[:SHOWN]:
            _print_failure(one)
        if shrunk is not None:
            click.echo("\nthe smallest run that still fails:")
            _print_failure(shrunk)
    return ExitCode.FAILED if failed else ExitCode.DONE


@sim.command(
    "plot", cls=Verb, dir_help=NO_DIR, example="p2pgrid sim plot churn\np2pgrid sim plot smoke --output a.png",
)  # fmt: skip
@click.argument("scenario")
@click.option("--seed", default="1", show_default=True, callback=_seed, metavar="S", help="The seed.")
@click.option("--nodes", type=click.IntRange(1, NODES_MAX), default=None, help="So many nodes instead.")
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), default=None,
    help="The PNG; default: SCENARIO-SEED.png here.",
)  # fmt: skip
@click.pass_obj
def plot(setting: Setting, /, scenario: str, seed: tuple[int, str], nodes: int | None, output: Path | None) -> int:
    """Draw a seed as a PNG: who was busy, what was stolen or ran again, messages per second, copies per record."""
    from p2pgrid.cli.sim_plot import draw, figure_class
    from p2pgrid.simulations.filming import Film
    from p2pgrid.simulations.running import Less, Run
    from p2pgrid.simulations.scenario import load

    found, figure = load(scenario), figure_class()
    number = _same_version(seed)
    run = Run(found, number, Less(nodes))
    film = Film(run.world)
    outcome = run.outcome()
    to = output or Path(f"{Path(scenario).name.removesuffix('.toml')}-{number}.png")
    counts = draw(film, outcome, figure, to)
    if setting.json:
        emit({"scenario": scenario, "seed": number, "ok": not outcome.failed, "file": str(to), "executions": counts})
    else:
        click.echo(
            f"{plain(to)}: {count(sum(counts.values()), 'execution')}, {counts['stolen']} stolen, "
            f"{counts['again']} run again"
        )
        if outcome.failed:
            _print_failure(outcome)
    return ExitCode.FAILED if outcome.failed else ExitCode.DONE


@sim.command("list", cls=Verb, example="p2pgrid sim list", dir_help=NO_DIR)
@click.pass_obj
def list_(setting: Setting) -> None:
    """List the scenarios that are shipped."""
    from p2pgrid.simulations.scenario import load, names

    found = [load(name) for name in names()]
    if setting.json:
        emit({"scenarios": [{"name": one.name, "about": one.about, "expected": one.expected} for one in found]})
        return
    width = max(len(one.name) for one in found)
    for one in found:
        click.echo(f"{one.name:<{width}}  {plain(one.about)}")


def _same_version(seed: tuple[int, str]) -> int:
    """Return the number of a seed; warn if it was found with another version."""
    number, version = seed
    if version != __version__:
        warn(f"that seed is of p2pgrid {version}; this is {__version__}: it may do something else, figures may differ")
    return number


def _known(without: Sequence[str]) -> tuple[str, ...]:
    from p2pgrid.cli.verb import nearest
    from p2pgrid.simulations import faults, workloads

    known = [*(f"fault:{kind}" for kind in faults.KINDS), *(f"work:{kind}" for kind in workloads.KINDS)]
    for one in without:
        if one not in known:
            raise click.UsageError(f"--without {one}: there is no such fault or work{nearest(one, known)}")
    return tuple(without)


# ---- many seeds -----------------------------------------------------------------------------------------------------


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _one(asked: tuple[str, int, Less]) -> Outcome:
    """Run one seed, in a process of its own."""
    from p2pgrid.simulations.running import run_seed
    from p2pgrid.simulations.scenario import load

    scenario, seed, less = asked
    return run_seed(load(scenario), seed, less)


def _all(scenario: str, seeds: Sequence[int], less: Less, procs: int) -> Iterator[Outcome]:
    """Yield the outcomes as they come."""
    asked = [(scenario, seed, less) for seed in seeds]
    if procs == 1 or len(asked) == 1:
        yield from map(_one, asked)
        return
    with multiprocessing.get_context("fork").Pool(min(procs, len(asked))) as pool:
        yield from pool.imap_unordered(_one, asked)


def _watched(outcomes: Iterator[Outcome], many: int, setting: Setting) -> Iterator[Outcome]:
    """Pass them on, with a bar on stderr for whoever sits there."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if setting.json or not console.is_terminal or many == 1:
        yield from outcomes
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("seeds, {task.fields[failed]} failed"),
        TimeRemainingColumn(),
    )
    # No thread of its own: the processes are forked from this one.
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        bar, failed = progress.add_task("", total=many, failed=0), 0
        for one in outcomes:
            failed += one.failed
            progress.update(bar, advance=1, failed=failed, refresh=True)
            yield one


def _shrink(scenario: Any, failed: Outcome, setting: Setting) -> Outcome:
    from p2pgrid.simulations.shrinking import shrink

    if not setting.json:
        talk(f"shrinking seed {failed.seed}: {failed.invariant}")
    return shrink(scenario, failed, lambda text: None if setting.json else talk(f"  {text}"))


# ---- what is printed ------------------------------------------------------------------------------------------------


def _figures(outcomes: Sequence[Outcome]) -> dict[str, tuple[float, float, float]]:
    """Return least, median and most of each figure."""
    found: dict[str, list[float]] = {}
    for one in outcomes:
        for name, value in one.figures.items():
            found.setdefault(name, []).append(value)
    return {name: (min(all_), statistics.median(all_), max(all_)) for name, all_ in sorted(found.items())}


def _json(scenario: str, outcomes: Sequence[Outcome], shrunk: Outcome | None, took_s: float) -> dict[str, Any]:
    hours = sum(one.node_hours for one in outcomes)
    return {
        "scenario": scenario,
        "version": __version__,
        "ok": not any(one.failed for one in outcomes),
        "violations": sum(one.failed for one in outcomes),
        "node_hours": round(hours, 6),
        "figures": {name: list(three) for name, three in _figures(outcomes).items()},
        "seeds": [one.row() for one in outcomes],
        "shrunk": None if shrunk is None else shrunk.row(),
        "timing": {"seconds": round(took_s, 3), "node_hours_per_s": round(hours / took_s, 3)},
    }


def _print(scenario: str, outcomes: Sequence[Outcome], took_s: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=None, box=None, pad_edge=False)
    table.add_column("figure")
    for head in ("least", "median", "most"):
        table.add_column(head, justify="right")
    for name, three in _figures(outcomes).items():
        table.add_row(name.replace("_", " "), *(f"{value:.4g}" for value in three))
    hours = sum(one.node_hours for one in outcomes)
    failed = sum(one.failed for one in outcomes)
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"{scenario}: {count(len(outcomes), 'seed')}, {count(failed, 'violation')}; "
        f"{hours:.3g} node-hours, {sum(one.steps for one in outcomes)} steps in {took_s:.1f} s", markup=False,
    )  # fmt: skip
    if len(outcomes) == 1:
        console.print(f"sha256 {outcomes[0].digest}", markup=False)


def _print_failure(one: Outcome) -> None:
    click.echo(f"\nseed {one.seed}: {plain(one.invariant)}\n  {plain(one.what)}")
    for node, lines in one.last.items():
        click.echo(f"  last events of {plain(node)}:")
        for line in lines:
            click.echo(f"    {plain(line)}")
    click.echo(f"  again:  {one.reproducer}")
