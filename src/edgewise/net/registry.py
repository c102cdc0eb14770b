"""A read-only OCI registry over published artifacts of the shape ``oci``.

Source: OCI distribution specification 1.1, "Pull" and "Content discovery"; errors as in its
table of error codes. Blobs of layers are put together while they are sent, from the objects of
the tree (delivery.skeleton), so a relay holds and fetches only those. Laws: a repository serves
what its own published versions name and nothing else; a blob whose bytes would not match its
digest is cut off before its end; memory does not grow with a blob.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import re
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, Protocol

from aiohttp import web

from edgewise.delivery import images, skeleton
from edgewise.delivery.images import Image
from edgewise.delivery.skeleton import Content, Whole
from edgewise.model.errors import (
    EdgewiseError,
    Forbidden,
    NeedsPerson,
    NotFound,
    TryLater,
    Unauthenticated,
    Untrusted,
)
from edgewise.model.names import Digest
from edgewise.net.routes import Peer
from edgewise.protocol import limits
from edgewise.protocol.codec import encode
from edgewise.protocol.content import Artifact
from edgewise.runtime.log import Log

PREFIX: Final = "/v2/"
LATEST: Final = "latest"
"""Tag of the version that was published last, unless one is called so."""
BATCH: Final = 1 << 20
"""Bytes put together at once, and ahead of what is being sent."""
AHEAD: Final = 64
"""Contents fetched at once."""
SENDING: Final = 32
"""Blobs put together at the same time; more wait."""
KNOWN: Final = 512
"""Images whose places are remembered: about 10 KB each."""
TAGS: Final = 1000
"""Tags in one answer."""

_REPOSITORY = re.compile(r"([a-z0-9][a-z0-9-]{0,62})/(manifests|blobs|tags)/(.{1,200})")
_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})")
_IMMUTABLE: Final = "public, max-age=31536000, immutable"


class Library(Protocol):
    """Where published artifacts and objects are. Implementations: roles.libraries."""

    async def artifacts(self, name: str) -> tuple[Artifact, ...]:
        """Every published version of this artifact, the oldest first."""

    async def ensure(self, sha256: str) -> None:
        """Have an object here. Raises NotFound, TryLater, Untrusted."""

    def stream(self, sha256: str, *, at_most: int) -> Iterator[bytes]:
        """The content of an object that is here; blocking. Raises NotFound, and Untrusted at
        the end when the content is another than the name says."""


class Refused(Exception):
    """An answer of the specification's error table."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True)
class _Blob:
    digest: str
    size: int
    skeleton: str = ""
    """Empty: the blob is an object itself."""


