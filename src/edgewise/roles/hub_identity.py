"""The hub's authority and what stands on it: trust bundles, workloads' identities, roots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgewise.backends.pki.authority import Authority
from edgewise.backends.pki.jwt import JwtKeyFiles
from edgewise.backends.pki.keys import FileKeys, KeyStore
from edgewise.backends.pki.pkcs11 import TokenKeys, TokenUri
from edgewise.delivery.on_hub import Publisher
from edgewise.identity.workloads import Desk
from edgewise.net.api.bundles import Bundles, Ingredients
from edgewise.net.api.ports import BundleStore, Roster
from edgewise.net.api.trust import TrustRoutes
from edgewise.net.federation import Federation
from edgewise.protocol.channel import Signed
from edgewise.runtime.chance import Chance
from edgewise.runtime.clock import Clock
from edgewise.runtime.log import Log


@dataclass(frozen=True, slots=True)
class HubIdentity:
    """Put together by ``open_identity``."""

    authority: Authority
    bundles: Bundles
    desk: Desk
    trust: TrustRoutes
    federation: Federation


def root_keys(pki: Path, uri: str, passphrase: Callable[[], bytes | None]) -> KeyStore:
    """Where the root's key lives: in a PKCS#11 token, or in (sealed) files.

    Raises BadUsage for a URI that does not name a token.
    """
    return TokenKeys(TokenUri.parse(uri)) if uri else FileKeys(pki, passphrase)


async def open_identity(
    authority: Authority,
    store: BundleStore,
    publisher: Publisher,
    roster: Roster,
    outside: tuple[Clock, Chance, Log],
) -> HubIdentity:
    """Trust bundles as they are now, signed by the present channels key."""
    clock, chance, log = outside
    keyring = JwtKeyFiles(authority.directory / "jwt", clock)

    async def sign(payload: bytes) -> Signed:
        return publisher.sign_bundles(payload)

    ingredients = Ingredients(authority.organisation, lambda: authority.roots, keyring, roster)
    bundles = Bundles(store, sign, ingredients, clock)
    await bundles.load()
    await bundles.sign_again(publisher.channels_key)
    await bundles.refresh()
    desk = Desk(authority.organisation, authority, keyring, lambda: bundles.current)
    federation = Federation(bundles, authority.organisation, clock, chance, log)
    trust = TrustRoutes(bundles, publisher.trust_metadata)
    return HubIdentity(authority, bundles, desk, trust, federation)
