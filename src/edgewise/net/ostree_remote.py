"""OSTree remotes over published artifacts of the shape ``ostree``: ``/ostree/<artifact>/...``.

What an archive repository on a static file server would answer (libostree's manual, "The
archive mode"): objects of every published version, and for each ref the commit of the newest
version that has it. There is a summary only where the newest version has a static delta, which
clients find in it; otherwise they ask for refs by name.
Whether a commit is the right one is for the node to say, by its signature.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from aiohttp import web

from edgewise.delivery import images
from edgewise.model.errors import (
    EdgewiseError,
    Forbidden,
    NeedsPerson,
    NotFound,
    TryLater,
    Unauthenticated,
    Untrusted,
)
from edgewise.net.registry import Library
from edgewise.net.routes import Peer
from edgewise.protocol import limits
from edgewise.runtime.log import Log

PREFIX: Final = "/ostree/"
SHAPE: Final = "ostree"
SUMMARY: Final = "summary"
TREES: Final = 16
"""Trees whose paths are remembered: about 15 MB for 50,000 objects."""
_STATUS: Final[dict[type[EdgewiseError], int]] = {
    NotFound: 404,
    Unauthenticated: 401,
    NeedsPerson: 503,  # no room here
    TryLater: 503,
    Untrusted: 502,
}

Places = dict[str, tuple[str, int]]


class OstreeRemotes:
    """Mount ``answer`` at ``PREFIX``; ``admit`` raises for peers that get nothing."""

    def __init__(self, library: Library, admit: Callable[[Peer], None], log: Log) -> None:
        self._library = library
        self._admit = admit
        self._log = log
        self._places: OrderedDict[str, Places] = OrderedDict()
        self._opening = asyncio.Semaphore(1)  # a tree of 64 MiB takes four times that in memory

    async def answer(self, request: Any) -> web.StreamResponse:
        """One call. Clients look at the status alone."""
        try:
            self._admit(request.peer)
            return await self._answer(request)
        except Forbidden:
            raise
        except (NotFound, NeedsPerson, TryLater, Untrusted) as error:
            status = next((_STATUS[one] for one in type(error).__mro__ if one in _STATUS), 500)
            return web.Response(status=status, text=str(error))

    async def _answer(self, request: Any) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, headers={"Allow": "GET, HEAD"})
        name, _, path = request.path.removeprefix(PREFIX).partition("/")
        sha256, size = await self._find(name, path)
        await self._library.ensure(sha256)
        response = web.StreamResponse(headers={"ETag": f'"{sha256}"'})
        changes = path.startswith("refs/") or path in ("config", SUMMARY)
        response.headers["Cache-Control"] = "no-cache" if changes else "max-age=31536000, immutable"
        response.content_type = "application/octet-stream"
        response.content_length = size
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        stream = self._library.stream(sha256, at_most=size)
        try:
            while chunk := await asyncio.to_thread(next, stream, b""):
                await response.write(chunk)
        except EdgewiseError as error:
            self._log.event("ostree remote", "warning", because=str(error), path=path[:200])
            if request.transport is not None:
                request.transport.abort()
            return response
        await response.write_eof()
        return response

    async def _find(self, name: str, path: str) -> tuple[str, int]:
        """The newest version's file of this path. Raises NotFound."""
        versions = [a for a in await self._library.artifacts(name) if a.shape == SHAPE]
        # An older summary would hide the newest commit.
        for artifact in versions[-1:] if path == SUMMARY else reversed(versions):
            for ref in artifact.trees.values():
                found = (await self._paths(ref.sha256)).get(path)
                if found is not None:
                    return found
        raise NotFound(f"no version of {name[:80]!r} has {path[:200]!r}")

    async def _paths(self, tree: str) -> Places:
        async with self._opening:
            known = self._places.get(tree)
            if known is None:
                await self._library.ensure(tree)
                known = await asyncio.to_thread(self._read, tree)
                self._places[tree] = known
                if len(self._places) > TREES:
                    self._places.popitem(last=False)
            self._places.move_to_end(tree)
        return known

    def _read(self, tree: str) -> Places:
        data = b"".join(self._library.stream(tree, at_most=limits.TREE))
        return images.places(data, lambda path: True)
