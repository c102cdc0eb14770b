"""Names to addresses, in threads of their own because getaddrinfo(3) blocks."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol

THREADS: Final = 4
"""A slow name server holds one of them for some seconds."""
WAITING: Final = 256
"""Names asked for at once."""


@dataclass(frozen=True, slots=True)
class Found:
    """One address of a name."""

    family: int
    sockaddr: Any
    address: str


Then = Callable[[list[Found] | str], None]


class Resolver(Protocol):
    """``then`` gets the addresses, or why there are none; in the gateway's thread."""

    def resolve(self, host: str, port: int, then: Then) -> None: ...


class SystemResolver:
    """getaddrinfo(3)."""

    def __init__(self, call: Callable[[Callable[[], None]], None]) -> None:
        self._call = call
        """Runs something in the gateway's thread."""
        self._threads: ThreadPoolExecutor | None = None
        self._waiting = 0

    def resolve(self, host: str, port: int, then: Then) -> None:
        if (found := literal(host, port)) is not None:
            then([found])
            return
        if self._waiting >= WAITING:
            then("too many names are being looked up")
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, "egress-names")
        self._waiting += 1

        def finished(future: Future[list[Found] | str]) -> None:
            self._call(lambda: self._tell(then, future.result()))

        self._threads.submit(_look_up, host, port).add_done_callback(finished)

    def _tell(self, then: Then, found: list[Found] | str) -> None:
        self._waiting -= 1
        then(found)

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


def literal(host: str, port: int) -> Found | None:
    """For a host that is an address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if address.version == 6:
        return Found(socket.AF_INET6, (host, port, 0, 0), host)
    return Found(socket.AF_INET, (host, port), host)


def _look_up(host: str, port: int) -> list[Found] | str:
    try:
        # As bytes: a str would load the IDNA codec, 1 MB.
        answers = socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return error.strerror or str(error)
    except OSError as error:
        return str(error)
    return [Found(family, place, str(place[0])) for family, _, _, _, place in answers]
