"""`p2pgrid wait` and `p2pgrid result`: the outcome of a job, at any node of the grid."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click

from p2pgrid.cli.jobs import target_argument
from p2pgrid.cli.large import LargeValues
from p2pgrid.cli.link import Link, open_link
from p2pgrid.cli.output import V, count, emit, plain, talk
from p2pgrid.cli.parts import CANCELLED, Part, Parts
from p2pgrid.cli.reading import mapping, rows, text, texts, whole
from p2pgrid.cli.shown import Showing, Shown
from p2pgrid.cli.verb import Setting, Verb
from p2pgrid.core.errors import ExitCode, GridError, NotFound
from p2pgrid.core.ids import job_name
from p2pgrid.core.large import LARGE, read_large
from p2pgrid.core.ranges import Span
from p2pgrid.core.ref import Ref
from p2pgrid.core.shapes import FAILURE, failure_text
from p2pgrid.core.units import parse_duration

FORMATS = ("repr", "jsonl", "pickle")
FAILED_SHOWN = 1000
"""Failed tasks that are named on stderr."""
Row = dict[str, Any]


@click.command("wait", cls=Verb, example="p2pgrid wait last && p2pgrid result last")
@target_argument
@click.option("--timeout", metavar="DURATION", help="Wait no longer than that, like 90s or 10m; then exit 6.")
@click.pass_obj
def wait(setting: Setting, target: str, timeout: str | None) -> int:
    """Wait until a job, or tasks of it, have ended; exit 1 if it failed or was cancelled."""
    try:
        timeout_s = None if timeout is None else parse_duration(timeout)
    except ValueError as error:
        raise click.UsageError(f"--timeout: {error}") from error
    with open_link(setting.dir, "p2pgrid wait") as link:
        job, span = _found(link, target)
        parts = Parts(link, job, span)
        if not parts.wait(timeout_s):
            raise GridError(
                f"{_label(job, span)} has not ended within {timeout}", code="timed-out",
                next=f"why it waits: p2pgrid explain {_label(job, span)}",
            )  # fmt: skip
        told = mapping(link.about("show", f"{job.hex()}{_suffix(span)}"))
    state = parts.state if span is None else _worst(rows(told.get("listed")))
    if span is not None and state == "":
        raise NotFound(f"{job_name(job)} has no task {span[0]}", next=f"p2pgrid show {job_name(job)}")
    if setting.json:
        emit({"id": job_name(job), "hex": job.hex(), "state": state, "reason": parts.reason or None})
    else:
        click.echo(plain(f"{_label(job, span)} {state}{f': {parts.reason}' if parts.reason else ''}"))
    return ExitCode.DONE if state == "done" else ExitCode.FAILED


@click.command("result", cls=Verb, example="p2pgrid result last\np2pgrid result calm-river-42/3-9 --format jsonl")
@target_argument
@click.option("--follow", is_flag=True, help="Print results in the order in which they are made.")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write there.")
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default="repr", show_default=True,
    help="repr: a line for each value; jsonl: an object for each task; pickle: one (index, value) after the other.",
)  # fmt: skip
@click.pass_obj
def result(setting: Setting, target: str, follow: bool, output: Path | None, form: str) -> int:  # noqa: FBT001 - click
    """Print the results of a job, waiting for those that are to come; failed tasks on stderr, exit 1 at the end."""
    if setting.json and form == "pickle":
        raise click.UsageError("--json and --format pickle exclude each other")
    if form == "pickle" and output is None and sys.stdout.isatty():
        raise click.UsageError("a terminal shows no pickles: --output FILE")
    as_rows = setting.json or form == "jsonl"
    with _to(output) as out, open_link(setting.dir, "p2pgrid result") as link:
        job, span = _found(link, target)
        codes = _codes(link, job)
        parts = Parts(link, job, span)
        printer = _Printer(out, job_name(job), "jsonl" if as_rows else form, one=setting.json and not follow)
        with LargeValues(link.dir) as large, Showing(link.dir, interpreter_of(link), printer.form, codes) as showing:
            printer.large = large
            for part in parts.as_they_come() if follow else parts.in_order():
                printer.part(part, showing)
        told = mapping(mapping(link.about("show", job.hex())).get("job"))
        known = whole(told.get("total")) if told.get("total") is not None else whole(told.get("known"))
        if span is not None and span[0] >= known:
            raise NotFound(f"{job_name(job)} has no task {span[0]}", next=f"p2pgrid show {job_name(job)}")
        wanted = known if span is None else min(span[1], known) - span[0]
        printer.end(job, parts, text(told.get("state")), wanted - printer.tasks)
    return ExitCode.DONE if printer.is_well else ExitCode.FAILED


class _Printer:
    """Writes tasks as they come."""

    def __init__(self, out: IO[bytes], name: str, form: str, *, one: bool) -> None:
        self.form = form
        self.tasks = 0
        self.is_well = True
        self._out = out
        self._name = name
        self._one = one
        self.large: LargeValues | None = None
        self._all: list[Row] = []
        self._failed = 0

    def part(self, part: Part, showing: Showing) -> None:
        """Write the results of one part."""
        if self.form == "repr" and part.shape not in (FAILURE, CANCELLED):  # a million lines in seconds
            shown = _shown(part, showing, self.large)
            self.tasks += len(shown)
            self._lines([one.text for one in shown])
            return
        for row, one in rows_of(part, showing, self.large):
            self._task(row, one)

    def _task(self, row: Row, shown: Shown | None) -> None:
        self.tasks += 1
        if row["state"] != "done":
            self._fail(row["index"], row["error"])
        elif shown is not None and self.form == "pickle" and not shown.readable:
            self._fail(row["index"], shown.text)
        if self._one:
            self._all.append(row)
        elif self.form == "jsonl":
            self._lines([json.dumps({"v": V, **row})])
        elif shown is not None and self.form == "pickle":
            self._out.write(shown.pickled)

    def _lines(self, texts: list[str]) -> None:
        lines = [line if line.isprintable() else plain(" ".join(map(str.strip, line.splitlines()))) for line in texts]
        self._out.write("".join(f"{line}\n" for line in lines).encode(errors="backslashreplace"))

    def _fail(self, index: int, error: str) -> None:
        self.is_well = False
        self._failed += 1
        if self.form != "jsonl" and self._failed <= FAILED_SHOWN:
            self._out.flush()
            talk(plain(f"{self._name}/{index}: {error}"))

    def end(self, job: bytes, parts: Parts, state: str, missing: int) -> None:
        """Say what there is to say of the job as a whole."""
        state = parts.state or state
        if self._one:
            told = {"id": self._name, "hex": job.hex(), "state": state, "reason": parts.reason or None}
            self._out.write(json.dumps({"v": V, **told, "results": self._all}).encode() + b"\n")
        self._out.flush()
        if self._failed > FAILED_SHOWN and self.form != "jsonl":
            talk(f"… and {self._failed - FAILED_SHOWN} more")
        if missing > 0:
            self.is_well = False
            why = f": {plain(parts.reason)}" if parts.reason else ""
            talk(f"{self._name} is {plain(state)}{why}; {count(missing, 'task')} of it without a result")


def rows_of(part: Part, showing: Showing, large: LargeValues | None) -> Iterator[tuple[Row, Shown | None]]:
    """Yield each task as a row of `jsonl`, with its value if it has one."""
    empty: Row = {"index": part.lo, "state": "done", "value": None, "repr": None, "error": None}
    if part.shape == CANCELLED:
        for index in range(part.lo, part.hi):
            yield {**empty, "index": index, "state": "cancelled", "error": "it was cancelled"}, None
    elif part.shape == FAILURE:
        yield {**empty, "state": "failed", "error": failure_text(part.data) or "it failed"}, None
    else:
        for index, one in enumerate(_shown(part, showing, large), part.lo):
            yield {**empty, "index": index, "value": one.value, "repr": one.text}, one


def _shown(part: Part, showing: Showing, large: LargeValues | None) -> list[Shown]:
    if part.shape == LARGE:
        return [_large(part, showing, large)]
    found = showing.show(part.shape, part.data, part.many, part.lo - part.skip)
    return found[part.skip : part.skip + part.hi - part.lo]


def _large(part: Part, showing: Showing, values: LargeValues | None) -> Shown:
    """Return what can be said of a value in the grid's memory; of one kept as a Ref, its name."""
    large = read_large(part.data)
    if large.is_ref or values is None:
        return Shown(repr(Ref(large.name, large.size)), readable=not large.is_ref)
    try:
        return showing.show(LARGE, values.parts(large), 1, part.lo)[0]
    except GridError as error:
        return Shown(f"<a value that cannot be shown: {error.message}>", readable=False)


