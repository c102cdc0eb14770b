"""Fan-out on a relay: what it knows from the hub, and whom news concerns.

Nothing here reads a clock, a disk or a socket. The laws:

1. What a relay knows only grows newer: a channel or a record is never replaced by an older
   one, so that news which arrive twice or late change nothing.
2. News wake a node only when they change what it should run, its record, or whether it may
   come at all. Everybody else learns the newest channel with its next poll.
3. New trust bundles concern every node.
4. A node that the hub forgot or quarantined is refused until a later record of it comes.

TUF metadata and channels are verified before they come here (delivery.on_relay), records by
the nodes themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from edgewise.model.errors import Untrusted
from edgewise.protocol import limits
from edgewise.protocol.bundles import TrustBundles
from edgewise.protocol.channel import Channel, NodeRecord, Signed
from edgewise.protocol.codec import decode
from edgewise.protocol.content import channel_target
from edgewise.protocol.sync import RelayNews, SyncRequest


@dataclass(frozen=True, slots=True)
class Known:
    """What a relay has from the hub; immutable, replaced as a whole."""

    channels: Mapping[str, Channel] = field(default_factory=dict)
    records: Mapping[str, Signed] = field(default_factory=dict)
    nodes: Mapping[str, NodeRecord] = field(default_factory=dict)
    """The records' payloads."""
    gone: frozenset[str] = frozenset()
    cursor: int = 0
    bundles: Signed | None = None
    trusted: TrustBundles | None = None
    """The bundles' payload."""


@dataclass(frozen=True, slots=True)
class Learnt:
    """What news change on disk."""

    channels: tuple[Channel, ...] = ()
    records: Mapping[str, Signed] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    """The whole set as it is now."""
    cursor: int = 0
    bundles: Signed | None = None
    """None: they are as they were."""


def learn(known: Known, news: RelayNews) -> tuple[Known, Learnt]:
    """What is known with the news, and what to write down.

    Raises Untrusted for channels or records that cannot be read: nothing is taken then.
    """
    channels = dict(known.channels)
    fresh = []
    for name, data in news.metadata.items():
        if not name.startswith("channels/"):
            continue
        channel = read_channel(data)
        if name != channel_target(channel.fleet):
            raise Untrusted(f"{name[:100]} holds the channel of fleet {channel.fleet!r}")
        before = channels.get(channel.fleet)
        if before is None or before.sequence < channel.sequence:
            channels[channel.fleet] = channel
            fresh.append(channel)
    records, nodes = dict(known.records), dict(known.nodes)
    taken = {}
    for name, signed in news.records.items():
        record = read_record(name, signed)
        if name in nodes and nodes[name].sequence > record.sequence and name not in known.gone:
            continue
        nodes[name], records[name], taken[name] = record, signed, signed
    gone = (known.gone - frozenset(taken)) | frozenset(news.gone)
    bundles, trusted = _newer_bundles(known, news.bundles)
    # The hub's word as it is: one that was restored from a backup counts from further back.
    after = replace(
        known,
        channels=channels,
        records=records,
        nodes=nodes,
        gone=gone,
        cursor=news.cursor,
        bundles=bundles,
        trusted=trusted,
    )
    changed = bundles if bundles is not known.bundles else None
    return after, Learnt(tuple(fresh), taken, gone, news.cursor, changed)


def _newer_bundles(
    known: Known, signed: Signed | None
) -> tuple[Signed | None, TrustBundles | None]:
    if signed is None:
        return known.bundles, known.trusted
    bundles = read_bundles(signed)
    if known.trusted is not None and bundles.sequence <= known.trusted.sequence:
        return known.bundles, known.trusted
    return signed, bundles


def restored(
    channels: Iterable[Channel],
    records: Mapping[str, Signed],
    gone: Collection[str],
    cursor: int,
    bundles: Signed | None = None,
) -> Known:
    """What a relay knew before it was restarted."""
    news = RelayNews(records=dict(records), cursor=cursor, bundles=bundles)
    known, _ = learn(Known(), news)
    return replace(
        known, channels={channel.fleet: channel for channel in channels}, gone=frozenset(gone)
    )


def read_channel(data: bytes) -> Channel:
    """A channel as bytes. Raises Untrusted."""
    return decode(data, Channel, what="channel", at_most=limits.CHANNEL)


def read_record(name: str, signed: Signed) -> NodeRecord:
    """The record of node ``name``. Raises Untrusted."""
    record = decode(signed.payload, NodeRecord, what=f"record of {name}", at_most=limits.RECORD)
    if signed.purpose != "node-record/1" or record.node != name:
        raise Untrusted(f"what came as record of {name} is a {signed.purpose} of {record.node}")
    return record


def read_bundles(signed: Signed) -> TrustBundles:
    """What the bundles say. Raises Untrusted."""
    if signed.purpose != "bundle/1":
        raise Untrusted(f"what came as trust bundles is a {signed.purpose}")
    return decode(signed.payload, TrustBundles, what="trust bundles", at_most=limits.BUNDLES)


def concerned(before: Known, after: Known, running: Mapping[str, str]) -> frozenset[str]:
    """The nodes that news concern.

    ``running`` is what each node said it runs; one that has not said is told in any case.
    """
    if after.bundles is not before.bundles:
        return frozenset(after.nodes)
    woken = set(after.gone - before.gone)
    changed = {
        fleet
        for fleet, channel in after.channels.items()
        if before.channels.get(fleet) is not channel and before.channels.get(fleet) != channel
    }
    for name, record in after.nodes.items():
        was = before.nodes.get(name)
        if was is not record and was != record:
            woken.add(name)
        elif record.fleet in changed and _moves(
            record, before.channels.get(record.fleet), after.channels[record.fleet], running
        ):
            woken.add(name)
    return frozenset(woken)


def _moves(
    record: NodeRecord, before: Channel | None, after: Channel, running: Mapping[str, str]
) -> bool:
    runs = running.get(record.node)
    if before is None or runs is None:
        return True
    # A node's last words may be older than its present state: the candidate that it was told
    # to take counts as well as what it said it runs, and so does what is quarantined now.
    told = before.target(record.index, runs)
    if after.target(record.index, runs) != told or after.target(record.index, told) != told:
        return True
    condemned = set(after.quarantined) - set(before.quarantined)
    return any(
        before.target(record.index, release) != after.target(record.index, release)
        for release in condemned
    )


@dataclass(frozen=True, slots=True)
class Newer:
    """What is new to one node."""

    record: Signed | None
    fleet: str
    """The fleet whose channel it lacks; empty for none."""
    bundles: Signed | None = None


def newer_for(known: Known, node: str, request: SyncRequest) -> Newer | None:
    """What is new to this node, or None: then its poll is held."""
    bundles = None
    if known.trusted is not None and 0 <= request.bundles < known.trusted.sequence:
        bundles = known.bundles
    record = known.nodes.get(node)
    if record is None:
        return Newer(None, "", bundles) if bundles is not None else None
    signed = known.records[node] if record.sequence > request.record else None
    channel = known.channels.get(record.fleet)
    lacks = channel is not None and (
        request.fleet != record.fleet or channel.sequence > request.channel
    )
    if signed is None and not lacks and bundles is None:
        return None
    return Newer(signed, record.fleet if lacks else "", bundles)
