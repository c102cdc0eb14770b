"""Lines of held polls: what they read themselves, and what a caller cannot make them do."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.net.poll_lines import AHEAD, BODY, HEAD, Poll, PollLine, PollLines, poll_in
from edgewise.net.routes import Bytes
from edgewise.net.strangers import Bounds, Strangers
from edgewise.testing.clock import ManualClock

PATHS = ("/v1/sync", "/v1/other")


def poll(body: bytes = b"{}", more: bytes = b"", path: str = "/v1/sync") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: hub\r\n%bContent-Length: %d\r\n\r\n%b" % (
        path.encode(), more, len(body), body,
    )  # fmt: skip


@given(st.binary(max_size=300), st.sampled_from(PATHS), st.binary(max_size=30))
def test_a_poll_is_found_wherever_its_bytes_are_cut(body: bytes, path: str, after: bytes) -> None:
    whole = poll(body, path=path)
    for end in range(len(whole)):
        assert poll_in(whole[:end], PATHS) == ""
    found = poll_in(whole + after, PATHS)
    assert found == (path, len(whole) - len(body), len(whole))


@pytest.mark.parametrize(
    "odd",
    [
        b"GET /v1/health HTTP/1.1\r\n\r\n",
        b"POST /v1/sync?x=1 HTTP/1.1\r\n",
        b"POST /v1/syncs HTTP/1.1\r\n",
        b"POST /v1/sync HTTP/1.0\r\n",
        b"POST /v1/sync HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /v1/sync HTTP/1.1\r\nHost: hub\r\n\r\n",
        poll(more=b"Authorization: Bearer x\r\n"),
        poll(more=b"Transfer-Encoding: chunked\r\n"),
        poll(more=b"Content-Encoding: gzip\r\n"),
        poll(more=b"Expect: 100-continue\r\n"),
        poll(more=b"Connection: close\r\n"),
        poll(more=b"Content-Length: 7\r\n"),
        poll(more=b"content-length: 2\r\n"),
        poll(more=b"Host: other\r\n"),
        poll(more=b"Accept: a\r\n b\r\n"),
        poll(more=b"Accept : a\r\n"),
        poll(more=b"Accept: a\nAuthorization: Bearer x\r\n"),
        poll(more=b"Accept: \0\r\n"),
        poll(more=b"Accept\r\n"),
        poll().replace(b"Length: 2", b"Length: +2"),
        poll().replace(b"Length: 2", b"Length: 2, 2"),
        poll().replace(b"Length: 2", b"Length: 0x2"),
        poll().replace(b"Length: 2", b"Length: "),
        poll(b"x" * (BODY + 1)),
        poll(more=b"Accept: " + b"a" * HEAD + b"\r\n"),
        b"POST /v1/sync HTTP/1.1\r\n" + b"a" * HEAD,
        b"\x16\x03\x01",
        b"\r\n",
    ],
)
def test_whatever_is_not_plainly_a_poll_is_the_frameworks(odd: bytes) -> None:
    assert poll_in(odd, PATHS) == "other"


@given(st.binary(max_size=200))
def test_no_bytes_confuse_the_reader(data: bytes) -> None:
    poll_in(data, PATHS)
    found = poll_in(b"POST /v1/sync HTTP/1.1\r\n" + data, PATHS)
    assert found in ("", "other") or b"\r\n\r\n" in data


class Wire(asyncio.Transport):
    """A caller that reads nothing, unless told."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.ended = ""
        self.protocol: Any = None
        self.fields = {"subject": "a node"}

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.fields if name == "peercert" else default

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.ended = self.ended or "closed"

    def abort(self) -> None:
        self.ended = "aborted"

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol


class Framework:
    """Takes what it is given."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.received = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data


class Desk:
    """Lines whose polls are answered when the test says so."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.asked: list[Poll] = []
        self.answers: list[asyncio.Future[Bytes | None]] = []
        self.framework = Framework()
        self.lines = PollLines(
            PATHS, self.answer, lambda: self.framework, self.clock, Strangers(Bounds(), 1024)
        )

    async def answer(self, poll: Poll) -> Bytes | None:
        self.asked.append(poll)
        answer: asyncio.Future[Bytes | None] = asyncio.get_running_loop().create_future()
        self.answers.append(answer)
        return await answer

    def connect(self) -> tuple[PollLine, Wire]:
        line, wire = self.lines.line(), Wire()
        line.connection_made(wire)
        return line, wire

    async def say(self, answer: Bytes | None) -> None:
        self.answers.pop(0).set_result(answer)
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
async def desk() -> Desk:
    return Desk()


