"""``edgewise whoami``: who the hub takes you for, and what you may do."""

from __future__ import annotations

import typer

from edgewise.cli.session import Session, stamp


def verb(ctx: typer.Context) -> None:
    from edgewise.protocol.people import WhoAmI

    session = Session.of(ctx)
    client = session.client()
    me = client.get("/v1/whoami", WhoAmI)
    if session.as_json:
        session.json(me)
        return
    session.facts(
        [
            ("user", me.user),
            ("identity", me.spiffe_id),
            ("hub", client.context.told.url),
            ("by", f"API token {me.api_token}" if me.api_token else me.origin),
            ("groups", ", ".join(me.groups)),
            ("login until", stamp(me.login_until) if me.login_until else ""),
        ]
    )
    typer.echo("")
    session.table(
        ("ROLE", "ON", "BY"),
        ((grant.role, grant.on, grant.binding) for grant in me.grants),
        none="No role: an administrator binds some with a RoleBinding (docs/people.md).",
    )
