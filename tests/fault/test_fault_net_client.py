"""The client against servers that hang, lie, break off, trickle or vanish; plain loopback."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgewise.model.errors import BadUsage, EdgewiseError, NotFound, TryLater, Untrusted
from edgewise.net import client as under_test
from edgewise.net.client import Client, Endpoint, HttpSource, SyncLine
from edgewise.net.http1 import ClosedEarly
from edgewise.protocol.codec import encode
from edgewise.protocol.sync import SyncReply, SyncRequest

Answer = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Far:
    """A server that answers each request head with ``answer``."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.connections = 0
        self.requests: list[bytes] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        head += await reader.readexactly(int(line.partition(b":")[2]))
                self.requests.append(head)
                await self.answer(head, reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def far(answer: Answer) -> AsyncIterator[Far]:
    made = Far(answer)
    server = await asyncio.start_server(made._serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()


def says(*data: bytes, close: bool = False) -> Answer:
    async def answer(_: bytes, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"".join(data))
        if close:
            await writer.drain()
            writer.close()

    return answer


async def silent(_: bytes, reader: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
    await reader.read(1)


def ranged(content: bytes, *, ignores: bool = False) -> Answer:
    async def answer(head: bytes, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        start, end, total = 0, len(content), len(content)
        asked = b"range: bytes=" in head
        for line in head.split(b"\r\n"):
            if line.startswith(b"range: bytes="):
                first, _, last = line.removeprefix(b"range: bytes=").partition(b"-")
                start, end = int(first), min(int(last) + 1 if last else total, total)
        if ignores or not asked:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total + content)
        elif start >= total:
            writer.write(
                b"HTTP/1.1 416 No\r\ncontent-range: bytes */%d\r\ncontent-length: 0\r\n\r\n" % total
            )
        else:
            part = content[start:end]
            writer.write(
                b"HTTP/1.1 206 P\r\ncontent-range: bytes %d-%d/%d\r\ncontent-length: %d\r\n\r\n"
                % (start, end - 1, total, len(part))
                + part
            )

    return answer


async def whole(client: Client, start: int = 0, at_most: int = 1 << 20) -> bytes:
    pieces = HttpSource(client).read("objects/aa/bb.zst", at_most=at_most, start=start)
    return b"".join([piece async for piece in pieces])


async def test_a_connection_is_kept_and_used_again() -> None:
    async with far(says(OK)) as there, Client(Endpoint((there.url,))) as client:
        for _ in range(5):
            assert (await client.request("GET", "/")).body == b"ok"
        assert there.connections == 1


async def test_no_more_than_two_connections_are_opened() -> None:
    async def slow(_: bytes, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.01)
        writer.write(OK)

    async with far(slow) as there, Client(Endpoint((there.url,))) as client:
        await asyncio.gather(*(client.request("GET", "/") for _ in range(10)))
        assert there.connections == 2


async def test_a_server_that_says_nothing_costs_the_timeout_and_no_more() -> None:
    async with far(silent) as there, Client(Endpoint((there.url,))) as client:
        with pytest.raises(TryLater, match=r"within 0\.05 s"):
            await client.request("POST", "/v1/sync", b"{}", timeout=0.05)


async def test_a_port_where_nobody_listens_is_tried_later() -> None:
    async with far(silent) as there:
        url = there.url
    async with Client(Endpoint((url,))) as client:
        with pytest.raises(TryLater, match="cannot reach"):
            await client.request("GET", "/")


async def test_the_next_url_is_taken_when_the_first_is_down() -> None:
    async with far(silent) as gone:
        pass
    async with far(says(OK)) as there, Client(Endpoint((gone.url, there.url))) as client:
        assert (await client.request("GET", "/")).status == 200


async def test_a_kept_connection_that_the_server_closed_is_no_error_for_a_get() -> None:
    async with far(says(OK, close=True)) as there, Client(Endpoint((there.url,))) as client:
        for _ in range(3):
            await client.request("GET", "/")
            await asyncio.sleep(0.01)
        assert there.connections == 3


async def test_a_connection_closed_at_once_is_told_apart() -> None:
    async with far(says(b"", close=True)) as there, Client(Endpoint((there.url,))) as client:
        with pytest.raises(ClosedEarly):
            await client.request("POST", "/", b"x")


async def test_an_answer_that_is_too_long_is_refused_before_it_is_read() -> None:
    huge = b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n" + b"x" * 1000
    async with far(says(huge)) as there, Client(Endpoint((there.url,))) as client:
        with pytest.raises(Untrusted, match="99999999999 bytes"):
            await client.request("GET", "/")


async def test_chunks_without_end_are_cut_at_the_bound() -> None:
    async def endless(_: bytes, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
            await writer.drain()

    async with far(endless) as there, Client(Endpoint((there.url,))) as client:
        with pytest.raises(Untrusted, match="exceeds 100000 bytes"):
            await whole(client, at_most=100_000)
        with pytest.raises(Untrusted, match="exceeds"):
            await client.request("GET", "/", at_most=5000)


CONTENT = bytes(range(256)) * 1000


@pytest.mark.parametrize("ignores", [False, True])
@pytest.mark.parametrize("start", [0, 1, 70_000, len(CONTENT) - 1])
async def test_a_download_goes_on_where_it_was(start: int, *, ignores: bool) -> None:
    there_is = ranged(CONTENT, ignores=ignores)
    async with far(there_is) as there, Client(Endpoint((there.url,))) as client:
        assert await whole(client, start) == CONTENT[start:]


@pytest.mark.parametrize("ignores", [False, True])
@pytest.mark.parametrize(("start", "end"), [(0, 1), (7, 70_000), (250_000, 256_000)])
async def test_a_part_of_a_file_comes_alone(start: int, end: int, *, ignores: bool) -> None:
    there_is = ranged(CONTENT, ignores=ignores)
    async with far(there_is) as there, Client(Endpoint((there.url,))) as client:
        for _ in range(3):
            pieces = client.stream("/x", start, end=end, at_most=end - start)
            assert b"".join([piece async for piece in pieces]) == CONTENT[start:end]
        assert await whole(client) == CONTENT
        assert ignores or there.connections == 1


async def test_more_than_the_part_that_was_asked_for_is_not_taken() -> None:
    lie = b"HTTP/1.1 206 P\r\ncontent-range: bytes 0-9/10\r\ncontent-length: 10\r\n\r\n0123456789"
    async with far(says(lie)) as there, Client(Endpoint((there.url,))) as client:
        with pytest.raises(Untrusted, match="at most 5 are accepted"):
            _ = [piece async for piece in client.stream("/x", 0, end=5, at_most=5)]


async def test_a_download_that_was_complete_already_brings_nothing() -> None:
    async with far(ranged(CONTENT)) as there, Client(Endpoint((there.url,))) as client:
        assert await whole(client, len(CONTENT)) == b""
        with pytest.raises(Untrusted):
            await whole(client, len(CONTENT) + 1)
        assert await whole(client) == CONTENT
        assert there.connections <= 2


async def test_another_range_than_was_asked_for_is_not_taken() -> None:
    lie = b"HTTP/1.1 206 P\r\ncontent-range: bytes 0-1/10\r\ncontent-length: 2\r\n\r\nok"
    async with far(says(lie)) as there, Client(Endpoint((there.url,))) as client:
        with pytest.raises(Untrusted, match="another range"):
            await whole(client, 5)


async def test_a_download_that_breaks_off_has_given_what_came() -> None:
    cut = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello"
    async with far(says(cut, close=True)) as there, Client(Endpoint((there.url,))) as client:
        pieces = client.stream("/x")
        assert await anext(pieces) == b"hello"
        with pytest.raises(TryLater, match="5 bytes before the end"):
            await anext(pieces)


async def test_a_missing_object_is_not_found() -> None:
    answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno"
    async with far(says(answer)) as there, Client(Endpoint((there.url,))) as client:
        with pytest.raises(NotFound):
            await whole(client)


async def test_a_download_that_only_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """TUF's slow-retrieval attack."""

    async def trickle(_: bytes, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        for _n in range(1000):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    monkeypatch.setattr(under_test, "STALL_S", 0.3)
    async with far(trickle) as there, Client(Endpoint((there.url,))) as client:
        with pytest.raises(TryLater, match="bytes came in"):
            await whole(client)


async def test_a_download_that_stops_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stops(_: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhello")
        await reader.read(1)

    monkeypatch.setattr(under_test, "STALL_S", 0.1)
    async with far(stops) as there, Client(Endpoint((there.url,))) as client:
        with pytest.raises(TryLater, match="nothing came"):
            await whole(client)


async def test_an_abandoned_download_frees_its_connection() -> None:
    async with far(ranged(CONTENT)) as there, Client(Endpoint((there.url,))) as client:
        for _ in range(5):
            pieces = client.stream("/x")
            await anext(pieces)
            await pieces.aclose()  # type: ignore[attr-defined]
        assert (await client.request("GET", "/")).body == CONTENT


async def test_a_cancelled_poll_frees_its_connection() -> None:
    async with far(silent) as there, Client(Endpoint((there.url,))) as client:
        for _ in range(5):
            poll = asyncio.create_task(client.request("POST", "/v1/sync", b"{}"))
            await asyncio.sleep(0.01)
            poll.cancel()
            with pytest.raises(asyncio.CancelledError):
                await poll
        there.answer = says(OK)
        assert (await client.request("GET", "/")).body == b"ok"


async def test_a_poll_brings_a_reply_or_nothing() -> None:
    body = encode(SyncReply(acknowledged=7))
    answers = [
        b"HTTP/1.1 204 No\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body),
    ]

    async def answer(_: bytes, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = answers.pop(0)
        writer.write(head + (body if b"200" in head else b""))

    async with far(answer) as there, Client(Endpoint((there.url,))) as client:
        line = SyncLine(client)
        assert await line.exchange(SyncRequest(), timedelta(seconds=1)) is None
        reply = await line.exchange(SyncRequest(channel=3), timedelta(seconds=1))
        assert reply is not None
        assert reply.acknowledged == 7
        assert b'"channel":3' in there.requests[1]


@pytest.mark.parametrize("path", ["no-slash", "/a b", "/a\r\nx: y", "/\x00", "/é"])
async def test_a_path_cannot_smuggle_a_header(path: str) -> None:
    async with Client(Endpoint(("http://127.0.0.1:1",))) as client:
        with pytest.raises(BadUsage):
            await client.request("GET", path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.sampled_from(
            [b"HTTP/1.1 200 OK\r\n", b"content-length: 3\r\n", b"\r\n", b"abc", b"\xff\0", b"3\r\n"]
        )
        | st.binary(max_size=30),
        max_size=10,
    )
)
def test_a_server_that_sends_anything_ends_in_an_answer_or_an_error(parts: list[bytes]) -> None:
    async def once() -> str:
        async with far(says(*parts, close=True)) as there, Client(Endpoint((there.url,))) as client:
            try:
                return str((await client.request("GET", "/", timeout=2, at_most=100)).status)
            except EdgewiseError as error:
                return type(error).__name__

    outcome = asyncio.run(once())
    assert outcome.startswith("2") or outcome in {
        "Untrusted",
        "TryLater",
        "ClosedEarly",
        "NotFound",
        "Forbidden",
        "Conflict",
        "BadUsage",
        "NeedsPerson",
    }
