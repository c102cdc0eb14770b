"""What anybody may read about whom to trust: nothing here is secret, and all of it is signed.

A machine that was away while the root was replaced cannot verify our certificate any more.
It fetches ``/v1/trust`` over a connection that proves nothing and verifies the bundles by the
TUF root that it got when it joined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from edgewise.identity.spiffe_bundle import render
from edgewise.model.errors import NotFound, TryLater
from edgewise.net.api.bundles import Bundles
from edgewise.net.routes import ANYONE, Answer, Bytes, Call, Route
from edgewise.protocol.bundles import TrustBundles, TrustReply


def trust_route(answer: Answer) -> Route:
    """The same on hub and relay."""
    return Route(
        "GET",
        "/v1/trust",
        "Signed trust bundles, and the TUF metadata that verifies them",
        answer,
        ANYONE,
        response=TrustReply,
        errors=(TryLater,),
    )


def bundle_route(answer: Answer) -> Route:
    """The SPIFFE bundle endpoint (SPIFFE Federation, section 5), the same on hub and relay."""
    return Route(
        "GET",
        "/v1/bundles/{trust_domain}",
        "One of our trust domains' keys, as a SPIFFE bundle (JWKS)",
        answer,
        ANYONE,
        response=msgspec.Raw,
        errors=(NotFound, TryLater),
        description="For other organisations, with the profile https_spiffe; needs no "
        "client certificate.",
    )


def bundle_of(bundles: TrustBundles | None, trust_domain: str) -> Bytes:
    """The answer of the bundle endpoint. Raises NotFound, TryLater."""
    if bundles is None:
        raise TryLater("there are no trust bundles yet")
    found = bundles.own.get(trust_domain)
    if found is None:
        raise NotFound(
            f"{trust_domain[:100]!r} is no trust domain of this organisation",
            hint="`edgewise ca show` lists them",
        )
    return Bytes(render(found), headers={"Cache-Control": "no-cache"})


class TrustRoutes:
    """On the hub."""

    def __init__(self, bundles: Bundles, metadata: Callable[[], Mapping[str, bytes]]) -> None:
        self._bundles = bundles
        self._metadata = metadata

    def routes(self) -> list[Route]:
        """All routes of this group."""
        return [trust_route(self.trust), bundle_route(self.bundle)]

    async def trust(self, call: Call[None]) -> TrustReply:
        """GET /v1/trust."""
        if self._bundles.signed is None:
            raise TryLater("there are no trust bundles yet")
        return TrustReply(self._bundles.signed, dict(self._metadata()))

    async def bundle(self, call: Call[None]) -> Bytes:
        """GET /v1/bundles/{trust_domain}."""
        return bundle_of(self._bundles.current, call.path["trust_domain"])
