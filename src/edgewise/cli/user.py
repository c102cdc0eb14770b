"""``edgewise user``: local users; add, ls, passwd, groups, disable, enable, rm."""

from __future__ import annotations

from typing import Annotated

import typer

from edgewise.cli.session import Session, ago
from edgewise.model.errors import BadUsage

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)

Name = Annotated[str, typer.Argument(help="Name of the user.")]
Groups = Annotated[list[str] | None, typer.Option("--group", help="Repeat for more.")]
Reason = Annotated[str, typer.Option(help="Kept in the audit log, shown to the user.")]
FromStdin = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from standard input.")
]


@app.command("ls", help="Everybody that the hub knows, and what they may do.")
def ls(ctx: typer.Context) -> None:
    from edgewise.protocol.people import UserLine

    session = Session.of(ctx)
    page = session.client().pages("/v1/users", UserLine)
    if session.as_json:
        session.json(page)
        return
    session.table(
        ("USER", "FROM", "GROUPS", "MAY", "LAST LOGIN", "LOGINS", "TOKENS", "DISABLED"),
        (
            (
                one.name, one.origin, ", ".join(one.groups),
                ", ".join(f"{g.role} on {g.on}" for g in one.grants) or "nothing",
                ago(one.last_login), str(one.logins), str(one.api_tokens), one.disabled,
            )
            for one in page.items
        ),
        none="Nobody but the administrator: `edgewise user add NAME` adds somebody.",
    )  # fmt: skip


@app.command("add", help="Add a local user; the password is asked for.")
def add(
    ctx: typer.Context, name: Name, group: Groups = None, password_stdin: FromStdin = False
) -> None:
    from edgewise.cli.login import read_password
    from edgewise.protocol.people import UserLine, UserRequest
    from edgewise.runtime.credentials import certificates_in, fingerprint

    session = Session.of(ctx)
    client = session.client()
    password = read_password(f"Password of {name}", from_stdin=password_stdin, again=True)
    line = client.post("/v1/users", UserRequest(name, password, tuple(group or ())), UserLine)
    if session.as_json:
        session.json(line)
        return
    root = fingerprint(certificates_in(client.context.roots)[0])
    typer.echo(f"added: {line.name}")
    session.note(
        f"  may     {', '.join(f'{g.role} on {g.on}' for g in line.grants) or 'nothing yet'}"
    )
    session.note("  next, on their machine:")
    session.note(f"    edgewise login --hub {client.context.told.url} --user {name} --root {root}")


@app.command("passwd", help="Set a password: your own, or as an administrator anybody's.")
def passwd(ctx: typer.Context, name: Name, password_stdin: FromStdin = False) -> None:
    from edgewise.cli.client import segment
    from edgewise.cli.login import read_password
    from edgewise.protocol.people import PasswordChange, WhoAmI

    session = Session.of(ctx)
    client = session.client()
    own = client.get("/v1/whoami", WhoAmI).user == name
    old = read_password("Present password", from_stdin=password_stdin) if own else ""
    new = read_password("New password", from_stdin=password_stdin, again=True)
    client.command(f"/v1/users/{segment(name)}/password", PasswordChange(new, old))
    session.done(f"changed; other logins of {name} have ended")


@app.command("groups", help="Set a local user's groups; none given: it is in none.")
def groups(ctx: typer.Context, name: Name, group: Groups = None) -> None:
    from edgewise.cli.client import segment
    from edgewise.protocol.people import UserChange

    session = Session.of(ctx)
    session.client().command(f"/v1/users/{segment(name)}/groups", UserChange(tuple(group or ())))
    session.done(f"groups of {name}: {', '.join(group or ()) or 'none'}")


@app.command("disable", help="End all logins and API tokens of a user, at once.")
def disable(ctx: typer.Context, name: Name, reason: Reason = "") -> None:
    _command(ctx, "disable", name, reason)


@app.command("enable", help="Let a disabled user log in again.")
def enable(ctx: typer.Context, name: Name, reason: Reason = "") -> None:
    _command(ctx, "enable", name, reason)


@app.command("rm", help="Forget a user with its API tokens; the name is free again.")
def rm(
    ctx: typer.Context,
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    from edgewise.cli.client import segment

    session = Session.of(ctx)
    if not yes and not typer.confirm(f"Forget {name}?", err=True):
        raise BadUsage("nothing was done", hint="answer y, or pass --yes")
    session.client().delete(f"/v1/users/{segment(name)}")
    session.done(f"forgotten: {name}")


def _command(ctx: typer.Context, word: str, name: str, reason: str) -> None:
    from edgewise.cli.client import segment
    from edgewise.protocol.people import UserCommand

    session = Session.of(ctx)
    session.client().command(f"/v1/users/{segment(name)}/{word}", UserCommand(reason))
    session.done(f"{word}: {name}")
