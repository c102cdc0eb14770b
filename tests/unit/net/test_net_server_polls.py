"""A server answers a poll alike, whether its own line or the framework has read it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest

from edgewise.identity.people import EVERYTHING
from edgewise.model.errors import Forbidden, TryLater, Unauthenticated
from edgewise.net.http1 import body_of, read_head
from edgewise.net.routes import ANYONE, PEOPLE, Bytes, Call, Peer, Route
from edgewise.net.server import Listen, Server
from edgewise.testing.chance import SeededChance
from edgewise.testing.clock import ManualClock
from edgewise.testing.log import ListLog


class Asked(msgspec.Struct):
    want: str


async def sync(call: Call[Asked]) -> Bytes | None:
    match call.body.want:
        case "nothing":
            return None
        case "much":
            return Bytes(b"x" * 100_000)
        case "busy":
            raise TryLater("the disk is busy")
        case "secret":
            raise Forbidden("you may not")
        case "bug":
            raise RuntimeError("a secret detail")
        case "stranger":
            raise Unauthenticated()
    return Bytes(call.body.want.encode(), headers={"X-Said": "yes"})


class Tokens:
    """Whoever brings a token is somebody."""

    def admit(self, peer: Peer, headers: Mapping[str, str]) -> Peer:
        return replace(peer, rights=EVERYTHING) if "Authorization" in headers else peer


@dataclass
class Caller:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, body: bytes, more: bytes = b"", path: bytes = b"/v1/sync") -> Any:
        self.writer.write(
            b"POST %b HTTP/1.1\r\nHost: hub\r\n%bContent-Length: %d\r\n\r\n%b"
            % (path, more, len(body), body)
        )
        async with asyncio.timeout(10):
            head = await read_head(self.reader)
            data = b"".join([p async for p in body_of(self.reader, head, at_most=200_000)])
        return head, data


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    routes = [
        Route("POST", "/v1/sync", "", sync, ANYONE, Asked, Asked, at_most=256 << 10, held=True),
        Route("POST", "/v1/ours", "", sync, PEOPLE, Asked, Asked, at_most=256 << 10, held=True),
        Route("POST", "/v1/call", "", sync, ANYONE, Asked, Asked),
    ]
    made = Server(routes, ManualClock(), SeededChance(), ListLog(), gate=Tokens())
    await made.start(Listen())
    yield made
    await made.close()


@pytest.fixture
async def caller(server: Server) -> AsyncIterator[Caller]:
    made = Caller(*await asyncio.open_connection("127.0.0.1", server.port))
    yield made
    made.writer.close()


WANTS = ("nothing", "much", "busy", "secret", "bug", "stranger", "hello")
BODIES = [b'{"want":"%b"}' % want.encode() for want in WANTS] + [b"", b"{", b'{"want":7}', b"\xff"]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("path", [b"/v1/sync", b"/v1/ours"])
async def test_a_line_and_the_framework_give_the_same_answer(
    server: Server, body: bytes, path: bytes
) -> None:
    answers = []
    for more in (b"", b"X-Plain: no\r\n"):
        caller = Caller(*await asyncio.open_connection("127.0.0.1", server.port))
        head, data = await caller.ask(body, more, path)
        said = dict(head.headers)
        said.pop("date")
        said.pop("server", None)
        said["content-type"] = said.get("content-type", "").partition(";")[0]
        text: Any = msgspec.json.decode(data) if "problem" in said["content-type"] else data
        if head.status == 500:
            del text["detail"], text["hint"]  # another identifier
        answers.append((head.status, said, text))
        caller.writer.close()
    assert answers[0] == answers[1]


async def test_one_connection_carries_polls_and_then_other_calls_and_polls_again(
    caller: Caller,
) -> None:
    for path in (b"/v1/sync", b"/v1/sync", b"/v1/call", b"/v1/sync"):
        head, data = await caller.ask(b'{"want":"hello"}', path=path)
        assert (head.status, data) == (200, b"hello")


async def test_a_poll_with_a_large_report_is_taken(caller: Caller) -> None:
    report = b'{"want":"%b"}' % (b"x" * 90_000)
    head, data = await caller.ask(report)
    assert (head.status, len(data)) == (200, 90_000)


async def test_a_poll_with_a_token_is_judged_by_it(caller: Caller) -> None:
    head, _ = await caller.ask(b'{"want":"hello"}', b"Authorization: x\r\n", b"/v1/ours")
    assert head.status == 401  # rights alone make nobody a person


async def test_a_poll_that_comes_byte_by_byte_is_answered(caller: Caller) -> None:
    body = b'{"want":"hello"}'
    for byte in b"POST /v1/sync HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    ):
        caller.writer.write(bytes([byte]))
        await caller.writer.drain()
    async with asyncio.timeout(10):
        assert (await read_head(caller.reader)).status == 200
