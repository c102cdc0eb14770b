"""``edgewise agent ingress``: the ways in to this node's apps, from its own files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli.session import Session
from edgewise.model.errors import BadUsage, NeedsPerson

STATE = Path("/var/lib/edgewise")


def add_to(app: typer.Typer) -> None:
    """The command."""
    app.command("ingress", help="The ports that lead to apps over mTLS: who came, who did not.")(
        ingress
    )


def ingress(
    ctx: typer.Context,
    state: Annotated[Path, typer.Option(help="Directory of this node.")] = STATE,
) -> None:
    import msgspec

    from edgewise.roles.agent_ingress import read_state

    session = Session.of(ctx)
    state = state.expanduser().resolve()
    if not state.is_dir():
        raise BadUsage(f"{state} is not there", hint="name the node's directory with --state")
    found = read_state(state)
    if found is None:
        raise NeedsPerson(
            "no app of this node has an ingress", hint="give an App one (docs/ingress.md)"
        )
    if session.as_json:
        session.json(msgspec.to_builtins(found))
        return
    session.table(
        ("APP", "PORT", "TO", "WHO MAY CALL", "STATE"),
        (
            (
                one.app,
                f"{one.address}:{one.port}",
                f"127.0.0.1:{one.to}",
                ", ".join(one.allow),
                f"closed: {one.problem}" if one.problem else "open",
            )
            for one in found.ports
        ),
        none="No ports.",
    )
    typer.echo("")
    session.table(
        ("APP", "OUTCOME", "CONNECTIONS"),
        ((c.app, c.reason or "let in", str(c.connections)) for c in found.counts),
        none="Nobody has called yet.",
    )
