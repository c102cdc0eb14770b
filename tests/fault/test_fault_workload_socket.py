"""Attacks on the workload socket: what is not HTTP/2, not gRPC, too much, or somebody else's."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spiffe._proto import workload_pb2

from edgewise.host.callers import Facts, Peer
from edgewise.net.workload import http2, http2_connection
from edgewise.net.workload.server import WorkloadServer
from edgewise.protocol.content import WorkloadRegistration
from edgewise.testing.clock import ManualClock
from edgewise.testing.log import ListLog
from edgewise.testing.svids import DeskInProcess, registered, supply

TILL = WorkloadRegistration("till", "/app/till", ("edgewise:app:till",), hint="till")
TILL_ID = "spiffe://eu.acme/app/till"
API = "/SpiffeWorkloadAPI/"
SDS = "/envoy.service.secret.v3.SecretDiscoveryService/"


class Node:
    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.desk = DeskInProcess(folder, self.clock)
        self.svids = supply(self.desk)
        self.app: str | None = "till"
        self.log = ListLog()
        self.server = WorkloadServer(self.svids, Facts(lambda pid: self.app), self.clock, self.log)
        self.socket = str(folder / "w.sock")


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    await node.server.start(node.socket)
    running = asyncio.ensure_future(node.svids.run())
    registered(node.svids, node.desk, TILL)
    yield node
    await node.server.close()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


class Client:
    """A bare HTTP/2 client that does what it is told, also wrong things."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.h2 = H2Connection(H2Configuration(header_encoding="utf-8"))
        self.seen: list[events.Event] = []
        self.data: dict[int, bytes] = {}
        self.headers: dict[int, dict[str, str]] = {}
        self.ended: set[int] = set()

    async def __aenter__(self) -> "Client":
        self.reader, self.writer = await asyncio.open_unix_connection(self._path)
        self.h2.initiate_connection()
        await self.flush()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())
        await self.writer.drain()

    async def ask(self, path: str, *messages: bytes, end: bool = True, **headers: str) -> int:
        """Begin a call; returns its stream."""
        number = self.h2.get_next_available_stream_id()
        head = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "localhost",
            "content-type": "application/grpc",
            "workload.spiffe.io": "true",
        } | {name.replace("_", "-"): value for name, value in headers.items()}
        self.h2.send_headers(number, [(k, v) for k, v in head.items() if v])
        for message in messages:
            self.h2.send_data(number, b"\0" + len(message).to_bytes(4, "big") + message)
        if end:
            self.h2.end_stream(number)
        await self.flush()
        return number

    async def get(self, path: str) -> int:
        number = self.h2.get_next_available_stream_id()
        head = [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "x")]
        self.h2.send_headers(number, head, end_stream=True)
        await self.flush()
        return number

    async def until(self, happened: Callable[[], Any]) -> None:
        """Read until something is so. Raises EOFError when the server hangs up before."""
        async with asyncio.timeout(10):
            while not happened():
                data = await self.reader.read(1 << 16)
                if not data:
                    raise EOFError
                self.take(data)
                await self.flush()

    def take(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            self.seen.append(event)
            match event:
                case events.DataReceived():
                    number = event.stream_id or 0
                    self.data[number] = self.data.get(number, b"") + (event.data or b"")
                    flow = event.flow_controlled_length or 0
                    self.h2.acknowledge_received_data(flow, number)
                case events.ResponseReceived() | events.TrailersReceived():
                    found = {str(k): str(v) for k, v in event.headers or ()}
                    self.headers.setdefault(event.stream_id or 0, {}).update(found)
                case events.StreamEnded() | events.StreamReset():
                    self.ended.add(event.stream_id or 0)

    async def call(self, path: str, message: bytes = b"", **headers: str) -> tuple[str, bytes]:
        """(status, answer) of one call."""
        number = await self.ask(path, message, **headers)
        await self.until(lambda: number in self.ended)
        return self.headers[number].get("grpc-status", "none"), self.data.get(number, b"")

    def said(self, number: int) -> str:
        return self.headers[number].get("grpc-message", "")

    def message(self, number: int) -> bytes | None:
        """The newest whole message of a stream."""
        data, found = self.data.get(number, b""), None
        while len(data) >= 5 + int.from_bytes(data[1:5] or b"\xff" * 4, "big"):
            size = int.from_bytes(data[1:5], "big")
            found, data = data[5 : 5 + size], data[5 + size :]
        return found


def jwt_request(*audience: str, spiffe_id: str = "") -> bytes:
    asked = workload_pb2.JWTSVIDRequest(audience=audience, spiffe_id=spiffe_id)
    return asked.SerializeToString()


# The rules of the Workload API


@pytest.mark.parametrize(
    "method",
    ["FetchX509SVID", "FetchX509Bundles", "FetchJWTSVID", "FetchJWTBundles", "ValidateJWTSVID"],
)
async def test_a_call_without_the_security_header_is_an_invalid_argument(
    node: Node, method: str
) -> None:
    async with Client(node.socket) as client:
        assert (await client.call(API + method, jwt_request("db"), **{"workload.spiffe.io": ""}))[
            0
        ] == "3"
        assert (
            await client.call(API + method, jwt_request("db"), **{"workload.spiffe.io": "True"})
        )[0] == "3"
        assert "security header missing" in client.said(1)


@pytest.mark.parametrize(
    "method",
    ["FetchX509SVID", "FetchX509Bundles", "FetchJWTSVID", "FetchJWTBundles", "ValidateJWTSVID"],
)
async def test_a_caller_without_an_identity_is_denied_with_the_next_move(
    node: Node, method: str
) -> None:
    node.app = None
    token = workload_pb2.ValidateJWTSVIDRequest(audience="db", svid="a.b.c").SerializeToString()
    body = token if method == "ValidateJWTSVID" else jwt_request("db")
    async with Client(node.socket) as client:
        assert (await client.call(API + method, body))[0] == "7"
        assert f"edgewise agent explain {os.getpid()}" in client.said(1)


async def test_an_identity_of_somebody_else_is_denied(node: Node) -> None:
    async with Client(node.socket) as client:
        other = jwt_request("db", spiffe_id="spiffe://eu.acme/app/web")
        assert (await client.call(API + "FetchJWTSVID", other))[0] == "7"
        own = jwt_request("db", spiffe_id=TILL_ID)
        assert (await client.call(API + "FetchJWTSVID", own))[0] == "0"


async def test_several_streams_live_on_one_connection_and_all_hear_of_a_rotation(
    node: Node,
) -> None:
    async with Client(node.socket) as client:
        svids = await client.ask(API + "FetchX509SVID", b"", end=False)
        bundles = await client.ask(API + "FetchX509Bundles", b"")
        keys = await client.ask(API + "FetchJWTBundles", b"")
        await client.until(lambda: all(client.message(n) for n in (svids, bundles, keys)))
        first = client.message(svids)
        await node.clock.run_for(timedelta(minutes=37))
        await client.until(lambda: client.message(svids) != first)
        before = client.message(bundles)
        node.desk.publish(b"another root")
        node.svids.trusting()
        await client.until(lambda: client.message(bundles) != before)
        assert not client.ended


async def test_nothing_is_sent_again_when_nothing_of_the_caller_changed(node: Node) -> None:
    async with Client(node.socket) as client:
        keys = await client.ask(API + "FetchJWTBundles", b"")
        await client.until(lambda: client.message(keys))
        size = len(client.data[keys])
        await node.clock.run_for(timedelta(minutes=37))
        assert (await client.call(API + "FetchJWTSVID", jwt_request("db")))[0] == "0"
        assert len(client.data[keys]) == size


async def test_a_stream_stays_open_through_the_end_of_its_svid(node: Node) -> None:
    async with Client(node.socket) as client:
        svids = await client.ask(API + "FetchX509SVID", b"")
        await client.until(lambda: client.message(svids))
        first = client.message(svids)
        node.desk.away = True
        await node.clock.run_for(timedelta(hours=3))
        fresh = await client.ask(API + "FetchX509SVID", b"")
        await client.flush()
        node.desk.away = False
        await node.clock.run_for(timedelta(minutes=3))
        await client.until(lambda: client.message(svids) != first and client.message(fresh))
        assert not client.ended


async def test_a_stream_ends_when_the_caller_has_no_identity_any_more(node: Node) -> None:
    async with Client(node.socket) as client:
        svids = await client.ask(API + "FetchX509SVID", b"")
        await client.until(lambda: client.message(svids))
        registered(node.svids, node.desk)
        await client.until(lambda: svids in client.ended)
        assert client.headers[svids]["grpc-status"] == "7"


async def test_a_token_that_cannot_be_had_is_unavailable_and_not_an_end(node: Node) -> None:
    node.desk.away = True
    async with Client(node.socket) as client:
        assert (await client.call(API + "FetchJWTSVID", jwt_request("db")))[0] == "14"
        node.desk.away = False
        assert (await client.call(API + "FetchJWTSVID", jwt_request("db")))[0] == "0"


async def test_the_callers_own_deadline_ends_a_call(node: Node) -> None:
    registered(node.svids, node.desk)
    registered(node.svids, node.desk, TILL)
    node.desk.away = True
    async with Client(node.socket) as client:
        assert (await client.call(API + "FetchX509SVID", grpc_timeout="1m"))[0] == "4"


# Not HTTP/2, not gRPC


@pytest.mark.parametrize(
    ("path", "message", "headers", "status"),
    [
        (API + "Nothing", b"", {}, "12"),
        ("/", b"", {}, "12"),
        (API + "FetchJWTSVID", b"\xff", {}, "3"),
        (API + "FetchJWTSVID", b"", {}, "3"),
        (API + "ValidateJWTSVID", b"\x0a\x01a", {}, "3"),
        (SDS + "FetchSecrets", b"\x22\x01x", {}, "3"),
    ],
)
async def test_a_call_that_cannot_be_has_a_status(
    node: Node, path: str, message: bytes, headers: dict[str, str], status: str
) -> None:
    async with Client(node.socket) as client:
        assert (await client.call(path, message, **headers))[0] == status


async def test_a_message_that_is_too_large_compressed_or_cut_off_has_a_status(
    node: Node,
) -> None:
    async with Client(node.socket) as client:
        for framed, status in (
            (b"\0\x7f\xff\xff\xff", "3"),
            (b"\x01\0\0\0\x01x", "12"),
            (b"\0\0\0\0\x09x", "3"),
            (b"\0\0", "3"),
        ):
            number = await client.ask(API + "FetchJWTSVID", end=False)
            client.h2.send_data(number, framed, end_stream=True)
            await client.flush()
            await client.until(lambda n=number: n in client.ended)  # type: ignore[misc]
            assert client.headers[number]["grpc-status"] == status


async def test_what_is_not_grpc_is_told_so(node: Node) -> None:
    async with Client(node.socket) as client:
        number = await client.ask(API + "FetchX509SVID", content_type="text/plain")
        await client.until(lambda: number in client.ended)
        assert client.headers[number][":status"] == "415"


@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64,
        b"\x16\x03\x01\x02\x00\x01",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
        b"\x00\x00\x05\x01\x05\x00\x00\x00\x01\xff\xff\xff\xff\xff",
    ],
)
async def test_what_is_not_http2_is_hung_up_on(node: Node, noise: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(node.socket)
    writer.write(noise)
    async with asyncio.timeout(10):
        await reader.read()
    writer.close()
    async with Client(node.socket) as client:
        assert (await client.call(API + "FetchJWTSVID", jwt_request("db")))[0] == "0"


class _Sink:
    """A transport that swallows everything."""

    def __init__(self, line: socket.socket) -> None:
        self.line, self.closing = line, False

    def get_extra_info(self, name: str) -> Any:
        return self.line

    def write(self, data: bytes) -> None: ...
    def close(self) -> None:
        self.closing = True

    abort = close

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return 0


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAMES = st.lists(
    st.tuples(
        st.integers(0, 12),  # type
        st.integers(0, 255),  # flags
        st.integers(0, 7),  # stream
        st.binary(max_size=60),
    ),
    max_size=12,
)


def framed(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(FRAMES, st.binary(max_size=40))
def test_any_frames_end_in_answers_or_a_hang_up_and_never_in_a_traceback(
    frames: list[tuple[int, int, int, bytes]], tail: bytes
) -> None:
    async def play() -> None:
        log = ListLog()

        async def answer(stream: http2.Stream) -> None:
            while await stream.receive():
                pass
            stream.head([(":status", "200")], end=True)

        listener = http2.Listener(answer, ManualClock(), log)
        ours, theirs = socket.socketpair()
        connection = http2_connection.Connection(listener)
        connection.connection_made(_Sink(ours))  # type: ignore[arg-type]
        connection.data_received(PREFACE + framed(4, 0, 0, b""))
        for frame in frames:
            connection.data_received(framed(*frame))
            await asyncio.sleep(0)
        connection.data_received(tail)
        await asyncio.sleep(0)
        connection.connection_lost(None)
        await asyncio.sleep(0)
        ours.close()
        theirs.close()
        assert not [line for line in log.lines if "request failed" in str(line)]

    asyncio.run(play())


def test_frames_of_the_fuzzer_can_be_a_request() -> None:
    """The sibling: a request among them is begun and answered."""
    begun = []

    async def play() -> None:
        async def answer(stream: http2.Stream) -> None:
            begun.append(stream.headers[":path"])
            stream.head([(":status", "200")], end=True)

        listener = http2.Listener(answer, ManualClock(), ListLog())
        ours, theirs = socket.socketpair()
        connection = http2_connection.Connection(listener)
        connection.connection_made(_Sink(ours))  # type: ignore[arg-type]
        head = b"\x83\x86\x84\x41\x01x"  # POST, http, /, authority x
        connection.data_received(PREFACE + framed(4, 0, 0, b"") + framed(1, 5, 1, head))
        await asyncio.sleep(0)
        connection.connection_lost(None)
        ours.close()
        theirs.close()

    asyncio.run(play())
    assert begun == ["/"]


# Too much


async def test_a_caller_that_does_not_read_costs_no_more_than_one_message(node: Node) -> None:
    async with Client(node.socket) as client:
        number = await client.ask(API + "FetchX509Bundles", b"")
        await client.until(lambda: client.message(number))
        # From here on it reads nothing and opens no window; the node goes on without it.
        for count in range(200):
            node.desk.publish(bytes([count]) * 60_000)
            node.svids.trusting()
            await asyncio.sleep(0)
        buffered = max(c._transport.get_write_buffer_size() for c in node.server._listener._open)
        assert buffered < 1 << 20
    async with Client(node.socket) as client:
        assert (await client.call(API + "FetchJWTSVID", jwt_request("db")))[0] == "0"


async def test_an_answer_goes_out_as_the_caller_makes_room(node: Node) -> None:
    node.desk.publish(b"r" * 400_000)
    node.svids.trusting()
    async with Client(node.socket) as client:
        number = await client.ask(API + "FetchX509Bundles", b"")
        await client.until(lambda: client.message(number))
        assert len(client.message(number) or b"") > 800_000


async def test_more_streams_than_there_may_be_end_the_connection_and_no_other(
    node: Node,
) -> None:
    async with Client(node.socket) as polite:
        svids = await polite.ask(API + "FetchX509SVID", b"")
        await polite.until(lambda: polite.message(svids))
        async with Client(node.socket) as greedy:
            await greedy.until(lambda: greedy.seen)
            greedy.h2.remote_settings.update({3: 10_000})
            greedy.h2.remote_settings.acknowledge()
            for _ in range(http2_connection.STREAMS + 5):
                await greedy.ask(API + "FetchX509SVID", b"", end=False)
            with pytest.raises(EOFError):
                await greedy.until(lambda: False)
        assert (await polite.call(API + "FetchJWTSVID", jwt_request("db")))[0] == "0"
        assert svids not in polite.ended


@pytest.mark.parametrize("flood", ["pings", "resets", "settings"])
async def test_a_flood_of_frames_that_ask_for_nothing_is_hung_up_on(node: Node, flood: str) -> None:
    async with Client(node.socket) as client:

        async def send() -> None:
            for _ in range(http2_connection.CONTROL + 50):
                if flood == "pings":
                    client.h2.ping(b"12345678")
                elif flood == "settings":
                    client.h2.update_settings({4: 65535})
                else:
                    number = await client.ask(API + "FetchX509SVID", b"", end=False)
                    client.h2.reset_stream(number)
                await client.flush()
            await client.until(lambda: False)

        with pytest.raises((EOFError, ConnectionError)):
            await send()


async def test_one_user_cannot_take_every_connection(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2, "CONNECTIONS", 3)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            client = await stack.enter_async_context(Client(node.socket))
            assert (await client.call(API + "FetchJWTSVID", jwt_request("db")))[0] == "0"
        fourth = await stack.enter_async_context(Client(node.socket))
        with pytest.raises((EOFError, ConnectionError)):
            await fourth.call(API + "FetchJWTSVID", jwt_request("db"))
    listener = node.server._listener
    listener._open.clear()


async def test_the_bound_for_one_user_leaves_room_for_others(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2, "CONNECTIONS_OF_ONE", 1)

    def as_user(uid: int) -> None:
        real = Peer.of.__func__  # type: ignore[attr-defined]

        def of(cls: type[Peer], line: socket.socket) -> Peer:
            found = real(cls, line)
            return Peer(found.pid, uid, uid, found.pidfd, found.started, found.program)

        monkeypatch.setattr(Peer, "of", classmethod(of))

    as_user(1000)
    async with Client(node.socket) as first:
        assert (await first.call(API + "FetchJWTSVID", jwt_request("db")))[0] == "0"
        async with Client(node.socket) as second:
            with pytest.raises((EOFError, ConnectionError)):
                await second.call(API + "FetchJWTSVID", jwt_request("db"))
        as_user(1001)
        async with Client(node.socket) as other:
            assert (await other.call(API + "FetchJWTSVID", jwt_request("db")))[0] == "0"


async def test_the_socket_dies_with_the_process_that_made_it(node: Node) -> None:
    """A child connects and hands the socket to us; when it ends, so does what it opened."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        line = socket.socket(socket.AF_UNIX)
        line.connect(node.socket)
        socket.send_fds(theirs, [b"x"], [line.fileno()])
        theirs.recv(1)
        os._exit(0)
    _, (handed, *_), _, _ = socket.recv_fds(ours, 1, 1)
    reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=handed))
    client = Client(node.socket)
    client.reader, client.writer = reader, writer
    client.h2.initiate_connection()
    svids = await client.ask(API + "FetchX509SVID", b"", end=False)
    await client.until(lambda: client.message(svids))
    ours.send(b"x")
    with pytest.raises((EOFError, ConnectionError)):
        await client.until(lambda: False)
    writer.close()
    await asyncio.to_thread(os.waitpid, pid, 0)
    ours.close()
    theirs.close()


@given(st.lists(st.integers(0, 3000), max_size=6), st.lists(st.integers(1, 2000), max_size=30))
def test_the_length_of_a_frame_is_found_however_it_is_cut(
    lengths: list[int], cuts: list[int]
) -> None:
    data = PREFACE + b"".join(framed(0, 0, 1, bytes(n)) for n in lengths)
    bad = data + (http2_connection.FRAME + 1).to_bytes(3, "big") + b"\0" * 6
    for whole, good in ((data, True), (bad, False)):
        sizes, at, fits = http2_connection.FrameSizes(), 0, True
        for cut in (*cuts, len(whole)):
            fits = fits and sizes.fit(whole[at : at + cut])
            at += cut
        assert fits is good


# What people ask


async def test_every_process_may_ask_about_itself(node: Node) -> None:
    import json

    node.app = "other"
    async with Client(node.socket) as client:
        number = await client.get("/v1/whoami")
        await client.until(lambda: number in client.ended)
        found = json.loads(client.data[number])
    assert found["caller"]["pid"] == os.getpid()
    assert found["identities"] == []
    assert found["registrations"][0]["failed"] == [
        {"selector": "edgewise:app:till", "found": "other"}
    ]


async def test_only_root_and_the_agents_user_see_what_the_node_serves(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    async def status(path: str) -> tuple[str, Any]:
        async with Client(node.socket) as client:
            number = await client.get(path)
            await client.until(lambda: number in client.ended)
            return client.headers[number][":status"], json.loads(client.data[number])

    await node.svids.newer_than(2)
    code, found = await status("/v1/identities")
    assert code == "200"
    assert [one["spiffe_id"] for one in found["identities"]] == [TILL_ID]
    assert "key" not in json.dumps(found)
    assert (await status(f"/v1/explain/{os.getpid()}"))[1]["identities"] == [TILL_ID]
    assert (await status("/v1/explain/999999999"))[0] == "403"
    assert (await status("/nothing"))[0] == "404"
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    real = Peer.of.__func__  # type: ignore[attr-defined]

    def of(cls: type[Peer], line: socket.socket) -> Peer:
        found = real(cls, line)
        return Peer(found.pid, 1000, 1000, found.pidfd, found.started, found.program)

    monkeypatch.setattr(Peer, "of", classmethod(of))
    assert (await status("/v1/identities"))[0] == "403"
    assert (await status("/v1/whoami"))[0] == "200"
