"""When an SVID is due, and what whoever serves SVIDs on a node can be asked. Pure.

Laws: everything that is due is asked for at once, and what would be due soon goes with it, so
that a node with many identities asks as often as one with a single one; an SVID is used until
it ends, however long the issuer is away; a new one never takes the place of one that lasts
longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from edgewise.identity.registrations import Candidate
from edgewise.identity.rotation import Validity, renew_at
from edgewise.identity.workload_ports import Caller, LocalSvid, LocalSvids
from edgewise.protocol.content import WorkloadRegistration
from edgewise.protocol.workload import JwtSvid

TOGETHER: Final = 0.1
"""Share of its life by which an SVID is renewed early to go with another that is due."""
JWTS: Final = 512
"""JWT-SVIDs that are kept; the ones that end first go first."""


@dataclass(frozen=True, slots=True)
class Held:
    """An SVID that the node has, and when the next one is due."""

    svid: LocalSvid
    due: datetime
    asked: WorkloadRegistration
    """What it was asked for with; another wish makes it due at once."""


def held(svid: LocalSvid, asked: WorkloadRegistration, fraction: float) -> Held:
    """``fraction`` (0 to 1) spreads renewals; the same for all that came together."""
    return Held(svid, renew_at(Validity(svid.not_before, svid.not_after), fraction), asked)


def due(
    wanted: Mapping[str, WorkloadRegistration], have: Mapping[str, Held], now: datetime
) -> tuple[str, ...]:
    """SPIFFE IDs to ask for now: empty unless one of them cannot wait."""
    if not any(_is_due(one, have.get(name), now) for name, one in wanted.items()):
        return ()
    return tuple(
        name
        for name, one in wanted.items()
        if _is_due(one, held := have.get(name), now + _early(held))
    )


def _early(held: Held | None) -> timedelta:
    return (held.svid.not_after - held.svid.not_before) * TOGETHER if held else timedelta()


def _is_due(wish: WorkloadRegistration, held: Held | None, now: datetime) -> bool:
    return held is None or now >= held.due or _terms(held.asked) != _terms(wish)


def _terms(wish: WorkloadRegistration) -> tuple[float, tuple[str, ...]]:
    return wish.ttl_s, wish.dns


def next_look(
    wanted: Mapping[str, WorkloadRegistration], have: Mapping[str, Held]
) -> datetime | None:
    """When something is due next, if nothing changes before; None while nothing is wanted."""
    return min((have[name].due for name in wanted if name in have), default=None)


@dataclass(frozen=True, slots=True)
class HeldJwt:
    """A JWT-SVID that is given out until the first half of its life is over."""

    svid: JwtSvid

    def is_fresh(self, now: datetime) -> bool:
        """Whether nobody needs to ask for another one."""
        return now < self.svid.issued + (self.svid.expires - self.svid.issued) / 2

    def lasts(self, now: datetime) -> bool:
        """Whether it can be given out while another one is asked for."""
        return now < self.svid.expires - (self.svid.expires - self.svid.issued) / 4

    def holds(self, now: datetime) -> bool:
        """Whether it can be given out when no other can be had."""
        return now < self.svid.expires


JwtKey = tuple[str, tuple[str, ...]]
"""SPIFFE ID and audience, sorted."""


def without_stale(jwts: Mapping[JwtKey, HeldJwt], now: datetime) -> dict[JwtKey, HeldJwt]:
    """Those that hold, at most ``JWTS``."""
    good = [(key, held) for key, held in jwts.items() if held.holds(now)]
    if len(good) > JWTS:
        good = sorted(good, key=lambda pair: pair[1].svid.expires)[-JWTS:]
    return dict(good)


class WorkloadSupply(LocalSvids, Protocol):
    """What the Workload API asks beyond the egress gateway. Implementations: host.svids,
    testing.svids."""

    async def jwt(self, spiffe_id: str, audience: tuple[str, ...]) -> JwtSvid:
        """A JWT-SVID. Raises TryLater while none can be had, and what the issuer says."""

    def federates_with(self, spiffe_ids: Iterable[str]) -> tuple[str, ...]:
        """Other organisations' trust domains that workloads with these IDs trust."""

    def hint(self, spiffe_id: str) -> str:
        """The hint of an ID; empty for none."""

    def explain(self, caller: Caller) -> tuple[Candidate, ...]:
        """Why a caller gets what it gets."""
