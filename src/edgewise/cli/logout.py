"""``edgewise logout``: end the login at the hub and remove it here."""

from __future__ import annotations

import typer

from edgewise.cli.session import Session
from edgewise.model.errors import BadUsage, EdgewiseError


def verb(ctx: typer.Context) -> None:
    from edgewise.cli.client import Client, Context
    from edgewise.cli.login import HOME
    from edgewise.cli.renewal import end_login

    session = Session.of(ctx)
    context = Context.find(session.context)
    if context.told.login_until is None:
        raise BadUsage(
            f"{context.path} is the administrator's own, not a login",
            hint="the hub makes that certificate; there is nothing to end",
        )
    try:
        Client(context).command("/v1/logout")
    except EdgewiseError as error:  # it may have ended already: what is here goes all the same
        session.note(f"the hub was not told: {error}")
    end_login(context)
    link = HOME.expanduser() / "context.json"
    if link.is_symlink() and not link.exists():
        link.unlink()
    session.done(f"logged out: {context.told.user}")
