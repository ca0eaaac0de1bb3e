"""`p2pgrid members` and `top`: who is there, and what they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import click

from p2pgrid.cli.jobs import MOVES, NAME_WIDTH, done_of, job_json
from p2pgrid.cli.link import Link, open_link
from p2pgrid.cli.live import bar, changes, grid_of, line, on_terminal, redraw, stacked
from p2pgrid.cli.output import clip, count, emit, table, warn
from p2pgrid.cli.reading import jsonable, mapping, number, rows, text, texts, whole
from p2pgrid.cli.verb import Setting, Verb

ID_WIDTH = 14
"""`12D3KooW`, with which every id begins, and six more: enough to be typed as NODE."""
ADDRESS_WIDTH = 60
OUTBOUND_ONLY = "outbound only"
"""Nobody reaches it: it keeps its own connections."""
UNDER_WAY = ("queued", "running")

Rows = Sequence[Sequence[object]]


# ---- members ---------------------------------------------------------------------------------------------------------


@click.command("members", cls=Verb, example="p2pgrid members\np2pgrid members --json | jq -r '.members[].name'")
@click.option("--watch", is_flag=True, help="Go on until Ctrl-C: redrawn each second, or a line per change.")
@click.pass_obj
def members(setting: Setting, *, watch: bool) -> int | None:
    """List the nodes of the grid, this one included; dead ones for a minute."""

    def show(found: list[dict[str, Any]]) -> None:
        if setting.json:
            emit({"members": found})
        else:
            click.echo(table(_member_rows(found)))

    with open_link(setting.dir, "p2pgrid members") as link:
        if not watch:
            show(_members(link))
            return None
        if on_terminal() and not setting.json:
            return redraw(lambda: _members(link), lambda found: grid_of(_member_rows(found), ("ADDRESS", "ROLES")))
        return changes(lambda: _members(link), show)


def _members(link: Link) -> list[dict[str, Any]]:
    return [member_json(row) for row in rows(link.ask("members").get("members"))]


def member_json(row: dict[str, Any]) -> dict[str, Any]:
    """Return a member as `--json` shows it."""
    pythons = [{"path": text(one.get("path")) or None, "version": text(one.get("version"))}
               for one in rows(row.get("pythons"))]  # fmt: skip
    return {
        "id": text(row.get("id")),
        "name": text(row.get("name")),
        "status": text(row.get("status")),
        "addresses": texts(row.get("addresses")),
        "slots": whole(row.get("slots")),
        "roles": texts(row.get("roles")),
        "pythons": pythons,
        "version": text(row.get("version")),
        "facts": jsonable(mapping(row.get("facts"))),
        "connected": bool(row.get("connected", True)),
    }


def _member_rows(found: Sequence[dict[str, Any]]) -> Rows:
    head = ("NAME", "STATUS", "SLOTS", "ROLES", "PYTHON", "ADDRESS", "ID")
    return [head, *((
        clip(one["name"], NAME_WIDTH),
        one["status"],
        one["slots"],
        ",".join(one["roles"]),
        " ".join(clip(python["version"], 12) for python in one["pythons"][:4]),
        _address(one["addresses"]) if one["facts"].get("reachable") is not False else OUTBOUND_ONLY,
        one["id"][:ID_WIDTH],
    ) for one in found)]  # fmt: skip


def _address(addresses: Sequence[str]) -> str:
    """Return the first, and how many more there are; without the id, which is in the last column."""
    if not addresses:
        return ""
    more = f" +{len(addresses) - 1}" if len(addresses) > 1 else ""
    return clip(addresses[0].partition("/p2p/")[0], ADDRESS_WIDTH) + more


# ---- top -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Sample:
    """What all nodes do at one time. `rates`: messages per second by node, since the sample before."""

    at_s: float
    nodes: list[dict[str, Any]]
    jobs: list[dict[str, Any]]
    unanswered: list[str]
    rates: dict[str, float] = field(default_factory=dict)


@click.command("top", cls=Verb, example="p2pgrid top\np2pgrid top --json | jq '[.nodes[].busy] | add'")
@click.pass_obj
def top(setting: Setting) -> int | None:
    """Show what the nodes do, live until Ctrl-C; once with --json, or if stdout is no terminal."""
    with open_link(setting.dir, "p2pgrid top") as link:
        if on_terminal() and not setting.json:
            return redraw(_sampler(link), _draw)
        sample = _sample(link)
    if setting.json:
        jobs = [job_json(job) for job in sample.jobs]
        emit({"nodes": sample.nodes, "jobs": jobs, "unanswered": sample.unanswered})
        return None
    click.echo(table(_node_rows(sample)))
    if sample.jobs:
        click.echo()
        click.echo(table(_progress_rows(sample.jobs)))
    if sample.unanswered:
        warn(_silent(sample))
    return None


def _sample(link: Link) -> Sample:
    found = link.ask("top")
    nodes = [_node_json(node) for node in rows(found.get("nodes"))]
    jobs = [job for job in rows(found.get("jobs")) if text(job.get("state")) in UNDER_WAY]
    return Sample(monotonic(), nodes, jobs, texts(found.get("unanswered")))


def _sampler(link: Link) -> Callable[[], Sample]:
    """Return what takes a sample and compares it with the one before."""
    before: Sample | None = None

    def sample() -> Sample:
        nonlocal before
        now = _sample(link)
        if before is not None:
            passed = max(now.at_s - before.at_s, 1e-3)
            were = {node["id"]: node["messages"] for node in before.nodes}
            now.rates = {
                node["id"]: max(0.0, (node["messages"] - were[node["id"]]) / passed)
                for node in now.nodes
                if node["messages"] is not None and were.get(node["id"]) is not None
            }
        before = now
        return now

    return sample


def _node_json(node: dict[str, Any]) -> dict[str, Any]:
    messages = node.get("messages")
    return {
        "id": text(node.get("id")),
        "name": text(node.get("name")),
        "status": text(node.get("status")),
        "slots": whole(node.get("slots")),
        "busy": whole(node.get("busy")),
        "queued": whole(node.get("queued")),
        "jobs": whole(node.get("jobs")),
        "done": whole(node.get("done")),
        **{kind: whole(node.get(kind)) for kind in (*MOVES, "asked")},
        "messages": None if messages is None else number(messages),
    }


def _node_rows(sample: Sample, *, live: bool = False) -> Rows:
    """Return a line per node: messages ever, or per second where there is a sample before."""
    head = (
        "NODE",
        "STATUS",
        "SLOTS",
        "BUSY",
        "QUEUED",
        "DONE",
        "STOLEN",
        "PREFETCHED",
        "RERUN",
        "MESSAGES/S" if live else "MESSAGES",
    )
    lines: list[Sequence[object]] = [head]
    for node in sample.nodes:
        if live:
            rate = sample.rates.get(node["id"])
            told: object = "" if rate is None else f"{rate:.1f}"
        else:
            told = "" if node["messages"] is None else f"{node['messages']:.0f}"
        name = clip(node["name"], NAME_WIDTH)
        counts = (node[key] for key in ("slots", "busy", "queued", "done", *MOVES))
        lines.append((name, node["status"], *counts, told))
    return lines


def _progress_rows(jobs: Sequence[dict[str, Any]]) -> Rows:
    lines: list[Sequence[object]] = [("JOB", "NAME", "STATE", "DONE", "FAILED", "AT", "")]
    for job in jobs:
        told = job_json(job)
        ended = told["done"] + told["failed"]
        name, at = clip(told["name"] or "", NAME_WIDTH), clip(told["owner_name"] or "", NAME_WIDTH)
        lines.append((told["id"], name, told["state"], done_of(told), told["failed"], at, bar(ended, told["total"])))
    return lines


def _draw(sample: Sample) -> Any:
    slots, busy = (sum(node[key] for node in sample.nodes) for key in ("slots", "busy"))
    parts = [
        line(f"{count(len(sample.nodes), 'node')}, {busy} of {count(slots, 'slot')} busy"),
        grid_of(_node_rows(sample, live=True)),
    ]
    parts += [line(""), grid_of(_progress_rows(sample.jobs))] if sample.jobs else []
    parts += [line(_silent(sample))] if sample.unanswered else []
    return stacked(parts)


def _silent(sample: Sample) -> str:
    return f"no answer from {', '.join(sample.unanswered)}"
