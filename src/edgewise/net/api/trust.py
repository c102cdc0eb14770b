"""What anybody may read about whom to trust: nothing here is secret, and all of it is signed.

A machine that was away while the root was replaced cannot verify our certificate any more.
It fetches ``/v1/trust`` over a connection that proves nothing and verifies the bundles by the
TUF root that it got when it joined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgewise.model.errors import TryLater
from edgewise.net.api.bundles import Bundles
from edgewise.net.routes import ANYONE, Answer, Call, Route
from edgewise.protocol.bundles import TrustReply


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


class TrustRoutes:
    """On the hub."""

    def __init__(self, bundles: Bundles, metadata: Callable[[], Mapping[str, bytes]]) -> None:
        self._bundles = bundles
        self._metadata = metadata

    def routes(self) -> list[Route]:
        """All routes of this group."""
        return [trust_route(self.trust)]

    async def trust(self, call: Call[None]) -> TrustReply:
        """GET /v1/trust."""
        if self._bundles.signed is None:
            raise TryLater("there are no trust bundles yet")
        return TrustReply(self._bundles.signed, dict(self._metadata()))
