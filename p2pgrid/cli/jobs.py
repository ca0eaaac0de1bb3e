"""`p2pgrid jobs`, `show`, `explain`, `logs`, `cancel`: what the grid works on, and why it waits."""

from __future__ import annotations

from typing import Any

import click

from p2pgrid.cli.link import open_link
from p2pgrid.cli.output import ago, count, emit, plain, table, talk, when, write_raw
from p2pgrid.cli.verb import Setting, Verb

TARGET = "JOB[/TASK]"
TASK_STATES = ("done", "failed", "running", "queued", "waiting", "cancelled")

target_argument = click.argument("target", metavar=TARGET)


def _ask(setting: Setting, verb: str, **arguments: Any) -> dict[str, Any]:
    with open_link(setting.dir, f"p2pgrid {verb}") as link:
        return link.ask(verb, **arguments)


@click.command("jobs", cls=Verb, example="p2pgrid jobs\np2pgrid jobs --json | jq '.jobs[0].id'")
@click.pass_obj
def jobs(setting: Setting) -> None:
    """List jobs, the newest first."""
    found = _ask(setting, "jobs", mine=None)["jobs"]
    if setting.json:
        emit({"jobs": [job_json(job) for job in found]})
    elif not found:
        talk("no jobs yet; in Python: pg.Grid().map(f, xs)")
    else:
        head = ("JOB", "NAME", "STATE", "DONE", "FAILED", "AGE", "PROGRAM")
        lines = table([head, *map(_row, found)]).splitlines()
        click.echo(lines[0])
        for line, job in zip(lines[1:], found, strict=True):
            click.echo(line)
            if job.get("waiting"):
                click.echo(f"  waits: {plain(job['waiting'])}")


@click.command("show", cls=Verb, example="p2pgrid show last\np2pgrid show calm-river-42/17")
@target_argument
@click.pass_obj
def show(setting: Setting, target: str) -> None:
    """Show a job and the states of its tasks; JOB/17 or JOB/3-9: those tasks."""
    found = _ask(setting, "show", target=target)
    tasks = [found["task"]] if "task" in found else []
    tasks = found.get("listed", tasks)
    if setting.json:
        body = {"job": job_json(found["job"]), "tasks": {state: found["tasks"].get(state, 0) for state in TASK_STATES}}
        emit(body | ({"task": task_json(tasks[0]), "listed": [task_json(task) for task in tasks]} if tasks else {}))
    elif tasks:
        click.echo("\n".join(_task_line(found["job"], task) for task in tasks))
    else:
        click.echo(_job_text(found["job"], found["tasks"]))


@click.command("explain", cls=Verb, example="p2pgrid explain last")
@target_argument
@click.pass_obj
def explain(setting: Setting, target: str) -> None:
    """Say why a job or a task waits, clause by clause."""
    lines = _ask(setting, "explain", target=target)["lines"]
    if setting.json:
        emit({"target": target, "lines": lines})
    else:
        click.echo("\n".join(plain(line) for line in lines))


@click.command("logs", cls=Verb, example="p2pgrid logs last/17", later={"-f": "At home", "--follow": "At home"})
@target_argument
@click.pass_obj
def logs(setting: Setting, target: str) -> None:
    """Print what tasks wrote: the last 64 KiB of each."""
    found = _ask(setting, "logs", target=target)["logs"]
    if setting.json:
        emit({"logs": [{"index": index, "text": data.decode(errors="replace")} for index, data in found]})
    elif not found:
        talk(f"{target} has printed nothing (so far)")
    elif len(found) == 1:
        write_raw(found[0][1])
    else:
        for index, data in found:
            lead = f"{index} | ".encode()
            write_raw(b"".join(lead + line + b"\n" for line in data.splitlines()))


@click.command("cancel", cls=Verb, example="p2pgrid cancel last\np2pgrid cancel calm-river-42/3-9")
@target_argument
@click.pass_obj
def cancel(setting: Setting, target: str) -> None:
    """Cancel a job, some of its tasks, or `all`; what runs is killed."""
    cancelled = _ask(setting, "cancel", target=target)["cancelled"]
    if setting.json:
        emit({"cancelled": cancelled})
    else:
        click.echo(f"cancelled {count(cancelled, 'task')} of {target}")


# ---- forms -----------------------------------------------------------------------------------------------------------


def job_json(job: dict[str, Any]) -> dict[str, Any]:
    """Return a job as `--json` shows it."""
    return {
        "id": job["id"],
        "hex": job["hex"],
        "name": job.get("name") or None,
        "state": job["state"],
        "done": job["done"],
        "failed": job["failed"],
        "total": job.get("total"),
        "submitted": when(job.get("submitted")),
        "expires": when(job.get("expires")),
        "program": job.get("program") or None,
        "owner": job.get("owner"),
        "detached": bool(job.get("detached", False)),
        "reason": job.get("reason") or None,
        "waiting": job.get("waiting") or None,
        "failed_tasks": list(job.get("failed_tasks", ())),
    }


def task_json(task: dict[str, Any]) -> dict[str, Any]:
    """Return a task as `--json` shows it."""
    return {
        "index": task["index"],
        "state": task["state"],
        "node": task.get("node") or None,
        "attempts": task.get("attempts", 1),
        "error": task.get("error") or None,
    }


def _row(job: dict[str, Any]) -> tuple[object, ...]:
    name, program = job.get("name", ""), job.get("program", "")
    return job["id"], name, job["state"], _done(job), job["failed"], ago(job.get("submitted")), program


def _done(job: dict[str, Any]) -> str:
    total = job.get("total")
    return f"{job['done']} of {'?' if total is None else total}"


def _job_text(job: dict[str, Any], tasks: dict[str, int]) -> str:
    name = f" ({job['name']})" if job.get("name") else ""
    states = ", ".join(f"{tasks[state]} {state}" for state in TASK_STATES if tasks.get(state))
    lines = [
        f"job {job['id']}{name}   {job['state']}",
        f" tasks    {'?' if job.get('total') is None else job['total']}: {states or 'none yet'}",
        f" from     {job.get('program') or 'a program'}, {when(job.get('submitted'))}",
        f" kept     until {when(job.get('expires'))}",
        f" hex      {job['hex']}",
    ]
    lines += [f" waits    {job['waiting']}"] if job.get("waiting") else []
    failed = list(map(str, job.get("failed_tasks", ())))
    if failed:
        more = " …" if len(failed) < tasks.get("failed", 0) else ""
        lines.append(f" failed   {', '.join(failed)}{more}; why: p2pgrid show {job['id']}/{failed[0]}")
    lines += [f" reason   {job['reason']}"] if job.get("reason") else []
    return "\n".join(plain(line) for line in lines)


def _task_line(job: dict[str, Any], task: dict[str, Any]) -> str:
    where = f" at {task['node']}" if task.get("node") else ""
    error = f": {task['error']}" if task.get("error") else ""
    return plain(f"task {job['id']}/{task['index']}   {task['state']}{where}, attempt {task.get('attempts', 1)}{error}")
