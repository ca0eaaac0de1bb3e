"""What is said of a function that no node can load: which module or program is missing, who lacks it, who has it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from p2pgrid.core.errors import MissingModule

NAMED_MAX = 8
"""Nodes that one message names."""

_MISSING = re.compile(r"no module (?P<name>[^\s;]+) in (?P<python>.+?) \(Python (?P<version>[0-9.]+)\)")


def missing(name: str, python: str, version: tuple[int, int]) -> str:
    """Return how a worker says that an interpreter lacks a module; `nowhere` reads it."""
    return f"no module {name} in {python} (Python {version[0]}.{version[1]})"


_NO_PROGRAM = re.compile(r"no program (?P<name>.+) here")


class NoProgram(FileNotFoundError):
    """There is no such program at this node: no fault of the task, another node may have it."""


def missing_program(name: str) -> str:
    """Return how a worker says that there is no such program at its node; `nowhere` reads it."""
    return f"no program {name} here"


def nowhere(unfit: Mapping[str, str], has_run: Sequence[str]) -> MissingModule:
    """Return the error of tasks whose function no node can load.

    Args:
        unfit: by name of a node, why it cannot.
        has_run: the names of nodes where tasks of this function have ended well.
    """
    programs = {node: _NO_PROGRAM.fullmatch(why) for node, why in unfit.items()}
    names = {match["name"] for match in programs.values() if match is not None}
    if len(names) == 1 and None not in programs.values():
        (name,) = names
        return _no_program(name, sorted(unfit), sorted(has_run))
    found = {node: _MISSING.search(why) for node, why in sorted(unfit.items())}
    names = {match["name"] for match in found.values() if match is not None}
    if len(names) != 1 or None in found.values():
        reasons = list(dict.fromkeys(unfit.values()))
        why = reasons[0] if len(reasons) == 1 else "; ".join(f"{node}: {why}" for node, why in sorted(unfit.items()))
        return MissingModule(f"the function cannot be loaded on any node: {why}")
    (name,) = names
    pythons = {node: match["python"] for node, match in found.items() if match is not None}
    lacking = _listed([f"{node} ({python})" for node, python in pythons.items()])
    having = _having(sorted(has_run))
    distribution = name.partition(".")[0]
    return MissingModule(
        f"module {name!r} is missing at {lacking}; {having} has it",
        next=f"install it where tasks run: {next(iter(pythons.values()))} -m pip install {distribution}; "
        "or name an interpreter that has it: p2pgrid node --python PATH",
    )


def _no_program(name: str, lacking: Sequence[str], has_run: Sequence[str]) -> MissingModule:
    return MissingModule(
        f"program {name!r} is missing at {_listed(lacking)}; {_having(has_run)} has it",
        next="install it where tasks run, or send a file of yours by giving its path: ./PROGRAM",
    )


def _having(nodes: Sequence[str]) -> str:
    return _listed(nodes) if nodes else "no node that is known"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return ", ".join(names[:NAMED_MAX]) + more
