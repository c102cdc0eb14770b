"""``edgewise openapi``: the hub's API, described from its own routes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli.session import Session
from edgewise.model.errors import NeedsPerson


def verb(
    ctx: typer.Context,
    write: Annotated[Path | None, typer.Option(help="File to write; else it is printed.")] = None,
) -> None:
    from edgewise.net.api.everything import description

    text = json.dumps(description(), indent=2) + "\n"
    if write is None:
        typer.echo(text, nl=False)
        return
    try:
        write.write_text(text)
    except OSError as error:
        raise NeedsPerson(f"{write} cannot be written: {error.strerror}") from error
    Session.of(ctx).done(f"wrote {write}")
