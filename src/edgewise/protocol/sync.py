"""The long polls: node to relay or hub, and relay to hub.

``POST /v1/sync`` is heartbeat, status report and wake-up in one: it is answered at once
when the hub has something new for this node, else held until it has, or until the hold
time ends (204).
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from edgewise.protocol.channel import Signed
from edgewise.protocol.report import Observation

VERSION = 1


class SyncRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a node knows and what it has to say. The name is its SPIFFE ID, not a field."""

    channel: int = 0
    """Sequence of the newest verified channel of its fleet; 0 for none."""
    fleet: str = ""
    """Fleet whose channel ``channel`` speaks of."""
    record: int = 0
    """Sequence of its newest verified record; 0 for none."""
    observation: Observation | None = None
    """Only when it changed since the last answered request."""
    receipts: tuple[Signed, ...] = ()
    """Those not yet acknowledged, oldest first."""
    hold_s: float = 60.0
    """How long the answer may be held. 0 asks for one at once: a report beside a held poll."""
    version: int = VERSION
    bundles: int = -1
    """Sequence of its newest verified trust bundles; 0 for none, -1: it does not follow them."""


class SyncReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something new. A reply without ``metadata`` and ``record`` only acknowledges."""

    record: Signed | None = None
    """Newer than the one the node named."""
    metadata: dict[str, bytes] = {}
    """TUF files by name (``timestamp.json``, ``12.snapshot.json``, ...) and the channel as
    ``channels/<fleet>.json``: what the node would fetch next. A hint only; every byte is
    verified as if it had been downloaded."""
    acknowledged: int = 0
    """Sequence of the last receipt that is safely stored at the hub or the relay."""
    hold_s: float = 60.0
    """How long the next poll will be held at most."""
    now: datetime | None = None
    """The sender's clock; a hint for nodes without one, never trusted alone."""
    bundles: Signed | None = None
    """Trust bundles (``bundle/1``) newer than those the node named."""


class NodeReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a relay heard from one node."""

    node: str
    heard: datetime
    """When the relay last heard from it."""
    observation: Observation | None = None
    receipts: tuple[Signed, ...] = ()


class RelaySync(msgspec.Struct, frozen=True, omit_defaults=True):
    """A relay's long poll: what it has."""

    channels: dict[str, int] = {}
    """Fleet to the sequence of the channel that it can serve."""
    records: int = 0
    """Cursor of the last batch of node records."""
    version: int = VERSION
    bundles: int = -1
    """As in ``SyncRequest``."""
    jwt: tuple[bytes, ...] = ()
    """DER SubjectPublicKeyInfo of every key with which it signs JWT-SVIDs, or will."""
    issuer: str = ""
    """Hex SHA-256 of the root above its own certificate."""


class RelayNews(msgspec.Struct, frozen=True, omit_defaults=True):
    """The hub's answer to a relay: metadata, channels and records that are new to it."""

    metadata: dict[str, bytes] = {}
    channels: dict[str, int] = {}
    """Fleet to the sequence that ``metadata`` now carries."""
    records: dict[str, Signed] = {}
    """Node name to its newest record; only nodes of this relay's region."""
    cursor: int = 0
    gone: tuple[str, ...] = ()
    """Nodes that were forgotten or quarantined: refuse them."""
    hold_s: float = 60.0
    bundles: Signed | None = None
    """Trust bundles newer than those the relay named."""


class RelayReport(msgspec.Struct, frozen=True):
    """A batch of node reports, at most ``limits.RELAY_REPORT`` bytes."""

    reports: tuple[NodeReport, ...]


class RelayAcknowledged(msgspec.Struct, frozen=True):
    """Per node, the last receipt that the hub has stored."""

    receipts: dict[str, int] = {}
    refused: dict[str, tuple[int, ...]] = {}
    """Per node, receipts of the batch that the hub will never take (wrong signature, unknown
    key): audited there, and not worth sending again."""
