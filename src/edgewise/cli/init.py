"""``edgewise init DIR``: a fleet repo that passes, ready to be committed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli.session import Session
from edgewise.model.errors import BadUsage, NeedsPerson


def verb(
    ctx: typer.Context,
    directory: Annotated[Path, typer.Argument(help="Directory to make or to fill.")],
    organisation: Annotated[
        str, typer.Option(help="Name of the workspace; default: of the directory.")
    ] = "",
) -> None:
    from edgewise.sync.starter import starter_repo

    session = Session.of(ctx)
    files = starter_repo(organisation or directory.resolve().name)
    present = sorted(path for path in files if (directory / path).exists())
    if present:
        raise BadUsage(
            f"{directory} has {present[0]} already; nothing was written",
            hint="choose an empty directory",
        )
    try:
        for path, text in files.items():
            target = directory / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
            if text.startswith("#!"):
                target.chmod(0o755)
    except OSError as error:
        raise NeedsPerson(f"cannot write below {directory}: {error.strerror}") from error
    if session.as_json:
        session.json({"directory": str(directory), "files": sorted(files)})
        return
    for path in sorted(files):
        typer.echo(f"wrote {directory / path}")
    session.note(f"  next: edgewise validate {directory}")
    session.note(f"  then: cd {directory} && git init -b main && git add . && git commit -m Begin")
