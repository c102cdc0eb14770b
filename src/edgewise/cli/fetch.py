"""``edgewise fetch``: the hub's branches into a clone, with the right certificates."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli.session import Session
from edgewise.model.errors import NeedsPerson

REMOTE = "edgewise"


def verb(
    ctx: typer.Context,
    repo: Annotated[Path, typer.Option("--repo", "-C", help="Your clone.")] = Path(),
) -> None:
    session = Session.of(ctx)
    client = session.client()
    context = client.context
    client.reach()
    try:
        fetching = subprocess.run(
            ["git", "-C", str(repo), "fetch", "--prune", context.git_url,
             f"+refs/heads/*:refs/remotes/{REMOTE}/*"],
            env={**os.environ, **context.git_environment()},
            check=False,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise NeedsPerson("the git command is not installed", hint="install git") from error
    if fetching.returncode:
        raise NeedsPerson(
            f"git fetch from {context.git_url} failed (exit code {fetching.returncode})",
            hint="git's own words stand above; run it in your clone of the fleet repo",
        )
    session.done(f"fetched: {REMOTE}/main and the other branches; `git rebase {REMOTE}/main`")
