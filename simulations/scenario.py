"""Scenarios: TOML files that compose nodes, work and faults. Read, checked, and drawn by a seed.

    [grid]      how many nodes, of what kind       (`Grid`)
    [network]   latencies, bandwidth               (`Wires`)
    [[work]]    what they are given                (`workloads.Work`)
    [[fault]]   what goes wrong                    (`faults.Fault`)
    [run]       how long, and what is waited for   (`Course`)
    [expect]    figures: name = [least, most]

A number may be given as `[lo, hi]`: then each seed draws one between them; or as `{ any = [a, b, c] }`: one of these.
With `swarm = true` each seed also draws which of the optional faults there are, and which work.
"""

from __future__ import annotations

import dataclasses
import difflib
import random
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from p2pgrid.core.errors import GridError
from p2pgrid.node import patience
from p2pgrid.simulations import faults, workloads
from p2pgrid.simulations.faults import Fault
from p2pgrid.simulations.workloads import Work

VERSION = 1
"""Of the meaning of seeds: raised whenever a seed comes to draw something else."""
SUFFIX = ".toml"
LEAST = {"nodes": 1, "owners": 1, "sites": 1, "kinds": 1, "jobs": 1, "tasks": 1}
"""No other number is below 0."""
NOT_ZERO: Mapping[str, frozenset[str]] = {
    "fault": frozenset({"every_s", "factor"}), "work": frozenset({"rate"}), "grid": frozenset({"slow_factor"}),
    "network": frozenset(), "run": frozenset(),
}  # fmt: skip
EXPECTED = (
    "efficiency", "executions", "messages", "bytes_per_task", "steal_requests", "detection_s", "false_deaths",
    "makespan_s", "messages_leaf", "messages_most", "steal_polls", "settle_s", "tasks", "executions_well",
)  # fmt: skip
"""Figures that `[expect]` may bound."""


@dataclass(frozen=True)
class Grid:
    """`[grid]`: the nodes."""

    nodes: int = 7
    slots: int = 2
    preset: str = "lan"
    owners: int = 2
    """So many nodes, the first ones, take jobs."""
    sites: int = 1
    sigma: float = 0.0
    """Of the logarithm of speeds; 0: all alike."""
    slow_share: float = 0.0
    slow_factor: float = 8.0
    """So many nodes are so many times slower."""
    nat: float = 0.0
    """Share of nodes, not of owners, that can only dial out."""
    join_s: float = 0.5
    """All have joined by then; those that come by the first one come at random times before."""
    leaves: float = 0.0
    """Share of nodes, not of owners, with the preset `edge`."""
    speculate: bool = True
    lookers: float = 0.0
    """Share of nodes, not of owners, that may only look: their certificate gives them the role `observe` alone."""


@dataclass(frozen=True)
class Wires:
    """`[network]`: one-way seconds; bytes per second."""

    latency_ms: float = 0.5
    spread_ms: float = 1.5
    between_ms: float = 50.0
    """Between sites."""
    between_spread_ms: float = 5.0
    uplink: float = 0.0
    """0: no limit."""


@dataclass(frozen=True)
class Course:
    """`[run]`: its parts, in seconds."""

    storm_s: float = 60.0
    """Faults strike so long, from when the nodes have met."""
    deadline_s: float = 900.0
    """After the storm all work has to end within."""
    agree_s: float = 180.0
    """And then all nodes have to see the same members."""
    copies_s: float = 120.0
    """And all records have to have their copies, alike and on disk."""
    idle_s: float = 700.0
    """And nothing may be left over; holders forget jobs of a vanished node after ten minutes."""
    calm_s: float = 0.0
    """Then so long nothing happens, for the figures of an idle grid."""
    swarm: bool = False
    kinds: int = 1 << 30
    """swarm: a seed draws at most so many kinds of work."""
    kill_last: int = 0
    """At the end so many nodes are killed for good, silently, and the time until all know is taken."""


