"""``edgewise artifact write``: a disk image onto a disk, an SD card or into a file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edgewise.cli.artifact_origin import (
    Built,
    Keys,
    Name,
    OnePlatform,
    Origin,
    Version,
    origin_of,
    platform_of,
)
from edgewise.cli.session import Session, size
from edgewise.model.errors import BadUsage, Untrusted

if TYPE_CHECKING:
    from edgewise.backends.files.disks import Disk, DiskImage
    from edgewise.protocol.content import Entry, Tree

_AT_ONCE = 64
"""Blocks that are fetched before they are written: 64 MiB on this machine's own disk."""


class Written(msgspec.Struct, frozen=True):
    """What ``artifact write --output json`` prints."""

    name: str
    version: str
    to: str
    size: int
    """Bytes of the image."""
    blocks: int
    changed: int
    """Blocks written; with ``--dry-run`` those that would be."""
    fetched: int
    """Bytes that came from the hub, packed."""


def verb(  # noqa: PLR0913 - one parameter is one option of the command line
    ctx: typer.Context,
    name: Name,
    version: Version,
    to: Annotated[Path, typer.Option(help="File or block device.", show_default=False)],
    platform: OnePlatform = "",
    built: Built = None,
    key: Keys = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
) -> None:
    from edgewise.backends.files.disks import BLOCK, Disk, blocks_of

    session = Session.of(ctx)
    with tempfile.TemporaryDirectory(prefix="edgewise-write-") as scratch:
        objects = Path(scratch) / "objects"
        origin = origin_of(session, built, key, objects)
        tree, image = _disk_image(origin, name, version, platform)
        blocks = blocks_of(tree, image)
        with Disk(to, image.size, dry_run=dry_run) as disk:
            lacking = list(disk.lacks(blocks))
            session.note(f"{len(lacking)} of {(image.size - 1) // BLOCK + 1} blocks differ")
            if not dry_run:
                _write(disk, origin, {number: blocks.get(number) for number in lacking}, objects)
                disk.finish(image.sha256)
    count = (image.size - 1) // BLOCK + 1
    told = Written(name, version, str(to), image.size, count, len(lacking), origin.fetched)
    if session.as_json:
        session.json(told)
        return
    done = "would change" if dry_run else "written and verified"
    typer.echo(f"{to}: {size(len(lacking) * BLOCK)} of {size(image.size)} {done}")


def _disk_image(origin: Origin, name: str, version: str, platform: str) -> tuple[Tree, DiskImage]:
    from edgewise.backends.files.disks import DOCUMENT, read_document
    from edgewise.delivery.builder import artifact_path
    from edgewise.protocol import limits
    from edgewise.protocol.codec import decode
    from edgewise.protocol.content import Tree

    artifact_path(name, version)  # before anything is asked for
    artifact = origin.artifact(name, version)
    if artifact.shape != "disk":
        raise BadUsage(
            f"artifact {name} {version} is no disk image", hint="edgewise artifact checkout"
        )
    ref = artifact.trees[platform_of(artifact, platform)]
    tree = decode(origin.manifest(ref), Tree, what=f"tree {ref.sha256[:12]}", at_most=limits.TREE)
    found = [entry for entry in tree.entries if entry.path == DOCUMENT]
    if not found or found[0].kind != "file" or found[0].size > 4096:
        raise Untrusted(f"tree {ref.sha256[:12]} has no {DOCUMENT}")
    origin.bring(Tree((found[0],)), lambda done, all_: None)
    return tree, read_document(b"".join(origin.content(found[0])))


def _write(disk: Disk, origin: Origin, wanted: dict[int, Entry | None], objects: Path) -> None:
    from edgewise.backends.files.disks import BLOCK
    from edgewise.protocol.content import Entry, Tree

    for some in _batches(list(wanted.items())):
        files = tuple(entry for _, entry in some if entry is not None)
        if files:
            origin.bring(Tree((Entry("blocks", "dir", 0o755), *files)), lambda done, all_: None)
        for number, entry in some:
            if entry is None:
                disk.clear(number)
            else:
                block = b"".join(origin.content(entry))
                disk.write(number, block[:BLOCK])
        if objects.is_dir():
            for used in objects.iterdir():
                used.unlink()


def _batches(
    items: list[tuple[int, Entry | None]],
) -> list[list[tuple[int, Entry | None]]]:
    return [items[at : at + _AT_ONCE] for at in range(0, len(items), _AT_ONCE)]
