"""HTTP/1.1 through the egress gateway: bodies, back-pressure, upgrades, and what is smuggled."""

from __future__ import annotations

import asyncio
import hashlib
import resource
from pathlib import Path

import pytest
from egress_node import Node, answers, echo, get, node, read_answer, read_request

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def ready(n: Node, *far_end: object, **more: object) -> int:
    port = await n.far_end(*far_end)  # type: ignore[arg-type]
    await n.follow(n.rule(port, **more))
    return port


async def test_hop_by_hop_fields_end_here_and_the_others_go_on(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        port = await ready(n)
        answer = await n.ask(
            f"GET http://stock.acme.net:{port}/ HTTP/1.1\r\nHost: stock.acme.net:{port}\r\n"
            "Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\nX-Kept: 1\r\n"
            "Connection: X-Mine, close\r\nX-Mine: 2\r\nTE: trailers\r\nUpgrade: h2c\r\n"
            "Keep-Alive: 5\r\nTrailer: X\r\nHTTP2-Settings: AA\r\n\r\n".encode()
        )
        head = answer.body.decode().lower()
        assert "x-kept: 1" in head
        assert "via: 1.1 edgewise" in head
        for gone in ("proxy-", "x-mine", "te:", "upgrade", "keep-alive", "trailer", "http2"):
            assert gone not in head


async def test_bodies_with_a_length_and_in_chunks_arrive_whole(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        port = await ready(n)
        reader, writer = await n.connect()
        line = f"POST http://stock.acme.net:{port}/ HTTP/1.1\r\nHost: stock.acme.net:{port}\r\n"
        writer.write(line.encode() + b"Content-Length: 5\r\n\r\nhello")
        assert (await read_answer(reader)).body.endswith(b"\r\n\r\nhello")
        writer.write(line.encode() + b"Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n")
        writer.write(b"2\r\nde\r\n0\r\nX-Trailer: 1\r\n\r\n")
        answer = await read_answer(reader)
        assert answer.body.endswith(b"\r\n\r\nabcde")
        assert b"x-trailer" not in answer.body.lower()
        writer.close()


async def test_chunks_are_written_anew_and_extensions_dropped(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        said = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;evil=1\r\nwiki\r\n0\r\n\r\n"
        port = await ready(n, answers(said))
        reader, writer = await n.connect()
        for _ in range(2):
            writer.write(get(f"stock.acme.net:{port}/"))
            answer = await read_answer(reader)
            assert answer.body == b"wiki"
            assert answer.headers["transfer-encoding"] == "chunked"
        assert len(n.peers) == 1, "the far end's connection was kept"
        writer.close()


async def test_an_answer_that_ends_with_its_connection_keeps_the_apps(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        port = await n.far_end(answers(b"HTTP/1.0 200 OK\r\n\r\nall of it", close=True), plain=True)
        await n.follow(n.rule(port, mtls=False))
        reader, writer = await n.connect()
        for _ in range(2):
            writer.write(get(f"stock.acme.net:{port}/"))
            assert (await read_answer(reader)).body == b"all of it"
        writer.close()


async def test_a_truncated_answer_is_never_taken_for_a_whole_one(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        short = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"
        port = await ready(n, answers(short, close=True))
        reader, writer = await n.connect()
        writer.write(get(f"stock.acme.net:{port}/"))
        with pytest.raises(asyncio.IncompleteReadError):
            await read_answer(reader)
        writer.close()


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified", b"200 OK"])
async def test_answers_without_a_body_do_not_hang(
    tmp_path: Path, method: str, status: bytes
) -> None:
    async with node(tmp_path) as n:
        body = b"" if method == "HEAD" or status[:3] != b"200" else b"12345"
        length = b"" if status.startswith(b"204") else b"Content-Length: 5\r\n"
        port = await ready(n, answers(b"HTTP/1.1 " + status + b"\r\n" + length + b"\r\n" + body))
        reader, writer = await n.connect()
        for _ in range(2):
            writer.write(get(f"stock.acme.net:{port}/", method))
            answer = await asyncio.wait_for(read_answer(reader, method), 5)
            assert answer.status == int(status[:3])
        writer.close()


async def test_expect_continue_reaches_the_far_end_and_its_word_comes_back(tmp_path: Path) -> None:
    async with node(tmp_path) as n:

        async def careful(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"expect: 100-continue" in head.lower()
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            writer.write(OK[:-2] + await reader.readexactly(2))
            await writer.drain()
            await reader.read()

        port = await ready(n, careful)
        reader, writer = await n.connect()
        writer.write(
            f"PUT http://stock.acme.net:{port}/ HTTP/1.1\r\nExpect: 100-continue\r\n"
            f"Content-Length: 2\r\n\r\n".encode()
        )
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(b"hi")
        assert (await read_answer(reader)).body == b"hi"
        writer.close()


async def test_a_refused_upload_hears_why_before_it_has_sent_everything(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        await n.follow(n.rule(443))
        reader, writer = await n.connect()
        writer.write(b"PUT http://other/ HTTP/1.1\r\nHost: other\r\nContent-Length: 500000\r\n\r\n")
        writer.write(b"x" * 200_000)
        answer = await read_answer(reader)
        assert answer.status == 403
        assert answer.headers["connection"] == "close"
        writer.close()


async def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        port = await ready(n)
        reader, writer = await n.connect()
        paths = [f"/{number}" for number in range(50)]
        writer.write(b"".join(get(f"stock.acme.net:{port}{path}") for path in paths))
        for path in paths:
            assert f"GET {path} HTTP".encode() in (await read_answer(reader)).body
        writer.write(b"".join(get(f"other.example/{number}") for number in range(2000)))
        for _ in range(2000):
            assert (await read_answer(reader)).status == 403
        writer.close()


async def test_http_1_0_gets_an_answer_that_it_understands(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        said = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwiki\r\n0\r\n\r\n"
        port = await ready(n, answers(said))
        reader, writer = await n.connect()
        writer.write(f"GET http://stock.acme.net:{port}/ HTTP/1.0\r\n\r\n".encode())
        data = await reader.read()
        assert data.endswith(b"\r\n\r\nwiki")
        assert b"chunked" not in data
        writer.close()


async def test_a_websocket_goes_through_both_ways(tmp_path: Path) -> None:
    async with node(tmp_path) as n:

        async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert b"connection: upgrade" in head
            assert b"upgrade: websocket" in head
            assert b"sec-websocket-key: abc" in head
            writer.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                b"Connection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n\x81\x02hi"
            )
            while data := await reader.read(100):
                writer.write(data.upper())
                await writer.drain()

        port = await ready(n, shout)
        reader, writer = await n.connect()
        writer.write(
            f"GET http://stock.acme.net:{port}/ws HTTP/1.1\r\nConnection: Upgrade\r\n"
            "Upgrade: websocket\r\nSec-WebSocket-Key: abc\r\n\r\n".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"sec-websocket-accept: x" in head.lower()
        assert await reader.readexactly(4) == b"\x81\x02hi"
        for _ in range(3):
            writer.write(b"\x81\x05frame")
            assert await reader.readexactly(7) == b"\x81\x05FRAME"
        writer.close()


async def test_a_far_end_cannot_switch_protocols_unasked(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
        port = await ready(n, answers(switch))
        answer = await n.ask(f"stock.acme.net:{port}/")
        assert (answer.status, answer.problem["reason"]) == (502, "protocol")


async def test_bytes_after_an_answer_are_never_the_next_one(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        extra = OK + b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong"
        port = await ready(n, answers(extra))
        reader, writer = await n.connect()
        for _ in range(3):
            writer.write(get(f"stock.acme.net:{port}/"))
            assert (await read_answer(reader)).body == b"ok"
        assert len(n.peers) == 3, "such a connection is not kept"
        writer.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n X: folded\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nok",
        b"HTTP/2 200\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 40_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 103 Early\r\n\r\n" * 20,
        b"\x00\x01\x02\r\n\r\n",
    ],
)
async def test_a_far_end_that_breaks_the_rules_ends_in_502(tmp_path: Path, answer: bytes) -> None:
    async with node(tmp_path) as n:
        port = await ready(n, answers(answer))
        reader, writer = await n.connect()
        writer.write(get(f"stock.acme.net:{port}/"))
        found = await read_answer(reader)
        while found.status < 200:
            found = await read_answer(reader)
        assert (found.status, found.problem["reason"]) == (502, "protocol")
        writer.close()


SMUGGLED = [
    b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
    b"Content-Length: 3\r\nContent-Length: 3\r\n",
    b"Content-Length: 3, 3\r\n",
    b"Content-Length: +3\r\n",
    b"Content-Length: 0x3\r\n",
    b"Content-Length: -1\r\n",
    b"Content-Length: 99999999999999999999\r\n",
    b"Transfer-Encoding: chunked, identity\r\n",
    b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"Transfer-Encoding: chunked\r\n\tx\r\n",
    b"X: a\nTransfer-Encoding: chunked\r\n",
    b"X: a\rTransfer-Encoding: chunked\r\n",
    b"X: a\0b\r\n",
    b"X a\r\n",
    b": a\r\n",
    b"Host: other.example\r\n",
    b"Connection: Host\r\n",
    b"Connection: Content-Length\r\nContent-Length: 3\r\n",
]


@pytest.mark.parametrize("line", SMUGGLED)
async def test_a_request_that_can_be_read_in_two_ways_goes_nowhere(
    tmp_path: Path, line: bytes
) -> None:
    async with node(tmp_path) as n:
        port = await ready(n)
        place = f"stock.acme.net:{port}".encode()
        answer = await n.ask(
            b"POST http://%b/ HTTP/1.1\r\nHost: %b\r\n%b\r\nabc" % (place, place, line)
        )
        assert answer.status in (400, 501)
        assert answer.problem["reason"] == "malformed"
        assert n.peers == []


@pytest.mark.parametrize(
    "body", [b"3\nabc\r\n", b"x\r\n", b"-1\r\n", b"3\r\nabcd\r\n", b"1" * 300, b"0\r\nX\n\r\n"]
)
async def test_bad_chunks_of_a_request_end_it(tmp_path: Path, body: bytes) -> None:
    async with node(tmp_path) as n:
        seen: list[bytes] = []

        async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            _, found = await read_request(reader)
            seen.append(found)

        port = await ready(n, count)
        answer = await n.ask(
            f"POST http://stock.acme.net:{port}/ HTTP/1.1\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
            + body
        )
        assert answer.status == 400
        assert seen == []


# Much data


async def test_a_big_answer_waits_for_a_slow_reader_and_takes_no_memory(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        size, sent = 64 << 20, 0

        async def big(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            while sent < size:
                writer.write(b"x" * (1 << 16))
                sent += 1 << 16
                await writer.drain()

        port = await ready(n, big)
        reader, writer = await n.connect()
        writer.write(get(f"stock.acme.net:{port}/"))
        await reader.readuntil(b"\r\n\r\n")
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.2)
        assert sent < 24 << 20, "what is under way is bounded by sockets and 256 KiB"
        left = size
        while left:
            left -= len(await reader.read(1 << 20))
        writer.close()


async def test_a_big_upload_arrives_whole(tmp_path: Path) -> None:
    async with node(tmp_path) as n:

        async def digest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            _, body = await read_request(reader)
            said = hashlib.sha256(body).hexdigest().encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n" + said)
            await writer.drain()

        port = await ready(n, digest)
        data = bytes(range(256)) * (16 << 10)
        reader, writer = await n.connect()
        writer.write(
            f"PUT http://stock.acme.net:{port}/ HTTP/1.1\r\n"
            f"Content-Length: {len(data)}\r\n\r\n".encode()
        )
        writer.write(data)
        answer = await read_answer(reader)
        assert answer.body.decode() == hashlib.sha256(data).hexdigest()
        writer.close()


@pytest.mark.slow
async def test_a_gigabyte_goes_through_in_bounded_memory(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        size = 1 << 30
        piece = b"x" * (1 << 18)

        async def big(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            for _ in range(size // len(piece)):
                writer.write(piece)
                await writer.drain()

        port = await ready(n, big)
        reader, writer = await n.connect()
        writer.write(get(f"stock.acme.net:{port}/"))
        await reader.readuntil(b"\r\n\r\n")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        left = size
        while left:
            left -= len(await reader.read(1 << 18))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 24 << 10, f"{grown} KiB, far end and client included"
        writer.close()


async def test_a_client_that_leaves_takes_its_far_end_with_it(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        gone = asyncio.Event()

        async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            await reader.read()
            gone.set()

        port = await ready(n, wait)
        _, writer = await n.connect()
        writer.write(get(f"stock.acme.net:{port}/"))
        await asyncio.sleep(0.1)
        writer.close()
        await asyncio.wait_for(gone.wait(), 5)


async def test_the_echo_of_these_tests_answers_twice(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        port = await ready(n, echo)
        assert [(await n.ask(f"stock.acme.net:{port}/")).status for _ in range(2)] == [200, 200]
