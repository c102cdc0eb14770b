"""``edgewise audit``: the log of mutating calls and decisions, and its chain."""

from __future__ import annotations

from typing import Annotated

import typer

from edgewise.cli.session import Session, stamp
from edgewise.model.errors import Untrusted

app = typer.Typer(invoke_without_command=True, rich_markup_mode=None, add_completion=False)


@app.callback(invoke_without_command=True)
def ls(
    ctx: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many lines.")] = 200,
) -> None:
    """Who did what, oldest first."""
    if ctx.invoked_subcommand is not None:
        return
    from edgewise.protocol.api import AuditLine

    session = Session.of(ctx)
    page = session.client().pages("/v1/audit", AuditLine, at_most=limit)
    if session.as_json:
        session.json(page)
        return
    session.table(
        ("NO", "AT", "WHO", "DID", "TO", "DETAIL"),
        (
            (str(one.sequence), stamp(one.at), one.actor, one.action, one.subject, one.detail)
            for one in page.items
        ),
        none="Nothing has been done yet.",
    )


@app.command("verify", help="Check that no line was changed, removed or put in between.")
def verify(ctx: typer.Context) -> None:
    from edgewise.protocol.api import AuditLine
    from edgewise.protocol.audit import verify_chain

    session = Session.of(ctx)
    page = session.client().pages("/v1/audit", AuditLine, at_most=10_000_000)
    broken = verify_chain(page.items)
    if broken is not None:
        raise Untrusted(
            f"the audit log is broken at line {broken}",
            hint="compare it with your copy of an earlier `edgewise audit -o json`",
        )
    last = page.items[-1] if page.items else None
    session.done(f"verified: {len(page.items)} lines, newest hash {last.hash if last else 'none'}")
