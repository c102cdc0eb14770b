"""The server's promises to every caller, spoken over a loopback port without TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from edgewise.identity.people import EVERYTHING
from edgewise.model.errors import Conflict, Forbidden, NotFound, TryLater
from edgewise.model.names import SpiffeId
from edgewise.net.routes import (
    ANYONE,
    PEOPLE,
    Call,
    Events,
    FileAnswer,
    Paging,
    Peer,
    Route,
    page,
)
from edgewise.net.server import Listen, Mount, Server, authorise
from edgewise.testing.chance import SeededChance
from edgewise.testing.clock import ManualClock
from edgewise.testing.log import ListLog


class Greeting(msgspec.Struct):
    name: str


async def greet(call: Call[Greeting]) -> Greeting:
    return Greeting(f"hello {call.body.name}")


async def broken(call: Call[None]) -> None:
    raise RuntimeError("a secret detail")


async def busy(call: Call[None]) -> None:
    raise TryLater("the disk is busy", hint="wait a little")


async def one(call: Call[None]) -> dict[str, str]:
    if call.path["name"] == "nobody":
        raise NotFound("node nobody does not exist")
    return dict(call.path)


async def many(call: Call[None]) -> Any:
    return page([f"n{i:04}" for i in range(250)], call.query, str)


async def ticks(call: Call[None]) -> Events:
    async def numbers() -> AsyncIterator[int]:
        for number in range(3):
            yield number

    return Events(numbers())


async def upload(call: Call[None]) -> int:
    return sum([len(piece) async for piece in call.stream()])


def routes(folder: Path) -> list[Route]:
    async def content(call: Call[None]) -> FileAnswer:
        return FileAnswer(folder / "blob", "application/octet-stream", "immutable")

    return [
        Route("POST", "/v1/greet", "", greet, ANYONE, Greeting, Greeting, at_most=64),
        Route("GET", "/v1/broken", "", broken, ANYONE),
        Route("GET", "/v1/busy", "", busy, ANYONE),
        Route("GET", "/v1/nodes", "", many, ANYONE, query=Paging),
        Route("GET", "/v1/nodes/{name}", "", one, ANYONE),
        Route("GET", "/v1/ticks", "", ticks, ANYONE),
        Route("PUT", "/v1/objects/{sha256}", "", upload, ANYONE, streams=True, at_most=100_000),
        Route("GET", "/v1/content/{path*}", "", content, ANYONE),
        Route("GET", "/v1/secret", "", one, PEOPLE, needs="viewer"),
    ]


async def mounted(request: Any) -> aiohttp.web.StreamResponse:
    return aiohttp.web.Response(text=f"{request.match_info['tail']} {request.peer}")


@pytest.fixture
async def log() -> ListLog:
    return ListLog()


@pytest.fixture
async def web(tmp_path: Path, log: ListLog) -> AsyncIterator[aiohttp.ClientSession]:
    (tmp_path / "blob").write_bytes(b"0123456789")
    server = Server(
        routes(tmp_path), ManualClock(), SeededChance(), log, [Mount("/git/fleet.git/", mounted)]
    )
    await server.start(Listen())
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
        yield session
    await server.close()


async def problem(response: aiohttp.ClientResponse) -> dict[str, Any]:
    assert response.content_type == "application/problem+json"
    body = await response.json()
    assert body["status"] == response.status
    return body


async def test_a_typed_body_reaches_the_route_and_a_typed_answer_comes_back(web: Any) -> None:
    response = await web.post("/v1/greet", data=b'{"name":"kiosk"}')
    assert await response.json() == {"name": "hello kiosk"}


async def test_a_malformed_body_is_a_problem_that_names_the_field(web: Any) -> None:
    found = await problem(await web.post("/v1/greet", data=b'{"name":7}'))
    assert found["status"] == 400
    assert "$.name" in found["detail"]
    assert found["exit_code"] == 2


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_bound_is_refused_whether_or_not_it_says_its_size(
    web: Any, chunked: bool
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"x" * 20

    data = pieces() if chunked else b"x" * 200
    found = await problem(await web.post("/v1/greet", data=data))
    assert found["status"] == 413


async def test_a_compressed_bomb_is_counted_unpacked(web: Any) -> None:
    found = await problem(await web.post("/v1/greet", data=b"x" * 9000, compress="deflate"))
    assert found["status"] == 413


async def test_an_unexpected_error_is_logged_with_its_id_and_tells_the_caller_nothing_else(
    web: Any, log: ListLog
) -> None:
    found = await problem(await web.get("/v1/broken"))
    assert found["status"] == 500
    assert "secret" not in str(found)
    [fields] = [fields for what, fields in log.lines if what == "unexpected error"]
    assert fields["problem"] in found["detail"]
    assert "secret" in str(fields["error"])


async def test_try_later_says_when(web: Any) -> None:
    response = await web.get("/v1/busy")
    assert response.headers["Retry-After"] == "5"
    assert (await problem(response))["exit_code"] == 3


async def test_an_unknown_path_and_a_wrong_method_are_problems_too(web: Any) -> None:
    assert (await problem(await web.get("/v2")))["status"] == 404
    response = await web.delete("/v1/nodes/a")
    assert response.headers["Allow"] == "GET"
    assert (await problem(response))["status"] == 405


async def test_an_encoded_slash_does_not_make_another_segment(web: Any) -> None:
    response = await web.get(aiohttp.client.URL("/v1/nodes/a%2Fb", encoded=True))
    assert await response.json() == {"name": "a/b"}


async def test_pages_follow_each_other_without_gap_or_repeat(web: Any) -> None:
    seen, after = [], ""
    while True:
        answer = await (await web.get("/v1/nodes", params={"limit": 97, "after": after})).json()
        seen += answer["items"]
        if (after := answer["next"]) is None:
            break
    assert seen == [f"n{i:04}" for i in range(250)]


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "color=red"])
async def test_a_wrong_query_is_a_problem(web: Any, query: str) -> None:
    assert (await problem(await web.get(f"/v1/nodes?{query}")))["status"] == 400


async def test_events_arrive_one_by_one_and_end(web: Any) -> None:
    response = await web.get("/v1/ticks")
    assert await response.text() == "data: 0\n\ndata: 1\n\ndata: 2\n\n"


async def test_an_upload_is_streamed_and_bounded(web: Any) -> None:
    assert await (await web.put("/v1/objects/aa", data=b"x" * 90_000)).json() == 90_000
    assert (await problem(await web.put("/v1/objects/aa", data=b"x" * 100_001)))["status"] == 413


async def test_content_can_be_resumed_from_any_byte(web: Any) -> None:
    response = await web.get("/v1/content/a/b", headers={"Range": "bytes=7-"})
    assert (response.status, await response.read()) == (206, b"789")
    again = await web.get("/v1/content/x", headers={"If-None-Match": response.headers["ETag"]})
    assert again.status == 304


async def test_nobody_without_a_certificate_gets_past_an_operators_route(web: Any) -> None:
    assert (await problem(await web.get("/v1/secret")))["status"] == 401


def test_a_node_may_not_call_an_operators_route(tmp_path: Path) -> None:
    secret = routes(tmp_path)[-1]
    authorise(secret, Peer(SpiffeId("hub.acme", "/user/ada"), rights=EVERYTHING))
    with pytest.raises(Forbidden, match="node/kiosk may not"):
        authorise(secret, Peer(SpiffeId("eu.acme", "/node/kiosk")))


async def test_another_protocol_can_live_below_a_prefix(web: Any) -> None:
    response = await web.get("/git/fleet.git/info/refs")
    assert await response.text() == "info/refs anyone at 127.0.0.1"


async def test_a_taken_port_is_told_with_the_next_move(tmp_path: Path) -> None:
    first = Server([], ManualClock(), SeededChance(), ListLog())
    await first.start(Listen())
    second = Server([], ManualClock(), SeededChance(), ListLog())
    with pytest.raises(Exception, match="cannot listen") as caught:
        await second.start(Listen(port=first.port))
    assert "--listen" in caught.value.hint
    await first.close()


async def test_closing_ends_event_streams(tmp_path: Path) -> None:
    async def forever(call: Call[None]) -> Events:
        async def items() -> AsyncIterator[int]:
            yield 1
            await asyncio.Event().wait()

        return Events(items())

    route = Route("GET", "/v1/forever", "", forever, ANYONE)
    server = Server([route], ManualClock(), SeededChance(), ListLog())
    await server.start(Listen())
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
        response = await session.get("/v1/forever")
        assert await response.content.readline() == b"data: 1\n"
        await asyncio.wait_for(server.close(), 5)


def test_conflict_is_409(tmp_path: Path) -> None:
    from edgewise.net.problems import problem_of

    assert problem_of(Conflict("it moved")).status == 409


async def test_what_is_no_http_is_answered_and_fills_no_log(
    web: Any, log: ListLog, capfd: pytest.CaptureFixture[str]
) -> None:
    port = web._base_url.port
    for words in (b"GARBAGE\0\0\n\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(words)
        async with asyncio.timeout(10):
            assert (await reader.readline()).split()[1] == b"400"
        writer.close()
    assert log.lines == []
    assert "Traceback" not in capfd.readouterr().err
