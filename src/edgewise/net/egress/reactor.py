"""One thread, one epoll: whoever is ready is told so.

Not asyncio: a proxied request is two events and four system calls, and asyncio's streams and
TLS would cost more than all the rest (docs/adr has the figures). Everything here runs in the
reactor's own thread, apart from ``call`` and ``stop``.
"""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT
BROKEN: Final = select.EPOLLHUP | select.EPOLLERR
SWEEP_S: Final = 0.5
"""How often deadlines are looked at; all of them are whole seconds."""
BATCH: Final = 128
"""Events taken at once."""


class Watched(Protocol):
    """Something with a file descriptor."""

    deadline: float
    """Monotonic seconds."""

    def ready(self, mask: int) -> None:
        """It can be read or written, or is broken."""

    def expired(self) -> None:
        """The deadline has passed."""

    def abandon(self) -> None:
        """Close at once, say nothing: there was a bug, or everything ends."""


class Reactor:
    """See the module."""

    def __init__(self, monotonic: Callable[[], float], on_bug: Callable[[Exception], None]) -> None:
        self._monotonic = monotonic
        self._on_bug = on_bug
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, READ)
        self._watched: dict[int, Watched] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self.stopping = False
        self.now = monotonic()
        """Monotonic seconds at the beginning of this turn."""
        self.on_sweep: Callable[[], None] = lambda: None

    def add(self, fd: int, mask: int, watched: Watched) -> None:
        """Watch it from now on."""
        self._watched[fd] = watched
        self._epoll.register(fd, mask)

    def pass_on(self, fd: int, mask: int, watched: Watched) -> None:
        """Another object cares for it from now on."""
        self._watched[fd] = watched
        self._epoll.modify(fd, mask)

    def change(self, fd: int, mask: int) -> None:
        """What it waits for."""
        self._epoll.modify(fd, mask)

    def remove(self, fd: int) -> None:
        """Call it before closing the descriptor. Nothing when it is not watched."""
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call(self, what: Callable[[], None]) -> None:
        """Run it in the reactor's thread; from any thread."""
        self._calls.append(what)
        if not self.stopping:
            os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """End ``run``; from any thread."""
        self.call(self._stop)

    def _stop(self) -> None:
        self.stopping = True

    def run(self) -> None:
        """Until ``stop``; then everything watched is abandoned."""
        poll, watched = self._epoll.poll, self._watched
        swept = self.now
        try:
            while not self.stopping:
                events = poll(SWEEP_S, BATCH)
                self.now = self._monotonic()
                for fd, mask in events:
                    one = watched.get(fd)
                    if one is not None:
                        self._tell(one, mask)
                    elif fd == self._wake:
                        self._run_calls()
                if self.now - swept >= SWEEP_S:
                    swept = self.now
                    self._sweep()
        finally:
            self.stopping = True
            for one in list(watched.values()):
                one.abandon()
            self._epoll.close()
            os.close(self._wake)

    def _tell(self, one: Watched, mask: int) -> None:
        # The supervisor of connections: a bug ends the one it met, not the others.
        try:
            one.ready(mask)
        except Exception as error:  # noqa: BLE001 - see above; it is reported
            self._on_bug(error)
            one.abandon()

    def _run_calls(self) -> None:
        os.eventfd_read(self._wake)
        while self._calls:
            try:
                self._calls.popleft()()
            except Exception as error:  # noqa: BLE001 - as in _tell
                self._on_bug(error)

    def _sweep(self) -> None:
        now = self.now
        for one in [w for w in self._watched.values() if w.deadline <= now]:
            try:
                one.expired()
            except Exception as error:  # noqa: BLE001 - as in _tell
                self._on_bug(error)
                one.abandon()
        self.on_sweep()
