"""docs/cli.md, written from the verbs themselves (a test checks that it is current)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgewise.cli.verbs import VERBS

_HEAD = """# The command line

Written by `edgewise reference`; do not edit. Global options may stand anywhere in the line.

`--output json` prints the API's own structures (docs/openapi.json), so they are as stable as
the API. Errors and progress go to standard error. EDGEWISE_DEBUG=1 shows tracebacks.

| exit code | meaning |
|---|---|
| 0 | done |
| 2 | wrong usage |
| 3 | try later |
| 4 | needs a person |
| 5 | untrusted: a verification failed |
"""


def verb(
    write: Annotated[Path, typer.Option(help="File to write.")] = Path("docs/cli.md"),
) -> None:
    write.write_text(text())


def text() -> str:
    """The whole page."""
    from edgewise.cli.main import app, load

    root: Any = typer.main.get_command(app)
    parts = [_HEAD, "## Global options\n", _options(root)]
    for one in VERBS:
        if not one.hidden:
            parts += _command(f"edgewise {one.name}", load(one))
    return "\n".join(parts).rstrip() + "\n"


def _command(path: str, command: Any) -> list[str]:
    arguments = [
        p.name.upper() if p.required else f"[{p.name.upper()}]"
        for p in command.params
        if p.param_type_name == "argument"
    ]
    parts = [f"## `{' '.join([path, *arguments])}`\n", f"{command.help}\n"]
    options = _options(command)
    if options:
        parts.append(options)
    for name, below in getattr(command, "commands", {}).items():
        parts += _command(f"{path} {name}", below)
    return parts


def _options(command: Any) -> str:
    rows = []
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            rows.append((parameter.name.upper(), parameter.help or "", ""))
        elif "--help" not in parameter.opts:
            names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
            default = parameter.default
            plain = "" if default in (None, "", False, True) or callable(default) else str(default)
            rows.append((names, parameter.help or "", plain))
    if not rows:
        return ""
    lines = [f"| {a} | {b} | {c} |".replace("|  |", "| |") for a, b, c in rows]
    return "\n".join(["| option | meaning | default |", "|---|---|---|", *lines]) + "\n"
