"""``edgewise artifact checkout``: an artifact's tree as a directory, to look at and to use."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
from edgewise.model.errors import BadUsage, NeedsPerson, Untrusted

if TYPE_CHECKING:
    from edgewise.protocol.content import Tree, TreeRef

_TOLD_EVERY = 500
"""Objects between two lines of progress."""


class CheckedOut(msgspec.Struct, frozen=True):
    """What ``artifact checkout --output json`` prints."""

    name: str
    version: str
    platform: str
    tree: str
    to: str
    files: int
    size: int
    """Bytes of the files."""
    fetched: int
    """Bytes that came from the hub, packed."""


def verb(  # noqa: PLR0913 - one parameter is one option of the command line
    ctx: typer.Context,
    name: Name,
    version: Version,
    to: Annotated[Path, typer.Option(help="Directory to make.", show_default=False)],
    platform: OnePlatform = "",
    built: Built = None,
    key: Keys = None,
) -> None:
    from edgewise.delivery.builder import artifact_path
    from edgewise.protocol import limits
    from edgewise.protocol.codec import decode
    from edgewise.protocol.content import Tree

    session = Session.of(ctx)
    artifact_path(name, version)  # before anything is asked for
    if to.exists() and not (to.is_dir() and not any(to.iterdir())):
        raise BadUsage(f"{to} is there already", hint="name a directory that is not, or is empty")
    with _beside(to) as scratch:
        origin = origin_of(session, built, key, scratch / "objects")
        artifact = origin.artifact(name, version)
        chosen = platform_of(artifact, platform)
        ref = artifact.trees[chosen]
        manifest = origin.manifest(ref)
        tree = decode(manifest, Tree, what=f"tree {ref.sha256[:12]}", at_most=limits.TREE)
        _check_fits(tree, ref, to)
        origin.bring(tree, lambda done, all_: _tell(session, done, all_))
        session.note(f"laying out {len(tree.entries)} files and directories")
        _lay_out(scratch / "tree", tree, origin)
        os.rename(scratch / "tree", to)  # over an empty directory at most
    told = CheckedOut(
        name, version, chosen, ref.sha256, str(to), ref.files, ref.size, origin.fetched
    )
    if session.as_json:
        session.json(told)
        return
    typer.echo(f"{to}: {ref.files} files, {size(ref.size)}, {size(origin.fetched)} fetched")


@contextmanager
def _beside(to: Path) -> Iterator[Path]:
    """A directory on the same file system; what is left in it goes, whatever happens."""
    from edgewise.runtime.durable import remove_tree

    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{to.name}.", dir=to.absolute().parent))
    except OSError as error:
        raise NeedsPerson(
            f"{to} cannot be made: {error.strerror}", hint="its parent directory must exist"
        ) from error
    try:
        yield scratch
    finally:
        remove_tree(scratch)


def _check_fits(tree: Tree, ref: TreeRef, to: Path) -> None:
    """Raises Untrusted for a tree of another size than was signed, NeedsPerson for a disk that
    is too small."""
    if sum(entry.size for entry in tree.entries) != ref.size:
        raise Untrusted(f"tree {ref.sha256[:12]} is not of the size that was signed")
    disk = os.statvfs(to.absolute().parent)
    free = disk.f_bavail * disk.f_frsize
    if ref.size > free or (disk.f_files and len(tree.entries) > disk.f_favail):
        raise NeedsPerson(
            f"{to} needs {ref.size:,} bytes and {len(tree.entries):,} inodes;"
            f" {free:,} and {disk.f_favail:,} are free",
            hint="name a directory on a larger disk",
        )


def _tell(session: Session, done: int, total: int) -> None:
    if done % _TOLD_EVERY == 0 or done == total:
        session.note(f"fetched {done} of {total} contents")


def _lay_out(top: Path, tree: Tree, origin: Origin) -> None:
    from edgewise.backends.files import layout

    try:
        layout.lay_out(
            top,
            tree,
            lambda entry, fd, name: layout.write_new(
                entry.attributes, origin.content(entry), fd, name
            ),
        )
    except PermissionError as error:
        raise NeedsPerson(
            f"this user may not give files the owners and rights of the tree: {error}",
            hint="run it as root, as a system tree needs",
        ) from error
    except OSError as error:
        raise NeedsPerson(
            f"laying out the tree failed: {error}", hint="is the disk full?"
        ) from error
