"""git push and git fetch over HTTPS: ``git http-backend`` behind the hub's own server.

The "smart HTTP" protocol only (gitprotocol-http(5)); the dumb one and every other path give
404. Bodies are streamed both ways and bounded. Who may read and who may write is the
caller's to say. After a push of any branch the caller is told at once, and what it answers
is shown to the person who pushed, as ``remote: edgewise: ...`` lines: they travel in
sideband 2 before the closing flush, where git puts the output of its own hooks
(gitprotocol-pack(5), "report-status").
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from aiohttp import web

from edgewise.backends.git.command import environment
from edgewise.backends.git.guard import GOVERNS
from edgewise.model.errors import EdgewiseError, Forbidden, NotFound

_SERVICES = ("git-upload-pack", "git-receive-pack")
_CHUNK = 64 << 10
_GZIP = b"\x1f\x8b"
_FLUSH = b"0000"
_LENGTH = re.compile(rb"[0-9a-fA-F]{4}")
_SIDEBAND = 60_000
"""Bytes in one sideband packet; side-band-64k allows 65,519."""


@dataclass(frozen=True, slots=True)
class Pusher:
    """Who uses the repository."""

    name: str
    governs: bool = False
    """May change RoleBindings and the Workspace's trust; see backends/git/guard.py."""
    address: str = ""


@dataclass(frozen=True, slots=True)
class Push:
    """A push that git has stored. Refs map to (before, after); a missing side is empty."""

    user: str
    moved: Mapping[str, tuple[str, str]]
    address: str = ""


Authorise = Callable[[web.BaseRequest, bool], Awaitable[Pusher]]
"""(request, whether it writes) to who it is; raises Forbidden for anybody else."""

Pushed = Callable[[Push], Awaitable[tuple[str, ...]]]
"""Wakes the follower and says what the pusher shall read, one line each."""


@dataclass(frozen=True, slots=True)
class GitLimits:
    """Bytes of one push, git processes at once, seconds for one call and for the remarks."""

    push: int = 512 << 20
    fetch_request: int = 16 << 20
    processes: int = 8
    call: timedelta = timedelta(minutes=10)
    remarks: timedelta = timedelta(seconds=15)


