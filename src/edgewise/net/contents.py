"""Files as answers: whole or in part, from a disk or while they still arrive."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from edgewise.model.errors import EdgewiseError, NotFound
from edgewise.net.ranges import wanted
from edgewise.net.routes import FileAnswer

CHUNK: Final = 256 << 10
"""Bytes read and sent at a time: what one slow reader costs in memory, about twice."""
AT_ONCE: Final = 64 << 10
"""Answers up to this size are sent in one piece."""

IMMUTABLE: Final = "public, max-age=31536000, immutable"
FRESH: Final = "no-cache"
"""Ask again every time; the ETag makes the answer small."""
MUTABLE: Final = frozenset({"tuf/timestamp.json"})
"""All that ever changes below the content root."""
TYPES: Final = {
    ".json": "application/json",
    ".zst": "application/zstd",
    ".ewd": "application/octet-stream",
}


@dataclass(frozen=True, slots=True)
class ContentAnswer:
    """Some bytes, served with Range, ETag and HEAD."""

    size: int
    etag: str
    """With its quotes. Strong: the same tag means the same bytes."""
    content_type: str
    cache_control: str
    read: Callable[[int, int], AsyncIterator[bytes]]
    """The bytes from an offset up to another. Raises our errors; what it raises after the
    first bytes cuts the connection, so that nobody takes half an answer for a whole one."""


def content_answer(
    path: str, size: int, etag: str, read: Callable[[int, int], AsyncIterator[bytes]]
) -> ContentAnswer:
    """The answer for ``path`` below the content root; ``etag`` without quotes."""
    kind = TYPES.get(os.path.splitext(path)[1], "application/octet-stream")
    return ContentAnswer(size, f'"{etag}"', kind, FRESH if path in MUTABLE else IMMUTABLE, read)


def name_tag(path: str) -> str:
    """The ETag of an immutable file: its name says its content, wherever it is served."""
    return os.path.splitext(path)[0].replace("/", "-")


def of_file(answer: FileAnswer) -> ContentAnswer:
    """A file of this machine. Raises NotFound."""
    try:
        with answer.path.open("rb", buffering=0) as file:
            about = os.fstat(file.fileno())
            # A small one may be replaced at any moment: its size and its bytes belong together.
            data = file.read() if about.st_size <= AT_ONCE else None
    except OSError as error:
        raise NotFound(f"there is no {answer.path.name} any more") from error
    etag = answer.etag or f"{about.st_mtime_ns:x}-{about.st_size:x}"

    def read(start: int, end: int) -> AsyncIterator[bytes]:
        return read_file(answer.path, start, end) if data is None else of_bytes(data[start:end])

    size = about.st_size if data is None else len(data)
    return ContentAnswer(size, f'"{etag}"', answer.content_type, answer.cache_control, read)


async def of_bytes(data: bytes) -> AsyncIterator[bytes]:
    """Bytes that are here already."""
    yield data


async def read_file(path: Path, start: int, end: int) -> AsyncIterator[bytes]:
    """Bytes of a file that does not change; an open one may be unlinked meanwhile."""
    with path.open("rb", buffering=0) as file:
        while start < end:
            length = min(CHUNK, end - start)
            if length <= AT_ONCE:  # faster than a thread
                chunk = os.pread(file.fileno(), length, start)
            else:
                chunk = await asyncio.to_thread(os.pread, file.fileno(), length, start)
            if not chunk:
                return
            start += len(chunk)
            yield chunk


async def send(request: web.BaseRequest, answer: ContentAnswer) -> web.StreamResponse:
    """Answer GET or HEAD."""
    want = wanted(request.headers, answer.size, answer.etag)
    headers = {
        "Cache-Control": answer.cache_control,
        "ETag": answer.etag,
        "Accept-Ranges": "bytes",
        "X-Content-Type-Options": "nosniff",
        **want.headers(answer.size),
    }
    length = want.end - want.start
    if want.status in (304, 416):
        return web.Response(status=want.status, headers=headers)
    response = web.StreamResponse(status=want.status, headers=headers)
    response.content_type = answer.content_type
    response.content_length = length
    if request.method == "HEAD" or not length:
        await response.prepare(request)
        return response
    async with aclosing(_pieces(answer.read(want.start, want.end))) as pieces:  # type: ignore[type-var]
        first = await anext(pieces, b"")  # fails, if it does, as a problem document
        if len(first) == length <= AT_ONCE:
            return web.Response(
                status=want.status,
                body=first,
                content_type=answer.content_type,
                headers=headers,
            )
        await response.prepare(request)
        try:
            await _rest(response, first, pieces, length)
        except EdgewiseError as error:
            # The head is out: only a connection that breaks says that this is not all.
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError(str(error)) from error
    return response


async def _rest(response: web.StreamResponse, first: bytes, pieces: Any, length: int) -> None:
    sent = len(first)
    await response.write(first)
    async for piece in pieces:
        sent += len(piece)
        await response.write(piece)
        await asyncio.sleep(0)  # one whose line takes everything at once must let others in
    if sent != length:
        raise NotFound(f"{length - sent} bytes are not there any more")
    await response.write_eof()


async def _pieces(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async with aclosing(pieces):  # type: ignore[type-var]
        async for piece in pieces:
            yield piece
