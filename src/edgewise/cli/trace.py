"""``edgewise trace COMMIT``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgewise.cli.session import Session, by_way, refusals, short, show_problems, size, stamp

if TYPE_CHECKING:
    from edgewise.protocol.api import ReceiptLine


def verb(
    ctx: typer.Context,
    commit: Annotated[str, typer.Argument(help="Commit id, branch, or main@sha1:...")],
) -> None:
    from edgewise.cli.client import segment
    from edgewise.cli.local import known_here
    from edgewise.protocol.api import Trace

    session = Session.of(ctx)
    wanted = known_here(commit)
    trace = session.client().get(f"/v1/commits/{segment(wanted)}", Trace)
    if session.as_json:
        session.json(trace)
        return
    session.facts(
        [
            ("commit", trace.revision),
            ("author", trace.author),
            ("subject", trace.subject),
            ("seen", stamp(trace.seen)),
            ("compiled", "yes" if trace.compiled else "no"),
            ("fetched", _saved(trace.bytes_fetched, trace.bytes_full)),
            ("planned", by_way(trace.traffic.planned, 0)),
            ("used", by_way(trace.traffic.used, trace.traffic.requests)),
        ]
    )
    show_problems(trace.problems)
    for line in refusals(trace.traffic, nodes=True):
        typer.echo(line)
    for fleet, release in sorted(trace.releases.items()):
        typer.echo(f"release {short(release)} for {fleet}")
    for rollout in trace.rollouts:
        typer.echo(
            f"rollout {rollout.id} of {rollout.fleet}: {rollout.state}, "
            f"{rollout.succeeded}/{rollout.nodes} done {rollout.reason}".rstrip()
        )
    typer.echo("")
    session.table(
        ("NODE", "FLEET", "STATE", "AT", "PLANNED", "BYTES", "BY", "WHY"),
        (
            (
                node.node, node.fleet, node.state,
                stamp(node.receipt.at) if node.receipt else "",
                size(sum(node.receipt.traffic.planned.values())) if node.receipt else "",
                size(node.receipt.bytes_fetched) if node.receipt else "",
                ", ".join(node.receipt.traffic.used) if node.receipt else "",
                _why(node.receipt),
            )
            for node in trace.nodes
        ),
        none="It reached no node.",
    )  # fmt: skip


def _why(receipt: ReceiptLine | None) -> str:
    if receipt is None:
        return ""
    return receipt.reason or next(refusals(receipt.traffic), "")


def _saved(fetched: int, full: int) -> str:
    return f"{size(fetched)} instead of {size(full)}" if full else ""
