"""Trust bundles on the hub: made anew when something changes, signed, saved, then told.

What goes in: the roots of our own authority, the JWT keys of the hub for each region and of
each relay for its own, and the bundles of federated trust domains.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from msgspec import structs

from edgewise.identity import jwt_svid
from edgewise.identity.bundles import read_bundles, successor
from edgewise.identity.jwt_keys import MOST, JwtKey
from edgewise.identity.names import HUB, Organisation
from edgewise.identity.ports import Enrolled
from edgewise.identity.signatures import public_key
from edgewise.model.errors import Untrusted
from edgewise.net.api.ports import BundleStore, Roster
from edgewise.protocol.bundles import DomainBundle, TrustBundles
from edgewise.protocol.channel import Signed
from edgewise.protocol.codec import encode
from edgewise.runtime.clock import Clock


class OwnKeys(Protocol):
    """The hub's JWT keys. Implementation: backends.pki.jwt.JwtKeyFiles."""

    def keys(self, region: str) -> tuple[JwtKey, ...]: ...
    def drop(self, region: str, published: frozenset[str]) -> None: ...


@dataclass(frozen=True, slots=True)
class Ingredients:
    """Where the contents come from."""

    organisation: Organisation
    roots: Callable[[], tuple[bytes, ...]]
    """DER, the one that signs now first."""
    keys: OwnKeys
    roster: Roster


class Bundles:
    """The newest bundles. ``load`` them, ``refresh`` whenever something may have changed."""

    def __init__(
        self,
        store: BundleStore,
        sign: Callable[[bytes], Awaitable[Signed]],
        ingredients: Ingredients,
        clock: Clock,
    ) -> None:
        self._store = store
        self._sign = sign
        self._from = ingredients
        self._clock = clock
        self._relay_keys: dict[str, tuple[bytes, ...]] = {}
        self._federated: dict[str, DomainBundle] = {}
        self._turn = asyncio.Lock()
        self.current: TrustBundles | None = None
        self.signed: Signed | None = None
        self.changed: Callable[[], None] = lambda: None
        """Called after each change: wake those who wait."""
        self.relays: dict[str, tuple[int, str]] = {}
        """What each relay said last: its bundles' sequence, and the root above its own
        certificate (hex SHA-256)."""

    async def load(self) -> None:
        """Read what was saved; call ``refresh`` next."""
        self._relay_keys = dict(await self._store.relay_keys())
        self.signed = await self._store.bundles()
        if self.signed is not None:
            self.current = read_bundles(self.signed)
            self._federated = dict(self.current.federated)

    @property
    def sequence(self) -> int:
        """Of the newest; 0 for none."""
        return self.current.sequence if self.current is not None else 0

    def newer_than(self, sequence: int) -> Signed | None:
        """What somebody lacks who has this one; a negative one does not follow bundles."""
        return self.signed if 0 <= sequence < self.sequence else None

    @property
    def federated(self) -> Mapping[str, DomainBundle]:
        """Other organisations' trust domains, as they were fetched last."""
        return self._federated

    async def refresh(self) -> bool:
        """Make them anew if anything changed; whether it did."""
        async with self._turn:
            wanted = successor(self.current, self._own(), self._federated, self._clock.now())
            if wanted is None:
                return False
            await self._publish(wanted)
        self.changed()
        return True

    async def sign_again(self, key_id: str) -> None:
        """The channels key has changed: sign the same content with the new one."""
        async with self._turn:
            if self.signed is None or self.current is None or self.signed.key_id == key_id:
                return
            # Under a new number, or nobody who has the old signature would take it.
            sequence = max(self.current.sequence + 1, int(self._clock.now().timestamp()))
            await self._publish(structs.replace(self.current, sequence=sequence))
        self.changed()

    async def membership(self, name: str, enrolled: Enrolled | None) -> None:
        """A machine joined, left or was quarantined: only relays and new regions matter."""
        known = self.current.own if self.current is not None else {}
        if enrolled is None:
            if name not in self._relay_keys:
                return
            await self._store.save_relay_keys(name, ())
            del self._relay_keys[name]
        elif enrolled.role == "node" and (self._from.organisation.domain(enrolled.region) in known):
            return
        await self.refresh()

    async def heard(self, relay: Enrolled, jwt: tuple[bytes, ...], said: tuple[int, str]) -> None:
        """A relay's JWT keys as it has them now. Raises Untrusted for what are no such keys."""
        self.relays[relay.name] = said
        if jwt == self._relay_keys.get(relay.name, ()):
            return
        if len(jwt) > MOST:
            raise Untrusted(f"{relay.name} has {len(jwt)} JWT keys, at most {MOST} are possible")
        for spki in jwt:
            public_key(spki)
        await self._store.save_relay_keys(relay.name, jwt)
        self._relay_keys[relay.name] = jwt
        await self.refresh()

    async def federate(self, domains: Mapping[str, DomainBundle]) -> bool:
        """Publish these foreign domains and no others; whether that changes anything."""
        if self._federated == domains:
            return False
        self._federated = dict(domains)
        return await self.refresh()

    async def _publish(self, wanted: TrustBundles) -> None:
        signed = await self._sign(encode(wanted))
        await self._store.save_bundles(signed)
        self.current, self.signed = wanted, signed
        for name, domain in wanted.own.items():
            region = name.partition(".")[0]
            if region != HUB:
                self._from.keys.drop(region, frozenset(domain.jwt))

    def _own(self) -> dict[str, DomainBundle]:
        organisation, roots = self._from.organisation, self._from.roots()
        machines = self._from.roster.all()
        domains = {organisation.domain(one.region) for one in machines}
        domains |= set(self.current.own) if self.current is not None else set()
        found = {organisation.hub_domain: DomainBundle(roots)}
        for domain in domains - {organisation.hub_domain}:
            region = domain.partition(".")[0]
            spkis = [key.spki for key in self._from.keys.keys(region)]
            for one in machines:
                if one.role == "relay" and one.region == region and not one.quarantined:
                    spkis += self._relay_keys.get(one.name, ())
            jwt = {jwt_svid.key_id(spki): spki for spki in spkis}
            found[domain] = DomainBundle(roots, dict(sorted(jwt.items())))
        return found
