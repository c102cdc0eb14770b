"""Heads and chunks that a proxy reads: nothing that two readers could understand differently."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.net.egress.framing import Chunks, chunk
from edgewise.net.egress.heads import (
    CHUNKED,
    TO_END,
    Malformed,
    read_answer,
    read_request,
)

TOKEN = st.sampled_from(
    [
        b"Host", b"host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"X", b"TE",
        b"Upgrade", b"Expect", b"Proxy-Connection", b"\xff", b"a b", b"",
    ]
)  # fmt: skip
VALUE = st.one_of(
    st.binary(max_size=12),
    st.sampled_from(
        [
            b"a.b", b"a.b:80", b"5", b"0", b"5, 5", b"chunked", b"close", b"keep-alive, X", b"host",
            b"websocket", b"100-continue", b"h2c", b" 5 ", b"\t", b"+5", b"chunked\t",
        ]
    ),
)  # fmt: skip
COLON = st.sampled_from([b":", b": ", b" :"])
END = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\n "])
LINE = st.builds(lambda n, c, v, e: n + c + v + e, TOKEN, COLON, VALUE, END)
FIRST = st.sampled_from(
    [
        b"GET http://a.b/x HTTP/1.1\r\n", b"POST http://a.b:80 HTTP/1.1\r\n",
        b"CONNECT a.b:443 HTTP/1.1\r\n", b"GET /x HTTP/1.0\r\n", b"GET  /x HTTP/1.1\r\n",
        b"GET http://u@a.b/ HTTP/1.1\r\n", b"\r\n", b"GET https://a.b?q HTTP/1.1\r\n",
    ]
)  # fmt: skip


@given(FIRST, st.lists(LINE, max_size=6))
def test_any_request_is_refused_or_goes_on_with_one_meaning(
    first: bytes, lines: list[bytes]
) -> None:
    head = first + b"".join(lines) + b"\r\n"
    if b"\r\n\r\n" not in head:
        return
    try:
        req = read_request(head[: head.index(b"\r\n\r\n") + 4])
    except Malformed:
        return
    if req.method == "CONNECT":
        return
    said = req.rendered()
    _one_meaning(said)
    assert said.lower().count(b"\r\nhost:") == 1
    again = read_request(said.replace(req.path, b"/", 1) if req.path == b"*" else said)
    assert (again.host, again.length, again.path) == (req.host, req.length, req.path)


@given(
    st.sampled_from(
        [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 304\r\n", b"HTTP/1.1 101 S\r\n", b"HTTP/1.1 099\r\n"]
    ),
    st.lists(LINE, max_size=6),
)
def test_any_answer_is_refused_or_goes_on_with_one_meaning(
    first: bytes, lines: list[bytes]
) -> None:
    head = first + b"".join(lines) + b"\r\n"
    if b"\r\n\r\n" not in head:
        return
    try:
        answer = read_answer(head[: head.index(b"\r\n\r\n") + 4], "GET")
    except Malformed:
        return
    chunked = answer.length in (CHUNKED, TO_END)
    _one_meaning(answer.rendered(chunked=chunked, close=False))


def _one_meaning(head: bytes) -> None:
    lines = head.split(b"\r\n")
    assert lines[-2:] == [b"", b""]
    names = [line.partition(b":")[0].lower() for line in lines[1:-2]]
    assert all(re.fullmatch(rb"[!#$%&'*+.^_`|~0-9a-z-]+", name) for name in names)
    framing = [n for n in names if n in (b"content-length", b"transfer-encoding")]
    assert len(framing) <= 1
    assert b"\n" not in head.replace(b"\r\n", b"")
    assert b"\r" not in head.replace(b"\r\n", b"")
    assert not {b"te", b"trailer", b"keep-alive", b"proxy-connection"} & set(names)


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b"GET http://A.b/x HTTP/1.1\r\nHost: a.B:80\r\n\r\n", ("a.b", 80, True, b"/x")),
        (b"GET http://a.b:8080 HTTP/1.1\r\n\r\n", ("a.b", 8080, False, b"/")),
        (b"GET http://a.b?q=/x HTTP/1.1\r\n\r\n", ("a.b", 80, True, b"/?q=/x")),
        (b"GET https://a.b/ HTTP/1.1\r\n\r\n", ("a.b", 443, False, b"/")),
        (b"GET http://[::1]:81/ HTTP/1.1\r\n\r\n", ("::1", 81, False, b"/")),
        (b"GET /x HTTP/1.1\r\nHost: a.b:99\r\n\r\n", ("a.b", 99, False, b"/x")),
        (b"CONNECT a.b:22 HTTP/1.1\r\n\r\n", ("a.b", 22, False, b"")),
    ],
)
def test_every_form_of_target_is_read(head: bytes, found: object) -> None:
    req = read_request(head)
    assert (req.host, req.port, req.default_port, req.path) == found


@pytest.mark.parametrize(
    "head",
    [
        b"GET http://a.b/x HTTP/1.1\r\nHost: a.c\r\n\r\n",
        b"GET http://a.b:81/x HTTP/1.1\r\nHost: a.b\r\n\r\n",
        b"GET http://user@a.b/ HTTP/1.1\r\n\r\n",
        b"GET http://a.b#x/ HTTP/1.1\r\n\r\n",
        b"GET http://a.b:0/ HTTP/1.1\r\n\r\n",
        b"GET http://a.b:70000/ HTTP/1.1\r\n\r\n",
        b"GET http:///x HTTP/1.1\r\n\r\n",
        b"GET http://127.1/ HTTP/1.1\r\n\r\n",
        b"GET ftp://a.b/ HTTP/1.1\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: a.b\r\n\r\n",
        b"GET /x HTTP/1.1\r\n\r\n",
        b"CONNECT a.b HTTP/1.1\r\n\r\n",
        b"CONNECT a.b:22 HTTP/1.1\r\nHost: a.c:22\r\n\r\n",
        b"CONNECT a.b:22 HTTP/1.1\r\nContent-Length: 3\r\n\r\n",
        b"GET http://a.b/ HTTP/1.2\r\n\r\n",
        b"GET http://a.b/\tHTTP/1.1\r\n\r\n",
        b"GET http://a.b/\x7f HTTP/1.1\r\n\r\n",
        b"GET http://a.b/ HTTP/1.1\r\nExpect: something\r\n\r\n",
    ],
)
def test_a_target_that_is_not_clear_is_refused(head: bytes) -> None:
    with pytest.raises(Malformed):
        read_request(head)


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=6), st.data())
def test_chunks_are_read_the_same_however_they_are_cut(
    pieces: list[bytes], data: st.DataObject
) -> None:
    wire = b"".join(chunk(piece, last=False) for piece in pieces) + b"0\r\nX: y\r\n\r\nnext"
    chunks, payload, rest = Chunks(), b"", b""
    while wire:
        size = data.draw(st.integers(1, len(wire)))
        found, rest = chunks.feed(wire[:size])
        payload += found
        wire = wire[size:]
        if chunks.done:
            break
    assert chunks.done
    assert payload == b"".join(pieces)
    assert (rest + wire) == b"next"


@given(st.binary(max_size=80))
def test_any_bytes_as_chunks_end_in_payload_or_refusal(data: bytes) -> None:
    chunks = Chunks()
    try:
        payload, _ = chunks.feed(data)
    except Malformed:
        return
    assert len(payload) <= len(data)


def test_the_cut_chunks_above_do_reach_the_end() -> None:
    chunks = Chunks()
    assert chunks.feed(b"3\r\nabc\r\n0\r\n\r\nrest") == (b"abc", b"rest")
    assert chunks.done
