"""A node's line upwards, and the certificate that is renewed underneath it.

Renewed early when another root signs now; proven by the enrolment key when the certificate is
refused or has ended; and when the far end itself is not believed any more, because the root
was replaced while this node was away, the signed trust bundles say whom to believe.

On a node with a TPM the key on the disk is sealed; the worker opens it, and here it is held in
memory. While it cannot be opened there is no line, and everything else goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Protocol

from edgewise.identity import card as cards
from edgewise.identity.card import Card
from edgewise.identity.rotation import clock_is_wrong, renew_at
from edgewise.model.errors import EdgewiseError, NeedsPerson, TryLater
from edgewise.net.client import CertificateRefused, Client, Endpoint, SyncLine
from edgewise.net.http1 import ClosedEarly
from edgewise.net.tls import client_context
from edgewise.protocol.codec import decode
from edgewise.protocol.sync import SyncReply, SyncRequest
from edgewise.protocol.tasks import OwnKey, SvidIssued
from edgewise.runtime.backoff import Backoff
from edgewise.runtime.chance import Chance
from edgewise.runtime.clock import Clock
from edgewise.runtime.credentials import CredentialFiles, fingerprint
from edgewise.runtime.log import Log


@dataclass(frozen=True, slots=True)
class Timing:
    """How patient it is."""

    look: timedelta = timedelta(hours=1)
    """How often the certificate's time is looked at, because wall clocks are set."""
    other_root: timedelta = timedelta(hours=1)
    """Over how long a fleet spreads its renewals after another root began to sign."""
    first: timedelta = timedelta(seconds=5)
    """First pause after something failed; it doubles up to ``cap``."""
    cap: timedelta = timedelta(minutes=30)


class Renewer(Protocol):
    """What needs cryptography: host.worker.WorkerProcess, roles.worker.InProcessWorker."""

    async def renew(self, *, rejoin: bool) -> None: ...
    async def retrust(self) -> bool:
        """Ask whom to believe, without believing who is asked; whether that changed."""


class OwnKeys(Protocol):
    """Who opens sealed keys: host.worker.WorkerProcess, roles.worker.InProcessWorker."""

    async def own_key(self) -> OwnKey:
        """Raises NeedsPerson, TryLater while the TPM does not open it."""


LOCKED_PAUSE_S: Final = 60.0
"""Between two tries to open a key that needs a person: each starts a worker."""
_PATIENT: Final = Timing()


def read_card(state: Path) -> Card:
    """The node's identity. Raises NeedsPerson before it has joined."""
    path = state / "identity" / cards.FILE
    try:
        return decode(path.read_bytes(), Card, what=str(path), at_most=cards.AT_MOST)
    except OSError as error:
        raise NeedsPerson(
            f"this node has not joined: {path} is not there",
            hint="make a token with `edgewise node token` at the hub; start with --token -",
        ) from error


class Upstream:
    """The line to the relay or hub. ``keys`` is for nodes that have a TPM."""

    def __init__(self, state: Path, clock: Clock, keys: OwnKeys | None = None) -> None:
        self._state = state
        self._clock = clock
        has_tpm = (state / "identity" / cards.TPM_FILE).exists()
        self._keys = keys if has_tpm else None
        self._own: SvidIssued | None = None
        self._opening = asyncio.Lock()
        self._failed: EdgewiseError | None = None
        self._ask_again = 0.0
        self.refused = asyncio.Event()
        """The far end does not take our certificate: rejoin."""
        self.stranger = asyncio.Event()
        """We do not believe the far end's certificate: its root may have been replaced."""
        self.looked = asyncio.Event()
        """Whom we trust has changed: look at our own certificate again."""
        self.on_trust: Callable[[], None] = lambda: None
        """Called when other roots are believed than before."""
        self.on_opened: Callable[[str], None] = lambda problem: None
        """Called when a TPM's node has its key: empty, or why that lies unsealed on the disk."""
        self.on_locked: Callable[[EdgewiseError], None] = lambda error: None
        """Called each time when the key cannot be opened."""
        self.card = read_card(state)
        self._line = self._connect() if self._keys is None else None

    @property
    def client(self) -> Client:
        """For other questions than the long poll; ask for it each time.

        Raises TryLater while this node's key is not open.
        """
        if self._line is None:
            raise TryLater("this node's own key is not open yet", hint="see the agent's log")
        return self._line.client

    async def _opened(self) -> SyncLine:
        async with self._opening:
            if self._line is None:
                if self._failed is not None and self._clock.monotonic() < self._ask_again:
                    raise self._failed.with_traceback(None)
                await self._open_key()
                self._line = self._connect()
            return self._line

    async def _open_key(self) -> None:
        if self._keys is None:
            return
        try:
            found = await self._keys.own_key()
        except EdgewiseError as error:
            wait = error.wait.total_seconds() if isinstance(error, TryLater) else LOCKED_PAUSE_S
            self._failed, self._ask_again = error, self._clock.monotonic() + wait
            self.on_locked(error)
            raise
        self._failed, self._own = None, found.svid
        self.on_opened(found.problem)

    def _connect(self) -> SyncLine:
        return SyncLine(Client(self._endpoint(), self._clock))

    def _endpoint(self) -> Endpoint:
        check_time = not clock_is_wrong(self._clock.now(), self.card.validity)
        files = CredentialFiles(self._state / "identity")
        tls = client_context(files, check_time=check_time, own=self._own)
        return Endpoint(self.card.urls, tls, self.card.expects)

    def retrusted(self) -> None:
        """Believe the roots that are on disk now, from the next connection on."""
        if self._line is not None:
            self._line.client.endpoint = self._endpoint()
            self._line.client.forget_connections()
        self.looked.set()
        self.on_trust()

    @property
    def outdated(self) -> bool:
        """Whether our certificate is from a root that signs no more: renew early."""
        roots = CredentialFiles(self._state / "identity").root_certificates()
        return self.card.outdated(tuple(map(fingerprint, roots)))

    async def renewed(self) -> None:
        """Read the new certificate; calls that wait break off and come again with it."""
        async with self._opening:
            old = self._line
            self.card = read_card(self._state)
            await self._open_key()
            self._line = self._connect()
        self.refused.clear()
        if old is not None:
            await old.client.close()

    async def exchange(self, request: SyncRequest, hold: timedelta) -> SyncReply | None:
        """See ``rollout.node_ports.Line``."""
        line = await self._opened()
        client = line.client
        before = client.strangers
        try:
            return await line.exchange(request, hold)
        except CertificateRefused:
            self.refused.set()
            raise
        except ClosedEarly:
            if self.outdated:  # not every server's alert arrives before it hangs up
                self.refused.set()
            raise
        finally:
            if client.strangers > before:
                self.stranger.set()

    async def close(self) -> None:
        """Break off what waits."""
        if self._line is not None:
            await self._line.client.close()


