"""The ``edgewise`` command: global options, verbs loaded when used, errors in one place."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from edgewise.cli.session import Output, Session
from edgewise.cli.verbs import VERBS, Verb
from edgewise.model.errors import EdgewiseError

_HOISTED = ("--output", "-o", "--context")


class Verbs(TyperGroup):
    """Imports the module of a verb only when that verb runs: ``--help`` stays quick.

    ``--output`` and ``--context`` may stand anywhere in the line.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        return [verb.name for verb in VERBS if not verb.hidden]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in with name and help; ``resolve_command`` gives the real one."""
        verb = next((one for one in VERBS if one.name == cmd_name), None)
        if verb is None:
            return None
        return TyperCommand(name=verb.name, help=verb.help, rich_help_panel=verb.panel)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        verb = next((one for one in VERBS if one.name == name), None)
        return name, load(verb) if verb else None, rest

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, hoist(args))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EdgewiseError as error:
            if os.environ.get("EDGEWISE_DEBUG"):
                raise
            report(error)
            raise typer.Exit(error.exit_code) from error


def load(verb: Verb) -> TyperCommand | TyperGroup:
    """The command of a verb: its module has ``app`` (many verbs) or ``verb`` (one)."""
    module = import_module(f"edgewise.cli.{verb.module}")
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(verb.name, help=verb.help)(module.verb)
    command: Any = typer.main.get_command(app)
    command.name = verb.name
    command.help = verb.help
    return command  # type: ignore[no-any-return]


def hoist(args: list[str]) -> list[str]:
    """Move the global options to the front, up to ``--``."""
    front: list[str] = []
    rest: list[str] = []
    queue = list(args)
    while queue:
        one = queue.pop(0)
        if one == "--":
            rest += [one, *queue]
            break
        if one in _HOISTED and queue:
            front += [one, queue.pop(0)]
        elif one.startswith(("--output=", "--context=")):
            front.append(one)
        else:
            rest.append(one)
    return front + rest


def report(error: EdgewiseError) -> None:
    """What happened, and the next move, on standard error."""
    typer.echo(f"edgewise: {error}", err=True)
    if error.hint:
        typer.echo(f"  next: {error.hint}", err=True)


app = typer.Typer(
    cls=Verbs,
    name="edgewise",
    help="A commit reaches every node in stages, and a bad one comes back.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        from edgewise import __version__

        typer.echo(f"edgewise {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    ctx: typer.Context,
    output: Annotated[
        Output, typer.Option("--output", "-o", help="Table for people, JSON for programs.")
    ] = "table",
    context: Annotated[
        str, typer.Option(help="Context file or data directory of the hub to talk to.")
    ] = "",
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    ctx.obj = Session(output, context)


def run() -> None:
    """Entry point of the console script: no traceback unless EDGEWISE_DEBUG is set."""
    try:
        app()
    except Exception as error:
        if os.environ.get("EDGEWISE_DEBUG"):
            raise
        typer.echo(f"edgewise: a fault of ours: {type(error).__name__}: {error}", err=True)
        typer.echo("  next: run it again with EDGEWISE_DEBUG=1 and report what it prints", err=True)
        sys.exit(4)
