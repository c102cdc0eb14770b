"""One HTTP/2 connection of a local caller: ``h2`` is the state machine (RFC 9113), here are the
tasks and the bounds.

Loaded with the first caller: a node whose workloads ask for nothing does without ``h2``.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final, cast

from h2 import events, exceptions
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.settings import SettingCodes, Settings

from edgewise.host.callers import Peer
from edgewise.model.errors import EdgewiseError
from edgewise.net.workload.http2 import Closed, Listener, Stream

STREAMS: Final = 64
"""Requests at once on one connection: a client holds four for all it can watch."""
HEADERS: Final = 16 << 10
"""Bytes of one request's headers."""
FRAME: Final = 16_384
"""Bytes of one frame (SETTINGS_MAX_FRAME_SIZE at its least)."""
WINDOW: Final = 65_535
"""Bytes of requests in flight on one connection."""
UNREAD: Final = 1 << 20
"""Bytes of answers that a caller has not read: it is hung up on, for the answers go on."""
CONTROL: Final = 1000
CONTROL_S: Final = 10.0
"""Resets, pings and settings in so many seconds: nobody needs more."""
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class FrameSizes:
    """Follows the lengths of incoming frames (RFC 9113, section 4.1).

    ``h2`` keeps a frame until it is whole before it looks at its length, which can be 16 MiB.
    """

    def __init__(self) -> None:
        self._skip = len(_PREFACE)
        self._head = b""

    def fit(self, data: bytes) -> bool:
        """Whether every frame that begins in the data is as long as we allow at most."""
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
                continue
            piece = data[at : at + 9 - len(self._head)]
            self._head += piece
            at += len(piece)
            if len(self._head) == 9:
                self._skip = int.from_bytes(self._head[:3], "big")
                self._head = b""
                if self._skip > FRAME:
                    return False
        return True


class Connection(asyncio.Protocol):
    """Made by ``http2.Listener`` for each caller."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._streams: dict[int, tuple[Stream, asyncio.Task[None]]] = {}
        self._paused = False
        self._sizes = FrameSizes()
        self._since, self._control = 0.0, 0
        self.peer: Peer = cast(Peer, None)
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: STREAMS,
                SettingCodes.MAX_HEADER_LIST_SIZE: HEADERS,
                SettingCodes.INITIAL_WINDOW_SIZE: WINDOW,
            },
        )
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self._h2.local_settings = settings

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        try:
            self.peer = self._listener.admit(self, self._transport)
        except EdgewiseError as error:
            self._listener.log.event("caller refused", "warning", problem=str(error))
            self._transport.abort()
            return
        asyncio.get_running_loop().add_reader(self.peer.pidfd, self._transport.abort)
        self._h2.initiate_connection()
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        for _, task in self._streams.values():
            task.cancel()
        self._streams.clear()
        if self.peer is not None:
            asyncio.get_running_loop().remove_reader(self.peer.pidfd)
            self._listener.leave(self)
            self.peer.close()

    def data_received(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        if not self._sizes.fit(data):
            self._listener.log.event("not HTTP/2", "warning", problem="a frame is too large")
            self.hang_up()
            return
        try:
            found = self._h2.receive_data(data)
        except (exceptions.H2Error, ValueError, KeyError) as error:
            # ValueError, KeyError: frames that hpack and hyperframe do not take either.
            self._listener.log.event("not HTTP/2", "warning", problem=str(error)[:200])
            self._flush()
            self._transport.close()
            return
        for event in found:
            self._take(event)
        self._flush()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._paused = True
        self._transport.pause_reading()  # or pings would go on to fill what is not read

    def resume_writing(self) -> None:
        self._paused = False
        self._transport.resume_reading()
        self._wake()

    # Frames

    def _take(self, event: events.Event) -> None:
        match event:
            case events.RequestReceived():
                self._begin(event)
            case events.DataReceived():
                self._feed(event.stream_id or 0, event.data or b"", event.flow_controlled_length)
            case events.StreamEnded() if event.stream_id in self._streams:
                self._streams[event.stream_id][0].feed(b"", 0)
            case events.StreamReset():
                self._count()
                _, task = self._streams.pop(event.stream_id or 0, (None, None))
                if task is not None:
                    task.cancel()
            case events.WindowUpdated():
                self._wake(event.stream_id or 0)
            case events.RemoteSettingsChanged() | events.PingReceived():
                self._count()
                self._wake()
            case events.ConnectionTerminated() if not self._streams:
                self._transport.close()
            case _:
                pass  # acknowledgements, priorities, trailers: nothing follows from them

    def _feed(self, number: int, data: bytes, flow: int | None) -> None:
        if number in self._streams and data:
            self._streams[number][0].feed(bytes(data), flow or 0)
        elif flow:
            self.consumed(number, flow)

    def _begin(self, event: events.RequestReceived) -> None:
        number = event.stream_id or 0
        headers = {_text(name): _text(value) for name, value in event.headers or ()}
        stream = Stream(self, number, headers)
        task = asyncio.ensure_future(self._serve(stream))
        self._streams[number] = (stream, task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._listener.log.event("request failed", "error", problem=repr(error)[:500])

    async def _serve(self, stream: Stream) -> None:
        try:
            await self._listener.handler(stream)
        except Closed:
            pass
        finally:
            if self._streams.pop(stream.number, None) is not None:
                with contextlib.suppress(exceptions.H2Error):
                    # A caller that has not ended its request is told that we want no more.
                    self._h2.reset_stream(stream.number, ErrorCodes.NO_ERROR)
            self._flush()

    def _count(self) -> None:
        now = self._listener.clock.monotonic()
        if now - self._since > CONTROL_S:
            self._since, self._control = now, 0
        self._control += 1
        if self._control > CONTROL and not self._transport.is_closing():
            self._h2.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
            self._flush()
            self._transport.close()

    def _wake(self, number: int = 0) -> None:
        chosen = [self._streams[number]] if number in self._streams else self._streams.values()
        for stream, _ in chosen:
            stream.may_write.set()

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data and not self._transport.is_closing():
            self._transport.write(data)
            if self._transport.get_write_buffer_size() > UNREAD:
                self._transport.abort()

    # What streams do

    def consumed(self, number: int, flow: int) -> None:
        """Let the caller send so much more."""
        with contextlib.suppress(exceptions.H2Error):
            self._h2.acknowledge_received_data(flow, number)
        self._flush()

    def room(self, number: int) -> int:
        """How much may be sent now. Raises Closed."""
        if self._paused:
            return 0
        try:
            window = self._h2.local_flow_control_window(number)
        except exceptions.H2Error as error:
            raise Closed from error
        return min(window, self._h2.max_outbound_frame_size)

    def headers(self, number: int, headers: list[tuple[str, str]], *, end: bool) -> None:
        """Raises Closed."""
        try:
            self._h2.send_headers(number, headers, end_stream=end)
        except exceptions.H2Error as error:
            raise Closed from error
        self._flush()

    def data(self, number: int, data: bytes, *, end: bool) -> None:
        """Raises Closed."""
        try:
            self._h2.send_data(number, data, end_stream=end)
        except exceptions.H2Error as error:
            raise Closed from error
        self._flush()

    def hang_up(self) -> None:
        """End it, with a word to the caller."""
        with contextlib.suppress(exceptions.H2Error):
            self._h2.close_connection()
        self._flush()
        self._transport.close()


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
