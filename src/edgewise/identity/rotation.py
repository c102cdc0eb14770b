"""When to renew a certificate, and whether two machines use one identity.

Renewal starts at half-life plus or minus a tenth (as SPIRE's rotationutil does), is tried
again and again until it works, and never stops anything: an expired certificate only means
that the node has to rejoin with its enrolment key.

The lineage of a name notices a copied disk. Every issuing is remembered by its serial
number. Whoever renews shows the certificate it holds: the newest one (all is well), or the
one before (the last answer was lost). One that was replaced long ago means that somebody
else has renewed in between: two machines with one identity. A serial number that is not
known here says nothing: another relay of the region may have issued it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from edgewise.model.errors import BadUsage

JITTER: Final = 0.1
"""Share of the lifetime over which a fleet that joined at once spreads its renewals."""
CLOCK_SLACK: Final = timedelta(hours=1)
EARLIEST: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""No clock that shows an earlier time is right: this file is younger."""

OVERTAKING: Final = timedelta(minutes=10)
"""Longer than any request of a node can be under way."""
REMEMBERED: Final = 16
"""Replaced certificates per name: 16 renewals of 22 days outlive every one of them."""
REJOINS: Final = 5
"""Rejoins within ``REJOIN_WINDOW`` before a person has to look: a node that loses its
certificate again and again has a bad disk, or is not alone."""
REJOIN_WINDOW: Final = timedelta(days=30)


SHORTEST_LIFE: Final = timedelta(minutes=1)
"""Of a node's certificate: shorter, and a renewal that is tried again finds it expired."""
LONGEST_LIFE: Final = timedelta(days=90)
"""Half of it is what a stolen disk is good for at most before it shows."""


def checked_life(option: str, life: timedelta) -> timedelta:
    """How long nodes' certificates are good. Raises BadUsage beyond the bounds."""
    if not SHORTEST_LIFE <= life <= LONGEST_LIFE:
        raise BadUsage(
            f"{option} {life.total_seconds():g} s is not between one minute and 90 days",
            hint="45d is the default; shorter ones renew more often and end sooner when the hub "
            "and the relay are both away",
        )
    return life


@dataclass(frozen=True, slots=True)
class Validity:
    """From when to when a certificate holds."""

    not_before: datetime
    not_after: datetime

    @property
    def lifetime(self) -> timedelta:
        """How long."""
        return self.not_after - self.not_before

    def holds(self, now: datetime) -> bool:
        """Whether it is valid now, by this clock."""
        return self.not_before <= now < self.not_after


def renew_at(validity: Validity, fraction: float) -> datetime:
    """When to renew: half-life, shifted by ``fraction`` (0 to 1) over plus-minus a tenth."""
    return validity.not_before + validity.lifetime * (0.5 + JITTER * (2 * fraction - 1))


def clock_is_wrong(now: datetime, own: Validity | None = None) -> bool:
    """Whether the clock is surely behind: before this program or our own certificate began.

    A node whose clock fell back must not check the times of others by it, or it would
    never get the connection that tells it the time.
    """
    return now < EARLIEST or (own is not None and now < own.not_before - CLOCK_SLACK)


@dataclass(frozen=True, slots=True)
class Lineage:
    """What has been issued to one name: serial numbers in hex, empty for none."""

    confirmed: str = ""
    """The newest that its holder has been seen to use."""
    issued: str = ""
    """The newest."""
    at: datetime | None = None
    """When ``issued`` was made."""
    replaced: tuple[str, ...] = ()
    """Older ones, newest last; at most ``REMEMBERED``."""
    rejoins: int = 0
    """Within the present window."""
    window: datetime | None = None
    """When the window began."""


@dataclass(frozen=True, slots=True)
class TwoUsers:
    """Two machines use one identity. It is quarantined until a person has looked."""

    what: str


@dataclass(frozen=True, slots=True)
class TooOften:
    """Too many rejoins; a person has to look."""

    what: str
    until: datetime


def shown(lineage: Lineage, serial: str) -> Lineage | TwoUsers:
    """What is known after the holder has shown this certificate.

    An empty ``serial`` (a rejoin of a node that lost its certificate) proves nothing.
    """
    if serial in ("", lineage.confirmed):
        return lineage
    if serial in lineage.replaced:
        return TwoUsers(
            f"certificate {serial[:12]} is in use although it was replaced by "
            f"{lineage.issued[:12]}: two machines use this identity"
        )
    old = (lineage.confirmed,) if serial == lineage.issued else (lineage.confirmed, lineage.issued)
    return replace(lineage, confirmed=serial, replaced=_kept(lineage, *old))


def issued(lineage: Lineage, serial: str, now: datetime) -> Lineage:
    """After a certificate with this serial was made."""
    unused = lineage.issued if lineage.issued != lineage.confirmed else ""
    # Two requests of one impatient node can overtake each other: that is no second machine.
    late = lineage.at is not None and now - lineage.at > OVERTAKING
    known = _kept(lineage, unused) if late else lineage.replaced
    return replace(lineage, issued=serial, at=now, replaced=known)


def _kept(lineage: Lineage, *serials: str) -> tuple[str, ...]:
    return (*lineage.replaced, *(s for s in serials if s))[-REMEMBERED:]


def rejoined(lineage: Lineage, now: datetime) -> Lineage | TooOften:
    """Count one rejoin."""
    window = lineage.window
    if window is None or now >= window + REJOIN_WINDOW:
        return replace(lineage, rejoins=1, window=now)
    if lineage.rejoins >= REJOINS:
        return TooOften(
            f"it rejoined {lineage.rejoins} times since {window:%Y-%m-%d}", window + REJOIN_WINDOW
        )
    return replace(lineage, rejoins=lineage.rejoins + 1)
