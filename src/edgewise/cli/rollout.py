"""``edgewise rollout``: ls, show, watch, approve, pause, resume, abort, retry."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from edgewise.cli.session import Session, ago, console, short, stamp
from edgewise.model.errors import NeedsPerson, NotFound, TryLater

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgewise.cli.client import Client
    from edgewise.protocol.api import RolloutDetail, StageStatus

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)

Identifier = Annotated[
    str, typer.Argument(help="Rollout identifier, or a fleet for its newest; empty: the newest.")
]
Named = Annotated[str, typer.Argument(help="Rollout identifier, or a fleet for its newest.")]
Reason = Annotated[str, typer.Option(help="Kept in the audit log.")]
ENDED = frozenset({"Succeeded", "RolledBack", "Failed", "Cancelled", "Superseded"})
_RECONNECTS = 30


@app.command("ls", help="Rollouts, newest first.")
def ls(
    ctx: typer.Context,
    fleet: Annotated[str, typer.Option(help="Only of this fleet.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 20,
) -> None:
    from edgewise.protocol.api import RolloutSummary

    session = Session.of(ctx)
    page = session.client().pages("/v1/rollouts", RolloutSummary, at_most=limit, fleet=fleet)
    if session.as_json:
        session.json(page)
        return
    session.table(
        ("ID", "FLEET", "REVISION", "STATE", "DONE", "FAILED", "STARTED", "WHY"),
        (
            (
                one.id, one.fleet, short(one.revision), one.state,
                f"{one.succeeded}/{one.nodes}", str(one.failed), ago(one.started), one.reason,
            )
            for one in page.items
        ),
        none="No rollout yet: `edgewise push` a commit that changes a fleet.",
    )  # fmt: skip


@app.command("show", help="One rollout: its stages, failures and log.")
def show(ctx: typer.Context, identifier: Identifier = "") -> None:
    session = Session.of(ctx)
    detail = _detail(session.client(), identifier)
    if session.as_json:
        session.json(detail)
        return
    one = detail.summary
    session.facts(
        [
            ("rollout", one.id),
            ("fleet", one.fleet),
            ("revision", one.revision),
            ("release", f"{short(one.release)}  (before: {short(one.previous) or 'nothing'})"),
            ("state", f"{one.state}  {one.reason}".strip()),
            ("nodes", f"{one.succeeded} of {one.nodes} done, {one.failed} failed"),
        ]
    )
    typer.echo("")
    session.table(
        ("STAGE", "STATE", "NODES", "COUNTS", "WHY"),
        (
            (s.name, s.state, str(s.total), _counts(s), _waiting(s) or s.reason)
            for s in detail.stages
        ),
        none="No stage.",
    )
    if detail.failures:
        typer.echo("")
        session.table(
            ("FAILED NODE", "STAGE", "STATE", "WHY"),
            ((f.node, f.stage, f.state, f.reason) for f in detail.failures),
            none="",
        )
    typer.echo("")
    for line in detail.log:
        typer.echo(f"{stamp(line.at)}  {line.state:<18} {line.actor}: {line.reason}")


@app.command("watch", help="Follow a rollout until it ends: exit code 0 when it succeeded.")
def watch(ctx: typer.Context, identifier: Identifier = "") -> None:
    session = Session.of(ctx)
    client = session.client()
    follow(session, client, _detail(client, identifier))


@app.command("approve", help="Let a waiting stage, or a held change, go on.")
def approve(ctx: typer.Context, identifier: Named, reason: Reason = "") -> None:
    _command(ctx, "approve", identifier, reason)


@app.command("pause", help="Start no more nodes; those under way finish.")
def pause(ctx: typer.Context, identifier: Named, reason: Reason = "") -> None:
    _command(ctx, "pause", identifier, reason)


@app.command("resume", help="Go on after a pause.")
def resume(ctx: typer.Context, identifier: Named, reason: Reason = "") -> None:
    _command(ctx, "resume", identifier, reason)


@app.command("abort", help="Stop, and return the attempted nodes to the stable release.")
def abort(ctx: typer.Context, identifier: Named, reason: Reason = "") -> None:
    _command(ctx, "abort", identifier, reason)


@app.command("retry", help="Try a failed release again from its first stage.")
def retry(ctx: typer.Context, identifier: Named, reason: Reason = "") -> None:
    _command(ctx, "retry", identifier, reason)


def _command(ctx: typer.Context, word: str, identifier: str, reason: str) -> None:
    from edgewise.cli.client import segment
    from edgewise.protocol.api import RolloutCommand

    session = Session.of(ctx)
    client = session.client()
    try:
        client.command(f"/v1/rollouts/{segment(identifier)}/{word}", RolloutCommand(reason))
    except NotFound:
        newest = _newest(client, identifier)
        if newest is None:
            raise
        identifier = newest
        client.command(f"/v1/rollouts/{segment(identifier)}/{word}", RolloutCommand(reason))
    session.done(f"{word}: {identifier}")


def _newest(client: Client, fleet: str) -> str | None:
    """The newest rollout of a fleet (of all, if empty)."""
    from edgewise.protocol.api import RolloutSummary

    try:
        page = client.pages("/v1/rollouts", RolloutSummary, at_most=1, fleet=fleet)
    except NotFound:
        return None
    return page.items[0].id if page.items else None


def _detail(client: Client, identifier: str) -> RolloutDetail:
    from edgewise.cli.client import segment
    from edgewise.protocol.api import RolloutDetail

    if identifier:
        try:
            return client.get(f"/v1/rollouts/{segment(identifier)}", RolloutDetail)
        except NotFound:
            newest = _newest(client, identifier)
            if newest is None:
                raise
    else:
        newest = _newest(client, "")
        if newest is None:
            raise NotFound("there is no rollout yet", hint="push a commit that changes a fleet")
    return client.get(f"/v1/rollouts/{segment(newest)}", RolloutDetail)


def follow(session: Session, client: Client, detail: RolloutDetail) -> None:
    """Show a rollout until it ends.

    Live bars on a terminal, else a line per change, or a JSON document per line. Raises
    NeedsPerson when it did not succeed, TryLater when a newer commit took its place.
    """
    view = _view(session)
    try:
        view.show(detail)
        if detail.summary.state not in ENDED:
            detail = _events(client, detail, view)
    finally:
        view.close()
    _judge(detail)


def _events(client: Client, detail: RolloutDetail, view: _Lines | _Bars) -> RolloutDetail:
    import asyncio
    from datetime import timedelta

    from edgewise.cli.client import segment
    from edgewise.protocol.api import RolloutDetail
    from edgewise.runtime.clock import SystemClock

    path = f"/v1/rollouts/{segment(detail.summary.id)}/watch"
    for left in range(_RECONNECTS, -1, -1):
        try:
            for newer in client.events(path, RolloutDetail):
                view.show(newer)
                if newer.summary.state in ENDED:
                    return newer
        except TryLater:
            if not left:
                raise
        # The hub restarted, or ended a long stream: ask again, it tells the present state.
        asyncio.run(SystemClock().sleep(timedelta(seconds=1)))
    raise TryLater(f"the hub ended the stream of rollout {detail.summary.id} again and again")


def _judge(detail: RolloutDetail) -> None:
    one = detail.summary
    if one.state == "Superseded":
        raise TryLater(
            f"rollout {one.id} was superseded: {one.reason}",
            hint=f"`edgewise rollout watch {one.fleet}` follows its successor",
        )
    if one.state != "Succeeded":
        first = next(iter(detail.failures), None)
        why = f"; {first.node}: {first.reason}" if first else ""
        raise NeedsPerson(
            f"rollout {one.id} of {one.fleet} ended {one.state}: {one.reason}{why}",
            hint="correct the fleet repo and push, or `edgewise rollout retry`",
        )


def _counts(stage: StageStatus) -> str:
    from typing import get_args

    from edgewise.protocol.api import NodeState

    counts = ((state, stage.counts.get(state, 0)) for state in get_args(NodeState))
    return " ".join(f"{state} {count}" for state, count in counts if count)


def _waiting(stage: StageStatus) -> str:
    return f"until {stamp(stage.bake_until)}" if stage.bake_until else ""


def _view(session: Session) -> _Lines | _Bars:
    if session.as_json or not sys.stdout.isatty():
        return _Lines(session)
    return _Bars()


class _Lines:
    """For pipes and logs: what changed, one line each."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._told: dict[str, str] = {}

    def show(self, detail: RolloutDetail) -> None:
        if self._session.as_json:
            self._session.json_line(detail)
            return
        one = detail.summary
        self._tell("", f"{one.fleet} {short(one.revision)} {one.state} {one.reason}".rstrip())
        for stage in detail.stages:
            text = f"stage {stage.name} {stage.state} of {stage.total}: {_counts(stage)}"
            self._tell(stage.name, f"  {text} {stage.reason}".rstrip())
        for failed in detail.failures:
            self._tell(
                f"node {failed.node}", f"  node {failed.node} {failed.state}: {failed.reason}"
            )

    def _tell(self, about: str, text: str) -> None:
        if self._told.get(about) != text:
            self._told[about] = text
            typer.echo(text)

    def close(self) -> None:
        return


