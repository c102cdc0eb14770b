"""Where an artifact is for the verbs that use one: a hub, or the folder it was built in."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from edgewise.cli import artifact_pack
from edgewise.cli.session import Session
from edgewise.model.errors import BadUsage, NotFound, TryLater, Untrusted

if TYPE_CHECKING:
    from edgewise.backends.files.builds import BuildFolder
    from edgewise.cli.client import Client
    from edgewise.protocol.content import Artifact, Entry, Tree, TreeRef

_AT_ONCE = 8
"""Downloads at the same time; small files are bound by round trips."""
_CHUNK = 1 << 20

Name = Annotated[str, typer.Argument(help="Name of the artifact.")]
Version = Annotated[str, typer.Argument(help="Its version.")]
OnePlatform = Annotated[str, typer.Option(help="Default: the only one, or else this machine's.")]
Built = Annotated[
    Path | None,
    typer.Option(
        "--from",
        help="Folder that `artifact build` or `artifact import` wrote, instead of the hub.",
    ),
]
Keys = Annotated[
    list[Path] | None,
    typer.Option(help="FILE.pub of the builder that must have signed it. Repeatable."),
]


class Origin(Protocol):
    """Where an artifact is: a hub, or the folder that it was built in."""

    fetched: int

    def artifact(self, name: str, version: str) -> Artifact: ...
    def manifest(self, ref: TreeRef) -> bytes: ...
    def bring(self, tree: Tree, told: Callable[[int, int], None]) -> None:
        """Everything that ``content`` will be asked for."""

    def content(self, entry: Entry) -> Iterator[bytes]:
        """Verified once it has ended by itself; raises Untrusted."""


def origin_of(
    session: Session, built: Path | None, keys: list[Path] | None, objects: Path
) -> Origin:
    """The folder where one is named, else the hub; ``objects`` is made for what it sends.

    Raises BadUsage for keys beside a folder.
    """
    from edgewise.backends.files.builds import BuildFolder

    if built is None:
        return HubOrigin(session, tuple(keys or ()), objects)
    if keys:
        raise BadUsage("--from and --key do not go together", hint="a folder has no hub's list")
    return FolderOrigin(BuildFolder(built.expanduser()))


class FolderOrigin:
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


class HubOrigin:
    """A published artifact: from the signed list of builds to each content by its digest."""

    def __init__(self, session: Session, keys: tuple[Path, ...], objects: Path) -> None:
        self.fetched = 0
        self._session = session
        self._client = session.client()
        self._keys = keys
        self._objects = objects
        self._artifact: Artifact | None = None
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
        self._artifact = decode(data, Artifact, what=f"artifact {name}", at_most=target.length)
        return self._artifact

    def manifest(self, ref: TreeRef) -> bytes:
        from edgewise.protocol import limits

        return self._small(ref.sha256, limits.TREE)

    def bring(self, tree: Tree, told: Callable[[int, int], None]) -> None:
        contents = {e.sha256: e.size for e in tree.entries if e.kind == "file"}
        here = self._from_pack(tree) if len(contents) >= artifact_pack.WORTH else frozenset()
        wanted = {sha256: size for sha256, size in contents.items() if sha256 not in here}
        own = threading.local()
        done, lock = len(here), threading.Lock()
        if here:
            told(done, len(contents))

        def one(item: tuple[str, int]) -> None:
            nonlocal done
            if not hasattr(own, "client"):
                own.client = self._session.client()  # a connection serves one call at a time
            came = self._download(own.client, *item)
            with lock:
                done += 1
                self.fetched += came
                told(done, len(contents))

        with ThreadPoolExecutor(_AT_ONCE) as workers:
            jobs = [workers.submit(one, item) for item in wanted.items()]
            try:
                for job in jobs:
                    job.result()
            finally:
                workers.shutdown(cancel_futures=True)  # after one that failed, no more

    def _from_pack(self, tree: Tree) -> frozenset[str]:
        """What a pack of the tree brings; a hub without one, or with a wrong one, costs bytes."""
        from edgewise.cli.content import Content
        from edgewise.delivery.trees import reference
        from edgewise.protocol.delta import delta_path

        digest = reference(tree)[0].sha256
        try:
            if self._artifact is None:
                return frozenset()
            refs = Content(self._session, None, None).deltas(self._artifact)
            for ref in refs:
                if ref.tree == digest and not ref.base:
                    with tempfile.TemporaryFile(dir=self._objects) as file:
                        self.fetched += self._client.download(
                            f"/v1/content/{delta_path(ref.sha256)}", file, at_most=ref.size
                        )
                        file.seek(0)
                        return artifact_pack.unpack_into(self._objects, file, ref, tree)
        except (NotFound, TryLater, Untrusted) as error:
            self._session.note(f"  no pack, so each content by itself: {error}")
        return frozenset()

    def content(self, entry: Entry) -> Iterator[bytes]:
        from edgewise.delivery import packing

        plain = self._objects / f"{entry.sha256}{artifact_pack.ENDING}"
        if plain.exists():  # its digest was right
            with plain.open("rb") as file:
                yield from iter(lambda: file.read(_CHUNK), b"")
            return
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


def platform_of(artifact: Artifact, asked: str) -> str:
    """Of an artifact's trees the one that is meant. Raises BadUsage with those that there are."""
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
