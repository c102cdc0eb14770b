"""``edgewise agent ostree-remote``: let this node's ostree pull from its relay."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli.session import Session
from edgewise.model.errors import BadUsage, NeedsPerson

STATE = Path("/var/lib/edgewise")


def add_to(app: typer.Typer) -> None:
    """The command."""
    app.command("ostree-remote", help="Let ostree pull an artifact's commits from the relay.")(
        ostree_remote
    )


def ostree_remote(  # noqa: PLR0913 - one parameter is one option of the command line
    ctx: typer.Context,
    artifact: Annotated[str, typer.Argument(help="Artifact that has the commits.")],
    name: Annotated[str, typer.Option(help="Of the remote.")] = "edgewise",
    state: Annotated[Path, typer.Option(help="Directory of this node.")] = STATE,
    repo: Annotated[Path, typer.Option(help="Repository of this node.")] = Path("/ostree/repo"),
    url: Annotated[str, typer.Option(help="Another relay than this node's own.")] = "",
    gpg_key: Annotated[
        list[Path] | None, typer.Option(help="Public key that signs the commits. Repeatable.")
    ] = None,
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="Take commits that nobody signed.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the command.")] = False,
) -> None:
    from edgewise.host import registries
    from edgewise.model.names import is_name
    from edgewise.roles.node_certificate import read_card
    from edgewise.runtime.credentials import CredentialFiles

    session = Session.of(ctx)
    if bool(gpg_key) == unsigned:
        raise BadUsage(
            "who signs the commits?",
            hint="--gpg-key FILE; or --unsigned, and the relay is believed about which is newest",
        )
    if not is_name(artifact) or not is_name(name):
        raise BadUsage(f"{artifact!r} and {name!r} must be like a-z, 0-9 and '-'")
    state = state.expanduser().resolve()
    own = CredentialFiles(state / "identity")
    registries.check_key(own)
    top = url or read_card(state).urls[0]
    command = ["ostree", f"--repo={repo}", "remote", "add", "--force"]
    command += [f"--set=tls-client-cert-path={own.chain}", f"--set=tls-client-key-path={own.key}"]
    command += [f"--set=tls-ca-path={own.roots}", "--set=gpg-verify-summary=false"]
    command += [f"--gpg-import={key}" for key in gpg_key or ()]
    command += ["--no-gpg-verify"] if unsigned else ["--set=gpg-verify=true"]
    command += [name, f"{top}/ostree/{artifact}"]
    if session.as_json:
        session.json({"command": command})
    elif dry_run:
        typer.echo(shlex.join(command))
    if dry_run:
        return
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise NeedsPerson(
            f"ostree cannot be run: {error}", hint="apt-get install ostree"
        ) from error
    if done.returncode != 0:
        raise NeedsPerson(f"ostree remote add: {done.stderr.strip()[-300:]}")
    session.done(f"next: ostree --repo={repo} pull {name} REF")
