"""``edgewise schema``: JSON Schemas of the documents, for editors and for CI."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgewise.cli.session import Session
from edgewise.model.errors import BadUsage, NeedsPerson

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


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
        _write(write, sorted(KINDS))
        session.done(f"wrote {len(KINDS)} schemas to {write}")
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
    import msgspec

    from edgewise.model.documents import KINDS

    schema: dict[str, Any] = {"$schema": _DRAFT, "title": kind, **msgspec.json.schema(KINDS[kind])}
    data = msgspec.json.encode(schema, order="deterministic")
    return msgspec.json.format(data, indent=2).decode() + "\n"


def _write(folder: Path, kinds: list[str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind in kinds:
            (folder / f"{kind}.json").write_text(text_of(kind))
    except OSError as error:
        raise NeedsPerson(f"cannot write below {folder}: {error.strerror}") from error
