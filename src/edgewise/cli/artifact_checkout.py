"""``edgewise artifact checkout``: an artifact's tree as a directory, to look at and to use."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import msgspec
import typer

from edgewise.cli.session import Session, size
from edgewise.model.errors import BadUsage, NeedsPerson, NotFound, Untrusted

if TYPE_CHECKING:
    from edgewise.backends.files.builds import BuildFolder
    from edgewise.cli.client import Client
    from edgewise.protocol.content import Artifact, Entry, Tree, TreeRef

_AT_ONCE = 8
"""Downloads at the same time; small files are bound by round trips."""
_TOLD_EVERY = 500
"""Objects between two lines of progress."""
_CHUNK = 1 << 20


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


class _Origin(Protocol):
    """Where an artifact is: a hub, or the folder that it was built in."""

    fetched: int

    def artifact(self, name: str, version: str) -> Artifact: ...
    def manifest(self, ref: TreeRef) -> bytes: ...
    def bring(self, tree: Tree, told: Callable[[int, int], None]) -> None:
        """Everything that ``content`` will be asked for."""

    def content(self, entry: Entry) -> Iterator[bytes]:
        """Verified once it has ended by itself; raises Untrusted."""


def verb(  # noqa: PLR0913 - one parameter is one option of the command line
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the artifact.")],
    version: Annotated[str, typer.Argument(help="Its version.")],
    to: Annotated[Path, typer.Option(help="Directory to make.", show_default=False)],
    platform: Annotated[
        str, typer.Option(help="Default: the only one, or else this machine's.")
    ] = "",
    built: Annotated[
        Path | None,
        typer.Option("--from", help="Folder that `artifact build` wrote, instead of the hub."),
    ] = None,
    key: Annotated[
        list[Path] | None,
        typer.Option(help="FILE.pub of the builder that must have signed it. Repeatable."),
    ] = None,
) -> None:
    from edgewise.backends.files.builds import BuildFolder
    from edgewise.delivery.builder import artifact_path
    from edgewise.protocol import limits
    from edgewise.protocol.codec import decode
    from edgewise.protocol.content import Tree

    session = Session.of(ctx)
    artifact_path(name, version)  # before anything is asked for
    if built is not None and key:
        raise BadUsage("--from and --key do not go together", hint="a folder has no hub's list")
    if to.exists() and not (to.is_dir() and not any(to.iterdir())):
        raise BadUsage(f"{to} is there already", hint="name a directory that is not, or is empty")
    with _beside(to) as scratch:
        origin: _Origin = (
            _Hub(session, tuple(key or ()), scratch / "objects")
            if built is None
            else _Folder(BuildFolder(built.expanduser()))
        )
        artifact = origin.artifact(name, version)
        chosen = _platform(artifact, platform)
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


class _Folder:
    """An artifact that was built on this machine."""

    fetched = 0

    def __init__(self, folder: BuildFolder) -> None:
        self._folder = folder
        self._objects: dict[str, Path] = {}

    def artifact(self, name: str, version: str) -> Artifact:
        _, artifact = self._folder.read(name, version)
        self._objects = self._folder.objects(artifact)
        return artifact

    def manifest(self, ref: TreeRef) -> bytes:
        return self._objects[ref.sha256].read_bytes()

    def bring(self, tree: Tree, told: Callable[[int, int], None]) -> None:
        pass

    def content(self, entry: Entry) -> Iterator[bytes]:
        import hashlib

        digest = hashlib.sha256()
        with self._objects[entry.sha256].open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                yield chunk
        if digest.hexdigest() != entry.sha256:
            raise Untrusted(f"object {entry.sha256[:12]} has other content than its name says")


class _Hub:
    """A published artifact: from the signed list of builds to each content by its digest."""

    def __init__(self, session: Session, keys: tuple[Path, ...], objects: Path) -> None:
        self.fetched = 0
        self._session = session
        self._client = session.client()
        self._keys = keys
        self._objects = objects
        objects.mkdir(mode=0o700)

    def artifact(self, name: str, version: str) -> Artifact:
        from tuf.api.metadata import Targets

        from edgewise.backends.tuf.repository import load_public
        from edgewise.delivery import trust
        from edgewise.delivery.builder import own_targets
        from edgewise.protocol.api import Builds
        from edgewise.protocol.codec import decode
        from edgewise.protocol.content import Artifact, artifact_target

        builds = self._client.get("/v1/builds", Builds)
        if self._keys:
            targets = own_targets(builds, [load_public(file) for file in self._keys])
        elif builds.metadata:
            signed = trust.parse(builds.metadata, Targets, what="builds.json").signed
            targets = dict(signed.targets)
        else:
            targets = {}
        target = targets.get(artifact_target(name, version))
        if target is None:
            raise NotFound(
                f"artifact {name} {version} is not published", hint="`edgewise artifact ls`"
            )
        data = self._small(target.hashes["sha256"], target.length)
        return decode(data, Artifact, what=f"artifact {name}", at_most=target.length)

    def manifest(self, ref: TreeRef) -> bytes:
        from edgewise.protocol import limits

        return self._small(ref.sha256, limits.TREE)

    def bring(self, tree: Tree, told: Callable[[int, int], None]) -> None:
        wanted = {e.sha256: e.size for e in tree.entries if e.kind == "file"}
        own = threading.local()
        done, lock = 0, threading.Lock()

        def one(item: tuple[str, int]) -> None:
            nonlocal done
            if not hasattr(own, "client"):
                own.client = self._session.client()  # a connection serves one call at a time
            came = self._download(own.client, *item)
            with lock:
                done += 1
                self.fetched += came
                told(done, len(wanted))

        with ThreadPoolExecutor(_AT_ONCE) as workers:
            jobs = [workers.submit(one, item) for item in wanted.items()]
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                workers.shutdown(wait=True, cancel_futures=True)
                raise

    def content(self, entry: Entry) -> Iterator[bytes]:
        from edgewise.delivery import packing

        with (self._objects / entry.sha256).open("rb") as packed:
            yield from packing.unpacked(packed, entry.sha256, at_most=entry.size)

    def _small(self, sha256: str, at_most: int) -> bytes:
        from edgewise.delivery import packing

        self.fetched += self._download(self._client, sha256, at_most)
        with (self._objects / sha256).open("rb") as packed:
            return b"".join(packing.unpacked(packed, sha256, at_most=at_most))

    def _download(self, client: Client, sha256: str, at_most: int) -> int:
        from edgewise.delivery import packing
        from edgewise.protocol.content import object_path

        with (self._objects / sha256).open("xb") as file:
            return client.download(
                f"/v1/content/{object_path(sha256)}", file, at_most=packing.packed_bound(at_most)
            )


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


def _platform(artifact: Artifact, asked: str) -> str:
    import platform as machine

    from edgewise.model.names import Platform

    own = Platform.of_machine(machine.system(), machine.machine()).value
    chosen = asked or (next(iter(artifact.trees)) if len(artifact.trees) == 1 else own)
    if chosen not in artifact.trees:
        raise BadUsage(
            f"artifact {artifact.name} {artifact.version} has no tree for {chosen}",
            hint=f"--platform {' or '.join(sorted(artifact.trees))}",
        )
    return chosen


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


def _lay_out(top: Path, tree: Tree, origin: _Origin) -> None:
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
