"""Answers to what people ask at the command line: read-only views of the machine (`core.messages.REQUESTS`)."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from p2pgrid.core.deps import TaskId
from p2pgrid.core.errors import GridError, NotFound
from p2pgrid.core.ids import job_name
from p2pgrid.core.ranges import RangeSet, Span
from p2pgrid.node import whereabouts
from p2pgrid.node.kept import Kept
from p2pgrid.node.moves import KINDS
from p2pgrid.node.targets import copy_of, newest, targets
from p2pgrid.node.whereabouts import name_of

if TYPE_CHECKING:
    from p2pgrid.node.machine import Machine

NEEDS_SHOWN = 5
"""Tasks that another one waits for, of those that explain names."""
CODES_SHOWN = 64
"""Functions and source trees of a job that are named, the last ones."""
FAILED_SHOWN = 20
"""Failed tasks that a listing names."""
_TRIES = {
    "e": "raised", "t": "ran out of time", "m": "ran out of memory", "w": "its worker died", "n": "its node vanished",
}  # fmt: skip


def answer(machine: Machine, verb: str, arguments: dict[str, Any], now: float) -> dict[str, Any]:
    """Return the answer to a request. Raises GridError where there is none."""
    target = str(arguments.get("target", ""))
    match verb:
        case "status":
            return _status(machine)
        case "jobs":
            session = arguments.get("mine")
            kept = [
                k for k in newest(machine.keeping)
                if k.spec.session == session or not (session or k.spec.parent is not None)
            ]  # fmt: skip
            return {"jobs": [describe(machine, one) for one in kept]}
        case "find":
            copy = copy_of(machine.keeping, target)
            one, span = (copy, None) if copy is not None else _single(machine, target)
            return {"job": one.id, "lo": span[0] if span else None, "hi": span[1] if span else None}
        case "show":
            return _show(machine, *_single(machine, target))
        case "explain":
            return {"lines": _explain(machine, *_single(machine, target), now)}
        case "workers":
            return {"workers": _workers(machine)}
        case "members":
            return {"members": machine.member_rows(now)}
        case "load":
            return {"node": _load(machine)}
        case "top":
            jobs = [describe(machine, kept) for kept in newest(machine.keeping) if kept.spec.parent is None]
            return {"nodes": [_load(machine)], "jobs": jobs}
    msg = f"this node does not know the request {verb!r}"
    raise GridError(msg, next="install the same version on both sides: p2pgrid --version")


def _single(machine: Machine, text: str) -> tuple[Kept, Span | None]:
    found = targets(machine.keeping, text)
    if len(found) != 1:
        msg = f"{text!r} names {len(found)} jobs, one is wanted"
        raise NotFound(msg, next="p2pgrid jobs lists what there is", code="ambiguous")
    return found[0]


def hand_over(kept: Kept) -> str:
    """Return what the last line of a stopping node says of a job."""
    total = kept.known.size if kept.total is None else kept.total
    return f"{kept.name} ({kept.done.size} of {total} done)"


def _running(machine: Machine, kept: Kept) -> RangeSet:
    return (machine.running.spans(kept.id) | machine.leases.covered(kept.id)) - kept.done


def state_of(machine: Machine, kept: Kept) -> str:
    """Return queued, running, done, failed, cancelled or abandoned."""
    if kept.ended:
        return kept.state
    return "running" if kept.done or _running(machine, kept) else "queued"


def waiting_reason(machine: Machine, kept: Kept) -> str:
    """Return why tasks of a job wait, for a node that could run them or for other tasks, or an empty text."""
    waiting = machine.depending.waiting(kept.id).size
    results = f"{waiting} for what other tasks return" if waiting else ""
    return "; ".join(filter(None, (_fits_nowhere(machine, kept), results)))


def _fits_nowhere(machine: Machine, kept: Kept) -> str:
    work = machine.pool.works.get(kept.id)
    if work is None or kept.ended:
        return ""
    stuck = [lane for lane in work.lanes.values() if lane.ready and not machine.fitness.somewhere(lane)]
    return "; ".join(dict.fromkeys(machine.fitness.why(lane) for lane in stuck))


def describe(machine: Machine, kept: Kept) -> dict[str, Any]:
    """Return one job as listings show it."""
    return {
        "id": kept.name,
        "hex": kept.id.hex(),
        "name": kept.spec.name,
        "state": state_of(machine, kept),
        "done": kept.done.size - kept.failed.size,
        "failed": kept.failed.size,
        "total": kept.total,
        "known": kept.known.size,
        "submitted": kept.spec.submitted_s,
        "expires": kept.expires_s,
        "program": kept.spec.program,
        "owner": machine.config.node_id,
        "owner_name": machine.config.name,
        "detached": kept.spec.detach,
        "reason": kept.reason,
        "waiting": waiting_reason(machine, kept),
        **_moved(machine, kept),
        "moves": _moves(machine, kept),
        "failed_tasks": list(islice((i for lo, hi in kept.failed for i in range(lo, hi)), FAILED_SHOWN)),
    }


def _moved(machine: Machine, kept: Kept) -> dict[str, int]:
    """Return how many tasks of a job were stolen, prefetched and run again, as far as this life of the node knows."""
    counts = machine.parts.moves.counts(kept.id).values()
    return {kind: sum(one.get(kind, 0) for one in counts) for kind in KINDS}


def _moves(machine: Machine, kept: Kept) -> list[dict[str, Any]]:
    """Return the same by node."""
    return [
        {"node": name_of(machine, peer), **{kind: counts.get(kind, 0) for kind in KINDS}}
        for peer, counts in sorted(machine.parts.moves.counts(kept.id).items())
        if any(counts.values())
    ]


def _show(machine: Machine, kept: Kept, span: Span | None) -> dict[str, Any]:
    running = _running(machine, kept)
    now_running = RangeSet((i, i + 1) for i in machine.running.first_of_each(kept.id))
    for _, theirs in machine.leases.running(kept.id):
        now_running.update(theirs - kept.done)
    work = machine.pool.works.get(kept.id)
    stuck = machine.depending.waiting(kept.id)
    if work is not None:
        for lane in work.lanes.values():
            if lane.ready and not machine.fitness.somewhere(lane):
                stuck.update(lane.ready)
    rest = ((kept.known - kept.done) - kept.cancelled) - running
    shown: dict[str, Any] = {
        "job": describe(machine, kept),
        "tasks": {
            "waiting": (rest & stuck).size,
            "queued": (rest - stuck).size + running.size - (running & now_running).size,
            "running": (running & now_running).size,
            "done": kept.done.size - kept.failed.size,
            "failed": kept.failed.size,
            "cancelled": (kept.cancelled - kept.done).size,
        },
        "moves": _moves(machine, kept),
        "started": machine.nesting.summary(kept.id),
    }
    if span is None:
        return shown | {"codes": [key.hex() for key in kept.rows.keys_of("code")[-CODES_SHOWN:]]}
    lo, hi = span
    if not kept.known.within(lo, hi):
        msg = f"{kept.name} has no task {lo}"
        raise NotFound(msg, next=f"p2pgrid show {kept.name}")
    tasks = [_task(machine, kept, index, running, now_running, stuck) for index in range(lo, min(hi, lo + 10_000))
             if index in kept.known]  # fmt: skip
    shown["task"] = tasks[0]
    shown["listed"] = tasks
    return shown


def _task(
    machine: Machine, kept: Kept, index: int, running: RangeSet, now_running: RangeSet, stuck: RangeSet
) -> dict[str, Any]:
    results = machine.keeping.entry_of(kept, index)
    attempts = kept.record.attempts.get(index) or 1
    node = ""
    if index in kept.failed:
        state = "failed"
    elif index in kept.done:
        state = "done"
    elif index in kept.cancelled or kept.record.cancelled_all:
        state = "cancelled"
    elif index in now_running:
        state, node = "running", _where(machine, kept, index)
    elif index in running:
        state, node = "queued", _where(machine, kept, index)
    else:
        state = "waiting" if index in stuck else "queued"
    if results is not None:
        attempts, node = results[0].attempt, results[1]
    tries = [one.kind for one in sorted(kept.record.tries.get(index, ()))]
    return {
        "index": index,
        "state": state,
        "node": node,
        "attempts": attempts,
        "failed_tries": tries,
        "error": kept.reasons.get(index, ""),
    }


def _holder(machine: Machine, kept: Kept, index: int) -> str:
    """Return the node that has a task which is not over; where two have it, one that runs it, or got it last."""
    if index in machine.running.spans(kept.id):
        return machine.config.node_id
    runs = next((peer for peer, theirs in machine.leases.running(kept.id) if index in theirs), "")
    one = RangeSet([(index, index + 1)])
    if runs:
        return runs
    return whereabouts.newest(machine, kept, index, [peer for peer, _ in machine.leases.covering(kept.id, one)])


def _where(machine: Machine, kept: Kept, index: int) -> str:
    """Return the name of the node that has a task which is not over."""
    node = _holder(machine, kept, index)
    return name_of(machine, node) if node else ""


def _explain(machine: Machine, kept: Kept, span: Span | None, now: float) -> list[str]:
    state = state_of(machine, kept)
    total = f"{kept.known.size} tasks so far" if kept.total is None else f"{kept.total} tasks"
    lines = [f"{kept.name} is {state}: {kept.done.size} of {total} have ended, {kept.failed.size} of them failed"]
    reason = waiting_reason(machine, kept)
    if reason:
        lines.append(f"tasks wait: {reason}")
    work = machine.pool.works.get(kept.id)
    if work is not None:
        for node, why in sorted({item for lane in work.lanes.values() for item in lane.unfit.items()}):
            lines.append(f"{name_of(machine, node)} cannot load the function: {why}")
        ready = work.ready()
        if ready and not _fits_nowhere(machine, kept):
            busy = sum(1 for w in machine.running.workers.values() if w.runs)
            line = f"{ready} tasks are ready and wait for a free slot (here {busy} of {machine.running.slots} busy"
            others = {w.runs[0].taken.work.name for w in machine.running.workers.values() if w.runs} - {kept.name}
            lines.append(line + (f", with {', '.join(sorted(others))})" if others else ")"))
    for row in _moves(machine, kept):
        told = ", ".join(f"{row[kind]} {kind}" for kind in KINDS if row[kind])
        lines.append(f"{row['node']}: {told}")
    if span is None and not kept.ended:
        lines += whereabouts.lines(machine, kept, now)
    if kept.total is None and not kept.ended:
        lines.append("its client may still add tasks")
    if kept.reason:
        lines.append(f"reason: {kept.reason}")
    if span is not None:
        shown = _show(machine, kept, span)
        lines += whereabouts.grouped(_told(machine, kept, shown["listed"], now))
    return lines


def _told(machine: Machine, kept: Kept, listed: list[dict[str, Any]], now: float) -> list[tuple[int, str]]:
    """Return for each task why it is where it is, or was."""
    held: dict[str, RangeSet] = {}
    done: dict[str, RangeSet] = {}
    for task in listed:
        index = task["index"]
        if task["state"] in ("running", "queued"):
            held.setdefault(_holder(machine, kept, index), RangeSet()).add(index, index + 1)
        elif task["node"]:
            done.setdefault(task["node"], RangeSet()).add(index, index + 1)
    came = whereabouts.came(machine, kept, held, now) | whereabouts.stolen(machine, kept, done)
    told = []
    for task in listed:
        tries = ", ".join(_TRIES[kind] for kind in task["failed_tries"])
        where = (f" at {task['node']}" if task["node"] else "") + came.get(task["index"], "")
        end = f", earlier tries: {tries}" if tries else ""
        if needs := machine.depending.waited_for(kept.id, task["index"]):
            end += f", for {_needed(machine, needs)}"
        told.append((task["index"], f"{task['state']}{where}, attempt {task['attempts']}{end}"))
    return told


def _needed(machine: Machine, needs: list[TaskId]) -> str:
    """Return what a task waits for, and what is known of that."""
    said = []
    for job, index in needs[:NEEDS_SHOWN]:
        kept = machine.keeping.jobs.get(job)
        if (TaskId(job, index)) in machine.depending.unknown:
            state = "no node knows it so far"
        elif kept is None or index not in kept.known:
            state = "kept at another node"
        else:
            state = str(_show(machine, kept, (index, index + 1))["task"]["state"])
        said.append(f"{job_name(job)}/{index} ({state})")
    more = f" and {len(needs) - NEEDS_SHOWN} more" if len(needs) > NEEDS_SHOWN else ""
    return ", ".join(said) + more


def _workers(machine: Machine) -> list[dict[str, Any]]:
    rows = []
    for worker in machine.running.workers.values():
        info = worker.runs[0] if worker.runs else None
        state = "starting" if not worker.ready else ("busy" if info else "idle")
        row: dict[str, Any] = {"worker": worker.id, "pid": None, "state": state, "job": "", "index": None}
        if info is not None:
            row["job"] = info.taken.work.name
            first = info.left.first()
            row["index"] = first[0] if first else None
        rows.append(row)
    return rows


def _busy(machine: Machine) -> int:
    return machine.running.active()


def _load(machine: Machine) -> dict[str, Any]:
    """Return what this node does now, as `top` shows it."""
    config = machine.config
    return {
        "id": config.node_id, "name": config.name, "status": "alive", "slots": config.slots, "busy": _busy(machine),
        "queued": machine.pool.ready(), "done": machine.running.done,
        "jobs": sum(kept.answers and not kept.ended for kept in machine.keeping.jobs.values()),
        **{kind: machine.parts.counts[kind] for kind in (*KINDS, "asked")},
    }  # fmt: skip


def _status(machine: Machine) -> dict[str, Any]:
    config = machine.config
    busy = _busy(machine)
    ours = [kept for kept in machine.keeping.jobs.values() if kept.answers and kept.spec.parent is None]
    open_jobs = [kept for kept in ours if not kept.ended]
    return {
        "node": {
            "id": config.node_id, "name": config.name, "version": config.version, "slots": config.slots,
            "busy": busy, "python": ".".join(map(str, config.python)), "embedded": config.embedded,
            "pid": config.pid, "clients": len(machine.clients),
        },
        "grid": {
            "name": machine.parts.grid_name, "nodes": machine.alive(), "slots": machine.parts.grid_slots(),
        },
        "jobs": {
            "open": len(open_jobs), "all": len(ours),
            "copies": sum(not kept.answers for kept in machine.keeping.jobs.values()),
            "ready": machine.pool.ready(),
        },
        "warnings": [machine.parts.refusing] if machine.parts.refusing else [],
    }  # fmt: skip
