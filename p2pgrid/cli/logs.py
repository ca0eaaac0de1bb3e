"""`p2pgrid logs`: what tasks wrote; with --follow, as it is kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click

from p2pgrid.cli.jobs import TARGET, UNDER_WAY, ask, emit_found
from p2pgrid.cli.link import Link, open_link
from p2pgrid.cli.output import emit, talk, warn, write_raw
from p2pgrid.cli.reading import mapping, rows, text, texts
from p2pgrid.cli.verb import Setting, Verb
from p2pgrid.core.errors import GridError

KEPT_BYTES = 64 << 10
"""Of each task; of a longer output the beginning is gone."""
MARK_BYTES = 1024
"""By so much of its end it is found again what was shown of such an output."""
EVERY_S = 1.0
SHARE = 5
"""An answer that takes long is asked for less often: at most one part in so many of the time is spent with it."""
ALL = "all"
TASK_ENDED = frozenset({"done", "failed", "cancelled"})

Show = Callable[[int, bytes], None]
MakeShow = Callable[[bool], Show]
"""What shows something new of a task; told whether there is one task only."""


@click.command("logs", cls=Verb, example="p2pgrid logs last/17\np2pgrid logs -f nightly")
@click.argument("target", metavar=TARGET)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is printed, until the job has ended.")
@click.pass_obj
def logs(setting: Setting, target: str, *, follow: bool) -> None:
    """Print what tasks wrote, to the end or so far: the last 64 KiB of each; at any node. `all`: of every job."""
    if target == ALL:
        if follow:
            raise click.UsageError("-f follows one job at a time: p2pgrid jobs lists them")
        _show_all(setting)
        return
    if follow:
        with open_link(setting.dir, "p2pgrid logs") as link:
            _follow(link, target, lambda single: _shows(setting, single=single))
        return
    answer = ask(setting, "logs", target=target)
    found = _logs(answer.get("logs"))
    if setting.json:
        emit_found(answer, {"logs": [{"index": index, "text": data.decode(errors="replace")} for index, data in found]})
    elif not found:
        talk(f"there is no output of {target}: it has printed nothing so far, or its nodes are gone with it")
    elif len(found) == 1:
        write_raw(found[0][1])
    else:
        for index, data in found:
            _write_lines(index, data)


def _show_all(setting: Setting) -> None:
    """Show what the tasks of all jobs printed, one job after the other, the oldest first."""
    with open_link(setting.dir, "p2pgrid logs") as link:
        listed = link.ask("jobs")
        silent = set(texts(listed.get("unanswered")))
        shown: list[dict[str, object]] = []
        any_output = False
        for job in reversed(rows(listed.get("jobs"))):
            name = text(job.get("id"))
            try:
                answer = link.about("logs", text(job.get("hex")))
            except GridError as error:  # it was forgotten meanwhile, or those who have it are away
                warn(f"{name}: {error}")
                continue
            silent.update(texts(answer.get("unanswered")))
            for index, data in _logs(answer.get("logs")):
                any_output = True
                if setting.json:
                    shown.append({"job": name, "index": index, "text": data.decode(errors="replace")})
                else:
                    _write_lines(f"{name}/{index}", data)
    if setting.json:
        emit({"logs": shown, "unanswered": sorted(silent)})
        return
    if silent:
        warn(f"no answer from {', '.join(sorted(silent))}: what only they know is missing here")
    if not any_output:
        talk("there is no output of any job")


def _write_lines(index: int | str, data: bytes) -> None:
    lead = f"{index} | ".encode()
    write_raw(b"".join(lead + line + b"\n" for line in data.splitlines()))


def _shows(setting: Setting, *, single: bool) -> Show:
    if setting.json:
        return lambda index, data: emit({"index": index, "text": data.decode(errors="replace")})
    return (lambda _, data: write_raw(data)) if single else _write_lines


class Shown:
    """What was shown of the output of each task."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}
        self._marks: dict[int, bytes] = {}

    def fresh(self, index: int, data: bytes, *, whole_lines: bool) -> bytes:
        """Return what is new; `whole_lines`: without a line that may not have ended yet."""
        size, mark = self._sizes.get(index, 0), self._marks.get(index, b"")
        if len(data) < size:  # it runs again, or nobody is left who has all of it
            start = 0
        elif len(data) < KEPT_BYTES:
            start = size
        else:
            at = data.rfind(mark) if mark else -1
            start = at + len(mark) if at >= 0 else 0
        end = data.rfind(b"\n") + 1 if whole_lines else len(data)
        end = max(end, start)
        self._sizes[index] = end
        self._marks[index] = data[max(0, end - MARK_BYTES) : end]
        return data[start:end]


def _follow(link: Link, target: str, make: MakeShow) -> None:
    """Show what is new, again and again, until all that is meant has ended."""
    shown = Shown()
    ended = False
    while not ended:
        began = time.monotonic()
        found = link.about("show", target)
        ended = _has_ended(found)
        show = make(_is_single(found))
        for index, data in _logs(link.about("logs", target).get("logs")):
            new = shown.fresh(index, data, whole_lines=not ended)
            if new:
                show(index, new)
        if not ended:
            time.sleep(max(EVERY_S, SHARE * (time.monotonic() - began)))


def _is_single(found: dict[str, Any]) -> bool:
    """Whether one task is meant, by its index, or because its job has no other."""
    listed = rows(found.get("listed", [found.get("task")]))
    return len(listed) == 1 or (not listed and mapping(found.get("job")).get("total") == 1)


def _has_ended(found: dict[str, Any]) -> bool:
    tasks = rows(found.get("listed", [found.get("task")]))
    if tasks:
        return all(text(task.get("state")) in TASK_ENDED for task in tasks)
    return text(mapping(found.get("job")).get("state")) not in UNDER_WAY


def _logs(value: object) -> list[tuple[int, bytes]]:
    pairs = value if isinstance(value, list) else []
    return [(index, data) for index, data in (_log(pair) for pair in pairs) if data is not None]


def _log(pair: object) -> tuple[int, bytes | None]:
    match pair:
        case [int(index), bytes(data)]:
            return index, data
    return 0, None
