"""``edgewise agent svid`` and ``explain``: who is what on this node, and why not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from edgewise.cli.session import Session

STATE = Path("/var/lib/edgewise")
State = Annotated[Path, typer.Option(help="Directory of this node.")]
Socket = Annotated[Path | None, typer.Option(help="The agent's workload socket; found by --state.")]


def add(app: typer.Typer) -> None:
    """Hang the commands on ``edgewise agent``."""
    app.command("svid", help="Identities that this node serves, and who asked for them.")(svid)
    app.command("explain", help="Why a process has the identities that it has, or none.")(explain)


def svid(ctx: typer.Context, state: State = STATE, socket: Socket = None) -> None:
    """Ask the running agent; needs its user or root."""
    from edgewise.net.workload.inspect import IDENTITIES, NodeIdentities

    session = Session.of(ctx)
    found = _ask(state, socket, IDENTITIES, NodeIdentities)
    if session.as_json:
        session.json(msgspec.to_builtins(found))
        return
    session.facts(
        [
            ("trust domain", found.trust_domain),
            ("trusts", ", ".join(found.trusts)),
            ("problem", found.problem),
            ("tokens kept", str(found.tokens)),
            ("connections", str(found.connections)),
        ]
    )
    typer.echo("")
    session.table(
        ("SPIFFE ID", "UNTIL", "RENEWED AT", "HINT", "PROBLEM"),
        (
            (
                one.spiffe_id,
                f"{one.until:%F %T}" if one.until else "not yet",
                f"{one.renewed_at:%F %T}" if one.renewed_at else "",
                one.hint,
                one.problem,
            )
            for one in found.identities
        ),
        none="No identity is registered for this node.",
    )
    typer.echo("")
    session.table(
        ("PID", "UID", "APP", "UNIT", "ASKED FOR", "CALLS", "IS"),
        (
            (
                str(seen.pid),
                str(seen.uid),
                seen.app,
                seen.unit,
                seen.method,
                str(seen.calls),
                ", ".join(seen.identities) or "nobody",
            )
            for seen in found.callers
        ),
        none="Nobody has asked yet.",
    )


def explain(
    ctx: typer.Context,
    pid: Annotated[int, typer.Argument(help="The process.", min=1)],
    state: State = STATE,
    socket: Socket = None,
) -> None:
    """Every registration of the node against one process."""
    from edgewise.net.workload.inspect import EXPLAIN, Explained

    session = Session.of(ctx)
    found = _ask(state, socket, f"{EXPLAIN}{pid}", Explained)
    if session.as_json:
        session.json(msgspec.to_builtins(found))
        return
    facts = msgspec.structs.asdict(found.caller)
    session.facts([(name, str(value)) for name, value in facts.items() if value != ""])
    typer.echo("")
    if found.identities:
        typer.echo(f"It is {', '.join(found.identities)}.")
    else:
        typer.echo("It has no identity.")
    for one in found.registrations:
        typer.echo(f"\n{one.name}  {one.spiffe_id}")
        if one.granted:
            typer.echo("  every selector holds")
        if one.problem:
            typer.echo(f"  nobody can have it now: {one.problem}")
        for failed in one.failed:
            typer.echo(f"  {failed.selector} does not hold: it is {failed.found or 'nothing'}")
    if not found.registrations:
        typer.echo("The release of this node registers no identity.")
        session.note("  next: `identity: {}` in the App, or a WorkloadIdentity in the Fleet")


def _ask(state: Path, socket: Path | None, target: str, kind: type[Any]) -> Any:
    from edgewise.net.workload.asking import ask
    from edgewise.roles.agent_workloads import socket_of

    return ask(socket_of(state.expanduser().absolute(), socket), target, kind)
