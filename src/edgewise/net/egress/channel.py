"""A connection to the far end: plain, or TLS 1.3 between memory and socket.

TLS runs over memory BIOs, for two reasons. One ``recv`` takes in many records, where OpenSSL
on a socket needs two system calls for each. And we see how many bytes each step of the
handshake sends, which proves with public means that our certificate was asked for: after the
server's Finished, a client that was not asked sends only its own Finished (RFC 8446, section
4.4), about 80 bytes; one that was asked also sends Certificate and CertificateVerify.
"""

from __future__ import annotations

import socket
import ssl
from typing import Any, Final

READ_SIZE: Final = 64 << 10
"""Bytes taken from a socket at once: four TLS records."""
RECORD: Final = 16 << 10
"""Plaintext of one TLS record at most."""
FLIGHT_WITHOUT: Final = 256
"""A client's last flight without a certificate has at most 80 bytes, and 32 more with an empty
Certificate. With one, CertificateVerify and a P-256 certificate it has 600 or more (also
compressed, RFC 8879: signatures and keys do not shrink)."""

Again = (BlockingIOError, InterruptedError)


class Plain:
    """No TLS: what a rule with ``mtls: false`` allows."""

    __slots__ = ("_sock", "waiting")
    ended = False

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.waiting = bytearray()
        """Not sent yet, because the far end does not take more."""

    def read(self) -> bytes | None:
        """What has come; None for nothing yet, empty at the end. Raises OSError."""
        try:
            return self._sock.recv(READ_SIZE)
        except Again:
            return None

    def write(self, data: bytes) -> None:
        """Send, or keep in ``waiting``. Raises OSError."""
        if self.waiting:
            self.waiting += data
            return
        try:
            sent = self._sock.send(data)
        except Again:
            sent = 0
        if sent < len(data):
            self.waiting += memoryview(data)[sent:]

    def flush(self) -> None:
        """Send what waits, as far as it goes. Raises OSError."""
        if self.waiting:
            try:
                sent = self._sock.send(self.waiting)
            except Again:
                return
            del self.waiting[:sent]

    def finish(self) -> None:
        """Nothing more will be written. Raises OSError."""
        self._sock.shutdown(socket.SHUT_WR)


class Tls:
    """TLS 1.3; call ``handshake`` until it says True."""

    __slots__ = ("_in", "_out", "_sock", "_tls", "asked", "ended", "waiting")

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str) -> None:
        self._sock = sock
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=host)
        self.waiting = bytearray()
        self.asked = False
        """The server asked for our certificate, and it was sent."""
        self.ended = False
        """What was read last was followed by close_notify."""

    def handshake(self) -> bool:
        """Go on with it; True once it is over. Raises OSError (ssl.SSLError among them)."""
        try:
            data = self._sock.recv(READ_SIZE)
        except Again:
            data = None
        if data:
            self._in.write(data)
        elif data is not None:
            self._in.write_eof()
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send()
            return False
        except ssl.SSLError:
            self._send()  # the alert, so that the far end knows why
            raise
        # Everything before was taken out already: this is the last flight alone.
        self.asked = self._out.pending >= FLIGHT_WITHOUT
        self._send()
        return True

    def begin(self) -> None:
        """Send the ClientHello."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send()

    @property
    def peer_uris(self) -> tuple[str, ...]:
        """URI names of the server's verified certificate."""
        fields: Any = self._tls.getpeercert() or {}
        return tuple(v for kind, v in fields.get("subjectAltName", ()) if kind == "URI")

    def read(self) -> bytes | None:
        """As ``Plain.read``. An end without close_notify raises ssl.SSLEOFError."""
        try:
            data = self._sock.recv(READ_SIZE)
        except Again:
            return None
        if not data:
            self._in.write_eof()
        else:
            self._in.write(data)
        return self._plaintext()

    def _plaintext(self) -> bytes | None:
        tls, incoming = self._tls, self._in
        try:
            first = tls.read(RECORD)
        except ssl.SSLWantReadError:
            self._answer()
            return None
        if not incoming.pending or not first:
            return first
        pieces = [first]
        try:
            while incoming.pending:
                piece = tls.read(RECORD)
                if not piece:
                    self.ended = True
                    break
                pieces.append(piece)
        except ssl.SSLWantReadError:
            self._answer()
        return b"".join(pieces)

    def _answer(self) -> None:
        if self._out.pending:  # for a KeyUpdate
            self._send()

    def write(self, data: bytes) -> None:
        """As ``Plain.write``."""
        self._tls.write(data)
        self._send()

    def _send(self) -> None:
        data = self._out.read()
        if self.waiting:
            self.waiting += data
            return
        if not data:
            return
        try:
            sent = self._sock.send(data)
        except Again:
            sent = 0
        if sent < len(data):
            self.waiting += memoryview(data)[sent:]

    def flush(self) -> None:
        """As ``Plain.flush``."""
        if self.waiting:
            try:
                sent = self._sock.send(self.waiting)
            except Again:
                return
            del self.waiting[:sent]

    def finish(self) -> None:
        """close_notify: the other direction goes on (RFC 8446, section 6.1)."""
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        self._send()


Channel = Plain | Tls
