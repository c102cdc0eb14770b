"""``edgewise artifact``: key, build, sign, publish, ls.

A built artifact is a folder: ``artifact.json``, ``trees/<sha256>`` (manifests),
``objects/<sha256>`` (file contents) and, once signed, ``builds.json``. It can be built and
signed on a machine that never sees the hub, and published from another.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgewise.cli.session import Session, size
from edgewise.model.errors import BadUsage, NeedsPerson

if TYPE_CHECKING:
    from edgewise.cli.client import Client
    from edgewise.protocol.api import Builds
    from edgewise.protocol.content import Artifact, TreeRef

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)

Built = Annotated[Path, typer.Argument(help="Folder that `artifact build` wrote.")]
_ASKED_AT_ONCE = 1000


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
    from edgewise.backends.tuf.repository import new_key
    from edgewise.delivery.trust import key_id

    session = Session.of(ctx)
    if file.exists():
        raise BadUsage(f"{file} exists already", hint="name another file; keys are not replaced")
    identifier = key_id(new_key(file).public_key)
    if session.as_json:
        session.json({"file": str(file), "key": identifier})
        return
    typer.echo(identifier)
    session.note(f"kept in {file}, readable by you only; make a copy that is offline")


@app.command("build", help="Make an artifact of directories, one for each platform.")
def build(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the artifact.")],
    version: Annotated[str, typer.Argument(help="Its version; published ones never change.")],
    tree: Annotated[
        list[str], typer.Option(help="PLATFORM=DIRECTORY: linux/amd64=dist/amd64; repeat for more.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; default NAME-VERSION.")] = Path(),
    built_from: Annotated[str, typer.Option(help="Commit or pipeline, shown to people.")] = "",
) -> None:
    from edgewise.model.names import is_name
    from edgewise.protocol.codec import encode
    from edgewise.protocol.content import Artifact, artifact_target

    session = Session.of(ctx)
    if not is_name(name):
        raise BadUsage(f"artifact name {name!r} is not a DNS label (a-z, 0-9, '-')")
    if not version or len(version) > 128 or set(version) & set("/\\ \n"):
        raise BadUsage(f"version {version!r} cannot be part of {artifact_target(name, 'VERSION')}")
    folder = out if out != Path() else Path(f"{name}-{version}")
    if folder.exists() and any(folder.iterdir()):
        raise BadUsage(f"{folder} is not empty", hint="remove it, or name another with --out")
    sources = _sources(tree)
    trees = {platform: _collect(source, folder) for platform, source in sources.items()}
    artifact = Artifact(name, version, trees, built_from)
    (folder / "artifact.json").write_bytes(encode(artifact))
    if session.as_json:
        session.json(artifact)
        return
    for platform, ref in trees.items():
        typer.echo(f"{platform}: {ref.files} files, {size(ref.size)}, tree {ref.sha256[:12]}")
    session.note(f"  next: edgewise artifact publish {folder}")


@app.command("sign", help="Sign a built artifact with a builder's key, for `publish` later.")
def sign(
    ctx: typer.Context,
    built: Built,
    key: Annotated[Path, typer.Option(help="Of `artifact key`.")],
) -> None:
    from edgewise.protocol.api import Builds

    session = Session.of(ctx)
    artifact = _read(built)
    current = session.client().get("/v1/builds", Builds)
    (built / "builds.json").write_bytes(_signed(current, {_target(artifact): _bytes(built)}, key))
    session.done(f"signed: {artifact.name} {artifact.version}")
    session.note("publish it before another build is: it is the successor of what is there now")


@app.command("publish", help="Send a built artifact to the hub: what it lacks, then the name.")
def publish(
    ctx: typer.Context,
    built: Built,
    key: Annotated[
        Path | None, typer.Option(help="Sign with this builder's key (trust: builder).")
    ] = None,
) -> None:
    from edgewise.protocol.api import Builds, BuildsUpload

    session = Session.of(ctx)
    client = session.client()
    artifact = _read(built)
    current = client.get("/v1/builds", Builds)
    metadata = b""
    if key is not None:
        metadata = _signed(current, {_target(artifact): _bytes(built)}, key)
    elif (built / "builds.json").exists():
        metadata = (built / "builds.json").read_bytes()
    elif current.trust == "builder":
        raise NeedsPerson(
            "this hub takes only what a builder signed (trust: builder)",
            hint="publish with --key FILE, or `edgewise artifact sign` first",
        )
    sent, total = _send_objects(session, client, built)
    manifests = tuple(path.read_bytes() for path in sorted((built / "trees").iterdir()))
    client.command("/v1/builds", BuildsUpload(metadata, (*manifests, _bytes(built))))
    session.done(
        f"published: {artifact.name} {artifact.version}, {size(sent)} of {size(total)} sent"
    )


def _sources(given: list[str]) -> dict[str, Path]:
    from edgewise.model.names import Platform

    found = {}
    for one in given:
        platform, equals, directory = one.partition("=")
        if not equals or not directory:
            raise BadUsage(f"--tree {one!r} is not like linux/amd64=dist/amd64")
        try:
            found[Platform(platform).value] = Path(directory)
        except ValueError as error:
            raise BadUsage(f"--tree: {error}") from error
    return found


def _collect(source: Path, folder: Path) -> TreeRef:
    """Copy a directory's contents by digest, and its manifest."""
    import hashlib

    from edgewise.backends.files.trees import scan
    from edgewise.delivery.trees import reference

    tree = scan(source)
    objects, manifests = folder / "objects", folder / "trees"
    objects.mkdir(parents=True, exist_ok=True)
    manifests.mkdir(exist_ok=True)
    for entry in tree.entries:
        target = objects / entry.sha256
        if entry.kind != "file" or target.exists():
            continue
        shutil.copyfile(source / entry.path, target)
        with target.open("rb") as copied:
            if hashlib.file_digest(copied, "sha256").hexdigest() != entry.sha256:
                target.unlink()
                raise BadUsage(
                    f"{source / entry.path} changed while it was read",
                    hint="build again when it is still",
                )
    ref, manifest = reference(tree)
    (manifests / ref.sha256).write_bytes(manifest)
    return ref