@dataclass(slots=True)
class CertificateKeeper:
    """``run`` it beside everything else."""

    upstream: Upstream
    worker: Renewer
    clock: Clock
    chance: Chance
    log: Log
    renewed: Callable[[], None] = lambda: None
    """Called after each renewal."""
    timing: Timing = _PATIENT

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep())
            tasks.create_task(self._ask_whom_to_believe())

    async def _keep(self) -> None:
        upstream, timing = self.upstream, self.timing
        backoff = Backoff(self.chance, first=timing.first, cap=timing.cap)
        fraction = self.chance.fraction()
        early: datetime | None = None
        while True:
            upstream.looked.clear()
            due = renew_at(upstream.card.validity, fraction)
            if upstream.outdated:
                # Not all at once, and after the relay, which renews its own CA at once.
                early = early or self.clock.now() + timing.other_root * (0.1 + 0.9 * fraction)
                due = min(due, early)
            wait = due - self.clock.now()
            if wait > timedelta() and not upstream.refused.is_set():
                wake = (upstream.refused, upstream.looked)
                await happens(wake, min(wait, timing.look), self.clock)
                continue
            early = None
            until = upstream.card.not_after
            expired = self.clock.now() >= until
            try:
                await self.worker.renew(rejoin=expired or upstream.refused.is_set())
                await upstream.renewed()
            except EdgewiseError as error:
                self.log.event("not renewed", "warning", problem=str(error), hint=error.hint)
                await self.clock.sleep(backoff.next())
            else:
                self.log.event("renewed", until=upstream.card.not_after.isoformat())
                self.renewed()
                if upstream.card.not_after > until:
                    backoff.reset()
                    continue
                # The CA above ends, and everybody's half-lives shrink towards that moment.
                self.log.event("nothing gained", "warning", until=until.isoformat())
                await self.clock.sleep(backoff.next())

    async def _ask_whom_to_believe(self) -> None:
        backoff = Backoff(self.chance, first=self.timing.first, cap=self.timing.cap)
        while True:
            await self.upstream.stranger.wait()
            self.upstream.stranger.clear()
            try:
                changed = await self.worker.retrust()
            except EdgewiseError as error:
                self.log.event("not believed", "warning", problem=str(error), hint=error.hint)
                changed = False
            if changed:
                self.log.decision("other roots are trusted", because="signed trust bundles")
                self.upstream.retrusted()
                backoff.reset()
            else:
                # The same signed bundles as before: somebody is in between, or it is early.
                await self.clock.sleep(backoff.next())


async def happens(events: tuple[asyncio.Event, ...], within: timedelta, clock: Clock) -> bool:
    """Wait until one of them is set, or ``within`` has passed; whether one is set."""
    waits = [asyncio.ensure_future(clock.sleep(within))]
    waits += [asyncio.ensure_future(_set(event)) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    return any(event.is_set() for event in events)


async def _set(event: asyncio.Event) -> None:
    await event.wait()
