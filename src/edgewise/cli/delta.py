"""``edgewise delta``: deltas and packs, as the hub makes them."""

from __future__ import annotations

from typing import Annotated

import typer

from edgewise.cli.session import Session, size

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)


@app.callback()
def verbs() -> None:
    """Typer would take the only verb of a group for the group itself."""


@app.command("ls", help="The hub's deltas and packs: ready, under way, waiting, failed.")
def ls(
    ctx: typer.Context,
    artifact: Annotated[str, typer.Argument(help="Only those of this artifact.")] = "",
) -> None:
    from msgspec.structs import replace

    from edgewise.cli.delta_progress import saving
    from edgewise.protocol.travel import DeltaStatus

    session = Session.of(ctx)
    status = session.client().get("/v1/deltas", DeltaStatus)
    lines = tuple(one for one in status.deltas if not artifact or one.artifact == artifact)
    if session.as_json:
        session.json(replace(status, deltas=lines))
        return
    session.table(
        ("TO", "FROM", "PLATFORMS", "STATE", "SIZE", "INSTEAD OF", "SAVED", "WHY"),
        (
            (
                f"{one.artifact} {one.version}",
                one.base_version if one.base else "nothing",
                ", ".join(one.platforms),
                f"{one.state} {one.percent} %" if one.state == "Making" else one.state,
                size(one.size) if one.size else "",
                f"{size(one.plain)} in {one.objects}" if one.plain else "",
                saving(one) if one.size else "",
                one.why,
            )
            for one in lines
        ),
        none="No delta: they come with `edgewise artifact publish`."
        if status.versions
        else "The hub makes none (`edgewise up --delta-versions 0`).",
    )
    session.note(f"{size(status.disk_bytes)} on the hub's disk; deltas never change what is run")