@dataclass(frozen=True)
class Scenario:
    """A scenario as it is written."""

    name: str
    about: str = ""
    expected: str = ""
    """What its comment says."""
    grid: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)
    work: tuple[Mapping[str, Any], ...] = ()
    fault: tuple[Mapping[str, Any], ...] = ()
    run: Mapping[str, Any] = field(default_factory=dict)
    expect: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    drawn_as: str = ""
    """The name by which seeds draw, if it is another's."""


@dataclass(frozen=True)
class Drawn:
    """A scenario as one seed has drawn it."""

    name: str
    grid: Grid
    network: Wires
    work: tuple[Work, ...]
    fault: tuple[Fault, ...]
    run: Course
    expect: Mapping[str, tuple[float, float]]


# ---- reading --------------------------------------------------------------------------------------------------------


def names() -> list[str]:
    """Return the names of the scenarios that are shipped."""
    files = resources.files("p2pgrid.simulations").joinpath("scenarios").iterdir()
    return sorted(one.name.removesuffix(SUFFIX) for one in files if one.name.endswith(SUFFIX))


def load(name: str) -> Scenario:
    """Return a shipped scenario, or the one in a file named *.toml. Raises GridError, with the nearest name."""
    known = names()
    if name.endswith(SUFFIX):
        return _of_file(name, known)
    if name not in known:
        raise GridError(
            f"there is no scenario {name!r}{_nearest(name, known)}", code="usage", next="p2pgrid sim list shows all"
        )
    text = resources.files("p2pgrid.simulations").joinpath("scenarios", name + SUFFIX).read_text("utf-8")
    return parse(name, text)


def _of_file(path: str, known: Iterable[str]) -> Scenario:
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror or str(error)) if isinstance(error, OSError) else "it is not UTF-8"
        shipped = _nearest(path.removesuffix(SUFFIX), known)
        raise GridError(
            f"{path} cannot be read: {why}{shipped}", code="usage", next="p2pgrid sim list shows those that are shipped"
        ) from None
    found = parse(path, text, path)
    return dataclasses.replace(found, drawn_as=found.drawn_as or Path(path).stem)  # wherever the file lies


def parse(name: str, text: str, where: str = "") -> Scenario:
    """Return the scenario that a TOML text describes. Raises GridError with the line of what is wrong."""
    where = where or f"{name}{SUFFIX}"
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise GridError(f"{where} is not TOML: {error}", code="usage", next="mend that line") from None
    reader = _Reader(text, where)
    parts = {"grid": Grid, "network": Wires, "run": Course}
    reader.known(data, ["about", "drawn_as", *parts, "work", "fault", "expect"], "")
    for part, kind in parts.items():
        reader.table(data.get(part, {}), kind, part)
    for part, one, kinds in (("work", Work, workloads.KINDS), ("fault", Fault, faults.KINDS)):
        entries = data.get(part, [])
        if not isinstance(entries, list):
            reader.fail(f"{part} is not written as [[{part}]], once for each", part)
        for entry in entries:
            reader.table(entry, one, part)
            if "kind" not in entry:
                reader.fail(f"a [[{part}]] has no kind: {', '.join(kinds)}", part)
            reader.known([str(entry.get("kind"))], kinds, f"kind of {part}")
    preset = data.get("grid", {}).get("preset", "lan")
    reader.known(preset["any"] if isinstance(preset, dict) else [preset], patience.PRESETS, "preset")
    expect = data.get("expect", {})
    reader.known(expect, EXPECTED, "expect")
    for key, bounds in expect.items():
        if not (isinstance(bounds, list) and len(bounds) == 2 and all(isinstance(b, int | float) for b in bounds)):  # noqa: PLR2004
            reader.fail(f"{key} in [expect] is not [least, most]", key)
    comment = "\n".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    return Scenario(
        name, str(data.get("about", "")), comment, data.get("grid", {}), data.get("network", {}),
        tuple(data.get("work", [])), tuple(data.get("fault", [])), data.get("run", {}),
        {key: (float(lo), float(hi)) for key, (lo, hi) in expect.items()}, str(data.get("drawn_as", "")),
    )  # fmt: skip