class Registry:
    """Mount ``answer`` at ``PREFIX``; ``admit`` raises for peers that get nothing."""

    def __init__(self, library: Library, admit: Callable[[Peer], None], log: Log) -> None:
        self._library = library
        self._admit = admit
        self._log = log
        self._images: OrderedDict[str, Image] = OrderedDict()
        self._opening = asyncio.Semaphore(2)  # a tree of 64 MiB takes four times that in memory
        self._sending = asyncio.Semaphore(SENDING)

    async def answer(self, request: Any) -> web.StreamResponse:
        """One call."""
        try:
            self._admit(request.peer)
            return await self._answer(request)
        except Refused as refused:
            return _problem(refused.status, refused.code, str(refused))
        except Unauthenticated as error:
            return _problem(401, "UNAUTHORIZED", str(error))
        except Forbidden:
            raise
        except NotFound as error:
            return _problem(404, "NAME_UNKNOWN", str(error))
        except (TryLater, NeedsPerson) as error:  # NeedsPerson: no room here
            return _problem(503, "TOOMANYREQUESTS", str(error))
        except Untrusted as error:
            self._log.event("registry", "warning", because=str(error), path=request.path[:200])
            return _problem(502, "MANIFEST_INVALID", str(error))

    async def _answer(self, request: Any) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD"):
            raise Refused(405, "UNSUPPORTED", "this registry is read-only")
        path = request.path.removeprefix(PREFIX)
        if not path:
            return web.Response(body=b"{}", content_type="application/json", headers=_VERSION)
        found = _REPOSITORY.fullmatch(path)
        if found is None:
            raise Refused(404, "NAME_INVALID", "this is no path of a repository here")
        name, kind, rest = found.groups()
        versions = [a for a in await self._library.artifacts(name) if a.shape == images.SHAPE]
        if not versions:
            raise Refused(404, "NAME_UNKNOWN", f"there is no image {name!r}")
        if kind == "manifests":
            return await self._manifest(request, versions, rest)
        if kind == "blobs":
            return await self._send(request, await self._blob(versions, rest))
        if rest == "list":
            return _tags(request, name, versions)
        raise Refused(404, "UNSUPPORTED", "only tags/list lists tags")

    # Finding

    async def _image(self, tree: str) -> Image:
        known = self._images.get(tree)
        if known is not None:
            self._images.move_to_end(tree)
            return known
        async with self._opening:
            await self._library.ensure(tree)
            found = await asyncio.to_thread(
                lambda: images.places(self._read(tree, limits.TREE), images.is_frame)
            )
            if images.MANIFEST not in found or images.CONFIG not in found:
                raise Untrusted(f"tree {tree[:12]} is no image")
            sha256, size = found[images.MANIFEST]
            image = images.opened(found, await self._document(sha256, size))
        self._images[tree] = image
        if len(self._images) > KNOWN:
            self._images.popitem(last=False)
        return image

    async def _document(self, sha256: str, size: int) -> bytes:
        await self._library.ensure(sha256)
        return await asyncio.to_thread(self._read, sha256, min(size, images.DOCUMENT))

    def _read(self, sha256: str, at_most: int) -> bytes:
        return b"".join(self._library.stream(sha256, at_most=at_most))

    async def _index(self, artifact: Artifact) -> bytes | None:
        """The index of an image for several platforms."""
        if len(artifact.trees) == 1:
            return None
        found = {
            platform: (await self._image(ref.sha256)).manifest
            for platform, ref in artifact.trees.items()
        }
        return images.served_index(found)

    async def _manifest(
        self, request: Any, versions: list[Artifact], reference: str
    ) -> web.StreamResponse:
        if reference.startswith("sha256:"):
            wanted = _digest(reference)
            for artifact in reversed(versions):
                for ref in artifact.trees.values():
                    image = await self._image(ref.sha256)
                    if image.manifest[0] == wanted:
                        return await self._one_manifest(request, image)
                index = await self._index(artifact)
                if index is not None and hashlib.sha256(index).hexdigest() == wanted:
                    return _document(request, index, images.INDEX_TYPE)
            raise Refused(404, "MANIFEST_UNKNOWN", f"there is no manifest {reference[:80]}")
        artifact = _tagged(versions, reference)
        index = await self._index(artifact)
        if index is not None:
            return _document(request, index, images.INDEX_TYPE)
        (ref,) = artifact.trees.values()
        return await self._one_manifest(request, await self._image(ref.sha256))

    async def _one_manifest(self, request: Any, image: Image) -> web.StreamResponse:
        data = await self._document(*image.manifest)
        return _document(request, data, images.MANIFEST_TYPE)

    async def _blob(self, versions: list[Artifact], reference: str) -> _Blob:
        wanted = _digest(reference)
        trees = [ref.sha256 for artifact in reversed(versions) for ref in artifact.trees.values()]
        trees.sort(key=lambda tree: tree not in self._images)  # those that cost nothing first
        for tree in trees:
            image = await self._image(tree)
            if wanted == image.config[0]:
                return _Blob(wanted, image.config[1])
            if (layer := image.layers.get(wanted)) is not None:
                return _Blob(wanted, layer.size, layer.skeleton)
        raise Refused(404, "BLOB_UNKNOWN", f"no version of this image has the blob {wanted}")

    # Sending

    async def _send(self, request: Any, blob: _Blob) -> web.StreamResponse:
        first, last, status = 0, blob.size - 1, 200
        headers = {
            "Docker-Content-Digest": f"sha256:{blob.digest}",
            "ETag": f'"sha256:{blob.digest}"',
            "Accept-Ranges": "bytes",
            "Cache-Control": _IMMUTABLE,
        } | _VERSION
        asked = _RANGE.fullmatch(request.headers.get("Range", ""))
        if asked is not None and request.method == "GET":
            first = int(asked[1])
            last = min(last, int(asked[2])) if asked[2] else last
            if first > last:
                headers["Content-Range"] = f"bytes */{blob.size}"
                return web.Response(status=416, headers=headers)
            status = 206
            headers["Content-Range"] = f"bytes {first}-{last}/{blob.size}"
        response = web.StreamResponse(status=status, headers=headers)
        response.content_type = "application/octet-stream"
        response.content_length = last - first + 1
        if request.method == "HEAD":
            await response.prepare(request)
            return response
        async with self._sending:
            await self._library.ensure(blob.skeleton or blob.digest)
            await response.prepare(request)
            try:
                async with aclosing(self._bytes(blob)) as whole:
                    async for chunk in _cut(whole, first, last + 1):
                        await response.write(chunk)
            except EdgewiseError as error:
                # The length was promised: an early end is how the client learns of it.
                self._log.event("registry", "warning", because=str(error), blob=blob.digest)
                if request.transport is not None:
                    request.transport.abort()
                return response
            await response.write_eof()
        return response

    async def _bytes(self, blob: _Blob) -> AsyncGenerator[bytes, None]:
        """The whole blob; its last chunk only when all of them have the right digest."""
        digest, seen, held = hashlib.sha256(), 0, b""
        source = self._assembled(blob) if blob.skeleton else self._object(blob.digest, blob.size)
        async with aclosing(source):
            async for chunk in source:
                digest.update(chunk)
                seen += len(chunk)
                if held:
                    yield held
                held = chunk
        if digest.hexdigest() != blob.digest or seen != blob.size:
            raise Untrusted(f"blob {blob.digest[:12]} cannot be put together from its parts")
        yield held

    async def _assembled(self, blob: _Blob) -> AsyncGenerator[bytes, None]:
        stream = self._library.stream(blob.skeleton, at_most=limits.OBJECT)
        batches = _batches(skeleton.parts(_Reader(stream)))
        batch = await asyncio.to_thread(next, batches, None)
        ready = asyncio.create_task(self._ensure(batch))
        try:
            while batch is not None:
                await ready
                following = await asyncio.to_thread(next, batches, None)
                ready = asyncio.create_task(self._ensure(following))
                if len(batch) == 1 and isinstance(batch[0], Content):
                    async for chunk in self._object(batch[0].sha256, batch[0].size):
                        yield chunk
                else:
                    yield await self._joined(batch)
                batch = following
        finally:
            ready.cancel()

    async def _ensure(self, batch: list[bytes | Content] | None) -> None:
        wanted = {part.sha256 for part in batch or () if isinstance(part, Content)}
        await asyncio.gather(*(self._library.ensure(sha256) for sha256 in wanted))

    async def _joined(self, batch: list[bytes | Content]) -> bytes:
        def join() -> bytes:
            return b"".join(
                part if isinstance(part, bytes) else self._read(part.sha256, part.size)
                for part in batch
            )

        try:
            return await asyncio.to_thread(join)
        except NotFound:  # a small cache dropped it again
            await self._ensure(batch)
            return await asyncio.to_thread(join)

    async def _object(self, sha256: str, size: int) -> AsyncGenerator[bytes, None]:
        await self._library.ensure(sha256)
        stream = self._library.stream(sha256, at_most=size)
        while chunk := await asyncio.to_thread(next, stream, b""):
            yield chunk