def _found(link: Link, target: str) -> tuple[bytes, Span | None]:
    found = link.about("find", target)
    job, lo, hi = found.get("job"), found.get("lo"), found.get("hi")
    if not isinstance(job, bytes):
        raise NotFound(f"no job {target!r:.80} is known here", next="p2pgrid jobs lists what there is")
    return job, (lo, hi) if isinstance(lo, int) and isinstance(hi, int) else None


def _codes(link: Link, job: bytes) -> list[str]:
    """Return the names of what the job's functions are made of; nothing where nobody can say it now."""
    try:
        return texts(link.about("show", job.hex()).get("codes"))
    except GridError:
        return []


def interpreter_of(link: Link) -> str:
    """Return the interpreter of this node's workers, which finds the classes of values if anything here does."""
    with contextlib.suppress(GridError):
        for row in rows(link.ask("members").get("members")):
            if row.get("id") == link.welcome.get("id"):
                for python in rows(row.get("pythons")):
                    return text(python.get("path"), sys.executable)
    return sys.executable


@contextlib.contextmanager
def _to(path: Path | None) -> Iterator[IO[bytes]]:
    """Yield where to write: a file that is there under its name only when it is whole, or stdout."""
    if path is None:
        yield sys.stdout.buffer
        return
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as out:
            yield out
        part.replace(path)
    except OSError as error:
        raise GridError(f"{path} cannot be written: {error.strerror}", code="usage", next="--output FILE") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _suffix(span: Span | None) -> str:
    return "" if span is None else f"/{span[0]}-{span[1] - 1}"


def _label(job: bytes, span: Span | None) -> str:
    one = span is not None and span[1] == span[0] + 1
    return job_name(job) + (f"/{span[0]}" if one and span else _suffix(span))


def _worst(tasks: list[Row]) -> str:
    states = {text(task.get("state")) for task in tasks}
    return next((state for state in ("failed", "cancelled", "done") if state in states), "")