async def test_polls_sent_together_are_answered_one_after_the_other(desk: Desk) -> None:
    line, wire = desk.connect()
    line.data_received(poll(b"first") + poll(b"second"))
    await settle()
    assert [p.raw for p in desk.asked] == [b"first"]
    await desk.say(None)
    assert [p.raw for p in desk.asked] == [b"first", b"second"]
    await desk.say(Bytes(b"news"))
    assert wire.written.startswith(b"HTTP/1.1 204 No Content\r\nDate: Thu, 01 Jan 2026")
    assert wire.written.endswith(b"Content-Length: 4\r\n\r\nnews")


async def test_whoever_sends_far_ahead_is_cut_off(desk: Desk) -> None:
    line, wire = desk.connect()
    line.data_received(poll())
    await settle()
    line.data_received(b"x" * AHEAD)
    assert wire.ended == ""
    line.data_received(b"x")
    assert wire.ended == "aborted"


async def test_whoever_does_not_read_its_answer_gets_no_second_one(desk: Desk) -> None:
    line, _ = desk.connect()
    line.data_received(poll() + poll())
    await settle()
    line.pause_writing()
    await desk.say(Bytes(b"x" * 9000))
    assert len(desk.asked) == 1
    line.resume_writing()
    await settle()
    assert len(desk.asked) == 2


async def test_another_call_gets_the_framework_with_all_its_bytes(desk: Desk) -> None:
    line, wire = desk.connect()
    line.data_received(poll())
    await settle()
    await desk.say(None)
    line.data_received(b"GE")
    assert desk.framework.received == b"GE"
    assert wire.protocol is desk.framework
    assert desk.framework.transport is wire
    assert len(desk.lines) == 0


async def test_a_call_behind_a_poll_waits_for_its_answer(desk: Desk) -> None:
    line, _ = desk.connect()
    line.data_received(poll() + b"GET / HTTP/1.1\r\n\r\n")
    await settle()
    assert desk.framework.received == b""
    await desk.say(None)
    assert desk.framework.received == b"GET / HTTP/1.1\r\n\r\n"


async def test_a_line_that_asks_nothing_for_long_is_ended_and_a_held_one_is_not(
    desk: Desk,
) -> None:
    _, silent = desk.connect()
    slow_line, slow = desk.connect()
    slow_line.data_received(b"POST /v1/s")
    held_line, held = desk.connect()
    held_line.data_received(poll())
    await settle()
    desk.clock.advance(timedelta(seconds=300))
    desk.lines.sweep(300.0)
    assert [wire.ended for wire in (silent, slow, held)] == ["", "", ""]
    desk.clock.advance(timedelta(seconds=1))
    desk.lines.sweep(300.0)
    assert [wire.ended for wire in (silent, slow, held)] == ["aborted", "aborted", ""]


@pytest.mark.parametrize("status", [401, 413])
async def test_a_line_ends_with_a_refusal_that_a_new_one_may_mend(desk: Desk, status: int) -> None:
    line, wire = desk.connect()
    line.data_received(poll())
    await settle()
    await desk.say(Bytes(b"{}", "application/problem+json", status, {"Retry-After": "5"}))
    assert b"\r\nConnection: close\r\n" in wire.written
    assert b"\r\nRetry-After: 5\r\n" in wire.written
    assert wire.ended == "closed"


async def test_an_answer_to_somebody_who_left_is_answered_to_nobody(desk: Desk) -> None:
    line, wire = desk.connect()
    line.data_received(poll())
    await settle()
    line.connection_lost(None)
    await desk.say(Bytes(b"news"))
    assert wire.written == b""
    assert len(desk.lines) == 0


async def test_closing_answers_what_is_held_and_ends_the_rest(desk: Desk) -> None:
    line, held = desk.connect()
    line.data_received(poll())
    _, idle = desk.connect()
    await settle()
    closing = asyncio.create_task(desk.lines.close(5.0))
    await settle()
    assert (idle.ended, held.ended) == ("closed", "")
    await desk.say(None)
    assert held.written.startswith(b"HTTP/1.1 204")
    assert held.ended == "closed"
    await closing


async def test_closing_gives_up_what_does_not_finish(desk: Desk) -> None:
    line, held = desk.connect()
    line.data_received(poll())
    await settle()
    await desk.lines.close(0.0)
    await settle()
    assert held.ended == "aborted"
    assert desk.answers[0].cancelled()


async def test_a_line_keeps_no_second_copy_of_the_certificate(desk: Desk) -> None:
    _, wire = desk.connect()
    assert wire.fields == {}
