"""`p2pgrid`: finds the verb, runs it, and turns every end into one line and an exit code.

    usage, not-yet, GridError    one line with what to do next (`--json`: an object); the code is that of the error
    Ctrl-C                       130
    in `run` and `map`           125, whatever of ours went wrong: theirs are the codes of the command
    anything else                a bug of ours: the path of a report, 70

Verbs are imported when they are typed, so that none pays for the others.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Any

import click

from p2pgrid import __version__
from p2pgrid.cli.output import emit, emit_error
from p2pgrid.cli.verb import DIR_HELP, DIRECTORY, JSON_HELP, NotYet, nearest
from p2pgrid.core.errors import ExitCode, GridError

VERBS = {
    "node": "p2pgrid.cli.node:node",
    "status": "p2pgrid.cli.node:status",
    "stop": "p2pgrid.cli.node:stop",
    "jobs": "p2pgrid.cli.jobs:jobs",
    "show": "p2pgrid.cli.jobs:show",
    "explain": "p2pgrid.cli.jobs:explain",
    "logs": "p2pgrid.cli.logs:logs",
    "cancel": "p2pgrid.cli.jobs:cancel",
    "wait": "p2pgrid.cli.result:wait",
    "result": "p2pgrid.cli.result:result",
    "forget": "p2pgrid.cli.jobs:forget",
    "keep": "p2pgrid.cli.jobs:keep",
    "run": "p2pgrid.cli.programs:run",
    "map": "p2pgrid.cli.programs:map_",
    "submit": "p2pgrid.cli.programs:submit",
    "members": "p2pgrid.cli.members:members",
    "top": "p2pgrid.cli.members:top",
    "invite": "p2pgrid.cli.membership:invite",
    "join": "p2pgrid.cli.membership:join",
    "leave": "p2pgrid.cli.membership:leave",
    "promote": "p2pgrid.cli.membership:promote",
    "revoke": "p2pgrid.cli.membership:revoke",
    "grid": "p2pgrid.cli.keys:grid",
    "drain": "p2pgrid.cli.drain:drain",
    "service": "p2pgrid.cli.service:service",
    "demo": "p2pgrid.cli.demo:demo",
    "sim": "p2pgrid.cli.sim:sim",
    "completion": "p2pgrid.cli.completion:completion",
}
LATER = {
    verb: milestone
    for milestone, verbs in {
        "Fast": "bench",
        "": "retry events dashboard metrics trace doctor plan put get fs stream cron actors env policy config upgrade",
    }.items()
    for verb in verbs.split()
}
"""Verbs that are reserved, and the milestone that brings them."""

PASSING = ("run", "map")
AFTER_CTRL_C = {
    "wait": "the job goes on: p2pgrid jobs; to end it: p2pgrid cancel JOB",
    "result": "the job goes on: p2pgrid jobs; to end it: p2pgrid cancel JOB",
    "logs": "the job goes on: p2pgrid jobs; to end it: p2pgrid cancel JOB",
    "run": "what it began ends with it: p2pgrid jobs",
    "map": "what it began ends with it: p2pgrid jobs",
    "sim": "p2pgrid sim --help",
}
"""What to do next, where another thing than usual is."""
"""Verbs that end with the code of the command they ran."""

MEANT = {
    "ls": "jobs",
    "list": "jobs",
    "ps": "jobs",
    "kill": "cancel",
    "results": "result",
    "fetch": "result",
    "delete": "forget",
    "rm": "forget",
    "start": "node",
    "run-node": "node",
    "up": "node",
    "nodes": "members",
    "peers": "members",
    "who": "members",
    "htop": "top",
    "token": "invite",
    "kick": "revoke",
    "ban": "revoke",
    "keys": "grid",
}
"""What people type who come from elsewhere."""


class Verbs(click.Group):
    """The verbs of today; each is imported when it is wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order in which a newcomer meets them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb."""
        if cmd_name not in VERBS:
            return None
        module, _, name = VERBS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb; one that is not there yet is told from one that never will be."""
        name = args[0]
        if name in LATER:
            raise NotYet(name, LATER[name], next="p2pgrid --help shows what works today")
        if name not in VERBS:
            hint = f"; did you mean {MEANT[name]}?" if name in MEANT else nearest(name, VERBS)
            raise click.UsageError(f"there is no verb {name!r}{hint}", ctx)
        return super().resolve_command(ctx, args)


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:  # noqa: FBT001 - click calls it
    if not wanted or ctx.resilient_parsing:
        return
    if ctx.params.get("json"):
        emit({"version": __version__})
    else:
        click.echo(f"p2pgrid {__version__}")
    ctx.exit()


