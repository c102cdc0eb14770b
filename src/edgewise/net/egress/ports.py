"""What the gateway needs from the agent, and its bounds."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from edgewise.identity.egress import Refused, Subject
from edgewise.identity.workload_ports import Caller, LocalSvid
from edgewise.protocol.bundles import TrustBundles


@dataclass(frozen=True, slots=True)
class Credentials:
    """What an mTLS connection is made with."""

    svid: LocalSvid
    bundles: TrustBundles


class Callers(Protocol):
    """Who is at the other end of a local connection, by the kernel's word.

    Called in the gateway's thread, so at most a few milliseconds. None when it cannot be told.
    """

    def of_unix(self, sock: socket.socket) -> Caller | None: ...
    def of_tcp(self, sock: socket.socket) -> Caller | None: ...


class Supply(Protocol):
    """Identities. Called in the gateway's thread; ``then`` is called in it as well, soon."""

    def subject(self, caller: Caller, then: Callable[[Subject], None]) -> None: ...
    def credentials(self, identity: str, then: Callable[[Credentials | Refused], None]) -> None: ...


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one gateway. Seconds and bytes."""

    clients: int = 1024
    """Connections of apps: 1,024 with their far ends stay under the usual 4,096 descriptors."""
    clients_of_one: int = 256
    """Connections of one app, so that it cannot shut out the others."""
    head_s: float = 10
    """From the first byte of a head to its last."""
    idle_s: float = 75
    """Between two requests of a client."""
    body_s: float = 60
    """Without a byte of a request's body."""
    answer_s: float = 300
    """Without a byte of an answer: long polls take minutes."""
    tunnel_s: float = 3600
    """Without a byte in a tunnel or WebSocket: the app's own pings are for less."""
    connect_s: float = 5
    """For one address."""
    handshake_s: float = 10
    """For the far end's TLS; a small machine under load takes a second."""
    resolve_s: float = 10
    """For a name, and for the identity to call with."""
    addresses: int = 4
    """Tried of one name."""
    linger_s: float = 2
    """Reading on after an early answer, so that the client gets it."""
    pool_idle_s: float = 55
    """A kept connection without use; servers commonly end theirs at 60 or 75."""
    pool_of_one: int = 64
    """Kept connections to one place with one identity."""
    pool: int = 256
    """Kept connections together: about 50 KB each with TLS."""
    high: int = 256 << 10
    """Bytes waiting for one side at which the other is not read any more."""
    low: int = 64 << 10
    """Bytes waiting at which it is read again."""
    pipelined: int = 64 << 10
    """Bytes of further requests read before the answer to the first one."""
