"""``edgewise plan``: what a commit would do, before anything moves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgewise.cli.session import Session, console, short, show_problems, size
from edgewise.model.errors import BadUsage, NeedsPerson, TryLater

if TYPE_CHECKING:
    from edgewise.cli.client import Client
    from edgewise.protocol.api import FileChange, FleetPlan, Plan
    from edgewise.protocol.travel import TreeBytes, TreeChange
    from edgewise.sync.parse import ParseCache
    from edgewise.sync.ports import Compiled, CompileFailed, Inputs, Snapshot


def verb(
    ctx: typer.Context,
    repo: Annotated[
        Path | None,
        typer.Argument(
            help="Your clone of the fleet repo; default: the one you are in, else the hub's.",
            show_default=False,
        ),
    ] = None,
    base: Annotated[str, typer.Option(help="Compare with this revision; empty: what runs.")] = "",
    head: Annotated[
        str, typer.Option(help="Revision to look at; default: HEAD of the clone, the hub's main.")
    ] = "",
    diff: Annotated[bool, typer.Option(help="Show the text that changes.")] = True,
) -> None:
    from edgewise.cli.local import fleet_repo_here
    from edgewise.protocol.api import Plan, PlanRequest

    session = Session.of(ctx)
    clone = repo or fleet_repo_here()
    if clone is not None:
        plan = _local(session, clone, base, head or "HEAD")
    else:
        plan = session.client().post("/v1/plan", PlanRequest(base, head or "main"), Plan)
    if session.as_json:
        session.json(plan)
    else:
        show(session, plan, diff=diff)
    judge(plan)


def _local(session: Session, repo: Path, base: str, head: str) -> Plan:
    """Compile here. What is not committed takes no part; a hub is asked if there is one."""
    from edgewise.cli.local import known_hub, snapshot
    from edgewise.sync.parse import ParseCache
    from edgewise.sync.plan import Planning, plan_refused
    from edgewise.sync.ports import CompileFailed

    client = _hub(session)
    inputs = _inputs(client) if client else None
    runs = base or (_runs(client) if client else known_hub(repo))
    if inputs is None:
        against = "" if runs else "; --base REVISION says what to compare with"
        session.note(
            "no hub was asked: whether artifacts are published was not checked, nodes that "
            f"are not in the repo are left out (by pruneProtection as well), trees count "
            f"whole{against}"
        )
    cache = ParseCache()
    before = _compile(snapshot(repo, runs), inputs, cache, None) if runs else None
    if isinstance(before, CompileFailed):
        return plan_refused(runs, head, before.problems)
    now = snapshot(repo, head)
    after = _compile(now, inputs, cache, before)
    if isinstance(after, CompileFailed):
        return plan_refused(before.revision if before else "", now.revision, after.problems)
    planning = Planning(before, after)
    return planning.plan(_weighed(client, planning.changes) if client else {})


def _hub(session: Session) -> Client | None:
    """A hub that answers. One that was named has to."""
    from edgewise.protocol.api import HubStatus

    try:
        client = session.client()
        client.get("/v1/status", HubStatus)
    except (BadUsage, TryLater) as error:
        if session.context:
            raise
        session.note(f"without the hub: {error}")
        return None
    return client


def _inputs(client: Client) -> Inputs:
    """What a compile depends on besides the commit, as the hub has it now."""
    from tuf.api.metadata import Targets

    from edgewise.cli.local import HubArtifacts
    from edgewise.delivery import trust
    from edgewise.protocol.api import Builds, NodeSummary
    from edgewise.sync.ports import Inputs, JoinedNode

    builds = client.get("/v1/builds", Builds)
    targets = (
        trust.parse(builds.metadata, Targets, what="builds.json").signed.targets
        if builds.metadata
        else {}
    )
    nodes = client.pages("/v1/nodes", NodeSummary, at_most=100_000).items
    joined = tuple(
        JoinedNode(one.name, one.joined_with, one.platform)
        for one in nodes
        if not one.reason.startswith("quarantined")
    )
    return Inputs(HubArtifacts(client, targets), joined, builds.trust)


def _weighed(client: Client, changes: tuple[TreeChange, ...]) -> dict[TreeChange, TreeBytes]:
    """What travels for each, with the deltas that the hub has ready."""
    from edgewise.protocol.travel import Weighed, WeighRequest

    if not changes:
        return {}
    answer = client.post("/v1/trees/weigh", WeighRequest(changes), Weighed)
    return dict(zip(changes, answer.bytes, strict=True))


def _runs(client: Client) -> str:
    """The commit that the fleets follow; empty before the first."""
    from edgewise.protocol.api import HubStatus

    return client.get("/v1/status", HubStatus).source.compiled


def _compile(
    commit: Snapshot, inputs: Inputs | None, cache: ParseCache, before: Compiled | None
) -> Compiled | CompileFailed:
    from edgewise.sync.compile import check_workspace, compile_workspace
    from edgewise.sync.ports import CompileFailed

    try:
        if inputs is None:
            return check_workspace(commit, None, cache, before)
        return compile_workspace(commit, inputs, cache, before)
    except CompileFailed as failed:
        return failed


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
    for warning in plan.warnings:
        session.note(f"  warning: {warning}")
    for line in plan.not_acted_on:
        typer.echo(f"accepted, not yet acted on: {line}")
    if len(plan.fleets) > 1:
        typer.echo(f"\nin all {_travels(plan)}")
    if plan.assumed_whole:
        session.note(
            "  * some of it counted as whole files: no delta is ready (`edgewise delta ls`)"
        )
    if plan.held:
        typer.echo(f"\nThis would wait for a person: {plan.held}")


def _travels(what: Plan | FleetPlan | FileChange) -> str:
    """``1.2 MB of 40.0 MB``; a star where whole files were counted."""
    star = "*" if what.assumed_whole else ""
    if what.bytes_full <= what.bytes:
        return f"{size(what.bytes)}{star}"
    return f"{size(what.bytes)}{star} of {size(what.bytes_full)}"


def _fleet(session: Session, fleet: FleetPlan, *, diff: bool) -> None:
    if fleet.before == fleet.after and not fleet.joining and not fleet.leaving:
        typer.echo(f"fleet {fleet.fleet}: nothing changes on {fleet.nodes} nodes")
        return
    typer.echo(
        f"fleet {fleet.fleet}: {fleet.changed_nodes} of {fleet.nodes} nodes change, "
        f"about {_travels(fleet)} travel "
        f"({short(fleet.before) or 'nothing'} -> {short(fleet.after)})"
    )
    for word, names in (("joining", fleet.joining), ("leaving", fleet.leaving)):
        if names:
            typer.echo(f"  {word}: {', '.join(names[:10])}{' ...' if len(names) > 10 else ''}")
    for change in fleet.changes:
        _change(change, diff=diff)
    session.table(
        ("  STAGE", "NODES", "TRAVELS", "MEMBERS", "THEN WAITS FOR"),
        (
            (
                f"  {stage.name}", str(stage.nodes), size(stage.bytes),
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
        f"  {mark} {change.part} on {change.nodes} nodes, {_travels(change)} each"
        f" (shown for {change.example})"
    )
    if not diff or not change.diff:
        return
    from rich.text import Text

    out = console()
    for line in change.diff.splitlines():
        style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
        out.print(Text(f"      {line}", style=style))
