"""What the hub knows of a node's TPM over time: when it attested, and since when it does not.

Laws:
- Only a quote that the node's own attestation key has signed changes what is known: nobody
  else can make a node fail.
- A node that is away is not late. One that is heard of, and does not attest, is.
- Failing is not yet a reason: it has to last for the policy's grace. One good quote ends it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from edgewise.identity.tpm_structures import Attested
from edgewise.protocol.attest import Quote

MARK: Final = "attestation: "
"""How the reason of such a quarantine begins: a good quote lifts this kind, and no other."""


@dataclass(frozen=True, slots=True)
class Counters:
    """A TPM's own clock and how often it was reset (TPMS_CLOCK_INFO, firmwareVersion)."""

    clock: int
    """Milliseconds."""
    resets: int
    restarts: int
    firmware: int = 0


@dataclass(frozen=True, slots=True)
class Attestation:
    """What is known of one node."""

    at: datetime | None = None
    """When it last attested well."""
    reference: str = ""
    """Which good boot that was; "" where nothing was compared."""
    counters: Counters | None = None
    pcrs: dict[str, str] = field(default_factory=dict)
    """PCR to hex of the last quote that was genuine, good or not."""
    failing_since: datetime | None = None
    reason: str = ""
    what: str = ""
    """Why it fails now."""


def counters_of(said: Attested) -> Counters:
    """Of a quote."""
    return Counters(said.clock, said.resets, said.restarts, said.firmware)


def passed(said: Attested, quote: Quote, reference: str, now: datetime) -> Attestation:
    """After a good quote."""
    return Attestation(now, reference, counters_of(said), shown(quote))


def failed(
    before: Attestation, reason: str, what: str, now: datetime, quote: Quote | None = None
) -> Attestation:
    """After a bad one, or after none (``quote`` is None)."""
    return replace(
        before,
        failing_since=before.failing_since or now,
        reason=reason,
        what=what,
        pcrs=shown(quote) if quote is not None else before.pcrs,
    )


def shown(quote: Quote) -> dict[str, str]:
    """PCR values as people write them."""
    return {str(pcr): value.hex() for pcr, value in sorted(quote.values.items())}


def too_long(kept: Attestation, grace: timedelta, now: datetime) -> bool:
    """Whether it has failed for longer than the policy allows."""
    return kept.failing_since is not None and now - kept.failing_since >= grace


def is_late(kept: Attestation, interval: timedelta, heard: datetime | None, now: datetime) -> bool:
    """Whether a node is heard of and has not attested when it should have.

    ``heard``: when it was last heard of. A node that is away is not late.
    """
    if kept.at is None or heard is None:
        return False
    due = kept.at + interval
    return now > due and heard > due
