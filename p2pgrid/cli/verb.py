"""What every verb has: `--json`, `--dir`, an example in its help, flags that are announced but not there yet."""

from __future__ import annotations

import difflib
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
        self.params += [
            click.Option(["--json"], is_flag=True, is_eager=True, help=JSON_HELP),
            click.Option(["--dir"], type=DIRECTORY, help=dir_help),
        ]

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

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example as it is typed."""
        with formatter.section("Example"):
            for line in self._example.splitlines():
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def _given(ctx: click.Context, name: str) -> Any:
    """Take a common flag from the verb, or from before it; what is typed beats the environment, wherever it stands."""
    value = ctx.params.pop(name)
    outer = ctx.parent
    if outer is None or not outer.params.get(name):
        return value
    typed_before = outer.get_parameter_source(name) is ParameterSource.COMMANDLINE
    typed_after = ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    return outer.params[name] if not value or (typed_before and not typed_after) else value


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?`, or nothing if nothing is near."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""
