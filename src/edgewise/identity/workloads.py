"""Identities of workloads: what a node may ask for, and the answer.

Hub and relay use the same desk, each with its own authority. Laws:
- a node gets the paths that its record names, below ``/app/`` of its own trust domain, and
  nothing else; DNS names only beside the path for which the record allows them;
- one request is answered as a whole, or with an error;
- an X509-SVID lives at most an hour and never longer than the CA above it;
- a JWT-SVID is signed only by a key that the published bundle carries, so that whoever
  has the bundle can verify it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from edgewise.identity import jwt_svid
from edgewise.identity.jwt_keys import in_use
from edgewise.identity.names import Organisation
from edgewise.identity.ports import JwtKeyring, WorkloadIssuer
from edgewise.identity.rates import Rates
from edgewise.model.errors import BadUsage, Forbidden, TryLater
from edgewise.model.names import SpiffeId
from edgewise.protocol import limits
from edgewise.protocol.bundles import TrustBundles
from edgewise.protocol.channel import NodeRecord
from edgewise.protocol.workload import (
    JwtSvid,
    JwtWanted,
    WorkloadReply,
    WorkloadRequest,
    X509Svid,
    X509Wanted,
)

X509_LIFE: Final = timedelta(hours=1)
"""What a thief of a workload's key has, at most."""
X509_SHORTEST: Final = timedelta(minutes=1)
JWT_LIFE: Final = timedelta(minutes=5)
"""A token is sent to others, so it lives shorter than a certificate."""
JWT_SHORTEST: Final = timedelta(seconds=30)
BURST: Final = 512
"""Identities for one node at once: an agent that starts asks for all that it has."""
PER_SECOND: Final = 2.0
"""And for long: 200 workloads with two renewals an hour and a token a minute each fit in."""
NOT_PUBLISHED: Final = timedelta(seconds=5)
"""A new key is in the bundles after one round to the hub and back."""


@dataclass(slots=True)
class Desk:
    """Answers ``POST /v1/workloads``."""

    organisation: Organisation
    issuer: WorkloadIssuer
    keyring: JwtKeyring
    bundles: Callable[[], TrustBundles | None]
    """What is published now, as far as it is known here."""
    _rates: Rates = field(default_factory=lambda: Rates(BURST, PER_SECOND), init=False)

    def answer(
        self, node: SpiffeId, record: NodeRecord | None, request: WorkloadRequest, now: datetime
    ) -> WorkloadReply:
        """Identities for workloads on ``node``, whose standing was checked already.

        Raises BadUsage, Forbidden, Untrusted (a bad certificate request), TryLater.
        """
        count = len(request.x509) + len(request.jwt)
        if not 1 <= count <= limits.WORKLOADS:
            raise BadUsage(f"{count} identities at once, 1 to {limits.WORKLOADS} are possible")
        if record is None:
            raise TryLater(f"{node.name} has no record yet", wait=NOT_PUBLISHED)
        self._rates.take(node.name, count, now)
        x509 = [(self._allowed(node, record, one), one) for one in request.x509]
        jwt = [(self._allowed(node, record, one), one) for one in request.jwt]
        lives = [_life(one.ttl_s, X509_SHORTEST, X509_LIFE) for one in request.x509]
        tokens = self._tokens(jwt, now) if jwt else ()
        made = [
            self._x509(identity, one, life)
            for (identity, one), life in zip(x509, lives, strict=True)
        ]
        return WorkloadReply(tuple(made), tokens)

    def _allowed(
        self, node: SpiffeId, record: NodeRecord, wanted: X509Wanted | JwtWanted
    ) -> SpiffeId:
        names = record.identities.get(wanted.path)
        identity = self.organisation.app(node.trust_domain, wanted.path)
        if names is None:
            raise Forbidden(
                f"{node.name} may not have {wanted.path[:200]}",
                hint="which identities a node has, its apps and WorkloadIdentity documents say; "
                "`edgewise node show` lists them",
            )
        if isinstance(wanted, X509Wanted) and (surplus := set(wanted.dns) - set(names)):
            raise Forbidden(
                f"{wanted.path} may not have the name {min(surplus)[:200]!r}",
                hint="add it to dnsNames in the fleet repo",
            )
        return identity

    def _x509(self, identity: SpiffeId, wanted: X509Wanted, life: timedelta) -> X509Svid:
        made, dns = self.issuer.issue_workload(identity, wanted.csr, wanted.dns, life)
        return X509Svid(str(identity), made.chain, made.not_before, made.not_after, dns)

    def _tokens(
        self, wanted: list[tuple[SpiffeId, JwtWanted]], now: datetime
    ) -> tuple[JwtSvid, ...]:
        domain = wanted[0][0].trust_domain
        region = self.organisation.region_of(wanted[0][0]) or ""
        bundles = self.bundles()
        published = bundles.own[domain].jwt if bundles and domain in bundles.own else {}
        key = in_use(self.keyring.keys(region), published)
        if key is None:
            raise TryLater(
                "the key that signs JWT-SVIDs here is not published yet", wait=NOT_PUBLISHED
            )
        issued = now.replace(microsecond=0)
        for _, one in wanted:
            if not 1 <= len(one.audience) <= jwt_svid.AUDIENCES or not all(
                map(jwt_svid.is_audience, one.audience)
            ):
                raise BadUsage(
                    f"a JWT-SVID has 1 to {jwt_svid.AUDIENCES} audiences of at most "
                    f"{jwt_svid.AUDIENCE} printable characters"
                )
        made = []
        for identity, one in wanted:
            expires = issued + _life(one.ttl_s, JWT_SHORTEST, JWT_LIFE)
            claims = jwt_svid.Claims(identity, one.audience, issued, expires)
            signed = jwt_svid.unsigned(claims, key.kid)
            token = jwt_svid.compact(signed, self.keyring.sign(region, key.kid, signed))
            made.append(JwtSvid(str(identity), token, issued, expires))
        return tuple(made)


def _life(seconds: float, shortest: timedelta, longest: timedelta) -> timedelta:
    """What is given for a wish; 0 is the longest, and nothing longer is given. Raises BadUsage."""
    if seconds == 0 or seconds >= longest.total_seconds():
        return longest
    low = shortest.total_seconds()
    if not low <= seconds:
        raise BadUsage(f"a life of {seconds:g} s is shorter than {low:g} s")
    return timedelta(seconds=seconds)
