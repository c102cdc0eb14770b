"""The bad network itself: it must do to bytes what tests think it does."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from edgewise.model.errors import TryLater
from edgewise.net.client import Client, Endpoint
from edgewise.testing.network import Line

BODY = b"x" * 200_000


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY)
    except (asyncio.IncompleteReadError, OSError):
        pass
    finally:
        writer.close()


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    server = await asyncio.start_server(_answer, "127.0.0.1", 0)
    async with Line.to("127.0.0.1", server.sockets[0].getsockname()[1]) as made:
        yield made
    server.close()


def client_of(line: Line) -> Client:
    return Client(Endpoint((f"http://127.0.0.1:{line.port}",)))


async def test_a_good_line_carries_everything_and_counts_it(line: Line) -> None:
    async with client_of(line) as client:
        assert (await client.request("GET", "/")).body == BODY
    assert line.down.carried > len(BODY)
    assert line.accepted == 1


async def test_a_cut_line_breaks_what_is_open_and_a_mended_one_works_again(line: Line) -> None:
    async with client_of(line) as client:
        await client.request("GET", "/")
        line.cut()
        with pytest.raises(TryLater):
            await client.request("GET", "/", timeout=2)
        line.mend()
        assert (await client.request("GET", "/", timeout=2)).body == BODY


async def test_a_silent_line_holds_bytes_and_lets_them_on(line: Line) -> None:
    async with client_of(line) as client:
        line.drop()
        asked = asyncio.create_task(client.request("GET", "/", timeout=5))
        await asyncio.sleep(0.05)
        assert not asked.done()
        line.flow()
        assert (await asked).body == BODY


async def test_a_line_breaks_at_the_byte_it_was_told(line: Line) -> None:
    line.down.cut_after = 100_000
    got: list[int] = []

    async def download(client: Client) -> None:
        async for piece in client.stream("/"):
            got.append(len(piece))

    async with client_of(line) as client:
        with pytest.raises(TryLater):
            await download(client)
    assert 90_000 < sum(got) < 100_000


async def test_latency_and_rate_take_their_time(line: Line) -> None:
    clock = asyncio.get_running_loop()
    async with client_of(line) as client:
        await client.request("GET", "/")
        line.up.latency = timedelta(seconds=0.1)
        line.down.rate = 1_000_000
        began = clock.time()
        await client.request("GET", "/")
        assert 0.25 < clock.time() - began < 2