class GitHttp:
    """Serves one bare repository at ``<prefix>/<name of its directory>/``."""

    def __init__(
        self,
        repository: Path,
        authorise: Authorise,
        pushed: Pushed,
        *,
        prefix: str = "/git",
        limits: GitLimits | None = None,
    ) -> None:
        self._repository = repository
        self._authorise = authorise
        self._pushed = pushed
        self._path = f"{prefix}/{repository.name}"
        self._limits = limits or GitLimits()
        self._slots = asyncio.Semaphore(self._limits.processes)

    def routes(self) -> list[web.RouteDef]:
        """For ``app.router.add_routes``."""
        return [
            web.get(f"{self._path}/{{tail:.*}}", self.answer),
            web.post(f"{self._path}/{{tail:.*}}", self.answer),
        ]

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """One call of git. Refusals are plain text, which git shows to its user."""
        try:
            service = self._service(request)
            user = await self._authorise(request, service == "git-receive-pack")
        except NotFound as error:
            return _refusal(404, error)
        except Forbidden as error:
            return _refusal(403, error)
        except EdgewiseError as error:
            return _refusal(503 if error.exit_code == 3 else 403, error)
        async with self._slots, asyncio.timeout(self._limits.call.total_seconds()):
            return await self._call(request, service, user)

    def _tail(self, request: web.BaseRequest) -> str:
        return request.path.partition(f"{self._path}/")[2]

    def _service(self, request: web.BaseRequest) -> str:
        tail = self._tail(request)
        if request.method == "GET" and tail == "info/refs":
            service = request.query.get("service", "")
            if service in _SERVICES:
                return service
        elif request.method == "POST" and tail in _SERVICES:
            return tail
        raise NotFound(
            f"{request.method} {request.path} is no call of git's smart HTTP protocol",
            hint=f"clone or push {self._path}/",
        )

    async def _call(
        self, request: web.BaseRequest, service: str, user: Pusher
    ) -> web.StreamResponse:
        pushing = request.method == "POST" and service == "git-receive-pack"
        bound = self._limits.push if pushing else self._limits.fetch_request
        body = _Body(request, bound)
        first = await body.first()
        before = await self._refs() if pushing else {}
        process = await asyncio.create_subprocess_exec(
            "git", "http-backend",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment(self._variables(request, service, user, first)),
        )  # fmt: skip
        feeding = asyncio.ensure_future(_feed(process, body, first))
        try:
            assert process.stdout is not None
            status, headers = await _cgi_header(process.stdout)
            if body.refused:
                return _too_big(bound)
            response = web.StreamResponse(status=status, headers=headers)
            await response.prepare(request)
            async with aclosing(_chunks(process.stdout)) as chunks:
                if pushing and status == 200:
                    await self._relay_push(response, chunks, user, before)
                else:
                    async for chunk in chunks:
                        await response.write(chunk)
            await response.write_eof()
            return response
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
            if process.returncode is None:
                process.kill()
            await process.wait()

    def _variables(
        self, request: web.BaseRequest, service: str, user: Pusher, first: bytes
    ) -> dict[str, str]:
        """CGI (RFC 3875) as git-http-backend(1) reads it. The length is left out: the body
        ends with the pipe, whatever encoding it came in."""
        tail = self._tail(request)
        variables = {
            "GIT_PROJECT_ROOT": str(self._repository.parent),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_HTTP_MAX_REQUEST_BUFFER": str(self._limits.fetch_request),
            "PATH_INFO": f"/{self._repository.name}/{tail}",
            "REQUEST_METHOD": request.method,
            # Not as it came: of several services git would take another than we asked about.
            "QUERY_STRING": f"service={service}" if request.method == "GET" else "",
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "REMOTE_USER": user.name,
            "REMOTE_ADDR": request.remote or "",
            "GIT_COMMITTER_NAME": user.name,
            "GIT_COMMITTER_EMAIL": f"{user.name}@edgewise.invalid",
            GOVERNS: "1" if user.governs else "0",
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
        }
        if first.startswith(_GZIP):
            variables["HTTP_CONTENT_ENCODING"] = "gzip"
        return variables

    async def _relay_push(
        self,
        response: web.StreamResponse,
        chunks: AsyncGenerator[bytes, None],
        user: Pusher,
        before: Mapping[str, str],
    ) -> None:
        """Pass git's report on, and put our remarks before its last packet."""
        tail = Tail()
        async for chunk in chunks:
            ready = tail.feed(chunk)
            if ready:
                await response.write(ready)
        after = await self._refs()
        moved = {
            ref: (before.get(ref, ""), after.get(ref, ""))
            for ref in sorted(before.keys() | after.keys())
            if before.get(ref) != after.get(ref)
        }
        lines = await self._remarks(Push(user.name, moved, user.address)) if moved else ()
        await response.write(tail.finish(lines))

    async def _remarks(self, push: Push) -> tuple[str, ...]:
        try:
            async with asyncio.timeout(self._limits.remarks.total_seconds()):
                return await self._pushed(push)
        except TimeoutError:
            return ("stored; still being compiled, `edgewise status` tells how it went",)
        except EdgewiseError as error:
            # git has stored the push already; the pusher must know what came of it.
            return tuple(line for line in (f"stored, but: {error}", error.hint) if line)

    async def _refs(self) -> dict[str, str]:
        process = await asyncio.create_subprocess_exec(
            "git", f"--git-dir={self._repository}", "for-each-ref",
            "--format=%(refname) %(objectname)", "refs/heads", "refs/tags",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            env=environment(),
        )  # fmt: skip
        out, _ = await process.communicate()
        return dict(line.split(" ") for line in out.decode().splitlines())


