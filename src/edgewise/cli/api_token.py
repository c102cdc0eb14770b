"""``edgewise api-token``: tokens for CI and dashboards; create, ls, revoke."""

from __future__ import annotations

from typing import Annotated

import typer

from edgewise.cli.session import Session, ago, stamp
from edgewise.model.errors import BadUsage
from edgewise.model.roles import Role

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)


@app.command("create", help="Make an API token. It is shown once, on standard output.")
def create(
    ctx: typer.Context,
    role: Annotated[Role, typer.Option(help="What it may do; never more than you may.")] = "viewer",
    selector: Annotated[
        str, typer.Option("--selector", "-l", help="Only on these nodes: region=eu,ring!=lab")
    ] = "",
    fleet: Annotated[list[str] | None, typer.Option(help="Only of this fleet. Repeatable.")] = None,
    expires: Annotated[str, typer.Option(help="How long it can be used: 12h, 30d.")] = "30d",
    note: Annotated[str, typer.Option(help="What it is for.")] = "",
) -> None:
    from edgewise.model.quantity import parse_duration
    from edgewise.protocol.people import ApiTokenCreated, ApiTokenRequest

    session = Session.of(ctx)
    try:
        seconds = parse_duration(expires).total_seconds()
    except ValueError as error:
        raise BadUsage(f"--expires: {error}") from error
    request = ApiTokenRequest(role, selector, tuple(fleet or ()), seconds, note)
    created = session.client().post("/v1/api-tokens", request, ApiTokenCreated)
    if session.as_json:
        session.json(created)
        return
    typer.echo(created.token)
    session.note(f"token {created.id}, usable until {stamp(created.expires)}")
    session.note("  next: send it as `Authorization: Bearer`, or set EDGEWISE_API_TOKEN")


@app.command("ls", help="Your API tokens; an administrator sees everybody's.")
def ls(ctx: typer.Context) -> None:
    from edgewise.protocol.people import ApiTokenLine

    session = Session.of(ctx)
    page = session.client().pages("/v1/api-tokens", ApiTokenLine)
    if session.as_json:
        session.json(page)
        return
    session.table(
        ("TOKEN", "OWNER", "ROLE", "ON", "EXPIRES", "LAST USED", "FROM", "NOTE"),
        (
            (
                one.id, one.owner, one.role, one.on, stamp(one.expires), ago(one.last_used),
                one.last_address, one.note,
            )
            for one in page.items
        ),
        none="No API token: `edgewise api-token create` makes one.",
    )  # fmt: skip


@app.command("revoke", help="Make an API token useless, at once.")
def revoke(
    ctx: typer.Context, identifier: Annotated[str, typer.Argument(help="Of `api-token ls`.")]
) -> None:
    from edgewise.cli.client import segment

    session = Session.of(ctx)
    session.client().delete(f"/v1/api-tokens/{segment(identifier)}")
    session.done(f"revoked: {identifier}")
