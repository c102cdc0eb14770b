"""Foreign trust bundles: fetched from their endpoints, verified, published to every node.

Laws (SPIFFE Federation specification, section 5): a bundle is only taken from the endpoint
that the fleet repo names, proven by the profile that it names; an older one than the last
never replaces it; when an endpoint does not answer, or answers nonsense, the last good bundle
stays, and the status says so.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import urlsplit

from edgewise.identity import spiffe_bundle
from edgewise.identity.names import Organisation
from edgewise.model.documents.federation import FederatedTrustDomainSpec
from edgewise.model.errors import BadUsage, EdgewiseError, Untrusted
from edgewise.net.api.bundles import Bundles
from edgewise.net.client import Client, Endpoint
from edgewise.net.tls import foreign_context, public_context
from edgewise.protocol.api import FederationStatus
from edgewise.protocol.bundles import DomainBundle
from edgewise.runtime.backoff import Backoff
from edgewise.runtime.chance import Chance
from edgewise.runtime.clock import Clock
from edgewise.runtime.log import Log

LONGEST_LOOK: Final = timedelta(minutes=1)
"""Between two looks at the clock."""
FIRST_RETRY: Final = timedelta(seconds=30)
LONGEST_RETRY: Final = timedelta(minutes=30)

WebContext = Callable[[], ssl.SSLContext]


@dataclass(slots=True)
class _Domain:
    spec: FederatedTrustDomainSpec
    backoff: Backoff
    due: datetime
    fetched: datetime | None = None
    problem: str = ""


@dataclass(slots=True)
class Federation:
    """``want`` what the fleet repo says, ``run`` beside the server."""

    bundles: Bundles
    organisation: Organisation
    clock: Clock
    chance: Chance
    log: Log
    web: WebContext = public_context
    """TLS for https_web: the system's roots and host names."""
    _domains: dict[str, _Domain] = field(default_factory=dict, init=False)
    _changed: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    async def want(self, specs: Iterable[FederatedTrustDomainSpec]) -> None:
        """Federate with these and no others, from now on. The first bundles are published at
        once; the endpoints are asked next."""
        before, now = self._domains, self.clock.now()
        self._domains = {}
        replaced: set[str] = set()
        for spec in specs:
            kept = before.get(spec.trust_domain)
            if kept is not None and kept.spec == spec:
                self._domains[spec.trust_domain] = kept
                continue
            if kept is not None and kept.spec.bundle != spec.bundle:
                replaced.add(spec.trust_domain)  # a person says what to begin with again
            retry = Backoff(self.chance, first=FIRST_RETRY, cap=LONGEST_RETRY)
            self._domains[spec.trust_domain] = _Domain(spec, retry, now)
        await self._publish({}, replaced)
        self._changed.set()

    def status(self) -> tuple[FederationStatus, ...]:
        """Every federated domain, by name."""
        found = []
        for name, domain in sorted(self._domains.items()):
            bundle = self.bundles.federated.get(name)
            found.append(
                FederationStatus(
                    name,
                    domain.spec.bundle_endpoint.url,
                    bundle.sequence if bundle is not None else 0,
                    domain.fetched,
                    domain.problem,
                )
            )
        return tuple(found)

    async def run(self) -> None:
        """Ask each endpoint when it is due, until cancelled."""
        while True:
            self._changed.clear()
            now = self.clock.now()
            for name, domain in sorted(self._domains.items()):
                if domain.due <= now:
                    await self._look(name, domain)
            later = [d.due - self.clock.now() for d in self._domains.values()]
            wait = max(timedelta(seconds=1), min([LONGEST_LOOK, *later]))
            waits = (
                asyncio.create_task(self._changed.wait()),
                asyncio.create_task(self.clock.sleep(wait)),
            )
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for one in waits:
                    one.cancel()

    async def _look(self, name: str, domain: _Domain) -> None:
        try:
            found = await self._fetch(name, domain.spec)
            if self._domains.get(name) is domain:
                await self._publish({name: found})
        except EdgewiseError as error:
            problem = f"{error} {error.hint}".strip()
            if problem != domain.problem:
                self.log.event("federation", "warning", domain=name, because=problem)
            domain.problem = problem
            domain.due = self.clock.now() + domain.backoff.next()
            return
        domain.problem, domain.fetched = "", self.clock.now()
        domain.backoff.reset()
        domain.due = domain.fetched + timedelta(seconds=found.refresh_hint_s)

    async def _fetch(self, name: str, spec: FederatedTrustDomainSpec) -> DomainBundle:
        last = _newer(self.bundles.federated.get(name), spec)
        endpoint, path = _endpoint(spec, last, self.web)
        async with Client(endpoint, self.clock, 1) as client:
            answer = await client.request("GET", path, timeout=30.0, at_most=spiffe_bundle.AT_MOST)
        found = spiffe_bundle.read(answer.body)
        if last is not None and found.sequence < last.sequence:
            raise Untrusted(f"the bundle goes back from {last.sequence} to {found.sequence}")
        return found

    async def _publish(
        self, fresh: Mapping[str, DomainBundle], replaced: Collection[str] = ()
    ) -> None:
        wanted: dict[str, DomainBundle] = {}
        for name, domain in self._domains.items():
            if self.organisation.name == name or name.endswith(f".{self.organisation.name}"):
                domain.problem = f"{name} is a trust domain of our own organisation"
                continue
            try:
                kept = None if name in replaced else self.bundles.federated.get(name)
                bundle = fresh.get(name) or _newer(kept, domain.spec)
            except EdgewiseError as error:
                domain.problem = f"the first bundle in the fleet repo: {error}"
                continue
            if bundle is not None:
                wanted[name] = bundle
        await self.bundles.federate(wanted)


def _newer(kept: DomainBundle | None, spec: FederatedTrustDomainSpec) -> DomainBundle | None:
    """The last good bundle, or the first one of the fleet repo where that is newer."""
    first = spiffe_bundle.read(spec.bundle.encode()) if spec.bundle else None
    if kept is None or (first is not None and first.sequence > kept.sequence):
        return first
    return kept


def _endpoint(
    spec: FederatedTrustDomainSpec, last: DomainBundle | None, web: WebContext
) -> tuple[Endpoint, str]:
    parts = urlsplit(spec.bundle_endpoint.url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    origin = f"{parts.scheme}://{parts.netloc}"
    if spec.bundle_endpoint.profile == "https_web":
        return Endpoint((origin,), web()), path
    if last is None or not last.x509:
        raise BadUsage("https_spiffe needs a bundle with a root to begin with")
    wanted = spec.bundle_endpoint.endpoint_spiffe_id
    return Endpoint((origin,), foreign_context(last.x509), uri=wanted), path
