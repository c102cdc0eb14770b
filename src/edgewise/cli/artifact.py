"""``edgewise artifact``: from a directory to what the hub has, and back; backends.files.builds."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgewise.cli import artifact_checkout, artifact_import, artifact_show, artifact_write
from edgewise.cli.builder import Adopt, Also, Builder, in_use, listed_by, upload
from edgewise.cli.evidence import (
    NoProvenance,
    NoSbom,
    Sbom,
    Wanted,
    is_published,
    sboms_of,
    signed_by,
    told,
    with_evidence,
)
from edgewise.cli.sending import send_objects
from edgewise.cli.session import Session, size
from edgewise.model.errors import BadUsage, NeedsPerson

if TYPE_CHECKING:
    from edgewise.protocol.content import TreeRef

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)
artifact_show.add(app)

Name = Annotated[str, typer.Argument(help="Name of the artifact.")]
Version = Annotated[str, typer.Argument(help="Its version.")]
From = Annotated[
    Path, typer.Option("--from", help="Folder that `artifact build` wrote.", show_default=False)
]
BUILT = Path("~/.edgewise/built")

app.command(
    "checkout", help="Make a directory of an artifact's tree, verified, as a node would have it."
)(artifact_checkout.verb)
app.command(
    "import", help="Make an artifact of a container image, an OSTree commit or a disk image."
)(artifact_import.verb)
app.command("write", help="Write a disk image to a device or file: only what differs, verified.")(
    artifact_write.verb
)


@app.command("ls", help="Published artifacts.")
def ls(ctx: typer.Context) -> None:
    from edgewise.protocol.api import ArtifactLine

    session = Session.of(ctx)
    page = session.client().pages("/v1/artifacts", ArtifactLine)
    if session.as_json:
        session.json(page)
        return
    session.table(
        ("NAME", "VERSION", "PLATFORMS", "SIZE", "BUILT FROM"),
        (
            (a.name, a.version, ", ".join(a.platforms), size(a.size), a.built_from)
            for a in page.items
        ),
        none="No artifact published yet: `edgewise artifact build` makes one.",
    )


@app.command("key", help="Make a builder's signing key; it stays on this machine.")
def key(
    ctx: typer.Context, file: Annotated[Path, typer.Argument(help="Where to keep it.")]
) -> None:
    from edgewise.backends.tuf.repository import new_key, public_pem
    from edgewise.delivery.trust import key_id

    session = Session.of(ctx)
    if file.exists():
        raise BadUsage(f"{file} exists already", hint="name another file; keys are not replaced")
    signer = new_key(file)
    identifier = key_id(signer.public_key)
    public = file.with_name(f"{file.name}.pub")
    public.write_bytes(public_pem(signer))
    if session.as_json:
        session.json({"file": str(file), "public": str(public), "key": identifier})
        return
    typer.echo(identifier)
    session.note(f"kept in {file}, readable by you only; make a copy that is offline")
    session.note(f"  next, on the hub's machine: edgewise up --builder-key {public}")


@app.command("build", help="Make an artifact of a directory, or of one for each platform.")
def build(  # noqa: PLR0913 - one parameter is one option of the command line
    ctx: typer.Context,
    directory: Annotated[
        list[str],
        typer.Argument(
            help="DIRECTORY, PLATFORM=DIRECTORY for each platform, or a build script: it is run "
            "for each --platform with TARGETARCH, TARGETPLATFORM, VERSION and OUTPUT set."
        ),
    ],
    name: Annotated[str, typer.Option(help="Name of the artifact.")],
    version: Annotated[str, typer.Option(help="Its version; published ones never change.")],
    platform: Annotated[
        list[str] | None, typer.Option(help="For a single DIRECTORY; default: this machine's.")
    ] = None,
    to: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)] = BUILT,
    built_from: Annotated[str, typer.Option(help="Commit or pipeline, shown to people.")] = "",
    system: Annotated[
        bool,
        typer.Option(
            "--system",
            help="Of an operating system's root: DIRECTORY or a tar file, with owners, xattrs, "
            "devices and links to anywhere.",
        ),
    ] = False,
    sbom: Sbom = None,
    no_sbom: NoSbom = False,
    no_provenance: NoProvenance = False,
) -> None:
    from edgewise.backends.files.builds import BuildFolder
    from edgewise.delivery.builder import artifact_path, make_artifact

    session = Session.of(ctx)
    artifact_path(name, version)  # before anything is read or run
    folder = BuildFolder(to.expanduser())
    given = sources = _sources(directory, platform or [])
    wanted = Wanted(sboms_of(sbom or [], given), not no_sbom, not no_provenance)
    collected: dict[Path, TreeRef] = {}
    with tempfile.TemporaryDirectory(prefix="edgewise-build-") as scratch:
        sources = _scripts_run(sources, version, Path(scratch), system=system)
        for source in sources.values():
            if source not in collected:
                add = folder.add_system if system else folder.add_tree
                collected[source] = add(source)
    trees = {one: collected[source] for one, source in sources.items()}
    artifact = make_artifact(name, version, trees, built_from=built_from, system=system)
    artifact = with_evidence(folder, artifact, wanted, given)
    folder.add(artifact)
    if session.as_json:
        session.json(artifact)
        return
    for one, ref in trees.items():
        typer.echo(f"{one}: {ref.files} files, {size(ref.size)}, tree {ref.sha256[:12]}")
    for line in told(folder, artifact):
        typer.echo(line)
    session.note(f"  next: edgewise artifact publish {name} {version}")


@app.command("sign", help="Sign a built artifact with a builder's key, for `publish` later.")
def sign(  # noqa: PLR0913 - one parameter is one option of the command line
    ctx: typer.Context,
    name: Name,
    version: Version,
    key: Annotated[Path, typer.Option(help="Of `artifact key`.")],
    built: From = BUILT,
    also: Also = None,
    adopt: Adopt = False,
) -> None:
    from edgewise.backends.files.builds import BuildFolder
    from edgewise.protocol.api import Builds

    session = Session.of(ctx)
    folder = BuildFolder(built.expanduser())
    data, _ = signed_by(folder, name, version, key)
    client = session.client()
    current = client.get("/v1/builds", Builds)
    builder = Builder(key, tuple(also or ()), adopt)
    made = builder.successor(current, (data,), keep=in_use(client))
    folder.signature(name, version).write_bytes(made.metadata)
    session.done(f"signed: {name} {version}")
    session.note("publish it before another build is: it is the successor of what is there now")


@app.command("publish", help="Send a built artifact to the hub: what it lacks, then the name.")
def publish(  # noqa: PLR0913 - one parameter is one option of the command line
    ctx: typer.Context,
    name: Name,
    version: Version,
    built: From = BUILT,
    key: Annotated[
        Path | None, typer.Option(help="Sign with this builder's key (trust: builder).")
    ] = None,
    also: Also = None,
    adopt: Adopt = False,
    wait: Annotated[
        bool, typer.Option(help="Until the hub has made the deltas that lead to this version.")
    ] = True,
) -> None:
    from edgewise.backends.files.builds import BuildFolder
    from edgewise.cli.delta_progress import follow
    from edgewise.protocol.api import Builds, BuildsUpload

    session = Session.of(ctx)
    folder = BuildFolder(built.expanduser())
    data, artifact = signed_by(folder, name, version, key)
    signature = folder.signature(name, version)
    client = session.client()
    current = client.get("/v1/builds", Builds)
    builder = Builder(key, tuple(also or ()), adopt) if key else None
    if not adopt and is_published(client, listed_by(current, builder), artifact):
        session.done(f"published already: {name} {version}, with the same content")
        return
    if builder:
        builder.successor(current, (data,), keep=frozenset())  # before anything is sent
    elif current.trust == "builder" and not signature.exists():
        raise NeedsPerson(
            "this hub takes only what a builder signed (trust: builder)",
            hint="publish with --key FILE, or `edgewise artifact sign` first",
        )
    sent, total = send_objects(session, client, folder.objects(artifact))
    if builder:
        keep = in_use(client)
        upload(client, lambda now: builder.successor(now, (data,), keep=keep))
    else:
        metadata = signature.read_bytes() if signature.exists() else b""
        client.command("/v1/builds", BuildsUpload(metadata, (data,)))
    session.done(f"published: {name} {version}, {size(sent)} of {size(total)} sent")
    if wait:
        follow(session, client, name, version)


def _scripts_run(
    sources: dict[str, Path], version: str, scratch: Path, *, system: bool
) -> dict[str, Path]:
    """Directories, and tar files of a system, as they are; a build script becomes what it makes
    for each platform."""
    import tarfile

    from edgewise.backends.files.builds import run_script

    made: dict[str, Path] = {}
    for platform, source in sources.items():
        if source.is_file() and not (system and tarfile.is_tarfile(source)):
            output = scratch / platform.replace("/", "-")
            output.mkdir()
            asyncio.run(run_script(source, platform, version, output))
            source = output
        made[platform] = source
    return made


def _sources(given: list[str], platforms: list[str]) -> dict[str, Path]:
    """Platform to directory."""
    import platform as machine

    from edgewise.model.names import Platform

    found: dict[str, Path] = {}
    try:
        if len(given) == 1 and "=" not in given[0]:
            own = Platform.of_machine(machine.system(), machine.machine()).value
            return {Platform(one).value: Path(given[0]) for one in platforms or [own]}
        for one in given:
            name, equals, directory = one.partition("=")
            if not equals or not directory or platforms:
                raise BadUsage(
                    f"{one!r} is not like linux/amd64=dist/amd64",
                    hint="name one DIRECTORY with --platform, or PLATFORM=DIRECTORY for each",
                )
            found[Platform(name).value] = Path(directory)
    except ValueError as error:
        raise BadUsage(str(error)) from error
    return found
