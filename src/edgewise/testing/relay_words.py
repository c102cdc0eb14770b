"""Short ways to say what nodes and the hub say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from edgewise.protocol.channel import Bitmap, Channel, NodeRecord, Signed
from edgewise.protocol.codec import encode
from edgewise.protocol.content import channel_target
from edgewise.protocol.report import Observation, Receipt
from edgewise.protocol.sync import RelayNews

START = datetime(2026, 1, 1, tzinfo=UTC)
A, B, C = "a" * 64, "b" * 64, "c" * 64


def receipt(node: str, sequence: int, *, key: str = "k1", reason: str = "") -> Signed:
    body = Receipt(node, sequence, "Succeeded", A, A, "r1", START, reason=reason)
    return Signed("receipt/1", encode(body), key, b"signature")


def record(node: str, sequence: int = 1, *, fleet: str = "shops", index: int = 0) -> Signed:
    return Signed("node-record/1", encode(NodeRecord(node, sequence, fleet, index)), "k", b"s")


def channel(sequence: int, *, wave: tuple[int, ...] = (), **rest: object) -> Channel:
    return Channel("shops", sequence, wave=Bitmap.of(wave).data, **rest)  # type: ignore[arg-type]


def news(*channels: Channel, cursor: int = 0, **rest: object) -> RelayNews:
    """As a hub publishes: new numbered files with every channel."""
    version = max((c.sequence for c in channels), default=0)
    metadata = {channel_target(c.fleet): encode(c) for c in channels}
    if channels:
        metadata |= {
            "timestamp.json": b"t%d" % version,
            f"{version}.snapshot.json": b"s%d" % version,
            f"{version}.channels.json": b"c%d" % version,
            "1.root.json": b"root",
            "1.builds.json": b"builds",
        }
    return RelayNews(
        metadata,
        {c.fleet: c.sequence for c in channels},
        cursor=cursor,
        **rest,  # type: ignore[arg-type]
    )


def runs(release: str, **rest: object) -> Observation:
    return Observation(running=release, **rest)  # type: ignore[arg-type]


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)
