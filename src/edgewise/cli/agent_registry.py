"""``edgewise agent registry``: let this node's container engine pull from its relay."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgewise.cli.session import Session
from edgewise.model.errors import BadUsage

if TYPE_CHECKING:
    from edgewise.host.registries import Engine

STATE = Path("/var/lib/edgewise")


def add_to(app: typer.Typer) -> None:
    """The command."""
    app.command("registry", help="Let podman, containerd or k3s pull images from the relay.")(
        registry
    )


def registry(  # noqa: PLR0913 - one parameter is one option of the command line
    ctx: typer.Context,
    state: Annotated[Path, typer.Option(help="Directory of this node.")] = STATE,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            "--for", help="podman, containerd or k3s; default: what is installed. Repeatable."
        ),
    ] = None,
    name: Annotated[
        str, typer.Option(help="What images are called here: NAME/artifact:version.")
    ] = "edgewise.internal",
    url: Annotated[
        list[str] | None, typer.Option(help="Other relays than this node's own. Repeatable.")
    ] = None,
    to: Annotated[Path, typer.Option(help="Write below it, for an image of a node.")] = Path("/"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the files.")] = False,
) -> None:
    from edgewise.host import registries
    from edgewise.roles.node_certificate import read_card
    from edgewise.runtime.credentials import CredentialFiles

    session = Session.of(ctx)
    state = state.expanduser().resolve()
    own = CredentialFiles(state / "identity")
    registries.check_key(own)
    urls = tuple(url or ()) or read_card(state).urls
    made = {one: registries.setup(one, name, urls, own) for one in _engines(engine or [])}
    if not dry_run:
        for each in made.values():
            registries.write(each, to)
    if session.as_json:
        session.json(
            {
                one: {
                    "files": found.files,
                    "links": {path: str(target) for path, target in found.links.items()},
                }
                for one, found in made.items()
            }
        )
        return
    for one, found in made.items():
        for path, text in found.files.items():
            typer.echo(f"{one}: {path}")
            if dry_run:
                typer.echo(text)
        for path, target in found.links.items():
            typer.echo(f"{one}: {path} -> {target}")
        if found.remark:
            session.note(f"  {found.remark}")
    if not dry_run:
        session.done(f"images are {name}/ARTIFACT:VERSION here")


def _engines(asked: list[str]) -> tuple[Engine, ...]:
    import shutil

    from edgewise.host.registries import ENGINES

    found = tuple(one for one in ENGINES if (one in asked if asked else shutil.which(one)))
    if unknown := set(asked) - set(ENGINES):
        raise BadUsage(f"--for {unknown.pop()}: it is none of {', '.join(ENGINES)}")
    if not found:
        raise BadUsage("no container engine is installed here", hint="name one with --for")
    return found
