"""``edgewise artifact``."""

from __future__ import annotations

import typer

from edgewise.cli.session import Session, size

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)


@app.callback()
def _group() -> None:
    """What can be put on nodes."""


@app.command("ls", help="Published artifacts.")
def ls(ctx: typer.Context) -> None:
    from edgewise.protocol.api import ArtifactLine

    session = Session.of(ctx)
    page = session.client().pages("/v1/artifacts", ArtifactLine)
    if session.as_json:
        session.json(page)
        return
    session.table(
        ("NAME", "VERSION", "PLATFORMS", "SIZE", "BUILT FROM"),
        (
            (a.name, a.version, ", ".join(a.platforms), size(a.size), a.built_from)
            for a in page.items
        ),
        none="No artifact published yet.",
    )