def _read(built: Path) -> Artifact:
    from edgewise.protocol.codec import decode
    from edgewise.protocol.content import Artifact

    return decode(_bytes(built), Artifact, what=f"{built}/artifact.json")


def _bytes(built: Path) -> bytes:
    try:
        return (built / "artifact.json").read_bytes()
    except OSError as error:
        raise BadUsage(
            f"{built} is not a built artifact: {error.strerror}", hint="`edgewise artifact build`"
        ) from error


def _target(artifact: Artifact) -> str:
    from edgewise.protocol.content import artifact_target

    return artifact_target(artifact.name, artifact.version)


def _signed(current: Builds, add: dict[str, bytes], file: Path) -> bytes:
    """The successor of ``builds.json`` with ``add``, signed. Keeps every release there is."""
    from tuf.api.metadata import Targets

    from edgewise.backends.tuf.repository import load_key
    from edgewise.delivery import trust
    from edgewise.runtime.clock import SystemClock

    signer = load_key(file)
    if trust.key_id(signer.public_key) not in current.keys:
        raise NeedsPerson(
            f"the hub does not know the key in {file} as a builder's",
            hint="docs/trust.md says how a builder's key is added",
        )
    before = (
        trust.parse(current.metadata, Targets, what="builds.json").signed
        if current.metadata
        else None
    )
    kept = {path for path in (before.targets if before else {}) if path.startswith("releases/")}
    releases = frozenset(path.removeprefix("releases/").removesuffix(".json") for path in kept)
    successor = trust.successor_of_builds(before, SystemClock().now(), add, releases)
    return trust.serialise(trust.signed(successor, [signer]))


def _send_objects(session: Session, client: Client, built: Path) -> tuple[int, int]:
    """Bytes sent and bytes in all; the hub is asked first which contents it lacks."""
    from edgewise.protocol.api import MissingObjects

    paths = sorted((built / "objects").iterdir())
    sizes = {path.name: path.stat().st_size for path in paths}
    missing: list[str] = []
    names = list(sizes)
    for at in range(0, len(names), _ASKED_AT_ONCE):
        asked = MissingObjects(tuple(names[at : at + _ASKED_AT_ONCE]))
        missing += client.post("/v1/objects/missing", asked, MissingObjects).sha256
    sent = 0
    for number, name in enumerate(missing, 1):
        session.note(f"sending {number} of {len(missing)}: {name[:12]} ({size(sizes[name])})")
        client.put_file(f"/v1/objects/{name}", built / "objects" / name)
        sent += sizes[name]
    return sent, sum(sizes.values())
