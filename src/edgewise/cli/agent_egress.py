"""``edgewise agent egress`` and ``egress-rules``: the way out of this node, from its own files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli.session import Session
from edgewise.model.errors import BadUsage, NeedsPerson

State = Annotated[Path, typer.Option(help="Directory of this node.")]
STATE = Path("/var/lib/edgewise")


def add_to(app: typer.Typer) -> None:
    """Both commands."""
    app.command("egress", help="The egress gateway: where it listens, what it let through.")(egress)
    app.command(
        "egress-rules", help="nftables rules that leave apps no other way out; prints them."
    )(egress_rules)


def egress(ctx: typer.Context, state: State = STATE) -> None:
    import msgspec

    from edgewise.roles.agent_egress import read_state

    session = Session.of(ctx)
    found = read_state(_there(state))
    if found is None:
        raise NeedsPerson(
            "this node has no egress gateway", hint="give its fleet an egressPolicyRef"
        )
    if session.as_json:
        session.json(msgspec.to_builtins(found))
        return
    session.facts(
        [
            ("listens on", f"127.0.0.1:{found.port}"),
            ("and on", found.socket),
            ("policy", found.policy or "none any more: nothing is let out"),
            ("only way out for", ", ".join(found.enforced)),
            ("problem", found.problem),
            ("counts since", found.since),
        ]
    )
    typer.echo("")
    session.table(
        ("APP", "HOST", "OUTCOME", "REQUESTS"),
        (
            (c.app or "(no app)", c.host or "(unreadable)", c.reason or "let out", str(c.requests))
            for c in found.counts
        ),
        none="Nothing has called yet.",
    )


def egress_rules(
    ctx: typer.Context,
    state: State = STATE,
    cgroup: Annotated[
        Path | None, typer.Option(help="Where the apps' cgroups are; found by itself.")
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Put them in place.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take them away.")] = False,
) -> None:
    from edgewise.backends.files.node_store import NodeStore
    from edgewise.host import egress_rules as rules_of
    from edgewise.host.cgroups import Cgroups
    from edgewise.roles.agent_egress import held_apps

    session = Session.of(ctx)
    state = _there(state)
    table = rules_of.table_of(state)
    if apply and remove:
        raise BadUsage("--apply and --remove exclude each other")
    if remove:
        rules_of.remove(table)
        session.done(f"table {table} is gone; apps may call out directly")
        return
    active = NodeStore(state).active()
    if active is None or active.egress is None:
        raise NeedsPerson(
            "the release of this node has no egress policy",
            hint="give its fleet an egressPolicyRef",
        )
    held = held_apps(
        active.egress.rules,
        [installed.app for installed in active.apps],
        Cgroups.find(state, cgroup),
        make=apply,
    )
    text = rules_of.ruleset(table, held)
    if apply:
        rules_of.apply(text)
        session.done(f"held: {', '.join(app.name for app in held) or 'no app'}")
    else:
        typer.echo(text, nl=False)


def _there(state: Path) -> Path:
    state = state.expanduser().resolve()
    if not state.is_dir():
        raise BadUsage(f"{state} is not there", hint="name the node's directory with --state")
    return state
