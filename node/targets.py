"""Targets: which of the jobs that this node answers for a text names."""

from __future__ import annotations

from p2pgrid.core.errors import NotFound
from p2pgrid.core.ids import match, parse_target
from p2pgrid.core.ranges import Span
from p2pgrid.node.keeping import Keeping
from p2pgrid.node.kept import Kept


def targets(keeping: Keeping, text: str) -> list[tuple[Kept, Span | None]]:
    """Return the jobs (and the tasks in them) that a target names. Raises NotFound; ambiguous ones as well."""
    try:
        target = parse_target(text)
    except ValueError as error:
        raise NotFound(str(error), next="p2pgrid jobs lists what there is") from error
    span = None if target.lo is None or target.hi is None else (target.lo, target.hi)
    jobs = newest(keeping)
    own = [kept for kept in jobs if kept.spec.parent is None]
    if target.job_text == "all":
        return [(kept, span) for kept in own]
    if target.job_text == "last":
        if not own:
            msg = "there is no job yet"
            raise NotFound(msg, next="submit one: p2pgrid.Grid().map(f, xs)")
        return [(own[0], span)]
    found = match(target.job_text, {kept.id: kept.spec.name or None for kept in own})
    found = found or match(target.job_text, {kept.id: None for kept in jobs if kept.spec.parent is not None})
    if not found:
        msg = f"no job {text!r} here"
        raise NotFound(msg, next="p2pgrid jobs lists what there is")
    if len(found) > 1:
        names = ", ".join(sorted(keeping.jobs[job].name for job in found))
        msg = f"{text!r} is ambiguous: {names}"
        raise NotFound(msg, next="use one of these ids", code="ambiguous")
    return [(keeping.jobs[found[0]], span)]


def copy_of(keeping: Keeping, text: str) -> Kept | None:
    """Return the job that a full id names if there is a copy of it here, also one that this node does not answer for.

    While nobody answers for a job, for a keeper has to take it over first, its results are read from any copy.
    """
    try:
        return keeping.jobs.get(bytes.fromhex(text))
    except ValueError:
        return None


def newest(keeping: Keeping) -> list[Kept]:
    """Return the jobs that this node answers for, the newest first; of others it may have copies."""
    ours = (kept for kept in keeping.jobs.values() if kept.answers)
    return sorted(ours, key=lambda kept: (-kept.spec.submitted_s, kept.id))
