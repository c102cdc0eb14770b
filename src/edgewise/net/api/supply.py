"""What can be put on nodes: artifacts, the builder's role, objects, releases, content."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edgewise.delivery.on_hub import Publisher
from edgewise.delivery.ports import ObjectStore
from edgewise.model.errors import BadUsage, Conflict, NotFound, Untrusted
from edgewise.model.names import Digest
from edgewise.net import contents
from edgewise.net.api.journal import Journal
from edgewise.net.routes import (
    MEMBERS,
    PEOPLE,
    Bytes,
    Call,
    FileAnswer,
    Paging,
    Peer,
    Route,
    page,
)
from edgewise.protocol import limits
from edgewise.protocol.api import (
    ArtifactLine,
    Builds,
    BuildsUpload,
    MissingObjects,
    ObjectsUpload,
    Page,
)
from edgewise.protocol.channel import Signed
from edgewise.protocol.codec import decode
from edgewise.protocol.content import Release
from edgewise.protocol.media import MediaReply, MediaRequest

_SAFE: Final = re.compile(
    r"objects/[0-9a-f]{2}/[0-9a-f]{62}\.zst|deltas/[0-9a-f]{2}/[0-9a-f]{62}\.ewd"
    r"|tuf/[A-Za-z0-9_-][A-Za-z0-9._-]*"
)
BUILDS_BODY: Final = 64 << 20
"""builds.json and the small documents that a build of many trees adds, in base64."""
OBJECTS_BODY: Final = 16 << 20
"""Small objects in base64: what one call may take of the hub's memory, about thrice."""
MISSING_AT_ONCE: Final = 100_000


