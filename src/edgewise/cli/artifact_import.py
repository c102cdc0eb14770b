"""``edgewise artifact import``: content that comes in another shape than a directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgewise.cli.evidence import NoProvenance, Sbom, Wanted, sboms_of, with_evidence
from edgewise.cli.session import Session, size
from edgewise.model.errors import BadUsage

if TYPE_CHECKING:
    from edgewise.backends.files.builds import BuildFolder
    from edgewise.protocol.content import Shape, TreeRef

BUILT = Path("~/.edgewise/built")


def verb(  # noqa: PLR0913 - one parameter is one option of the command line
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="A container image: oci:DIR[:TAG], oci-archive:FILE or docker-archive:FILE; "
            "an OSTree commit: ostree:REPO:REF; a raw disk image: disk:FILE."
        ),
    ],
    name: Annotated[str, typer.Option(help="Name of the artifact.")],
    version: Annotated[str, typer.Option(help="Its version; published ones never change.")],
    platform: Annotated[
        list[str] | None, typer.Option(help="Only this one of an image for several. Repeatable.")
    ] = None,
    to: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)] = BUILT,
    built_from: Annotated[str, typer.Option(help="Commit or pipeline, shown to people.")] = "",
    at_most: Annotated[str, typer.Option(help="Most bytes of one image, unpacked.")] = "16Gi",
    static_delta: Annotated[
        str, typer.Option(help="Of an OSTree commit: a delta from this one too.", metavar="COMMIT")
    ] = "",
    sbom: Sbom = None,
    no_provenance: NoProvenance = False,
) -> None:
    from edgewise.backends.files.builds import BuildFolder
    from edgewise.delivery.builder import artifact_path, make_artifact

    session = Session.of(ctx)
    artifact_path(name, version)  # before anything is read
    folder = BuildFolder(to.expanduser())
    kind, _, place = source.partition(":")
    shape: Shape
    if kind == "ostree":
        shape, trees = "ostree", _commit(folder, place, platform or [], static_delta)
    else:
        if static_delta:
            raise BadUsage("--static-delta is for OSTree commits")
        if kind == "disk":
            shape, trees = "disk", _disk(folder, place, platform or [])
        else:
            shape, trees = "oci", _images(session, folder, source, platform or [], at_most)
    artifact = make_artifact(name, version, trees, built_from=built_from, shape=shape)
    given = dict.fromkeys(trees, Path(place))
    wanted = Wanted(sboms_of(sbom or [], given), make_sboms=False, provenance=not no_provenance)
    artifact = with_evidence(folder, artifact, wanted, given)
    folder.add(artifact)
    if session.as_json:
        session.json(artifact)
        return
    for one, ref in trees.items():
        typer.echo(f"{one}: {ref.files} files, {size(ref.size)}, tree {ref.sha256[:12]}")
    session.note(f"  next: edgewise artifact publish {name} {version}")


def _images(
    session: Session, folder: BuildFolder, source: str, platforms: list[str], at_most: str
) -> dict[str, TreeRef]:
    from edgewise.backends.files.image_import import Source, import_images
    from edgewise.model.quantity import parse_bytes

    try:
        bound = parse_bytes(at_most)
    except ValueError as error:
        raise BadUsage(f"--at-most: {error}") from error
    found = Source.parse(source).images()
    return import_images(folder, found, frozenset(platforms), at_most=bound, said=session.note)


def _commit(
    folder: BuildFolder, place: str, platforms: list[str], static_delta: str
) -> dict[str, TreeRef]:
    from edgewise.backends.files.ostree_import import import_commit

    repo, colon, ref = place.partition(":")
    if not colon:
        raise BadUsage(f"ostree:{place} is not like ostree:REPO:REF", hint="ostree refs lists them")
    tree, _ = import_commit(folder, Path(repo), ref, static_delta)
    return {_one_platform(platforms): tree}


def _disk(folder: BuildFolder, place: str, platforms: list[str]) -> dict[str, TreeRef]:
    from edgewise.backends.files.disks import import_disk

    return {_one_platform(platforms): import_disk(folder, Path(place))}


def _one_platform(platforms: list[str]) -> str:
    """The one that was named, or this machine's."""
    import platform as machine

    from edgewise.model.names import Platform

    if len(platforms) > 1:
        raise BadUsage("it is for one platform", hint="name one with --platform")
    try:
        return (
            Platform(platforms[0])
            if platforms
            else Platform.of_machine(machine.system(), machine.machine())
        ).value
    except ValueError as error:
        raise BadUsage(str(error)) from error
