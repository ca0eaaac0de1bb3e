"""`p2pgrid run`, `map` and `submit`: programs instead of functions.

Exit codes of `run` and `map` are those of the command: the first that is not 0, in the order of nodes or items; 128 and
the signal's number where one ended it; 125 where it is we who failed (`cli.main`).
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import click

from p2pgrid.cli.large import LargeValues
from p2pgrid.cli.link import TIMEOUT_S, Link, open_link
from p2pgrid.cli.output import V, emit, plain, talk
from p2pgrid.cli.parts import Parts
from p2pgrid.cli.reading import mapping, text
from p2pgrid.cli.result import Row, interpreter_of, rows_of
from p2pgrid.cli.shown import Showing
from p2pgrid.cli.verb import Setting, Verb
from p2pgrid.client.connection import Connection, ConnectionLost, connect
from p2pgrid.client.members import chosen, connected, members_from, only
from p2pgrid.client.programs import Program, Sender
from p2pgrid.client.session import Session
from p2pgrid.core.errors import ExitCode, GridError, NodeGone
from p2pgrid.core.ids import job_name
from p2pgrid.core.locate import socket_of
from p2pgrid.core.options import TaskOptions
from p2pgrid.core.prints import ERR, LINE_MAX

SHOWN_MAX = 100_000
"""Lines of a task that are shown as they come; the rest at its end."""
SIGNALLED = 128
STREAMS = ("stdout", "stderr")


class ProgramVerb(Verb):
    """A verb whose words from the command on are the command's: flags too."""

    def __init__(self, name: str, **attributes: Any) -> None:
        """Take flags before the command only."""
        super().__init__(name, context_settings={"allow_interspersed_args": False}, **attributes)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, and remember whether a `--` came before the command."""
        given = list(args)
        rest = super().parse_args(ctx, args)
        words = ctx.params.get("command") or ()
        before = len(given) - len(words) - 1
        ctx.meta["dashes"] = before >= 0 and given[before] == "--"
        return rest


on_option = click.option("--on", "where", metavar="WHERE", help="Only where this holds, like \"arch == 'aarch64'\".")
command_argument = click.argument("command", metavar="[--] CMD…", nargs=-1, required=True, type=click.UNPROCESSED)


@click.command(
    "run", cls=ProgramVerb,
    example="p2pgrid run -- uname -a\np2pgrid run --all -- df -h /\np2pgrid run ./simulate.py --seed 7",
)  # fmt: skip
@click.option("--all", "everywhere", is_flag=True, help="On every node that takes work.")
@click.option("--on", "where", metavar="WHERE", help='On every node where this holds, like "cpus >= 8".')
@command_argument
@click.pass_obj
def run(setting: Setting, everywhere: bool, where: str | None, command: tuple[str, ...]) -> int:  # noqa: FBT001 - click
    """Run a command on a node of the grid; end with its exit code, its output on stdout and stderr as it comes."""
    options = _options(where=where)
    program = Program(command)
    with _at_node(setting, "p2pgrid run") as (link, session):
        keys: list[str] = []
        each = [options]
        if everywhere or where is not None:
            members = chosen(connected(lambda: members_from(session.request("members", {}))), TaskOptions(), where)
            keys = list(members)
            each = [_options(where=only(member), strict=True) for member in members.values()]
        job = Sender(session).once_each(program, each)
        streams = [_Streams("" if len(each) == 1 else f"{keys[number]}: ") for number in range(len(each))]
        shower = None if setting.json else _Shower(streams)
        told = []
        for done in _outcomes(link, job, shower):
            told.append({"node": keys[done.index] if keys else None, **done.to_json()})
            if shower is not None:
                shower.end(done)
    return _ended(setting, job, told, len(each))


@click.command(
    "map", cls=ProgramVerb,
    example="p2pgrid map 'gzip -9c {}' /data/*.log > all.gz\nseq 100 | p2pgrid map './model --seed {}' -",
)  # fmt: skip
@on_option
@click.argument("template", metavar="CMD")
@click.argument("command", metavar="ITEM…|-", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def map_(setting: Setting, where: str | None, template: str, command: tuple[str, ...]) -> int:
    """Run a command for each item, in the place of {}; outputs in the order of the items.

    CMD is split into words as a shell would, and no shell runs it: sh -c '…' for pipes. `-`: an item for each line of
    stdin.
    """
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise click.UsageError(f"{template!r:.80} cannot be split into words: {error}") from error
    if not words:
        raise click.UsageError("the command is empty")
    items = list(command)
    if items == ["-"]:
        items = [line.rstrip("\n") for line in sys.stdin]
    options = _options(where=where)
    program = Program(words)
    if not items:
        return ExitCode.DONE
    with _at_node(setting, "p2pgrid map") as (link, session):
        job = Sender(session).for_each(program, items, options)
        told = []
        for done in _outcomes(link, job, None):
            told.append({"item": items[done.index], **done.to_json()})
            if not setting.json:
                _Streams("").end(done)
    return _ended(setting, job, told, len(items))


@click.command(
    "submit", cls=ProgramVerb,
    example="p2pgrid submit train.py --epochs 90\np2pgrid submit --name nightly -- make report",
)  # fmt: skip
@on_option
@click.option("--name", help="A name for the job.")
@click.option("--timeout", metavar="DURATION", help="Kill it after that time, like 90s or 10m.")
@click.argument("command", metavar="SCRIPT|-- CMD…", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def submit(
    ctx: click.Context, where: str | None, name: str | None, timeout: str | None, command: tuple[str, ...]
) -> int:
    """Start a script or a command as a job of the grid, and print its id; then `p2pgrid wait`, `logs`, `result`."""
    setting: Setting = ctx.obj
    options = _options(where=where, name=name, detach=True, timeout=_seconds(timeout))
    program = Program(command, is_script=not ctx.meta["dashes"])
    with _at_node(setting, "p2pgrid submit") as (_, session):
        job = Sender(session).once_each(program, [options], check=True)
    if setting.json:
        emit({"id": job_name(job), "hex": job.hex()})
    else:
        click.echo(job_name(job))
    return ExitCode.DONE


def _options(**options: Any) -> TaskOptions:
    try:
        return TaskOptions().replace(**{name: value for name, value in options.items() if value is not None})
    except (ValueError, TypeError) as error:
        raise click.UsageError(str(error)) from error


def _seconds(duration: str | None) -> float | None:
    from p2pgrid.core.units import parse_duration

    try:
        return None if duration is None else parse_duration(duration)
    except ValueError as error:
        raise click.UsageError(f"--timeout: {error}") from error


class _Here:
    """Finds the node that was found already."""

    flags = ""

    def __init__(self, link: Link) -> None:
        self._dir = link.dir

    def connect(self, hello: dict[str, Any]) -> Connection:
        connection = self.again(hello)
        if connection is None:
            raise NodeGone("", f"the node in {self._dir} ended")
        return connection

    def again(self, hello: dict[str, Any]) -> Connection | None:
        path = socket_of(self._dir)
        try:
            return None if path is None else connect(path, hello, TIMEOUT_S)
        except (OSError, ConnectionLost):
            return None


@contextmanager
def _at_node(setting: Setting, program: str) -> Iterator[tuple[Link, Session]]:
    """Yield a link to read by and a session to send by; leaving cancels what has not ended and is not detached."""
    with open_link(setting.dir, program) as link:
        session = Session(_Here(link), timeout_s=TIMEOUT_S, reconnect=False, unpickles=False)
        try:
            yield link, session
        finally:
            session.leave()


@dataclass(frozen=True, slots=True)
class _Done:
    """How a task ended: with the code and the output of its command, or with an error of ours."""

    index: int
    code: int | None
    out: str
    err: str
    error: str | None

    def to_json(self) -> dict[str, Any]:
        return {
            "index": self.index, "returncode": self.code, "stdout": self.out, "stderr": self.err, "error": self.error,
        }  # fmt: skip


def _outcomes(link: Link, job: bytes, shower: _Shower | None) -> Iterator[_Done]:
    """Yield how the tasks of a job ended, by index."""
    parts = Parts(link, job, None, None if shower is None else shower.came)
    with LargeValues(link.dir) as large, Showing(link.dir, interpreter_of(link), "jsonl") as showing:
        for part in parts.in_order():
            for row, _ in rows_of(part, showing, large):
                yield _done(row)


def _done(row: Row) -> _Done:
    value, index = mapping(row["value"]), row["index"]
    code = value.get("returncode")
    if row["state"] != "done" or not isinstance(code, int):
        return _Done(index, None, "", "", text(row["error"]) or text(row["repr"]) or "it was cancelled")
    return _Done(index, code, text(value.get("stdout")), text(value.get("stderr")), None)


class _Streams:
    """What one task printed: shown as it comes, as long as nothing of it was left out, and the rest at its end."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._shown: dict[str, list[str]] = {name: [] for name in STREAMS}
        self._whole = True

    def came(self, stream: str, line: str) -> None:
        """Show a line that was printed just now."""
        shown = self._shown[stream]
        if len(line) >= LINE_MAX or len(shown) >= SHOWN_MAX:
            self._whole = False
        if self._whole:
            shown.append(line)
            self._write(stream, line + "\n")

    def left_out(self) -> None:
        """Show nothing more before the end: lines are missing."""
        self._whole = False

    def end(self, done: _Done) -> None:
        """Show what was not shown yet."""
        for stream, said in zip(STREAMS, (done.out, done.err), strict=True):
            lines = _lines(said)
            shown = self._shown[stream]
            same = 0
            while same < min(len(shown), len(lines)) and _as_shown(lines[same]) == shown[same]:
                same += 1
            for line in lines[same:]:
                self._write(stream, line)
        if done.error is not None:
            talk(plain(f"p2pgrid: {self._prefix}{done.error}"))

    def _write(self, stream: str, line: str) -> None:
        if self._prefix and not line.endswith("\n"):
            line += "\n"
        out: BinaryIO = sys.stdout.buffer if stream == "stdout" else sys.stderr.buffer
        out.write(f"{self._prefix}{line}".encode(errors="surrogateescape"))
        out.flush()