class SupplyRoutes:
    """Artifacts, builds, objects, releases and the content that nodes fetch."""

    def __init__(
        self,
        publisher: Publisher,
        objects: ObjectStore,
        content: Path,
        journal: Journal,
        published: Callable[[], None],
    ) -> None:
        """``published`` is called after what may be put on nodes has changed."""
        self._publisher = publisher
        self._objects = objects
        self._content = content
        self._journal = journal
        self._published = published
        self.records: Callable[[str], dict[str, Signed]] = lambda fleet: {}
        """Signed records of a fleet's nodes, for removable media."""
        self.guard: Callable[[Peer], None] = lambda peer: None
        """Raises Forbidden for machines that get nothing more: content holds their secrets."""

    def routes(self) -> list[Route]:
        """All routes of this group."""
        return [*self._build_routes(), *self._object_routes()]

    def _build_routes(self) -> list[Route]:
        return [
            Route(
                "GET",
                "/v1/artifacts",
                "Published artifact versions",
                self.artifacts,
                PEOPLE,
                response=Page[ArtifactLine],
                query=Paging,
                needs="viewer",
            ),
            Route(
                "GET",
                "/v1/builds",
                "What a builder signs the successor of",
                self.builds,
                PEOPLE,
                response=Builds,
                needs="viewer",
            ),
            Route(
                "POST",
                "/v1/builds",
                "Publish what a builder signed",
                self.upload,
                PEOPLE,
                BuildsUpload,
                errors=(Conflict, Untrusted),
                at_most=BUILDS_BODY,
                status=204,
                needs="operator",
            ),
        ]

    def _object_routes(self) -> list[Route]:
        return [
            Route(
                "POST",
                "/v1/objects/missing",
                "Which of these objects the hub lacks",
                self.missing,
                PEOPLE,
                MissingObjects,
                MissingObjects,
                at_most=8 << 20,
                needs="operator",
                changes=False,
            ),
            Route(
                "POST",
                "/v1/objects",
                "Upload several small objects, uncompressed",
                self.put_all,
                PEOPLE,
                ObjectsUpload,
                errors=(Untrusted,),
                at_most=OBJECTS_BODY,
                status=204,
                needs="operator",
                description="Kept all or, where one is not what its name says, none.",
            ),
            Route(
                "PUT",
                "/v1/objects/{sha256}",
                "Upload one object, uncompressed",
                self.put,
                PEOPLE,
                errors=(Untrusted,),
                at_most=limits.OBJECT,
                streams=True,
                accepts="application/octet-stream",
                status=204,
                needs="operator",
            ),
            Route(
                "POST",
                "/v1/media",
                "Sign an order for removable media (`edgewise bundle export`)",
                self.media,
                PEOPLE,
                MediaRequest,
                MediaReply,
                errors=(NotFound, Conflict),
                needs="operator",
                description="Good for as long as asked for, where a timestamp lives seven days. "
                "A node takes it only when it is newer than all it has seen.",
            ),
            Route(
                "GET",
                "/v1/releases/{sha256}",
                "A release document",
                self.release,
                PEOPLE,
                response=Release,
                errors=(NotFound,),
                needs="viewer",
            ),
            Route(
                "GET",
                "/v1/content/{path*}",
                "TUF metadata, objects and deltas, as nodes and relays fetch them",
                self.content,
                MEMBERS,
                response=bytes,
                errors=(NotFound,),
                content_type="application/octet-stream",
                needs="viewer",
                description="Static files: Range, ETag and HEAD work, and everything but "
                "tuf/timestamp.json is immutable.",
            ),
        ]

    async def artifacts(self, call: Call[None]) -> Page[ArtifactLine]:
        """GET /v1/artifacts."""
        lines = [
            ArtifactLine(
                name,
                version,
                tuple(sorted(artifact.trees)),
                max((tree.size for tree in artifact.trees.values()), default=0),
                artifact.built_from,
            )
            for (name, version), artifact in sorted(self._publisher.artifacts().items())
        ]
        # A name cannot hold a blank, so this order is that of the pair.
        lines.sort(key=lambda line: f"{line.name} {line.version}")
        return page(lines, call.query, lambda line: f"{line.name} {line.version}")

    async def builds(self, call: Call[None]) -> Builds:
        """GET /v1/builds."""
        return self._publisher.builds()

    async def upload(self, call: Call[BuildsUpload]) -> None:
        """POST /v1/builds."""
        before = set(self._publisher.artifacts())
        await self._publisher.accept_builds(call.body)
        added = sorted(set(self._publisher.artifacts()) - before)
        names = ", ".join(f"{name} {version}" for name, version in added)
        await self._journal.note(call.peer, "builds.publish", names or "builds")
        self._published()

    async def media(self, call: Call[MediaRequest]) -> MediaReply:
        """POST /v1/media."""
        deltas = await self._publisher.media_deltas(call.body)
        made = self._publisher.media(call.body, deltas)
        until = f"release {made.release[:12]} until {made.expires:%Y-%m-%d}"
        await self._journal.note(call.peer, "media.sign", call.body.fleet, until)
        return msgspec.structs.replace(made, records=self.records(call.body.fleet))

    async def missing(self, call: Call[MissingObjects]) -> MissingObjects:
        """POST /v1/objects/missing."""
        if len(call.body.sha256) > MISSING_AT_ONCE:
            raise BadUsage(f"{len(call.body.sha256)} digests; at most {MISSING_AT_ONCE} at once")
        asked = [digest_of(text) for text in call.body.sha256]
        return MissingObjects(tuple(sorted(await self._objects.missing(asked))))

    async def put(self, call: Call[None]) -> None:
        """PUT /v1/objects/{sha256}."""
        sha256 = digest_of(call.path["sha256"])
        if await self._objects.missing([sha256]):
            await self._objects.put(sha256, call.stream())
            await self._journal.note(call.peer, "object.put", sha256)

    async def put_all(self, call: Call[ObjectsUpload]) -> None:
        """POST /v1/objects."""
        contents = {digest_of(text): data for text, data in call.body.contents.items()}
        missing = await self._objects.missing(contents)
        if missing:
            await self._objects.put_all({one: contents[one] for one in missing})
            names = Digest.of("\n".join(sorted(missing)).encode()).sha256
            said = f"{sum(len(contents[one]) for one in missing)} bytes, names {names}"
            await self._journal.note(call.peer, "objects.put", f"{len(missing)} objects", said)

    async def release(self, call: Call[None]) -> Bytes:
        """GET /v1/releases/{sha256}."""
        sha256 = digest_of(call.path["sha256"])
        try:
            data = await self._objects.get(sha256, at_most=limits.RELEASE)
            decode(data, Release, what="release", at_most=limits.RELEASE)
        except (NotFound, Untrusted) as error:
            raise NotFound(
                f"there is no release {sha256[:12]}", hint="`edgewise rollout ls` shows them"
            ) from error
        return Bytes(data, headers={"Cache-Control": contents.IMMUTABLE})

    async def content(self, call: Call[None]) -> FileAnswer:
        """GET /v1/content/{path}."""
        self.guard(call.peer)
        path = call.path["path"]
        file = self._content / path
        if not _SAFE.fullmatch(path) or len(path) > 500 or not file.is_file():
            raise NotFound(f"there is no content at {path[:200]!r}")
        fresh = path in contents.MUTABLE
        return FileAnswer(
            file,
            contents.TYPES.get(file.suffix, "application/octet-stream"),
            contents.FRESH if fresh else contents.IMMUTABLE,
            "" if fresh else contents.name_tag(path),
        )


def digest_of(text: str) -> str:
    """The bare hex. Raises BadUsage for anything but a SHA-256."""
    try:
        return Digest.parse(text).sha256
    except ValueError as error:
        raise BadUsage(str(error)[:200], hint="it has 64 lower-case hex digits") from error
