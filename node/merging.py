"""From a row of a journal, this node's or another keeper's, to what it says of a job: records grow and never shrink."""

from __future__ import annotations

from collections.abc import Callable

from p2pgrid.core.large import Large, read_large
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.record import BatchId, Inputs, Results, State, Try
from p2pgrid.core.wire import unpack
from p2pgrid.node.events import Row
from p2pgrid.node.kept import ABANDONED, CANCELLED, DONE, FAILED, Kept

RANKS = {DONE: 0, FAILED: 1, ABANDONED: 2, CANCELLED: 3}
"""How a job ended where two keepers said different things: the later in this order stands."""


def merge(  # noqa: C901, PLR0912 - one case for each kind of row
    kept: Kept, row: Row, names: dict[str, str], lost: Callable[[Large], bool] = lambda _: False
) -> None:
    """Take what a row of the journal, of this node or another keeper, says into the record.

    `names` of nodes are learned from results; `lost` says of which objects nothing is left.
    """
    record = kept.record
    match row.kind:
        case "input":
            lo = int.from_bytes(row.key, "big")
            hi, content, *_ = unpack(row.meta)
            record.inputs[lo] = Inputs(hi, content)
            kept.known.add(lo, hi)
            kept.durable.add(lo, hi)
        case "refs":
            kept.refs[row.key] = read_large(row.meta)
        case "close":
            record.closed = max(record.closed or 0, unpack(row.meta))
            kept.synced.add(("close", b""))
        case "result":
            kept.overlaps = _merge_result(kept, row, names, lost)
        case "seal":
            lo, hi, batch, *_ = unpack(row.meta)
            record.seals.join(lo, hi, (0, BatchId(*batch)))
        case "cancel":
            flat, reason, *_ = unpack(row.meta)
            if flat is None:
                record.cancelled_all = True
                kept.reason = reason
            else:
                kept.cancelled.update(RangeSet.from_flat(flat))
                record.cancelled.update(kept.cancelled)
        case "state":
            state, reason, *_ = unpack(row.meta)
            said = (RANKS.get(state, -1), reason)  # how a later version says that it ended is not understood here
            if state in RANKS and said >= (RANKS.get(kept.state, -1), kept.reason):
                kept.state, kept.reason = state, reason
            record.state = max(record.state, State.CANCELLED if kept.state == CANCELLED else State.FINISHED)
        case "try":
            task, *rest = unpack(row.meta)
            record.tries[task] = record.tries.get(task, frozenset()) | {Try(*rest)}
        case "attempt":
            lo, hi, attempt, *raised = unpack(row.meta)
            record.attempts.join(lo, hi, attempt)
            if raised:
                kept.raised.join(lo, hi, attempt)
        case "expiry":
            record.expires = max(record.expires, float(unpack(row.meta)))
        case "log":
            index = int.from_bytes(row.key, "big")
            kept.logs.add(index, index + 1)
        case "copied":
            kept.copied = True
        case "taken":
            kept.taken_over = True
        case "orphan":
            kept.orphaned = True
        case _:
            pass  # a kind of a later minor version: kept, not understood


def _merge_result(kept: Kept, row: Row, names: dict[str, str], lost: Callable[[Large], bool]) -> bool:
    """Take in results; return whether any of the job's overlap."""
    node, incarnation, number, lo, hi, failed, attempt, content, sealed, size, *rest = unpack(row.meta)
    if rest and rest[0]:
        names[node] = rest[0]
    large = read_large(rest[1]) if len(rest) > 1 else None
    if large is not None:
        if lost(large):
            return kept.overlaps  # it was in memory only: as if the task had not run
        kept.objects.append(large)
    batch = BatchId(node, incarnation, number)
    kept.torn.discard(batch)
    if batch in kept.record.results:
        return kept.overlaps  # it had been damaged here
    results = Results(lo, hi, failed, attempt, content, (large.name,) if large else ())
    overlaps = kept.overlaps or bool(kept.done.within(lo, hi))
    _note(kept, batch, results, size)
    if sealed:
        kept.record.seals.join(lo, hi, (0, batch))
    return overlaps


def _note(kept: Kept, batch: BatchId, results: Results, size: int) -> None:
    kept.record.results[batch] = results
    kept.done.add(results.lo, results.hi)
    if results.failed:
        kept.failed.add(results.lo, results.hi)
    kept.order.append((results.lo, batch, size))
