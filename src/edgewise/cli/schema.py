"""``edgewise schema``: JSON Schemas of the documents, for editors and for CI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from edgewise.cli.session import Session
from edgewise.model.errors import BadUsage, NeedsPerson


def verb(
    ctx: typer.Context,
    kind: Annotated[str, typer.Argument(help="App, Fleet, ...; empty: list the kinds.")] = "",
    write: Annotated[
        Path | None, typer.Option(help="Write KIND.json for every kind into this directory.")
    ] = None,
) -> None:
    from edgewise.model.documents import KINDS

    session = Session.of(ctx)
    if write is not None:
        session.done(f"wrote {_write(write)} schemas to {write}")
    elif not kind:
        if session.as_json:
            session.json(sorted(KINDS))
        else:
            typer.echo("\n".join(sorted(KINDS)))
    elif kind in KINDS:
        typer.echo(text_of(kind), nl=False)
    else:
        raise BadUsage(f"there is no kind {kind!r}", hint=f"one of: {', '.join(sorted(KINDS))}")


def text_of(kind: str) -> str:
    """The schema of one kind, as it is written to a file."""
    from edgewise.sync.schema import schemas

    return _text(schemas()[f"{kind}.json"])


def _text(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=2) + "\n"


def _write(folder: Path) -> int:
    """One file for each kind, and one for a document of any kind; returns how many."""
    from edgewise.sync.schema import schemas

    files = schemas()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, schema in files.items():
            (folder / name).write_text(_text(schema))
    except OSError as error:
        raise NeedsPerson(f"cannot write below {folder}: {error.strerror}") from error
    return len(files)
