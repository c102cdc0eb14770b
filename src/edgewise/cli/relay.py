"""``edgewise relay``: join and run. The relay itself starts in a process of its own kind."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli.session import Session
from edgewise.model.errors import BadUsage, NeedsPerson
from edgewise.runtime.hidden import hidden

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)

State = Annotated[Path, typer.Option(help="Directory of this relay.")]
STATE = Path("/var/lib/edgewise-relay")
Hub = Annotated[
    list[str] | None,
    typer.Option(help="Where the hub is reached, if not as the token says. Repeatable."),
]


@app.callback()
def _group() -> None:
    """A region's cache and registrar."""


@app.command("join", help="Join this machine as the relay of its token's region.")
def join(  # noqa: PLR0913 - one parameter is one option of the command line
    ctx: typer.Context,
    token: Annotated[
        str,
        typer.Argument(
            help="Of `edgewise node token --relay`: `-` for standard input, @FILE, or the text; "
            "left out: EDGEWISE_TOKEN."
        ),
    ] = "",
    name: Annotated[str, typer.Option(help="Its name; default: the machine's.")] = "",
    url: Annotated[
        list[str] | None, typer.Option(help="Where its nodes reach it. Repeatable.")
    ] = None,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="In place of --url.")] = "",
    hub: Hub = None,
    state: State = STATE,
) -> None:
    import asyncio

    from edgewise.identity.on_agent import MachineIdentity
    from edgewise.roles.agent import host_name
    from edgewise.roles.relay import RelaySettings, join_hub

    session = Session.of(ctx)
    identity = MachineIdentity(writable(state) / "identity")
    if identity.credentials.exist:
        session.done(f"joined already: {state}")
        return
    if not url and not listen:
        raise NeedsPerson(
            "nodes have to be told where this relay is",
            hint="add --url https://NAME-OF-THIS-MACHINE:8444",
        )
    token = hidden(token)
    if not token:
        raise BadUsage(
            "a relay joins with a token", hint="`edgewise node token --relay` at the hub makes one"
        )
    settings = RelaySettings(state, listen, tuple(hub or ()))
    card = asyncio.run(join_hub(settings, token, name or host_name(), tuple(url or ())))
    session.done(f"joined as {card.spiffe_id}")
    session.note(f"  next: edgewise relay run --state {state}")


@app.command("run", help="Serve the region until SIGTERM or Ctrl-C.")
def run(  # noqa: PLR0913 - one parameter is one option of the command line
    state: State = STATE,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Default: as the URL it joined with.")
    ] = "",
    hub: Hub = None,
    cache: Annotated[str, typer.Option(help="Most bytes to cache: 20Gi.")] = "20Gi",
    reserve: Annotated[
        str, typer.Option(help="Bytes of the disk that the cache leaves free for others.")
    ] = "256Mi",
    content_url: Annotated[
        list[str] | None,
        typer.Option(
            help="A plain file server or CDN with the hub's content, asked before the hub. "
            "Repeatable."
        ),
    ] = None,
    announced: Annotated[
        bool,
        typer.Option(help="Also ask the file servers that the hub announces (docs/cdn.md)."),
    ] = True,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="Another relay of this region, asked first for what it keeps already. Repeatable."
        ),
    ] = None,
    rate: Annotated[
        str,
        typer.Option(help="Most bytes of content a second from above: 2Mi; 0: no limit."),
    ] = "0",
    hold: Annotated[float, typer.Option(help="Seconds that polls are held.")] = 60.0,
    node_life: Annotated[
        str, typer.Option(help="How long nodes' certificates are good: as at the hub.")
    ] = "45d",
) -> None:
    from edgewise.runtime.credentials import CredentialFiles

    if not CredentialFiles(writable(state) / "identity").exist:
        raise NeedsPerson(
            f"this relay has not joined: {state} holds no identity",
            hint="`edgewise relay join -`, with a token of `edgewise node token --relay`",
        )
    given = ["--state", str(writable(state)), "--cache", cache, "--hold", str(hold)]
    given += ["--node-life", node_life, "--reserve", reserve, "--rate", rate]
    given += ["--listen", listen] if listen else []
    given += [] if announced else ["--no-announced"]
    for option, values in (("--hub", hub), ("--content-url", content_url), ("--peer", peer)):
        for one in values or ():
            given += [option, one]
    become("relay", given)


def become(role: str, arguments: list[str], more: Mapping[str, str] | None = None) -> None:
    """Replace this process by the role: what the command line needed does not stay in memory.

    ``-P``: the current directory is no place to import from. ``more`` is added to the environment.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, "-P", "-m", f"edgewise.roles.{role}", *arguments]
    os.execve(sys.executable, command, {**os.environ, **(more or {})})


def writable(state: Path) -> Path:
    """The state directory, made where it is missing. Raises NeedsPerson when it cannot be."""
    state = state.expanduser().absolute()
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise NeedsPerson(
            f"{state} cannot be made: {error.strerror}",
            hint="run it as root, or choose a directory with --state",
        ) from error
    if not os.access(state, os.W_OK | os.X_OK):
        raise NeedsPerson(
            f"{state} cannot be written",
            hint="run it as its owner, or choose a directory with --state",
        )
    return state