class Tail:
    """Holds back the flush packet that ends a sideband stream, so that more fits before it.

    A stream that is not made of sideband packets (an old client) is passed on untouched.
    """

    def __init__(self) -> None:
        self._pending = b""
        self._banded = False
        self._foreign = False
        self._flush = False

    def feed(self, data: bytes) -> bytes:
        """What can be passed on now."""
        if self._foreign:
            return data
        self._pending += data
        out = b""
        while len(self._pending) >= 4:
            # int() alone would take "+000" and blanks for a length as well.
            if not _LENGTH.fullmatch(self._pending[:4]):
                self._foreign = True
                return out + self._release()
            size = int(self._pending[:4], 16)
            whole = self._pending[: max(size, 4)]
            if len(whole) < size:
                break
            self._pending = self._pending[len(whole) :]
            if self._flush:
                out, self._flush = out + _FLUSH, False
            if size == 0:
                self._flush = True
                continue
            self._banded = self._banded or whole[4:5] in (b"\1", b"\2")
            out += whole
        return out

    def finish(self, lines: tuple[str, ...]) -> bytes:
        """The end of the stream, with ``lines`` for the person who pushed."""
        if not self._banded or not self._flush or self._foreign:
            return self._release()
        text = "".join(f"edgewise: {line}\n" for line in lines).encode()
        packets = [text[at : at + _SIDEBAND] for at in range(0, len(text), _SIDEBAND)]
        banded = b"".join(b"%04x\2%b" % (len(packet) + 5, packet) for packet in packets)
        return banded + self._release()

    def _release(self) -> bytes:
        out = (_FLUSH if self._flush else b"") + self._pending
        self._flush, self._pending = False, b""
        return out


class _Body:
    """A request body, counted; ``refused`` once it is longer than its bound."""

    def __init__(self, request: web.BaseRequest, bound: int) -> None:
        self._content = request.content
        self._left = bound
        declared = request.content_length or 0
        self.refused = declared > bound

    async def first(self) -> bytes:
        return b"" if self.refused else await self._take()

    async def rest(self) -> AsyncGenerator[bytes, None]:
        while not self.refused and (chunk := await self._take()):
            yield chunk

    async def _take(self) -> bytes:
        chunk = await self._content.read(_CHUNK)
        self._left -= len(chunk)
        if self._left < 0:
            self.refused = True
            return b""
        return chunk


async def _feed(process: asyncio.subprocess.Process, body: _Body, first: bytes) -> None:
    pipe = process.stdin
    assert pipe is not None
    try:
        pipe.write(first)
        async with aclosing(body.rest()) as chunks:
            async for chunk in chunks:
                pipe.write(chunk)
                await pipe.drain()
        if body.refused:
            process.kill()
        pipe.close()
    except (BrokenPipeError, ConnectionResetError):
        # git ended before it read everything; its own answer says why.
        return


async def _cgi_header(stream: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers that git http-backend prints; 500 when it printed none."""
    status = 500
    headers: dict[str, str] = {}
    while line := (await stream.readline()).decode("latin-1").strip():
        name, _, value = line.partition(":")
        if name.lower() == "status":
            status = int(value.split()[0])
        elif name.lower() not in ("content-length", "transfer-encoding"):
            headers[name] = value.strip()
            status = 200 if status == 500 else status
    return status, headers


async def _chunks(stream: asyncio.StreamReader) -> AsyncGenerator[bytes, None]:
    while chunk := await stream.read(_CHUNK):
        yield chunk


def _too_big(bound: int) -> web.Response:
    return web.Response(
        status=413,
        text=f"edgewise: this push is larger than {bound >> 20} MiB\n"
        "publish big content with `edgewise artifact publish` instead of committing it\n",
    )


def _refusal(status: int, error: EdgewiseError) -> web.Response:
    hint = f"{error.hint}\n" if error.hint else ""
    return web.Response(status=status, text=f"edgewise: {error}\n{hint}")
