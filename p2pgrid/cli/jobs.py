"""`p2pgrid jobs`, `show`, `explain`, `cancel`, `forget`, `keep`: what the grid works on, and why it waits."""

from __future__ import annotations

import time
from typing import Any

import click

from p2pgrid.cli.link import open_link
from p2pgrid.cli.output import ago, clip, count, emit, plain, table, talk, warn, when
from p2pgrid.cli.reading import mapping, rows, text, texts, whole
from p2pgrid.cli.verb import Setting, Verb
from p2pgrid.core.units import parse_duration

TARGET = "JOB[/TASK]"
NAME_WIDTH = 40
"""Names are cut there: a long one from another member shall not spoil the table."""
MOVES = ("stolen", "prefetched", "rerun")
"""Tasks that nodes took from each other, had before a slot was free, ran again."""
UNDER_WAY = ("queued", "running")
TASK_STATES = ("done", "failed", "running", "queued", "waiting", "cancelled")

target_argument = click.argument("target", metavar=TARGET)


def ask(setting: Setting, verb: str, **arguments: Any) -> dict[str, Any]:
    """Ask the node, and say which other nodes it asked in vain; `--json` says so in the object."""
    with open_link(setting.dir, f"p2pgrid {verb}") as link:
        said = link.about(verb, **arguments) if "target" in arguments else link.ask(verb, **arguments)
        found = {"nodes": link.welcome.get("nodes"), **said}
    silent = texts(found.get("unanswered"))
    if silent and not setting.json:
        warn(f"no answer from {', '.join(silent)}: what only they know is missing here")
    return found


def emit_found(found: dict[str, Any], body: dict[str, Any]) -> None:
    emit(body | {"unanswered": texts(found.get("unanswered"))})


@click.command("jobs", cls=Verb, example="p2pgrid jobs\np2pgrid jobs --json | jq '.jobs[0].id'")
@click.pass_obj
def jobs(setting: Setting) -> None:
    """List the jobs of all nodes, the newest first."""
    answer = ask(setting, "jobs", mine=None)
    found = rows(answer.get("jobs"))
    if setting.json:
        emit_found(answer, {"jobs": [job_json(job) for job in found]})
    elif not found:
        talk("no jobs yet; in Python: pg.Grid().map(f, xs)")
    else:
        lines = job_table(found, several=whole(answer.get("nodes")) > 1)
        click.echo(lines[0])
        for line, job in zip(lines[1:], found, strict=True):
            click.echo(line)
            moved = "; ".join(f"{row['node']} {_counts(row)}" for row in job_json(job)["moves"])
            if moved and text(job.get("state")) in UNDER_WAY:  # of what has ended: `show`, `explain`
                click.echo(f"  moved: {plain(moved)}")
            if text(job.get("waiting")):
                click.echo(f"  waits: {plain(job['waiting'])}")


@click.command("show", cls=Verb, example="p2pgrid show last\np2pgrid show calm-river-42/17")
@target_argument
@click.pass_obj
def show(setting: Setting, target: str) -> None:
    """Show a job and the states of its tasks; JOB/17 or JOB/3-9: those tasks."""
    found = ask(setting, "show", target=target)
    job, states = mapping(found.get("job")), mapping(found.get("tasks"))
    tasks = rows(found.get("listed", [found.get("task")]))
    started = {one: whole(mapping(found.get("started")).get(one)) for one in ("jobs", "tasks", "done")}
    if setting.json:
        moves = [{"node": text(row.get("node")), **_moved(row)} for row in rows(found.get("moves"))]
        body: dict[str, Any] = {"job": job_json(job), "tasks": {one: whole(states.get(one)) for one in TASK_STATES}}
        body["moves"] = moves
        body["started"] = started
        listed = [task_json(task) for task in tasks]
        emit_found(found, body | ({"task": listed[0], "listed": listed} if listed else {}))
    elif tasks:
        click.echo("\n".join(_task_line(job, task) for task in tasks))
    else:
        click.echo(_job_text(job, {state: whole(states.get(state)) for state in TASK_STATES}))
        if started["jobs"]:
            click.echo(
                f"its tasks have started {started['tasks']} others that are not listed, {started['done']} are done"
            )


@click.command("explain", cls=Verb, example="p2pgrid explain last\np2pgrid explain calm-river-42/3-9")
@target_argument
@click.pass_obj
def explain(setting: Setting, target: str) -> None:
    """Say why a job or a task waits, clause by clause; which node has which of its tasks, and how they came there."""
    found = ask(setting, "explain", target=target)
    lines = texts(found.get("lines"))
    if setting.json:
        emit_found(found, {"target": target, "lines": lines})
    else:
        click.echo("\n".join(plain(line) for line in lines))


@click.command("cancel", cls=Verb, example="p2pgrid cancel last\np2pgrid cancel calm-river-42/3-9")
@target_argument
@click.pass_obj
def cancel(setting: Setting, target: str) -> None:
    """Cancel a job, some of its tasks, or `all`; what runs is killed."""
    found = ask(setting, "cancel", target=target)
    cancelled = whole(found.get("cancelled"))
    if setting.json:
        emit_found(found, {"cancelled": cancelled})
    else:
        done = f"cancelled {count(cancelled, 'task')} of {target}"
        click.echo(done if cancelled else f"nothing of {target} was left to cancel")


@click.command("forget", cls=Verb, example="p2pgrid forget last")
@click.argument("target", metavar="JOB")
@click.pass_obj
def forget(setting: Setting, target: str) -> None:
    """Remove a job, or `all`, with its results from the grid; what still runs is cancelled."""
    _whole_job(target, "forget")
    found = ask(setting, "forget", target=target)
    forgotten = whole(found.get("forgotten"))
    if setting.json:
        emit_found(found, {"forgotten": forgotten})
    else:
        click.echo(f"forgot {count(forgotten, 'job')}")


