"""``edgewise content``: the hub's content on a plain file server or in an object store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from edgewise.cli.session import Session, size
from edgewise.model.errors import BadUsage

if TYPE_CHECKING:
    from edgewise.backends.files.mirroring import MirrorTarget

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)

TOLD_EVERY: Final = 10
"""Per cent of the files that are told anew."""


@app.callback()
def _group() -> None:
    """What nodes download, as files for any web server, object store or CDN."""


@app.command("sync", help="Copy the hub's content to where a file server or CDN serves it.")
def sync(  # noqa: PLR0913 - one parameter is one option of the command line
    ctx: typer.Context,
    to: Annotated[
        str,
        typer.Argument(
            metavar="DIRECTORY|s3://BUCKET/PREFIX",
            help="Served as the content root (docs/cdn.md).",
        ),
    ],
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be copied and deleted.")
    ] = False,
    endpoint: Annotated[
        str, typer.Option(help="URL of an object store that is not Amazon's.")
    ] = "",
) -> None:
    from edgewise.backends.files.mirroring import MirrorTerms, mirror

    session = Session.of(ctx)
    told = 0

    def progress(done: int, of: int) -> None:
        nonlocal told
        step = done * 100 // of // TOLD_EVERY
        if step > told and done < of and not dry_run:
            told = step
            session.note(f"  {done:,} of {of:,} files")

    terms = MirrorTerms(sealed, prune, dry_run, progress)
    done = mirror(data.expanduser() / "content", _target(to, endpoint), terms)
    if session.as_json:
        session.json(done)
        return
    left = f", {done.sealed} sealed secrets left out" if done.sealed else ""
    would = "to be " if dry_run else ""
    gone = f", {done.pruned} {would}deleted" if prune else ""
    session.done(
        f"{to}: {done.copied:,} files {would}copied ({size(done.bytes)}), "
        f"{done.present:,} there already{left}{gone}"
    )


def _target(to: str, endpoint: str) -> MirrorTarget:
    from edgewise.backends.files.mirroring import FolderTarget

    if to.startswith("s3://"):
        from edgewise.backends.s3.bucket import BucketTarget

        return BucketTarget(to, endpoint)
    if "://" in to:
        raise BadUsage(f"{to!r} is neither a directory nor s3://BUCKET/PREFIX")
    if endpoint:
        raise BadUsage("--endpoint is for s3://BUCKET/PREFIX")
    return FolderTarget(Path(to).expanduser())
