"""``edgewise release show``."""

from __future__ import annotations

from typing import Annotated

import typer

from edgewise.cli.session import Session

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)


@app.callback()
def _group() -> None:
    """What exactly a release puts on nodes."""


@app.command("show", help="The parts of a release and the labels that choose among them.")
def show(
    ctx: typer.Context,
    digest: Annotated[str, typer.Argument(help="Whole digest, as `rollout show -o json` has it.")],
) -> None:
    from edgewise.cli.client import segment
    from edgewise.protocol.content import Release

    session = Session.of(ctx)
    wanted = digest.removeprefix("sha256:")
    release = session.client().get(f"/v1/releases/{segment(wanted)}", Release)
    if session.as_json:
        session.json(release)
        return
    session.facts([("release", wanted), ("fleet", release.fleet)])
    typer.echo("")
    session.table(
        ("KIND", "NAME", "CHOSEN BY", "FOR", "PART"),
        (
            (part.kind, part.name, ", ".join(part.by) or "nothing", chosen or "every node", name)
            for part in release.parts
            for chosen, name in [
                *((f"{key}", value[:12] or "none") for key, value in part.variants.items()),
                *((f"node {key}", value[:12] or "none") for key, value in part.nodes.items()),
            ]
        ),
        none="It puts nothing on a node.",
    )
