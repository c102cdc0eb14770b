"""``edgewise agent link``: say whether this node's link costs by the byte."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli.relay import writable
from edgewise.cli.session import Session

STATE = Path("/var/lib/edgewise")


def add_to(app: typer.Typer) -> None:
    """The verb, below ``edgewise agent``."""
    app.command(
        "link",
        help="Say or show whether the link costs by the byte; the fleet says what then travels.",
    )(link)


def link(
    ctx: typer.Context,
    metered: Annotated[
        bool | None,
        typer.Option("--metered/--unmetered", help="What it is from now on; left out: show it."),
    ] = None,
    state: Annotated[Path, typer.Option(help="Directory of this node.")] = STATE,
) -> None:
    from edgewise.host.link import is_metered, set_metered

    session = Session.of(ctx)
    if metered is not None:
        state = writable(state)
        set_metered(state, metered)
    found = is_metered(state.expanduser())
    if session.as_json:
        session.json({"metered": found})
        return
    typer.echo("the link is metered" if found else "the link is not metered")
