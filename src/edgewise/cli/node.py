"""``edgewise node``: ls, show, explain, token, hold, release, quarantine, forget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgewise.cli.session import Session, ago, labels, refusals, short, size, stamp
from edgewise.model.errors import BadUsage

if TYPE_CHECKING:
    from edgewise.protocol.api import NodeIdentity

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)

Name = Annotated[str, typer.Argument(help="Name of the node.")]
Reason = Annotated[str, typer.Option(help="Kept in the audit log.")]


@app.command("ls", help="Nodes and whether they run what they should.")
def ls(
    ctx: typer.Context,
    selector: Annotated[
        str, typer.Option("--selector", "-l", help="Kubernetes label selector: region=eu,ring!=lab")
    ] = "",
    fleet: Annotated[str, typer.Option(help="Only of this fleet.")] = "",
    health: Annotated[str, typer.Option(help="Only with this health: Degraded, ...")] = "",
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 1000,
) -> None:
    from edgewise.protocol.api import NodeSummary

    session = Session.of(ctx)
    page = session.client().pages(
        "/v1/nodes", NodeSummary, at_most=limit, selector=selector, fleet=fleet, health=health
    )
    if session.as_json:
        session.json(page)
        return
    session.table(
        ("NODE", "FLEET", "SYNC", "HEALTH", "PHASE", "SEEN", "RUNS", "LABELS", "WHY"),
        (
            (
                one.name, one.fleet or "none", one.sync, one.health, one.phase,
                "online" if one.online else ago(one.last_seen), short(one.running),
                labels(one.labels), "held" if one.held and not one.reason else one.reason,
            )
            for one in page.items
        ),
        none="No node: `edgewise node token` lets the first one join.",
    )  # fmt: skip
    if page.next is not None:
        session.note(f"more than {limit}; raise --limit or narrow with --selector")


@app.command("show", help="One node: apps, drift, receipts.")
def show(ctx: typer.Context, name: Name) -> None:
    from edgewise.cli.client import segment
    from edgewise.protocol.api import NodeDetail

    session = Session.of(ctx)
    node = session.client().get(f"/v1/nodes/{segment(name)}", NodeDetail)
    if session.as_json:
        session.json(node)
        return
    one = node.summary
    session.facts(
        [
            ("node", one.name),
            ("fleet", one.fleet or "none"),
            ("labels", labels(one.labels)),
            ("state", f"{one.sync} {one.health} {one.phase} {one.reason}".rstrip()),
            ("seen", ("online, " if one.online else "") + ago(one.last_seen)),
            ("runs", short(one.running) or "nothing yet"),
            ("shall run", short(one.target) if one.target != one.running else ""),
            ("previous", short(node.previous)),
            ("platform", f"{node.platform}, agent {node.agent_version}"),
            ("joined", f"{stamp(node.joined)} via {node.via}"),
            ("free", size(node.free_bytes) if node.free_bytes else ""),
            ("drifted", ", ".join(node.drifted)),
            ("keys", {"tpm": "sealed to its TPM", "file": "in files", "": ""}[node.keys]),
            *proof_facts(node.identity),
        ]
    )
    typer.echo("")
    session.table(
        ("APP", "HEALTH", "RESTARTS", "WHY"),
        ((a.name, a.health, str(a.restarts), a.reason) for a in node.apps),
        none="No app runs on it.",
    )
    if node.receipts:
        typer.echo("")
        session.table(
            ("RECEIPT", "OUTCOME", "RELEASE", "AT", "BYTES", "SECONDS", "WHY"),
            (
                (
                    str(r.sequence), r.outcome, short(r.release), stamp(r.at),
                    f"{size(r.bytes_fetched)} of {size(r.bytes_full)}", f"{r.seconds:.1f}",
                    r.reason,
                )
                for r in node.receipts
            ),
            none="",
        )  # fmt: skip
        for r in node.receipts:
            for line in refusals(r.traffic):
                typer.echo(f"receipt {r.sequence} {line}")


def proof_facts(one: NodeIdentity) -> list[tuple[str, str]]:
    """How a node proved itself, and what its TPM said last."""
    joined = {"token": "a token", "tpm": "its TPM", "factory": "its factory certificate"}
    attested = ""
    if one.attested is not None:
        boot = f", boot {one.reference}" if one.reference else ", compared with no reference"
        attested = ago(one.attested) + boot
    failing = ""
    if one.failing_since is not None:
        failing = f"since {stamp(one.failing_since)}: {one.reason}: {one.what}"
    return [
        ("joined by", joined[one.method]),
        ("proven", one.evidence),
        ("vouched by", one.vouched),
        ("serial", one.serial),
        ("attested", attested),
        ("fails to attest", failing),
    ]


@app.command("explain", help="Why this node runs what it runs, step by step.")
def explain(ctx: typer.Context, name: Name) -> None:
    from edgewise.cli.client import segment
    from edgewise.protocol.api import Explanation

    session = Session.of(ctx)
    explained = session.client().get(f"/v1/nodes/{segment(name)}/explain", Explanation)
    if session.as_json:
        session.json(explained)
        return
    for number, line in enumerate(explained.lines, 1):
        typer.echo(f"{number}. {line}")


@app.command("token", help="Make a join token. It is shown once, on standard output.")
def token(  # noqa: PLR0913 - one parameter is one option of the command line
    ctx: typer.Context,
    label: Annotated[list[str] | None, typer.Option(help="key=value; repeat for more.")] = None,
    region: Annotated[str, typer.Option(help="Region that its nodes belong to.")] = "default",
    ttl: Annotated[str, typer.Option(help="How long it can be used: 30m, 12h, 7d.")] = "1h",
    uses: Annotated[int, typer.Option(min=1, max=100_000, help="Nodes that may use it.")] = 1,
    via: Annotated[str, typer.Option(help="Relay to join through; empty: the hub.")] = "",
    relay: Annotated[bool, typer.Option("--relay", help="For a relay, not a node.")] = False,
) -> None:
    from edgewise.model.quantity import parse_duration
    from edgewise.protocol.api import TokenCreated, TokenRequest

    session = Session.of(ctx)
    try:
        seconds = parse_duration(ttl).total_seconds()
    except ValueError as error:
        raise BadUsage(f"--ttl: {error}") from error
    request = TokenRequest(
        role="relay" if relay else "node", labels=key_values(label or []), region=region,
        ttl_s=seconds, uses=uses, via=via,
    )  # fmt: skip
    created = session.client().post("/v1/tokens", request, TokenCreated)
    if session.as_json:
        session.json(created)
        return
    role = "relay" if relay else "agent"
    typer.echo(created.token)
    session.note(f"token {created.identifier}, usable until {stamp(created.expires)}")
    session.note(f"  next: on the machine, `edgewise {role} join -`, and paste it there")


@app.command("tokens", help="Join tokens that exist, without their secrets.")
def tokens(ctx: typer.Context) -> None:
    from edgewise.protocol.api import TokenLine

    session = Session.of(ctx)
    page = session.client().pages("/v1/tokens", TokenLine)
    if session.as_json:
        session.json(page)
        return
    session.table(
        ("TOKEN", "FOR", "REGION", "LABELS", "EXPIRES", "USED", "BY"),
        (
            (
                t.identifier, t.role, t.region, labels(t.labels), stamp(t.expires),
                f"{len(t.used_by)}/{t.uses}", ", ".join(t.used_by),
            )
            for t in page.items
        ),
        none="No token: `edgewise node token` makes one.",
    )  # fmt: skip


@app.command("revoke", help="Make a join token useless at once.")
def revoke(
    ctx: typer.Context, identifier: Annotated[str, typer.Argument(help="Of `node tokens`.")]
) -> None:
    from edgewise.cli.client import segment

    session = Session.of(ctx)
    session.client().delete(f"/v1/tokens/{segment(identifier)}")
    session.done(f"revoked: {identifier}")


@app.command("hold", help="Keep a node on what it runs; rollouts pass it by.")
def hold(ctx: typer.Context, name: Name, reason: Reason = "") -> None:
    _command(ctx, "hold", name, reason)


@app.command("release", help="End a hold or a quarantine.")
def release(ctx: typer.Context, name: Name, reason: Reason = "") -> None:
    _command(ctx, "release", name, reason)


@app.command("quarantine", help="Give a node nothing more: no releases, no certificates.")
def quarantine(ctx: typer.Context, name: Name, reason: Reason = "") -> None:
    _command(ctx, "quarantine", name, reason)


@app.command("forget", help="Remove a node; its name can be used again by another machine.")
def forget(
    ctx: typer.Context,
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    from edgewise.cli.client import segment

    session = Session.of(ctx)
    if not yes and not typer.confirm(f"Forget {name}? It has to join again.", err=True):
        raise BadUsage("nothing was done", hint="answer y, or pass --yes")
    session.client().delete(f"/v1/nodes/{segment(name)}")
    session.done(f"forgotten: {name}")


def _command(ctx: typer.Context, word: str, name: str, reason: str) -> None:
    from edgewise.cli.client import segment
    from edgewise.protocol.api import RolloutCommand

    session = Session.of(ctx)
    session.client().command(f"/v1/nodes/{segment(name)}/{word}", RolloutCommand(reason))
    session.done(f"{word}: {name}")


def key_values(given: list[str]) -> dict[str, str]:
    """``--label region=eu`` as labels. Raises BadUsage."""
    found = {}
    for one in given:
        key, equals, value = one.partition("=")
        if not equals or not key:
            raise BadUsage(f"--label {one!r} is not like region=eu")
        found[key] = value
    return found