@click.command("keep", cls=Verb, example="p2pgrid keep last --for 30d")
@click.argument("target", metavar="JOB")
@click.option("--for", "duration", required=True, metavar="DURATION", help="How long from now, like 12h or 30d.")
@click.pass_obj
def keep(setting: Setting, target: str, duration: str) -> None:
    """Keep a job and its results for longer; the time only grows."""
    _whole_job(target, "keep")
    try:
        seconds = parse_duration(duration)
    except ValueError as error:
        raise click.UsageError(f"--for: {error}") from error
    found = ask(setting, "keep", target=target, until=time.time() + seconds)
    expires = when(found.get("expires"))
    if setting.json:
        emit_found(found, {"expires": expires})
    else:
        click.echo(f"kept until {expires}")


def _whole_job(target: str, verb: str) -> None:
    if "/" in target:
        raise click.UsageError(f"{verb} takes a whole job, not tasks of it: {target.partition('/')[0]}")


# ---- forms -----------------------------------------------------------------------------------------------------------


def job_json(job: dict[str, Any]) -> dict[str, Any]:
    """Return a job as `--json` shows it."""
    total = job.get("total")
    return {
        "id": text(job.get("id")),
        "hex": text(job.get("hex")),
        "name": text(job.get("name")) or None,
        "state": text(job.get("state")),
        "done": whole(job.get("done")),
        "failed": whole(job.get("failed")),
        "total": None if total is None else whole(total),
        "submitted": when(job.get("submitted")),
        "expires": when(job.get("expires")),
        "program": text(job.get("program")) or None,
        "owner": text(job.get("owner")) or None,
        "owner_name": text(job.get("owner_name")) or None,
        "detached": bool(job.get("detached", False)),
        "reason": text(job.get("reason")) or None,
        "waiting": text(job.get("waiting")) or None,
        "failed_tasks": _indices(job),
        **_moved(job),
        "moves": [{"node": text(row.get("node")), **_moved(row)} for row in rows(job.get("moves"))],
    }


def task_json(task: dict[str, Any]) -> dict[str, Any]:
    """Return a task as `--json` shows it."""
    return {
        "index": whole(task.get("index")),
        "state": text(task.get("state")),
        "node": text(task.get("node")) or None,
        "attempts": whole(task.get("attempts"), 1),
        "error": text(task.get("error")) or None,
    }


def job_table(found: list[dict[str, Any]], *, several: bool) -> list[str]:
    """Return a head and one line per job; of `several` nodes each job names its own."""
    shown = [job_json(job) for job in found]
    at = several or len({job["owner_name"] for job in shown}) > 1
    head = ("JOB", "NAME", "STATE", "DONE", "FAILED", "AGE", *(["AT"] if at else []), "PROGRAM")
    lines: list[tuple[object, ...]] = [head]
    for job, told in zip(shown, found, strict=True):
        place = [clip(job["owner_name"] or "", NAME_WIDTH)] if at else []
        age = ago(told.get("submitted"))
        name, program = clip(job["name"] or "", NAME_WIDTH), clip(job["program"] or "", NAME_WIDTH)
        lines.append((job["id"], name, job["state"], done_of(job), job["failed"], age, *place, program))
    return table(lines).splitlines()


def _moved(row: dict[str, Any]) -> dict[str, int]:
    return {kind: whole(row.get(kind)) for kind in MOVES}


def _counts(row: dict[str, Any]) -> str:
    """Return `4 stolen, 1 rerun`."""
    return ", ".join(f"{row[kind]} {kind}" for kind in MOVES if row[kind])


def done_of(job: dict[str, Any]) -> str:
    """Return `17 of 100`."""
    total = job.get("total")
    return f"{whole(job.get('done'))} of {'?' if total is None else whole(total)}"


def _indices(job: dict[str, Any]) -> list[int]:
    found = job.get("failed_tasks")
    return [index for index in found if isinstance(index, int)] if isinstance(found, list) else []


def _job_text(job: dict[str, Any], tasks: dict[str, int]) -> str:
    told = job_json(job)
    name = f" ({told['name']})" if told["name"] else ""
    states = ", ".join(f"{tasks[state]} {state}" for state in TASK_STATES if tasks.get(state))
    kept_at = f" at {told['owner_name']}" if told["owner_name"] else ""
    lines = [
        f"job {told['id']}{name}   {told['state']}",
        f" tasks    {'?' if told['total'] is None else told['total']}: {states or 'none yet'}",
        f" from     {told['program'] or 'a program'}, {told['submitted']}",
        f" kept     until {told['expires']}{kept_at}",
        f" hex      {told['hex']}",
    ]
    moved = _counts(told)
    lines += [f" moved    {moved}"] if moved else []
    lines += [f" waits    {told['waiting']}"] if told["waiting"] else []
    failed = list(map(str, told["failed_tasks"]))
    if failed:
        more = " …" if len(failed) < tasks.get("failed", 0) else ""
        lines.append(f" failed   {', '.join(failed)}{more}; why: p2pgrid show {told['id']}/{failed[0]}")
    lines += [f" reason   {told['reason']}"] if told["reason"] else []
    return "\n".join(plain(line) for line in lines)


def _task_line(job: dict[str, Any], task: dict[str, Any]) -> str:
    told = task_json(task)
    where = f" at {told['node']}" if told["node"] else ""
    error = f": {told['error']}" if told["error"] else ""
    line = f"task {text(job.get('id'))}/{told['index']}   {told['state']}{where}, attempt {told['attempts']}{error}"
    return plain(line)
