"""What a bundle on removable media says: an order for one fleet that is good for months.

A timestamp lives seven days, so that nodes notice a relay that hides news. A stick that is
carried to a site without a network cannot be younger than its journey: it holds this document
instead, signed with the hub's channels key under a purpose of its own, so that a long-lived
word can never be used where a short-lived one is due.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

import msgspec

from edgewise.model.names import Digest
from edgewise.protocol import limits
from edgewise.protocol.channel import Channel, Signed

MEDIA: Final = "media.json"
"""The document's name among metadata."""


ORDER: Final = "media-order.json"
"""In a node's state directory: an encoded SyncReply that its agent takes as if it had been sent,
then deletes."""


class Media(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An order that may arrive late."""

    channel: Channel
    """The fleet's channel with nothing but a stable release: what every node of it shall run."""
    timestamp: int
    """Version of the hub's timestamp at the export; a node refuses less than it has seen."""
    builds: int
    """Version of ``builds``, which must name the release."""
    builds_sha256: str
    issued: datetime
    expires: datetime
    """Stands in for the life of all metadata that comes along."""
    schema: Literal[1] = 1

    def __post_init__(self) -> None:
        Digest(self.builds_sha256)
        Digest(self.channel.stable)
        if self.issued.tzinfo is None or self.expires.tzinfo is None:
            raise ValueError("times of media have a time zone")


class MediaRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a bundle shall say."""

    fleet: str
    release: str = ""
    """Digest; empty: the fleet's stable release."""
    valid_s: float = 365 * 86400.0
    """How long nodes take it."""
    bases: tuple[str, ...] = ()
    """Trees that the receivers have: the order shall name the deltas that lead from them."""
    packs: bool = False
    """Whether it shall name the packs of the release's trees."""

    def __post_init__(self) -> None:
        if len(self.bases) > limits.DELTAS:
            raise ValueError(f"a bundle has deltas from at most {limits.DELTAS} trees")
        for base in self.bases:
            Digest(base)


class MediaReply(msgspec.Struct, frozen=True):
    """What goes into a bundle beside content."""

    release: str
    expires: datetime
    metadata: dict[str, bytes] = {}
    """``media.json``, and the metadata that it is verified with, by file name."""
    records: dict[str, Signed] = {}
    """Node to its record, for every node of the fleet."""
    deltas: str = ""
    """Digest of the list of deltas and packs that the order names; empty: none that was asked
    for has been made."""


class BundleIndex(msgspec.Struct, frozen=True):
    """First file of a bundle, for people and tools. Nothing is believed because of it."""

    fleet: str
    release: str
    platforms: tuple[str, ...]
    """Empty: all that the release is built for."""
    leaves_out: tuple[str, ...]
    """Releases that the receiver has: what they share with this one is not in the bundle."""
    objects: int
    size: int
    """Bytes of the objects, unpacked."""
    deltas: int = 0
    """Deltas and packs beside them, which bring what is not there whole."""
    format: Literal[1] = 1
