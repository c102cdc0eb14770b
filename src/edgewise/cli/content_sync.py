"""``edgewise content``: the hub's content on a plain file server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli.session import Session

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)


@app.callback()
def _group() -> None:
    """What nodes download, as files for any web server or CDN."""


@app.command("sync", help="Copy the hub's content to a directory that a file server serves.")
def sync(
    ctx: typer.Context,
    directory: Annotated[Path, typer.Argument(help="Served as the content root (docs/cdn.md).")],
    data: Annotated[Path, typer.Option(help="Directory of the hub, as of `edgewise up`.")] = Path(
        "~/.edgewise/hub"
    ),
    prune: Annotated[
        bool, typer.Option("--prune", help="Then delete what the hub no longer has.")
    ] = False,
    sealed: Annotated[
        bool,
        typer.Option(
            "--sealed", help="Copy sealed secrets too; without it relays get them from the hub."
        ),
    ] = False,
) -> None:
    from edgewise.backends.files.mirroring import mirror

    session = Session.of(ctx)
    done = mirror(data.expanduser() / "content", directory, sealed=sealed, prune=prune)
    if session.as_json:
        session.json(done)
        return
    left = f", {done.sealed} sealed secrets left out" if done.sealed else ""
    gone = f", {done.pruned} deleted" if prune else ""
    session.done(
        f"{directory}: {done.copied} files copied ({done.bytes:,} bytes), "
        f"{done.present} there already{left}{gone}"
    )
