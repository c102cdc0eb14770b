"""The socket of an app: read, written, paused. What it all means is the client's business."""

from __future__ import annotations

import socket

from edgewise.net.egress.channel import READ_SIZE, Again
from edgewise.net.egress.ports import Bounds
from edgewise.net.egress.reactor import BROKEN, READ, WRITE, Reactor


class AppSide:
    """A connection of an app; ``Client`` fills in what happens."""

    def __init__(self, reactor: Reactor, sock: socket.socket, bounds: Bounds) -> None:
        self._reactor = reactor
        self._sock = sock
        self._bounds = bounds
        self.fd = sock.fileno()
        self._out = bytearray()
        """Not sent yet, because the app does not take more."""
        self._mask = READ
        self._paused = False
        self.closed = False
        self.deadline = reactor.now + bounds.head_s

    # Filled in by the client

    def _take(self, data: bytes) -> None:
        """The app said this."""
        raise NotImplementedError

    def _ended(self) -> None:
        """The app has no more to say."""
        raise NotImplementedError

    def _is_full(self) -> None:
        """More than ``Bounds.high`` bytes wait."""
        raise NotImplementedError

    def _has_room(self) -> None:
        """No more than ``Bounds.low`` bytes wait."""
        raise NotImplementedError

    def _is_flushed(self) -> None:
        """Nothing waits any more."""
        raise NotImplementedError

    def _leave(self) -> None:
        """It is being closed."""
        raise NotImplementedError

    # Done here

    def ready(self, mask: int) -> None:
        if mask & WRITE:
            self._flush()
        if mask & (READ | BROKEN) and not self.closed:
            try:
                data = self._sock.recv(READ_SIZE)
            except Again:
                return
            except OSError:
                self.abandon()
                return
            if data:
                self._take(data)
            else:
                self._ended()

    def _write(self, data: bytes) -> None:
        if self.closed:
            return
        out = self._out
        if out:
            out += data
        else:
            try:
                sent = self._sock.send(data)
            except Again:
                sent = 0
            except OSError:
                self.abandon()
                return
            if sent == len(data):
                return
            out += memoryview(data)[sent:]
            self._listen()
        if len(out) > self._bounds.high:
            self._is_full()

    def _flush(self) -> None:
        out = self._out
        if out:
            try:
                sent = self._sock.send(out)
            except Again:
                return
            except OSError:
                self.abandon()
                return
            del out[:sent]
            self.deadline = max(self.deadline, self._reactor.now + self._bounds.body_s)
        if len(out) <= self._bounds.low:
            self._has_room()
        if not out:
            self._listen()
            self._is_flushed()

    def _half_close(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.abandon()

    def _pause(self, paused: bool) -> None:
        if paused != self._paused:
            self._paused = paused
            self._listen()

    def _listen(self) -> None:
        mask = (0 if self._paused else READ) | (WRITE if self._out else 0)
        if mask != self._mask and not self.closed:
            self._mask = mask
            self._reactor.change(self.fd, mask)

    def abandon(self) -> None:
        """Close at once."""
        if not self.closed:
            self.closed = True
            self._reactor.remove(self.fd)
            self._sock.close()
            self._leave()
