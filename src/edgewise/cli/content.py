"""Content of a hub or of a directory, as somebody reads it who believes neither."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from edgewise.model.errors import BadUsage, NotFound, Untrusted

if TYPE_CHECKING:
    from edgewise.cli.client import Client
    from edgewise.cli.session import Session
    from edgewise.delivery.provenance import Provenance
    from edgewise.delivery.sbom import SbomSummary
    from edgewise.delivery.view import View
    from edgewise.protocol.content import Artifact
    from edgewise.protocol.delta import DeltaRef


class Place(Protocol):
    """Where content lies."""

    def read(self, path: str) -> bytes | None:
        """A small file below the content root; None when there is none."""

    def open(self, path: str, at_most: int) -> Any:
        """A file of any size, as a context. Raises NotFound, Untrusted for a longer one."""


class FolderPlace:
    """A directory with ``tuf/`` and ``objects/`` in it."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "tuf").is_dir():
            raise BadUsage(
                f"{folder} has no tuf/", hint="name a hub's or relay's content directory"
            )
        self._folder = folder

    def read(self, path: str) -> bytes | None:
        try:
            return (self._folder / path).read_bytes()
        except FileNotFoundError:
            return None

    @contextmanager
    def open(self, path: str, at_most: int) -> Iterator[IO[bytes]]:
        try:
            with (self._folder / path).open("rb") as file:
                yield file
        except FileNotFoundError:
            raise _missing(path) from None


class HubPlace:
    """What a hub serves."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def read(self, path: str) -> bytes | None:
        try:
            return self._client.raw(f"/v1/content/{path}")[0]
        except NotFound:
            return None

    @contextmanager
    def open(self, path: str, at_most: int) -> Iterator[IO[bytes]]:
        with tempfile.TemporaryFile() as file:
            self._client.download(f"/v1/content/{path}", file, at_most=at_most)
            file.seek(0)
            yield file


class Content:
    """Content of a hub or a directory, every object checked against its name."""

    def __init__(self, session: Session, folder: Path | None, root: Path | None) -> None:
        from edgewise.delivery.view import read_view
        from edgewise.runtime.clock import SystemClock

        self.place: Place = HubPlace(session.client()) if folder is None else FolderPlace(folder)
        trusted = _bytes(root) if root is not None else None
        self.view: View = read_view(self.place.read, SystemClock().now(), trusted)

    def builder_ids(self) -> tuple[str, ...]:
        from edgewise.delivery.trust import key_id

        return tuple(sorted(key_id(key) for key in self.view.builders()))

    def artifact(self, name: str, version: str) -> Artifact:
        """Raises NotFound, with what there is, for one that is not listed."""
        from edgewise.delivery import trust
        from edgewise.delivery.builder import artifact_path
        from edgewise.delivery.contents import named_by_target
        from edgewise.protocol import limits
        from edgewise.protocol.codec import decode
        from edgewise.protocol.content import Artifact

        path = artifact_path(name, version)
        target = self.view.target(path)
        if target is None:
            builds = self.view.roles.get("builds")
            prefix = f"artifacts/{name}/"
            known = [p.removeprefix(prefix) for p in builds.targets] if builds else []
            versions = ", ".join(sorted(p.removesuffix(".json") for p in known if "/" not in p))
            raise NotFound(
                f"no builder signed an artifact {name} {version}",
                hint=f"versions of {name}: {versions}" if versions else "`edgewise artifact ls`",
            )
        data = self.object(trust.target_digest(target), limits.PART)
        if not trust.matches(target, data):
            raise Untrusted(f"{path} is not what was signed")
        named_by_target(path, data)
        return decode(data, Artifact, what=path, at_most=limits.PART)

    def evidence(self, sha256: str) -> bytes:
        from edgewise.protocol import limits

        return self.object(sha256, limits.EVIDENCE)

    def checked(self, artifact: Artifact) -> tuple[dict[str, SbomSummary], Provenance | None]:
        """See ``check_evidence``."""
        from edgewise.delivery.evidence import check_evidence

        contents = {ref.sha256: self.evidence(ref.sha256) for ref in artifact.all_evidence}
        return check_evidence(artifact, contents, self.view.builders())

    def deltas(self, artifact: Artifact) -> tuple[DeltaRef, ...]:
        """Deltas and packs of every channel that lead to the artifact's trees."""
        from edgewise.delivery import trust
        from edgewise.protocol import limits
        from edgewise.protocol.channel import Channel
        from edgewise.protocol.codec import decode
        from edgewise.protocol.delta import DeltaList

        trees = {ref.sha256 for ref in artifact.trees.values()}
        found: dict[str, DeltaRef] = {}
        channels = self.view.roles.get("channels")
        for target in (channels.targets if channels else {}).values():
            data = self.object(trust.target_digest(target), limits.CHANNEL)
            channel = decode(data, Channel, what=target.path, at_most=limits.CHANNEL)
            if channel.deltas:
                listed = decode(
                    self.object(channel.deltas, limits.DELTA_LIST),
                    DeltaList,
                    what="list of deltas",
                    at_most=limits.DELTA_LIST,
                )
                found |= {one.sha256: one for one in listed.deltas if one.tree in trees}
        return tuple(sorted(found.values(), key=lambda one: (one.tree, one.base)))

    def walk(self, artifact: Artifact) -> tuple[int, int]:
        """Read every object below the artifact; how many and how many bytes. Raises Untrusted
        for one that is not what its name says, NotFound for one that is missing."""
        from edgewise.delivery.contents import objects_of_tree
        from edgewise.protocol import limits

        sizes: dict[str, int] = {ref.sha256: ref.size for ref in artifact.all_evidence}
        for ref in artifact.trees.values():
            manifest = self.object(ref.sha256, limits.TREE)
            sizes |= objects_of_tree(ref.sha256, manifest)
        for sha256, length in sorted(sizes.items()):
            self._check(sha256, length)
        return len(sizes), sum(sizes.values())

    def object(self, sha256: str, at_most: int) -> bytes:
        """One small object, checked."""
        from edgewise.delivery.packing import unpack

        return unpack(self._packed(sha256), sha256, at_most=at_most)

    @contextmanager
    def packed(self, sha256: str, length: int) -> Iterator[tuple[IO[bytes], int]]:
        """One object of at most ``length`` bytes as it travels, checked, and its packed size."""
        from edgewise.delivery.packing import packed_bound, unpacked
        from edgewise.protocol.content import object_path

        with self.place.open(object_path(sha256), packed_bound(length)) as packed:
            for _ in unpacked(packed, sha256, at_most=length):
                pass
            whole = packed.seek(0, os.SEEK_END)
            packed.seek(0)
            yield packed, whole

    def _check(self, sha256: str, length: int) -> None:
        """One object of any size; nothing of it is kept."""
        from edgewise.delivery.packing import packed_bound, unpacked
        from edgewise.protocol.content import object_path

        with self.place.open(object_path(sha256), packed_bound(length)) as packed:
            for _ in unpacked(packed, sha256, at_most=length):
                pass

    def _packed(self, sha256: str) -> bytes:
        from edgewise.protocol.content import object_path

        packed = self.place.read(object_path(sha256))
        if packed is None:
            raise _missing(object_path(sha256))
        return packed


def _missing(path: str) -> NotFound:
    return NotFound(f"{path} is not there", hint="the copy is not whole")


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadUsage(f"{file} cannot be read: {error.strerror}") from error
