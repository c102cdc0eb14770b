"""What a hostile or broken server can send: an answer, a refusal, never a hang or a crash."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.model.errors import EdgewiseError, TryLater, Untrusted
from edgewise.net.http1 import HEAD, ClosedEarly, Head, body_of, read_head

AT_MOST = 1000


async def read(data: bytes) -> tuple[Head, bytes]:
    reader = asyncio.StreamReader(limit=64 << 10)
    reader.feed_data(data)
    reader.feed_eof()
    head = await read_head(reader)
    return head, b"".join([piece async for piece in body_of(reader, head, at_most=AT_MOST)])


async def test_an_answer_with_a_length_is_read() -> None:
    head, body = await read(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b \r\n\r\nhello")
    assert (head.status, head.headers["x-a"], body) == (200, "b", b"hello")


async def test_a_chunked_answer_is_read() -> None:
    _, body = await read(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5\r\nhello\r\nA;x=y\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
    )
    assert body == b"hello0123456789"


async def test_interim_answers_are_passed_over_but_not_for_ever() -> None:
    final = b"HTTP/1.1 204 No Content\r\n\r\n"
    head, _ = await read(b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + final)
    assert head.status == 204
    with pytest.raises(Untrusted, match="interim"):
        await read(b"HTTP/1.1 100 Continue\r\n\r\n" * 100 + final)


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n folded\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nBad Name: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nbody without a length",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 4000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFF\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"a" * 70_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"T: x\r\n" * 100,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * HEAD + b"\r\n",
    ],
)
async def test_what_is_not_plainly_right_is_not_trusted(data: bytes) -> None:
    with pytest.raises(Untrusted):
        await read(data)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ],
)
async def test_an_answer_that_breaks_off_may_work_later(data: bytes) -> None:
    with pytest.raises(TryLater) as caught:
        await read(data)
    assert not isinstance(caught.value, ClosedEarly)


async def test_a_connection_that_ends_before_an_answer_is_told_apart() -> None:
    with pytest.raises(ClosedEarly):
        await read(b"")


_PARTS = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"Content-Length: 7\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"\r\n",
        b"7\r\n",
        b"0\r\n\r\n",
        b"1234567",
        b"\0",
        b"\xff\n",
    ]
)


def _outcome(data: bytes) -> str:
    async def bounded() -> bytes:
        async with asyncio.timeout(5):
            return (await read(data))[1]

    try:
        body = asyncio.run(bounded())
    except EdgewiseError as error:
        return type(error).__name__
    assert len(body) <= AT_MOST
    return "read"


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=400), st.lists(_PARTS, max_size=14).map(b"".join)))
def test_whatever_the_server_sends_ends_in_an_answer_or_one_of_our_errors(data: bytes) -> None:
    assert _outcome(data) in {"read", "Untrusted", "TryLater", "ClosedEarly"}


def test_the_random_answers_can_be_good_ones_too() -> None:
    good: Callable[[list[bytes]], bytes] = b"".join
    start = [b"HTTP/1.1 200 OK\r\n", b"Content-Length: 7\r\n", b"\r\n", b"1234567"]
    assert _outcome(good(start)) == "read"
    assert _outcome(good(start[:-1])) == "TryLater"
    assert _outcome(good(start[1:])) == "Untrusted"