class _Bars:
    """For a terminal: one bar per stage."""

    def __init__(self) -> None:
        from rich.live import Live

        self._live = Live(console=console(), refresh_per_second=8, transient=False)
        self._live.start()

    def show(self, detail: RolloutDetail) -> None:
        self._live.update(_drawn(detail), refresh=True)

    def close(self) -> None:
        self._live.stop()


def _drawn(detail: RolloutDetail) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    one = detail.summary
    head = Text.assemble((one.fleet, "bold"), f"  {short(one.revision)}  {one.state}  {one.reason}")
    grid = Table.grid(padding=(0, 2))
    for stage in detail.stages:
        ended = sum(
            count
            for state, count in stage.counts.items()
            if state in ("Succeeded", "Failed", "RolledBack", "Skipped", "Held", "Deferred")
        )
        bad = stage.counts.get("Failed", 0) + stage.counts.get("RolledBack", 0)
        bar = ProgressBar(
            total=max(stage.total, 1), completed=ended, width=30,
            complete_style="red" if bad else "green", finished_style="red" if bad else "green",
        )  # fmt: skip
        grid.add_row(
            Text(stage.name), bar, Text(f"{ended}/{stage.total}"), Text(stage.state),
            Text(_waiting(stage) or stage.reason or _counts(stage)),
        )  # fmt: skip
    failures = [Text(f"  {f.node}: {f.reason}", style="red") for f in detail.failures[:5]]
    return Group(head, grid, *failures)
