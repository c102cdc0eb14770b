"""``edgewise push``: git push to the hub with the right certificates, and what came of it."""

from __future__ import annotations

import asyncio
import os
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgewise.cli.session import Session, short, show_problems
from edgewise.model.errors import BadUsage, NeedsPerson, NotFound, TryLater
from edgewise.runtime.clock import Clock, SystemClock

if TYPE_CHECKING:
    from edgewise.cli.client import Client
    from edgewise.protocol.api import Trace

_LOOK_EVERY = timedelta(milliseconds=500)


def verb(
    ctx: typer.Context,
    repo: Annotated[Path, typer.Option("--repo", "-C", help="Your clone.")] = Path(),
    branch: Annotated[str, typer.Option(help="Branch at the hub.")] = "main",
    revision: Annotated[str, typer.Option(help="What to push.")] = "HEAD",
    wait: Annotated[bool, typer.Option("--wait", help="Follow the rollouts to their end.")] = False,
    timeout: Annotated[str, typer.Option(help="With --wait: for compiling to begin.")] = "60s",
) -> None:
    from edgewise.model.quantity import parse_duration

    session = Session.of(ctx)
    client = session.client()
    try:
        limit = parse_duration(timeout)
    except ValueError as error:
        raise BadUsage(f"--timeout: {error}") from error
    commit = _git(repo, "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}")
    client.reach()
    pushing = subprocess.run(
        ["git", "-C", str(repo), "push", client.context.git_url,
         f"{commit}:refs/heads/{branch}"],
        env={**os.environ, **client.context.git_environment()},
        stdout=subprocess.DEVNULL,
        check=False,
    )  # fmt: skip
    if pushing.returncode:
        raise NeedsPerson(
            f"git push to {client.context.git_url} failed (exit code {pushing.returncode})",
            hint="git's own words stand above; if others pushed before you: `edgewise fetch`, then "
            f"`git rebase edgewise/{branch}`",
        )
    trace = _compiled(client, SystemClock(), commit, limit) if wait else _known(client, commit)
    if trace is not None and not trace.compiled and (wait or trace.problems):
        if wait:  # else git has shown just now what the hub says
            show_problems(trace.problems)
        raise NeedsPerson(
            f"{short(trace.revision)} is stored but not acted on",
            hint="correct it and push again; the fleets stay as they are",
        )
    if wait and trace is not None:
        _follow(session, client, trace)
    else:
        session.done(f"pushed: {branch}@{commit[:10]}")


def _known(client: Client, commit: str) -> Trace | None:
    """What the hub can say of the commit at once: it answers a push when it has compiled it."""
    from edgewise.protocol.api import Trace

    try:
        return client.get(f"/v1/commits/{commit}", Trace)
    except (NotFound, TryLater):
        return None  # not the branch that is followed, or still being compiled


def _follow(session: Session, client: Client, trace: Trace) -> None:
    from edgewise.cli.client import segment
    from edgewise.cli.rollout import follow
    from edgewise.protocol.api import RolloutDetail

    if not trace.rollouts:
        session.done(f"{short(trace.revision)} changes nothing that runs")
    for one in trace.rollouts:
        follow(session, client, client.get(f"/v1/rollouts/{segment(one.id)}", RolloutDetail))


def _compiled(client: Client, clock: Clock, commit: str, limit: timedelta) -> Trace:
    """The commit's trace once the hub has compiled it, or found its mistakes."""
    from edgewise.protocol.api import HubStatus, Trace

    end = clock.monotonic() + limit.total_seconds()
    waits: list[str] = []
    while True:
        try:
            trace = client.get(f"/v1/commits/{commit}", Trace)
            if trace.problems or trace.rollouts:
                return trace
            source = client.get("/v1/status", HubStatus).source
            if trace.compiled and trace.releases and source.compiled == trace.revision:
                return trace
            waits = [f"{one.reason}: {one.message}" for one in source.conditions if one.status]
        except NotFound:
            if clock.monotonic() > end:
                raise
        if clock.monotonic() > end:
            raise TryLater(
                f"the fleets do not follow {commit[:10]} after {limit.total_seconds():g} s",
                hint="; ".join(waits) or "`edgewise status` tells what the hub waits for",
            )
        asyncio.run(clock.sleep(_LOOK_EVERY))


def _git(repo: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(repo), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise NeedsPerson("the git command is not installed", hint="install git") from error
    if done.returncode:
        raise BadUsage(
            f"{done.stderr.strip().splitlines()[0] if done.stderr else 'git failed'} (in {repo})",
            hint="run it in your clone of the fleet repo, after a commit",
        )
    return done.stdout.strip()
