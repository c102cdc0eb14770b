"""Whether somebody with a valid certificate still gets anything.

Certificates of nodes live for weeks and there is no revocation list, so hub and relays
ask this at every request: a node that is forgotten or quarantined is refused at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgewise.identity.names import Organisation
from edgewise.identity.ports import Enrolled
from edgewise.model.names import SpiffeId


@dataclass(frozen=True, slots=True)
class OutOfFavour:
    """Why it gets nothing, and the next move."""

    reason: Literal["forgotten", "quarantined", "moved"]
    what: str
    hint: str


def standing(
    peer: SpiffeId, enrolled: Enrolled | None, organisation: Organisation
) -> OutOfFavour | None:
    """None when all is well with this node or relay."""
    if enrolled is None or enrolled.role != peer.role:
        return OutOfFavour(
            "forgotten",
            f"{peer} is not enrolled here",
            "it was forgotten: join it again with a new token",
        )
    if organisation.domain(enrolled.region) != peer.trust_domain:
        return OutOfFavour(
            "moved",
            f"{peer.name} belongs to region {enrolled.region} now",
            "its old certificate is of no use; the agent rejoins by itself",
        )
    if enrolled.quarantined:
        return OutOfFavour(
            "quarantined",
            f"{peer.name} is quarantined: {enrolled.quarantined}",
            f"`edgewise node release {peer.name}` lifts it",
        )
    return None
