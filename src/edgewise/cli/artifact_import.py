"""``edgewise artifact import``: content that comes in another shape than a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli.session import Session, size
from edgewise.model.errors import BadUsage

BUILT = Path("~/.edgewise/built")


def verb(  # noqa: PLR0913 - one parameter is one option of the command line
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="A container image: oci:DIR[:TAG], oci-archive:FILE or docker-archive:FILE."
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
) -> None:
    from edgewise.backends.files.builds import BuildFolder
    from edgewise.backends.files.image_import import Source, import_images
    from edgewise.delivery.builder import artifact_path, make_artifact
    from edgewise.model.quantity import parse_bytes

    session = Session.of(ctx)
    artifact_path(name, version)  # before anything is read
    try:
        bound = parse_bytes(at_most)
    except ValueError as error:
        raise BadUsage(f"--at-most: {error}") from error
    folder = BuildFolder(to.expanduser())
    found = Source.parse(source).images()
    wanted = frozenset(platform or ())
    trees = import_images(folder, found, wanted, at_most=bound, said=session.note)
    artifact = make_artifact(name, version, trees, built_from=built_from, shape="oci")
    folder.add(artifact)
    if session.as_json:
        session.json(artifact)
        return
    for one, ref in trees.items():
        typer.echo(f"{one}: {ref.files} files, {size(ref.size)}, tree {ref.sha256[:12]}")
    session.note(f"  next: edgewise artifact publish {name} {version}")
