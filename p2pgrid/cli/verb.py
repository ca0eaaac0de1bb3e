"""What every verb has: `--json`, `--dir`, an example in its help, flags that are announced but not there yet."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from p2pgrid.core.errors import ExitCode, GridError

DIRECTORY = click.Path(path_type=Path, file_okay=False)
DIR_HELP = "The directory of the node."
JSON_HELP = "One JSON object on stdout, errors as JSON on stderr."


@dataclass(frozen=True, slots=True)
class Setting:
    """What was asked for beside the verb itself; `dir` None means: where a node of this user usually is."""

    json: bool
    dir: Path | None


class NotYet(GridError):
    """A verb or flag whose name is reserved."""

    code = "not-yet"

    def __init__(self, what: str, milestone: str, *, next: str) -> None:  # noqa: A002 - as in GridError
        """Name the milestone that brings it, if that is known."""
        super().__init__(f'{what} comes later, with "{milestone}"' if milestone else f"{what} comes later", next=next)

    @property
    def exit_code(self) -> ExitCode:
        """Repeating will not help."""
        return ExitCode.WRONG


class Verb(click.Command):
    """A command whose callback gets a `Setting` first (`click.pass_obj`)."""

    def __init__(
        self,
        name: str,
        *,
        example: str,
        later: Mapping[str, str] | None = None,
        dir_help: str = DIR_HELP,
        **attributes: Any,
    ) -> None:
        """Add the flags of all verbs; `later` maps announced flags to the milestone that brings them."""
        super().__init__(name, **attributes)
        self._example = example
        self._later = later or {}
        self.params += _common_flags(dir_help)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; a flag that is announced but not built says so."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if error.option_name in self._later:
                raise NotYet(
                    error.option_name, self._later[error.option_name], next=f"{ctx.command_path} --help"
                ) from None
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the callback with what was given before or after the verb."""
        ctx.obj = Setting(json=bool(_given(ctx, "json")), dir=_given(ctx, "dir"))
        return super().invoke(ctx)

    def get_short_help_str(self, limit: int = 45) -> str:
        """Return the first clause of what it does, whole: it is wrapped, not cut."""
        return first_clause(self.help)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example as it is typed."""
        _write_example(self._example, formatter)


class Family(click.Group):
    """A verb that has verbs of its own, like `grid show`."""

    def __init__(self, name: str, *, example: str, dir_help: str = DIR_HELP, **attributes: Any) -> None:
        """Add the flags of all verbs, for those who type them before the second word."""
        super().__init__(name, no_args_is_help=False, **attributes)
        self._example = example
        self.params += _common_flags(dir_help)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the second word."""
        if args[0] not in self.commands:
            raise click.UsageError(
                f"there is no verb {f'{self.name} {args[0]}'!r}{nearest(args[0], self.commands)}", ctx
            )
        return super().resolve_command(ctx, args)

    def get_short_help_str(self, limit: int = 45) -> str:
        """Return the first clause of what it does, whole: it is wrapped, not cut."""
        return first_clause(self.help)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example as it is typed."""
        _write_example(self._example, formatter)


def _common_flags(dir_help: str) -> list[click.Parameter]:
    return [
        click.Option(["--json"], is_flag=True, is_eager=True, help=JSON_HELP),
        click.Option(["--dir"], type=DIRECTORY, help=dir_help),
    ]


def first_clause(text: str | None) -> str:
    """Return what comes before the first full stop, semicolon or colon."""
    return re.split(r"[.;:](?:\s|$)", " ".join((text or "").split()), maxsplit=1)[0] + "."


def _write_example(example: str, formatter: click.HelpFormatter) -> None:
    with formatter.section("Example"):
        for line in example.splitlines():
            formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def _given(ctx: click.Context, name: str) -> Any:
    """Take a common flag from the verb, or from before it; what is typed beats the environment, wherever it stands."""
    value = ctx.params.pop(name)
    typed = ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    outer = ctx.parent
    while outer is not None:
        above = outer.params.get(name)
        typed_there = outer.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if above and (not value or (typed_there and not typed)):
            value, typed = above, typed_there
        outer = outer.parent
    return value


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?`, or nothing if nothing is near."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""
