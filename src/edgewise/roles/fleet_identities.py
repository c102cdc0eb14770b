"""Which workload identities each node may ask for: what its record grants.

A node that has not moved yet runs the old release, one that has moved runs the new one, so a
record grants what any release asks for that its fleet's channel names, and no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from edgewise.delivery.on_hub import Publisher
from edgewise.model.errors import NotFound
from edgewise.model.labels import Labels
from edgewise.protocol import limits
from edgewise.protocol.channel import Channel
from edgewise.protocol.codec import decode
from edgewise.protocol.content import (
    Part,
    PartRef,
    ProcessApp,
    Release,
    WorkloadRegistration,
)
from edgewise.sync.ports import CompiledFleet

Granted = dict[str, tuple[str, ...]]
"""SPIFFE path to the DNS names that may stand beside it."""


@dataclass
class FleetIdentities:
    """Reads releases; what it has read it keeps while a channel names it."""

    publisher: Publisher
    _releases: dict[str, tuple[PartRef, ...]] = field(default_factory=dict)
    """Release digest to its parts that can have an identity."""
    _parts: dict[str, tuple[str, tuple[str, ...]] | None] = field(default_factory=dict)
    """Part digest to the path and names of its identity; None: it has none."""

    async def of(
        self, fleet: CompiledFleet, channel: Channel | None, nodes: Iterable[str]
    ) -> dict[str, Granted]:
        """Node to what it may ask for. Nodes without a place in ``fleet`` get nothing."""
        wanted = [fleet.release]
        wanted += [d for d in (channel.stable, channel.candidate) if d] if channel else []
        refs: list[PartRef] = []
        for digest in dict.fromkeys(wanted):
            refs += await self._refs(digest, fleet.documents)
        granted: dict[str, Granted] = {}
        for name in nodes:
            member = fleet.members.get(name)
            if member is not None:
                granted[name] = await self._granted(name, member.labels, refs, fleet.documents)
        return granted

    async def _granted(
        self, node: str, labels: Labels, refs: list[PartRef], documents: Mapping[str, bytes]
    ) -> Granted:
        found: Granted = {}
        for ref in refs:
            part = ref.choose(node, labels)
            identity = await self._identity(part, documents) if part else None
            if identity is not None:
                path, dns = identity
                found[path] = tuple(dict.fromkeys((*found.get(path, ()), *dns)))
        return found

    async def _refs(self, release: str, documents: Mapping[str, bytes]) -> tuple[PartRef, ...]:
        if release not in self._releases:
            data = await self._document(release, documents, limits.RELEASE)
            if data is None:
                return ()
            read = decode(data, Release, what="release", at_most=limits.RELEASE)
            refs = tuple(ref for ref in read.parts if ref.kind in ("app", "identity"))
            self._releases[release] = refs
        return self._releases[release]

    async def _identity(
        self, digest: str, documents: Mapping[str, bytes]
    ) -> tuple[str, tuple[str, ...]] | None:
        if digest not in self._parts:
            data = await self._document(digest, documents, limits.PART)
            if data is None:
                return None
            part: Part = decode(data, Part, what="part", at_most=limits.PART)  # type: ignore[arg-type]
            found = part.identity if isinstance(part, ProcessApp) else part
            known = isinstance(found, WorkloadRegistration)
            self._parts[digest] = (found.path, found.dns) if known else None  # type: ignore[union-attr]
        return self._parts[digest]

    async def _document(
        self, digest: str, documents: Mapping[str, bytes], at_most: int
    ) -> bytes | None:
        if digest in documents:
            return documents[digest]
        try:
            return await self.publisher.document(digest, at_most=at_most)
        except NotFound:
            return None  # collected: no node can run it any more

    def keep(self, releases: Iterable[str]) -> None:
        """Forget what no fleet names any more."""
        kept = set(releases)
        self._releases = {d: refs for d, refs in self._releases.items() if d in kept}
        used = {
            d
            for refs in self._releases.values()
            for ref in refs
            for d in (*ref.variants.values(), *ref.nodes.values())
        }
        self._parts = {d: found for d, found in self._parts.items() if d in used}
