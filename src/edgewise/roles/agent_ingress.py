"""The ingress of one node: which ports lead to which app, kept true as releases and SVIDs move."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import msgspec

from edgewise.identity import ingress as rules
from edgewise.identity.workload_ports import LocalSvids
from edgewise.model.errors import TryLater
from edgewise.net.ingress import Door, Ingress, Place, Reason
from edgewise.protocol.bundles import TrustBundles
from edgewise.protocol.content import IngressPort, ProcessApp, WorkloadRegistration
from edgewise.protocol.installed import Installed
from edgewise.runtime.clock import Clock
from edgewise.runtime.credentials import write_private
from edgewise.runtime.log import Log

FILE: Final = "ingress.json"
KEEP: Final = timedelta(seconds=10)
"""How often counts are written down, if they have changed."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A port that the release asks for."""

    app: str
    path: str
    """Of the app's SPIFFE ID."""
    port: IngressPort


class IngressPlace(msgspec.Struct, frozen=True):
    """One port of the node."""

    app: str
    address: str
    port: int
    to: int
    allow: tuple[str, ...]
    problem: str = ""
    """Why it is closed; empty when it is open."""


class Counted(msgspec.Struct, frozen=True):
    """Connections to one app with one outcome."""

    app: str
    reason: str
    """Empty: let through."""
    connections: int


class IngressState(msgspec.Struct, frozen=True):
    """``ingress.json`` in the state directory: what `edgewise agent ingress` shows."""

    ports: tuple[IngressPlace, ...]
    since: str
    counts: tuple[Counted, ...] = ()


def read_state(state: Path) -> IngressState | None:
    """What the agent wrote down last; None when no app of the node is called."""
    try:
        return msgspec.json.decode((state / FILE).read_bytes(), type=IngressState)
    except (OSError, msgspec.DecodeError):
        return None


def wanted_by(apps: tuple[ProcessApp, ...]) -> tuple[Wanted, ...]:
    """Every port that these apps ask for."""
    return tuple(
        Wanted(app.name, app.identity.path, port)
        for app in apps
        if isinstance(app.identity, WorkloadRegistration) and isinstance(app.ingress, tuple)
        for port in app.ingress
    )


class NodeIngress:
    """``follow`` every release; ``run`` as a task."""

    def __init__(
        self,
        state: Path,
        svids: LocalSvids,
        trust_domain: Callable[[], str],
        clock: Clock,
        log: Log,
    ) -> None:
        self._state = state
        self._svids = svids
        self._trust_domain = trust_domain
        self._clock = clock
        self._log = log
        self._since = clock.now().isoformat()
        self._wanted: tuple[Wanted, ...] = ()
        self._changed = asyncio.Event()
        self._begun = asyncio.Event()
        self._said: dict[Place, str] = {}
        self._ingress: Ingress | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def follow(self, installed: Installed | None) -> None:
        """A release is put in place."""
        apps = tuple(one.app for one in installed.apps) if installed is not None else ()
        wanted = wanted_by(apps)
        if wanted != self._wanted:
            self._wanted = wanted
            self._changed.set()

    def counts(self) -> dict[tuple[str, str], int]:
        """Connections by app and reason (empty: let through), since the start."""
        return self._ingress.counts() if self._ingress is not None else {}

    async def run(self) -> None:
        """Until cancelled; then every port is closed."""
        self._loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep_open())
                tasks.create_task(self._keep_counts())
        finally:
            if self._ingress is not None:
                await self._ingress.close()

    async def _keep_open(self) -> None:
        while True:
            self._changed.clear()
            version = self._svids.version
            await self._open_all()
            await self._moved(version)

    async def _keep_counts(self) -> None:
        said: dict[tuple[str, str], int] = {}
        await self._begun.wait()
        while True:
            await self._clock.sleep(KEEP)
            if (counts := self.counts()) != said:
                said = counts
                self._write()

    def _write(self) -> None:
        if not self._wanted:
            (self._state / FILE).unlink(missing_ok=True)
            return
        ports = tuple(
            IngressPlace(
                one.app,
                one.port.address,
                one.port.port,
                one.port.to,
                one.port.allow,
                self._said.get((one.port.address, one.port.port), ""),
            )
            for one in self._wanted
        )
        counts = tuple(Counted(*key, number) for key, number in sorted(self.counts().items()))
        state = IngressState(ports, self._since, counts)
        write_private(self._state / FILE, msgspec.json.encode(state), mode=0o644)

    async def _moved(self, version: int) -> None:
        fresh = asyncio.ensure_future(self._svids.newer_than(version))
        changed = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait({fresh, changed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            fresh.cancel()
            changed.cancel()

    async def _open_all(self) -> None:
        if not self._wanted and self._ingress is None:
            self._write()  # nothing: the agent before this one may have had ports
            return
        doors: dict[Place, Door] = {}
        problems: dict[Place, str] = {}
        for wanted in self._wanted:
            place = wanted.port.address, wanted.port.port
            try:
                doors[place] = await self._door(wanted, place)
            except (TryLater, ValueError) as error:
                problems[place] = str(error)
        if self._ingress is None:
            self._ingress = Ingress(self._told)
            self._ingress.start()
            self._begun.set()
        problems |= await self._ingress.set(doors)
        self._say(problems)
        self._write()

    async def _door(self, wanted: Wanted, place: Place) -> Door:
        bundles: TrustBundles | None = self._svids.bundles()
        if bundles is None:
            raise TryLater("the hub has not said yet whom to trust")
        svid = await self._svids.x509(f"spiffe://{self._trust_domain()}{wanted.path}")
        allow = wanted.port.allow
        return Door(
            wanted.app,
            place,
            wanted.port.to,
            allow,
            frozenset(bundles.own),
            svid,
            rules.roots(allow, bundles),
        )

    def _say(self, problems: dict[Place, str]) -> None:
        for place, problem in problems.items():
            if self._said.get(place) != problem:
                host, port = place
                self._log.event(
                    "ingress closed", "warning", address=host, port=port, because=problem
                )
        self._said = problems

    def _told(self, door: Door, reason: Reason, detail: str) -> None:
        """In the ingress's thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._note, door.app, reason, detail)

    def _note(self, app: str, reason: str, detail: str) -> None:
        self._log.decision("ingress refused", because=detail, app=app, reason=reason)
