"""``edgewise status``."""

from __future__ import annotations

import typer

from edgewise.cli.session import Session, ago, short, show_problems


def verb(ctx: typer.Context) -> None:
    """The whole organisation on one screen."""
    from edgewise.protocol.api import HubStatus

    session = Session.of(ctx)
    status = session.client().get("/v1/status", HubStatus)
    if session.as_json:
        session.json(status)
        return
    source = status.source
    session.facts(
        [
            ("organisation", f"{status.organisation}  (edgewise {status.version})"),
            ("trust", status.trust),
            ("revision", short(source.revision) or "none yet: `edgewise push`"),
            ("compiled", short(source.compiled) if source.compiled != source.revision else ""),
            (
                "quarantined",
                f"{status.quarantined}: `edgewise node ls` says why" if status.quarantined else "",
            ),
            (
                "failing to attest",
                f"{status.failing}: `edgewise device ls --failing`" if status.failing else "",
            ),
            ("unplaced", f"{status.unplaced} nodes in no fleet" if status.unplaced else ""),
        ]
    )
    for condition in source.conditions:
        if condition.status and condition.type != "Ready":
            typer.echo(f"{condition.type}: {condition.reason}: {condition.message}")
    show_problems(source.problems)
    typer.echo("")
    session.table(
        ("FLEET", "SYNC", "HEALTH", "NODES", "SYNCED", "OFFLINE", "STABLE", "ROLLOUT", "WHY"),
        (
            (
                fleet.name, fleet.sync, fleet.health, str(fleet.nodes),
                f"{fleet.synced}/{fleet.nodes}", str(fleet.offline), short(fleet.stable),
                f"{fleet.rollout} {fleet.rollout_state or ''}".strip(), fleet.reason,
            )
            for fleet in status.fleets
        ),
        none="No fleet yet.",
    )  # fmt: skip
    if status.relays:
        typer.echo("")
        session.table(
            ("RELAY", "REGION", "CONNECTED", "LAST SEEN", "NODES"),
            (
                (r.name, r.region, "yes" if r.connected else "no", ago(r.last_seen), str(r.nodes))
                for r in status.relays
            ),
            none="",
        )
    if status.federations:
        typer.echo("")
        session.table(
            ("FEDERATED DOMAIN", "SEQUENCE", "FETCHED", "WHY"),
            (
                (one.trust_domain, str(one.sequence), ago(one.fetched), one.problem)
                for one in status.federations
            ),
            none="",
        )
    for held in status.held:
        typer.echo(f"\nheld: {short(held.revision)} {held.reason}")
        typer.echo(f"  next: edgewise rollout approve {held.id}")
