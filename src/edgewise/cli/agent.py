"""``edgewise agent``: run it on this machine, join, look inside without a hub."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli.session import Session

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)

State = Annotated[Path, typer.Option(help="The node's state directory.")]
STATE = Path("/var/lib/edgewise")


@app.callback()
def _group() -> None:
    """The agent on this machine."""


@app.command("run", help="Run the agent in the foreground; apps go on when it ends.")
def run(
    state: State = STATE,
    token: Annotated[str, typer.Option(help="Join with it first, if need be.")] = "",
    name: Annotated[str, typer.Option(help="Name to join as; default: the host name.")] = "",
    root: Annotated[Path, typer.Option(help="Prefix for paths of configs.")] = Path("/"),
    stop_apps: Annotated[bool, typer.Option(help="Stop the apps with it.")] = False,
) -> None:
    # Becomes the agent's own program: what this command has imported must not stay in memory.
    command = [sys.executable, "-m", "edgewise.roles.agent"]
    command += ["--state", str(state), "--root", str(root)]
    command += ["--name", name] if name else []
    command += ["--stop-apps"] if stop_apps else []
    environment = {**os.environ, **({"EDGEWISE_TOKEN": token} if token else {})}
    os.execve(sys.executable, command, environment)


@app.command("join", help="Join with a token from `edgewise node token`; may be repeated.")
def join(
    token: Annotated[str, typer.Argument(help="ew1...")],
    state: State = STATE,
    name: Annotated[str, typer.Option(help="Name to join as; default: the host name.")] = "",
) -> None:
    import asyncio

    from edgewise.roles.agent import host_name
    from edgewise.roles.worker import InProcessWorker

    worker = InProcessWorker(state)
    asyncio.run(worker.join(token, name or host_name()))
    typer.echo(f"joined as {worker.identity.card().spiffe_id}")


@app.command("status", help="What this node is and does, without hub, network or agent.")
def status(ctx: typer.Context, state: State = STATE) -> None:
    from edgewise.roles.agent import local_status

    session = Session.of(ctx)
    found = local_status(state)
    if session.as_json:
        session.json(found)
        return
    apps = found.pop("apps")
    failed = found.pop("failed", [])
    lines = [(key, str(value)) for key, value in found.items()]
    lines += [("failed", f"{f['release'][:12]}: {f['reason']}") for f in failed]
    session.table(("", ""), lines, none="nothing")
    rows = [(a["name"], str(a["pid"] or "-"), str(a["restarts"]), a["log"]) for a in apps]
    session.table(("app", "pid", "restarts", "log"), rows, none="no app has run here")
