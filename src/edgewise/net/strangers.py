"""Connections of those who have not proved who they are: few, and none that just stays.

A handshake costs a stranger nothing, and each open connection costs the server a file and
about 30 KB. Members show their certificate in the handshake and are not counted here.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from aiohttp import web

HANDSHAKE: Final = timedelta(seconds=20)
"""For the TLS handshake: several round trips over a satellite, with losses."""
FIRST_HEAD: Final = timedelta(seconds=30)
"""From the handshake to the end of the first request's head."""
STRANGERS: Final = 4096
"""Connections of all strangers together: a region that joins at once waits in the kernel."""
FROM_ONE_ADDRESS: Final = 1024
"""Connections of strangers behind one address, which may be a whole site's or a balancer's."""
OF_FILES: Final = 4
"""Strangers get at most one in so many of the files that the process may open."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much strangers get."""

    most: int = STRANGERS
    of_one_address: int = FROM_ONE_ADDRESS
    first_head: timedelta = FIRST_HEAD


class Strangers:
    """Counts them. Over a bound the one that has been idle longest goes: of the same address
    where that is over its own, so that nobody crowds out others."""

    def __init__(self, bounds: Bounds, files: int) -> None:
        """``files``: how many the process may open."""
        self._most = min(bounds.most, max(files // OF_FILES, 1))
        self._of_one = min(bounds.of_one_address, self._most)
        self._first_head = bounds.first_head.total_seconds()
        self._addresses: dict[asyncio.Transport, str] = {}
        self._idle: OrderedDict[asyncio.Transport, None] = OrderedDict()
        """Those without a running request, who waited longest first."""
        self._of: dict[str, OrderedDict[asyncio.Transport, None]] = {}
        """All by address, in the same order."""
        self._heads: dict[asyncio.Transport, asyncio.TimerHandle] = {}

    def connected(self, connection: asyncio.Transport) -> None:
        """Count it, if it shows no certificate."""
        tls = connection.get_extra_info("ssl_object")
        if tls is None or tls.getpeercert(binary_form=True):
            return
        address = str((connection.get_extra_info("peername") or ("unknown",))[0])
        self._addresses[connection] = address
        of_one = self._of.setdefault(address, OrderedDict())
        of_one[connection] = self._idle[connection] = None
        self._heads[connection] = asyncio.get_running_loop().call_later(
            self._first_head, self._end, connection
        )
        if len(of_one) > self._of_one:
            self._end(next(one for one in of_one if one in self._idle))
        elif len(self._addresses) > self._most:
            self._end(next(iter(self._idle)))

    def began(self, connection: asyncio.Transport) -> None:
        """A whole head has come: its request runs."""
        if connection in self._addresses:
            self._idle.pop(connection, None)
            self._stop_waiting(connection)

    def ended(self, connection: asyncio.Transport) -> None:
        """Its request has its answer."""
        address = self._addresses.get(connection)
        if address is not None:
            self._idle[connection] = None
            self._of[address].move_to_end(connection)

    def left(self, connection: asyncio.Transport) -> None:
        """It is closed."""
        address = self._addresses.pop(connection, None)
        if address is None:
            return
        self._idle.pop(connection, None)
        self._stop_waiting(connection)
        of_one = self._of[address]
        del of_one[connection]
        if not of_one:
            del self._of[address]

    def _end(self, connection: asyncio.Transport) -> None:
        self.left(connection)
        connection.abort()  # a polite close would wait for the stranger's

    def _stop_waiting(self, connection: asyncio.Transport) -> None:
        timer = self._heads.pop(connection, None)
        if timer is not None:
            timer.cancel()


class Framework(web.Server):
    """aiohttp's server of connections, which tells when one ends."""

    def __init__(self, *arguments: Any, strangers: Strangers, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._strangers = strangers
        self._open: dict[web.RequestHandler, asyncio.Transport] = {}

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """See web.Server."""
        super().connection_made(handler, transport)
        self._open[handler] = transport

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        """See web.Server."""
        super().connection_lost(handler, exc)
        self._strangers.left(self._open.pop(handler))
