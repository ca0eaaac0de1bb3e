"""What is said of a function that no node can load: which module is missing, who lacks it, who has it."""

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


def nowhere(unfit: Mapping[str, str], has_run: Sequence[str]) -> MissingModule:
    """Return the error of tasks whose function no node can load.

    Args:
        unfit: by name of a node, why it cannot.
        has_run: the names of nodes where tasks of this function have ended well.
    """
    found = {node: _MISSING.search(why) for node, why in sorted(unfit.items())}
    names = {match["name"] for match in found.values() if match is not None}
    if len(names) != 1 or None in found.values():
        reasons = list(dict.fromkeys(unfit.values()))
        why = reasons[0] if len(reasons) == 1 else "; ".join(f"{node}: {why}" for node, why in sorted(unfit.items()))
        return MissingModule(f"the function cannot be loaded on any node: {why}")
    (name,) = names
    pythons = {node: match["python"] for node, match in found.items() if match is not None}
    lacking = _listed([f"{node} ({python})" for node, python in pythons.items()])
    having = _listed(sorted(has_run)) if has_run else "no node that is known"
    distribution = name.partition(".")[0]
    return MissingModule(
        f"module {name!r} is missing at {lacking}; {having} has it",
        next=f"install it where tasks run: {next(iter(pythons.values()))} -m pip install {distribution}; "
        "or name an interpreter that has it: p2pgrid node --python PATH",
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return ", ".join(names[:NAMED_MAX]) + more
