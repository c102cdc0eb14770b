"""The ingress of one node: which ports lead to which app, kept true as releases and SVIDs move."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from edgewise.identity import ingress as rules
from edgewise.identity.workload_ports import LocalSvids
from edgewise.model.errors import TryLater
from edgewise.net.ingress import Door, Ingress, Place, Reason
from edgewise.protocol.bundles import TrustBundles
from edgewise.protocol.content import IngressPort, ProcessApp, WorkloadRegistration
from edgewise.protocol.installed import Installed
from edgewise.runtime.log import Log


@dataclass(frozen=True, slots=True)
class Wanted:
    """A port that the release asks for."""

    app: str
    path: str
    """Of the app's SPIFFE ID."""
    port: IngressPort


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

    def __init__(self, svids: LocalSvids, trust_domain: Callable[[], str], log: Log) -> None:
        self._svids = svids
        self._trust_domain = trust_domain
        self._log = log
        self._wanted: tuple[Wanted, ...] = ()
        self._changed = asyncio.Event()
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
            while True:
                self._changed.clear()
                version = self._svids.version
                await self._open_all()
                await self._moved(version)
        finally:
            if self._ingress is not None:
                await self._ingress.close()

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
        problems |= await self._ingress.set(doors)
        self._say(problems)

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
