"""Fan-out on a relay: what it knows from the hub, and whom news concerns.

Nothing here reads a clock, a disk or a socket. The laws:

1. What a relay knows only grows newer: a channel, a record or a numbered role file is never
   replaced by an older one, so that news which arrive twice or late change nothing.
2. News wake a node only when they change what it should run, its record, or whether it may
   come at all. Everybody else learns the newest channel with its next poll.
3. A node that the hub forgot or quarantined is refused until a later record of it comes.

The relay believes none of this blindly and needs not: nodes verify every byte.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from edgewise.model.errors import Untrusted
from edgewise.protocol import limits
from edgewise.protocol.channel import Channel, NodeRecord, Signed
from edgewise.protocol.codec import decode
from edgewise.protocol.content import channel_target
from edgewise.protocol.sync import RelayNews, SyncReply, SyncRequest

BUNDLE_FILE = 64 << 10
"""Bytes of a role file that still travels inside a sync reply; a node fetches bigger ones
from the cache, and only when it has not got that version."""

_VERSIONED = re.compile(r"([1-9][0-9]{0,8})\.([a-z0-9-]+)\.json")
_ALWAYS = ("timestamp", "snapshot", "channels")
# Roles that every change of a channel changes.


@dataclass(frozen=True, slots=True)
class Known:
    """All that a relay has from the hub; immutable, replaced as a whole."""

    metadata: Mapping[str, bytes] = field(default_factory=dict)
    """TUF files and channels by name; of a numbered role (roots excepted) only the newest."""
    channels: Mapping[str, Channel] = field(default_factory=dict)
    records: Mapping[str, Signed] = field(default_factory=dict)
    nodes: Mapping[str, NodeRecord] = field(default_factory=dict)
    """The records' payloads; not verified."""
    gone: frozenset[str] = frozenset()
    cursor: int = 0


@dataclass(frozen=True, slots=True)
class Learnt:
    """What news change on disk."""

    metadata: Mapping[str, bytes] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    """Metadata files that a newer version replaced."""
    records: Mapping[str, Signed] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    """The whole set as it is now."""
    cursor: int = 0


def learn(known: Known, news: RelayNews) -> tuple[Known, Learnt]:
    """What is known with the news, and what to write down.

    Raises Untrusted for channels or records that cannot be read: nothing is taken then.
    """
    metadata, dropped = _newest(known.metadata, news.metadata)
    channels = dict(known.channels)
    fresh = {}
    for name, data in metadata.items():
        if name.startswith("channels/"):
            channel = read_channel(data)
            if name != channel_target(channel.fleet):
                raise Untrusted(f"{name} holds the channel of fleet {channel.fleet!r}")
            before = channels.get(channel.fleet)
            if before is not None and before.sequence > channel.sequence:
                continue
            channels[channel.fleet] = channel
        fresh[name] = data
    records, nodes = dict(known.records), dict(known.nodes)
    taken = {}
    for name, signed in news.records.items():
        record = read_record(name, signed)
        if name in nodes and nodes[name].sequence > record.sequence and name not in known.gone:
            continue
        nodes[name], records[name], taken[name] = record, signed, signed
    gone = (known.gone - frozenset(taken)) | frozenset(news.gone)
    kept = {name: data for name, data in known.metadata.items() if name not in dropped}
    after = replace(
        known,
        metadata={**kept, **fresh},
        channels=channels,
        records=records,
        nodes=nodes,
        gone=gone,
        cursor=max(known.cursor, news.cursor),
    )
    return after, Learnt(fresh, dropped, taken, gone, after.cursor)


def restored(
    metadata: Mapping[str, bytes],
    records: Mapping[str, Signed],
    gone: Collection[str],
    cursor: int,
) -> Known:
    """What a relay knew before it was restarted."""
    news = RelayNews(dict(metadata), {}, dict(records), cursor, ())
    known, _ = learn(Known(), news)
    return replace(known, gone=frozenset(gone))


def read_channel(data: bytes) -> Channel:
    """A channel as bytes. Raises Untrusted."""
    return decode(data, Channel, what="channel", at_most=limits.CHANNEL)


def read_record(name: str, signed: Signed) -> NodeRecord:
    """The record of node ``name``. Raises Untrusted."""
    record = decode(signed.payload, NodeRecord, what=f"record of {name}", at_most=limits.RECORD)
    if signed.purpose != "node-record/1" or record.node != name:
        raise Untrusted(f"what came as record of {name} is a {signed.purpose} of {record.node}")
    return record


def _newest(
    have: Mapping[str, bytes], come: Mapping[str, bytes]
) -> tuple[dict[str, bytes], frozenset[str]]:
    """The files of ``come`` that are not outdated, and those of ``have`` that they replace."""
    newest = {role: version for role, version in map(_role, have) if role}
    for role, version in map(_role, come):
        if role and version > newest.get(role, 0):
            newest[role] = version
    fresh = {}
    for name, data in come.items():
        role, version = _role(name)
        if not role or version >= newest[role]:
            fresh[name] = data
    dropped = frozenset(n for n in have if (rv := _role(n))[0] and rv[1] < newest[rv[0]])
    return fresh, dropped


def _role(name: str) -> tuple[str, int]:
    """Role and version of a numbered file that outdates others; roots form a chain and stay."""
    match = _VERSIONED.fullmatch(name)
    if match is None or match[2] == "root":
        return "", 0
    return match[2], int(match[1])


def concerned(before: Known, after: Known, running: Mapping[str, str]) -> frozenset[str]:
    """The nodes that news concern.

    ``running`` is what each node said it runs; one that has not said is told in any case.
    """
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


def news_for(
    known: Known, node: str, request: SyncRequest, *, acknowledged: int, hold_s: float
) -> SyncReply | None:
    """What is new to this node, or None: then its poll is held."""
    record = known.nodes.get(node)
    if record is None:
        return SyncReply(acknowledged=acknowledged, hold_s=hold_s) if acknowledged else None
    signed = known.records[node] if record.sequence > request.record else None
    channel = known.channels.get(record.fleet)
    newer = channel is not None and (
        request.fleet != record.fleet or channel.sequence > request.channel
    )
    if signed is None and not newer and not acknowledged:
        return None
    return SyncReply(
        record=signed,
        metadata=bundle(known, record.fleet) if newer else {},
        acknowledged=acknowledged,
        hold_s=hold_s,
    )


def bundle(known: Known, fleet: str) -> dict[str, bytes]:
    """The files that a node of ``fleet`` would fetch next."""
    wanted = channel_target(fleet)
    return {
        name: data
        for name, data in known.metadata.items()
        if name == wanted or _travels(name, len(data))
    }


def _travels(name: str, size: int) -> bool:
    if name.startswith("channels/"):
        return False
    role = name.removesuffix(".json").rpartition(".")[2]
    return role in _ALWAYS or size <= BUNDLE_FILE
