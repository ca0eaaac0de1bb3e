"""`p2pgrid completion`: what a shell needs to complete verbs and flags."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from p2pgrid.cli.output import emit
from p2pgrid.cli.verb import Setting, Verb

SHELLS = ("bash", "zsh", "fish")


@click.command("completion", cls=Verb, example='eval "$(p2pgrid completion bash)"')
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell."""
    setting: Setting = ctx.obj
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(ctx.find_root().command, {}, "p2pgrid", "_P2PGRID_COMPLETE").source()
    if setting.json:
        emit({"shell": shell, "script": script})
    else:
        click.echo(script)