class _Reader:
    """Chunks as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = io.BytesIO()

    def read(self, size: int) -> bytes:
        found = self._left.read(size)
        while len(found) < size and (chunk := next(self._chunks, b"")):
            self._left = io.BytesIO(chunk)
            found += self._left.read(size - len(found))
        return found


def _batches(parts: Iterator[bytes | Content | Whole]) -> Iterator[list[bytes | Content]]:
    """Parts of about ``BATCH`` bytes and at most ``AHEAD`` contents; a large content alone."""
    batch: list[bytes | Content] = []
    size = contents = 0
    for part in parts:
        if isinstance(part, Whole):
            break
        length = len(part) if isinstance(part, bytes) else part.size
        if batch and (size + length > BATCH or contents == AHEAD):
            yield batch
            batch, size, contents = [], 0, 0
        batch.append(part)
        size += length
        contents += isinstance(part, Content)
    if batch:
        yield batch


async def _cut(chunks: AsyncIterator[bytes], start: int, end: int) -> AsyncIterator[bytes]:
    at = 0
    async for chunk in chunks:
        piece = chunk[max(0, start - at) : max(0, end - at)]
        at += len(chunk)
        if piece:
            yield piece
        if at >= end:
            return


_VERSION: Final = {"Docker-Distribution-API-Version": "registry/2.0"}


def tag_of(version: str) -> str:
    """A version as a tag, which cannot have a ``+``."""
    return version.replace("+", "_")


def _tagged(versions: list[Artifact], tag: str) -> Artifact:
    for name in (lambda version: version, tag_of):
        for artifact in reversed(versions):
            if name(artifact.version) == tag:
                return artifact
    if tag == LATEST:
        return versions[-1]
    raise Refused(404, "MANIFEST_UNKNOWN", f"there is no version {tag[:80]!r} of this image")


def _tags(request: Any, name: str, versions: list[Artifact]) -> web.StreamResponse:
    tags = sorted({tag_of(artifact.version) for artifact in versions})
    if (last := request.query.get("last")) is not None:
        tags = [tag for tag in tags if tag > last]
    asked = request.query.get("n", "")
    most = min(int(asked), TAGS) if re.fullmatch(r"\d{1,9}", asked) else TAGS
    headers = dict(_VERSION)
    if len(tags) > most:
        tags = tags[:most]
        if tags:
            link = f"{PREFIX}{name}/tags/list?n={most}&last={tags[-1]}"
            headers["Link"] = f'<{link}>; rel="next"'
    body = encode({"name": name, "tags": tags})
    return web.Response(body=body, content_type="application/json", headers=headers)


def _document(request: Any, data: bytes, kind: str) -> web.StreamResponse:
    sha256 = hashlib.sha256(data).hexdigest()
    headers = {
        "Docker-Content-Digest": f"sha256:{sha256}",
        "ETag": f'"sha256:{sha256}"',
        "Content-Type": kind,
        "Cache-Control": "no-cache",
    }
    return web.Response(body=data, headers=headers | _VERSION)


def _digest(text: str) -> str:
    try:
        return Digest(text.removeprefix("sha256:") if text.startswith("sha256:") else "").sha256
    except ValueError:
        raise Refused(400, "DIGEST_INVALID", "digests are sha256: and 64 hex digits") from None


def _problem(status: int, code: str, message: str) -> web.Response:
    body = encode({"errors": [{"code": code, "message": message[:500]}]})
    return web.Response(status=status, body=body, content_type="application/json", headers=_VERSION)
