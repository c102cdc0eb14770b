"""``edgewise plan``: what a commit would do, before anything moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgewise.cli.session import Session, console, short, show_problems, size
from edgewise.model.errors import NeedsPerson

if TYPE_CHECKING:
    from edgewise.protocol.api import FileChange, FleetPlan, Plan


def verb(
    ctx: typer.Context,
    base: Annotated[str, typer.Option(help="Compare with this revision; empty: what runs.")] = "",
    head: Annotated[str, typer.Option(help="Revision that was pushed: branch or commit.")] = "main",
    diff: Annotated[bool, typer.Option(help="Show the text that changes.")] = True,
) -> None:
    from edgewise.protocol.api import Plan, PlanRequest

    session = Session.of(ctx)
    plan = session.client().post("/v1/plan", PlanRequest(base, head), Plan)
    if session.as_json:
        session.json(plan)
    else:
        show(session, plan, diff=diff)
    judge(plan)


def judge(plan: Plan) -> None:
    """Raises NeedsPerson for a plan with problems: exit code 4."""
    if plan.problems:
        count = len(plan.problems)
        raise NeedsPerson(
            f"{short(plan.head)} has {count} mistake{'s' if count > 1 else ''}",
            hint="correct the lines above; nothing moves until then",
        )


def show(session: Session, plan: Plan, *, diff: bool) -> None:
    """The plan for people."""
    typer.echo(f"{short(plan.base) or 'what runs now'} -> {short(plan.head)}")
    show_problems(plan.problems)
    for fleet in plan.fleets:
        typer.echo("")
        _fleet(session, fleet, diff=diff)
    if not plan.fleets and not plan.problems:
        typer.echo("Nothing changes.")
    for line in plan.not_acted_on:
        typer.echo(f"accepted, not yet acted on: {line}")
    if plan.held:
        typer.echo(f"\nThis would wait for a person: {plan.held}")


def _fleet(session: Session, fleet: FleetPlan, *, diff: bool) -> None:
    if fleet.before == fleet.after and not fleet.joining and not fleet.leaving:
        typer.echo(f"fleet {fleet.fleet}: nothing changes on {fleet.nodes} nodes")
        return
    typer.echo(
        f"fleet {fleet.fleet}: {fleet.changed_nodes} of {fleet.nodes} nodes change, "
        f"about {size(fleet.bytes)} travel "
        f"({short(fleet.before) or 'nothing'} -> {short(fleet.after)})"
    )
    for word, names in (("joining", fleet.joining), ("leaving", fleet.leaving)):
        if names:
            typer.echo(f"  {word}: {', '.join(names[:10])}{' ...' if len(names) > 10 else ''}")
    for change in fleet.changes:
        _change(change, diff=diff)
    session.table(
        ("  STAGE", "NODES", "MEMBERS", "THEN WAITS FOR"),
        (
            (
                f"  {stage.name}", str(stage.nodes),
                ", ".join(stage.members[:6]) + (" ..." if stage.nodes > 6 else ""),
                stage.waits_for,
            )
            for stage in fleet.stages
        ),
        none="  No stage: nothing to roll out.",
    )  # fmt: skip


def _change(change: FileChange, *, diff: bool) -> None:
    mark = {"added": "+", "removed": "-", "changed": "~"}[change.kind]
    typer.echo(
        f"  {mark} {change.part} on {change.nodes} nodes, {size(change.bytes)} each"
        f" (shown for {change.example})"
    )
    if not diff or not change.diff:
        return
    from rich.text import Text

    out = console()
    for line in change.diff.splitlines():
        style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
        out.print(Text(f"      {line}", style=style))