def _lines(said: str) -> list[str]:
    """Return lines as nodes cut them: at line ends only, whatever else Python takes for one."""
    parts = said.split("\n")
    return [f"{part}\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def _as_shown(line: str) -> str:
    """Return a line as a node shows it while a task runs."""
    data = line.removesuffix("\n").encode(errors="surrogateescape")
    return data.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")


class _Shower:
    """The streams of all tasks of a job."""

    def __init__(self, streams: Sequence[_Streams]) -> None:
        self._streams = streams

    def came(self, lines: Sequence[Sequence[Any]], more: int) -> None:
        """Take lines of running tasks, as in PRINTED."""
        for index, stream, line, level, *_ in lines:
            if index < len(self._streams) and not level:
                self._streams[index].came("stderr" if stream == ERR else "stdout", line)
        if more:
            for one in self._streams:
                one.left_out()

    def end(self, done: _Done) -> None:
        """Show the rest of a task that has ended."""
        self._streams[done.index].end(done)


def _ended(setting: Setting, job: bytes, told: Sequence[Mapping[str, Any]], wanted: int) -> int:
    """Return the exit code: the first that is not 0, in order."""
    if setting.json:
        click.echo(json.dumps({"v": V, "id": job_name(job), "hex": job.hex(), "results": list(told)}))
    codes = [ExitCode.OURS_IN_RUN if one["returncode"] is None else int(one["returncode"]) for one in told]
    if len(told) < wanted:
        raise GridError(
            f"{wanted - len(told)} of {wanted} tasks of {job_name(job)} have no result", code="task-cancelled",
            next=f"p2pgrid show {job_name(job)}",
        )  # fmt: skip
    found = next((code for code in codes if code), 0)
    return SIGNALLED - found if found < 0 else found