class _Reader:
    """Says what is wrong, and in which line."""

    def __init__(self, text: str, where: str) -> None:
        self._lines = text.splitlines()
        self._where = where

    def fail(self, what: str, word: str) -> None:
        pattern = re.compile(rf"(?<![\w-]){re.escape(word)}(?![\w-])")
        at = next((n for n, line in enumerate(self._lines, 1) if pattern.search(line.partition("#")[0])), 0)
        raise GridError(f"{self._where}{f', line {at}' if at else ''}: {what}", code="usage", next="mend that line")

    def known(self, given: Iterable[str], known: Iterable[str], where: str) -> None:
        """Refuse words that mean nothing here."""
        allowed = list(known)
        for word in given:
            if word not in allowed:
                inside = f" in [{where}]" if where and " " not in where else f", a {where}," if where else ""
                self.fail(f"{word!r}{inside} means nothing{_nearest(word, allowed)}", word)

    def table(self, given: Any, kind: type, where: str) -> None:
        """Refuse unknown keys, and values of the wrong type."""
        if not isinstance(given, dict):
            self.fail(f"[{where}] is not a table", where)
        fields = {one.name: one for one in dataclasses.fields(kind)}
        self.known(given, fields, where)
        for key, value in given.items():
            if not _fits(value, str(fields[key].type)):
                self.fail(f"{key} = {value!r} in [{where}] is no {fields[key].type}", key)
            numbers = [one for one in _choices(value) if isinstance(one, int | float)]
            if isinstance(value, list) and value[0] > value[1]:
                self.fail(f"{key} = {value!r} in [{where}] is not [least, most]", key)
            if isinstance(value, dict) and not value["any"]:
                self.fail(f"{key} in [{where}] is any of nothing", key)
            least = LEAST.get(key, 0)
            if any(one < least for one in numbers) or (key in NOT_ZERO[where] and any(one <= 0 for one in numbers)):
                self.fail(f"{key} = {value!r} in [{where}] is too small", key)


def _fits(value: Any, kind: str) -> bool:
    if isinstance(value, dict):
        return list(value) == ["any"] and isinstance(value["any"], list) and all(_fits(v, kind) for v in value["any"])
    if isinstance(value, list):
        return kind in ("int", "float") and len(value) == 2 and all(_fits(one, kind) for one in value)  # noqa: PLR2004
    if kind == "float":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value).__name__ == kind


def _choices(value: Any) -> list[Any]:
    """Return what a seed may make of a value, as far as that is written down."""
    if isinstance(value, dict):
        return [choice for one in value["any"] for choice in _choices(one)]
    return value if isinstance(value, list) else [value]


def _nearest(word: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


# ---- drawing --------------------------------------------------------------------------------------------------------

Part = TypeVar("Part")


def draw(scenario: Scenario, rng: random.Random) -> Drawn:
    """Return what a seed makes of a scenario."""
    run = _drawn(scenario.run, Course, rng)
    work = [_drawn(one, Work, rng) for one in scenario.work]
    fault = [_drawn(one, Fault, rng) for one in scenario.fault]
    if run.swarm:
        # Every seed its own subset: a fault that is always there hides what others do (swarm testing).
        chosen = [rng.random() < 0.5 for _ in fault]  # noqa: PLR2004
        fault = [one for one, wanted in zip(fault, chosen, strict=True) if wanted or not one.optional]
        some = rng.sample(range(len(work)), rng.randint(1, min(len(work), run.kinds))) if work else []
        work = [work[number] for number in sorted(some)]
    return Drawn(
        scenario.name, _drawn(scenario.grid, Grid, rng), _drawn(scenario.network, Wires, rng), tuple(work),
        tuple(fault), run, scenario.expect,
    )  # fmt: skip


def _drawn(given: Mapping[str, Any], kind: type[Part], rng: random.Random) -> Part:
    return kind(**{key: _value(value, rng) for key, value in given.items()})


def _value(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict):
        return rng.choice(value["any"])
    if isinstance(value, list):
        lo, hi = value
        return rng.randint(lo, hi) if type(lo) is type(hi) is int else rng.uniform(lo, hi)
    return value
