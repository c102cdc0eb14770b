"""``edgewise release``: show what one puts on nodes; sign it as a builder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edgewise.cli.builder import Adopt, Also, Builder, in_use, upload
from edgewise.cli.session import Session, short, show_problems
from edgewise.model.errors import NeedsPerson

if TYPE_CHECKING:
    from edgewise.cli.client import Client
    from edgewise.protocol.api import Builds, BuildsUpload
    from edgewise.sync.ports import Compiled

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)


@app.callback()
def _group() -> None:
    """What exactly a release puts on nodes."""


@app.command("show", help="The parts of a release and the labels that choose among them.")
def show(
    ctx: typer.Context,
    digest: Annotated[str, typer.Argument(help="Whole digest, as `rollout show -o json` has it.")],
) -> None:
    from edgewise.cli.client import segment
    from edgewise.protocol.content import Release

    session = Session.of(ctx)
    wanted = digest.removeprefix("sha256:")
    release = session.client().get(f"/v1/releases/{segment(wanted)}", Release)
    if session.as_json:
        session.json(release)
        return
    session.facts([("release", wanted), ("fleet", release.fleet)])
    typer.echo("")
    session.table(
        ("KIND", "NAME", "CHOSEN BY", "FOR", "PART"),
        (
            (part.kind, part.name, ", ".join(part.by) or "nothing", chosen or "every node", name)
            for part in release.parts
            for chosen, name in [
                *((f"{key}", value[:12] or "none") for key, value in part.variants.items()),
                *((f"node {key}", value[:12] or "none") for key, value in part.nodes.items()),
            ]
        ),
        none="It puts nothing on a node.",
    )


class Signature(msgspec.Struct, frozen=True):
    """What ``release sign --output json`` prints."""

    revision: str
    releases: dict[str, str]
    """Fleet to the digest of its release."""
    signed: bool
    """False: a builder had signed all of them before."""


@app.command("sign", help="As a builder: compile a commit here and sign what comes of it.")
def sign(
    ctx: typer.Context,
    key: Annotated[Path, typer.Option(help="Of `artifact key`.")],
    repo: Annotated[Path, typer.Argument(help="Your clone of the fleet repo.")] = Path(),
    head: Annotated[str, typer.Option(help="Revision to sign.")] = "HEAD",
    also: Also = None,
    adopt: Adopt = False,
) -> None:
    session = Session.of(ctx)
    client = session.client()
    builder = Builder(key, tuple(also or ()), adopt)
    made: list[Compiled] = []

    def successor(current: Builds) -> BuildsUpload | None:
        made[:] = [_compiled(client, repo, head, builder, current)]
        return _signed(client, builder, current, made[0])

    done = upload(client, successor)
    compiled = made[0]
    releases = {name: fleet.release for name, fleet in compiled.fleets.items()}
    if session.as_json:
        session.json(Signature(compiled.revision, releases, done))
        return
    for name, release in sorted(releases.items()):
        typer.echo(f"{name}: {release}")
    session.note(f"{short(compiled.revision)} {'is signed' if done else 'was signed already'}")


def _compiled(client: Client, repo: Path, head: str, builder: Builder, current: Builds) -> Compiled:
    """As the hub compiles it, from artifacts that a builder signed."""
    from edgewise.cli.local import HubArtifacts, HubSigners, snapshot
    from edgewise.sync.compile import compile_workspace
    from edgewise.sync.parse import ParseCache
    from edgewise.sync.ports import CompileFailed, Inputs

    artifacts = HubArtifacts(client, builder.targets(current))
    signers = HubSigners(client, artifacts, builder.keys())
    inputs = Inputs(artifacts, trust="builder", signers=signers)
    try:
        return compile_workspace(snapshot(repo, head), inputs, ParseCache(), None)
    except CompileFailed as failed:
        show_problems(failed.problems)
        raise NeedsPerson(
            f"{head} has mistakes; nothing was signed", hint="correct the lines above"
        ) from failed


def _signed(
    client: Client, builder: Builder, current: Builds, compiled: Compiled
) -> BuildsUpload | None:
    from edgewise.protocol.content import release_target

    listed = builder.targets(current)
    fleets = [f for f in compiled.fleets.values() if release_target(f.release) not in listed]
    if not fleets:
        return None
    documents = tuple(fleet.documents[fleet.release] for fleet in fleets)
    beside = {
        sha256: data
        for fleet in fleets
        for sha256, data in fleet.documents.items()
        if sha256 != fleet.release
    }
    return builder.successor(current, documents, keep=in_use(client), beside=tuple(beside.values()))