@click.group(
    cls=Verbs,
    context_settings={"auto_envvar_prefix": "P2PGRID", "help_option_names": ["-h", "--help"]},
    epilog="Example:  p2pgrid node    and, in another terminal,  p2pgrid status",
)
@click.option("--json", is_flag=True, is_eager=True, help=JSON_HELP)
@click.option("--dir", type=DIRECTORY, show_envvar=True, help=DIR_HELP)
@click.option(
    "--version", is_flag=True, callback=_version, expose_value=False, allow_from_autoenv=False,
    help="Print the version and exit.",
)  # fmt: skip
def grid(**_: Any) -> None:
    """A compute grid with no master to lose."""


def main(args: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    words = list(sys.argv[1:] if args is None else args)
    if not words and "_P2PGRID_COMPLETE" not in os.environ:
        click.echo(grid.get_help(click.Context(grid, info_name="p2pgrid", **grid.context_settings)), err=True)
        return ExitCode.WRONG
    try:
        code = grid.main(words, prog_name="p2pgrid", standalone_mode=False)
    except GridError as error:
        return _failed(error, words)
    except click.ClickException as error:
        return _failed(_usage(error), words)
    except (KeyboardInterrupt, click.Abort):
        _failed(GridError("interrupted", code="interrupted", next=AFTER_CTRL_C.get(_verb(words), "")), words)
        return ExitCode.INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last border: a bug of ours becomes a report, not a traceback
        _failed(_bug(error, words), words)
        return _ours(ExitCode.BUG, words)
    return code if isinstance(code, int) else ExitCode.DONE


def _failed(error: GridError, words: Sequence[str]) -> int:
    emit_error(error, json=_wants_json(words))
    return _ours(error.exit_code, words)


def _ours(code: int, words: Sequence[str]) -> int:
    """Return the code of our own failures: where the codes of commands are passed, one that few of them use."""
    return ExitCode.OURS_IN_RUN if _verb(words) in PASSING else code


def _verb(words: Sequence[str]) -> str:
    return next((word for word in words if word in VERBS), "")


def _wants_json(words: Sequence[str]) -> bool:
    """Say whether errors shall be JSON; asked of the words themselves, for they may be what is wrong."""
    ours = words[: words.index("--")] if "--" in words else list(words)
    found = next((number for number, word in enumerate(ours) if word in VERBS), len(ours))
    verbs = [word.upper() for word in ours[found : found + 2]]  # `grid show` has two words, and a variable for each
    names = ("P2PGRID_JSON", *(f"P2PGRID_{'_'.join(verbs[:end])}_JSON" for end in (1, 2)))
    return "--json" in ours or any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in names)


def _usage(error: click.ClickException) -> GridError:
    path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx is not None else "p2pgrid"
    message = error.format_message()
    if isinstance(error, click.NoSuchOption):
        flags = [flag for one in error.ctx.command.get_params(error.ctx) for flag in one.opts] if error.ctx else []
        message = f"there is no flag {error.option_name}{nearest(error.option_name, flags)}"
    message = " ".join(message.split()).removesuffix(".")
    return GridError(message, code="usage", next=f"{path} --help")


def _bug(error: Exception, words: Sequence[str]) -> GridError:
    """Write down what is needed to mend it. The words may hold an invite, so only the verb is kept."""
    verb = next((word for word in words if word in VERBS), "")
    head = f"p2pgrid {__version__} {verb}, Python {platform.python_version()}, {sys.platform}\n\n"
    with tempfile.NamedTemporaryFile("w", prefix="p2pgrid-bug-", suffix=".txt", delete=False) as report:
        report.write(head + "".join(traceback.format_exception(error)))
    message = f"a bug of ours ({type(error).__name__}); report: {report.name}"
    return GridError(message, code="bug", next="send us the report; the node and its jobs are not touched")


if __name__ == "__main__":
    sys.exit(main())
