"""An object store in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping

from edgewise.delivery import packing
from edgewise.delivery.ports import ObjectStore
from edgewise.model.errors import NotFound, Untrusted
from edgewise.model.names import Digest
from edgewise.protocol import limits


class MemoryObjects:
    """``packed`` maps digests to packed bytes; share it with a MemorySource to serve it."""

    def __init__(self) -> None:
        self.packed: dict[str, bytes] = {}

    async def put(self, sha256: str, content: AsyncIterator[bytes] | bytes) -> int:
        if not isinstance(content, bytes):
            content = b"".join([chunk async for chunk in content])
        if Digest.of(content).sha256 != sha256:
            raise Untrusted(f"object {sha256[:12]} has other content than its name says")
        self.packed.setdefault(sha256, packing.pack(content))
        return len(self.packed[sha256])

    async def put_all(self, contents: Mapping[str, bytes]) -> None:
        for sha256, content in contents.items():
            if Digest.of(content).sha256 != sha256:
                raise Untrusted(f"object {sha256[:12]} has other content than its name says")
        for sha256, content in contents.items():
            self.packed.setdefault(sha256, packing.pack(content))

    async def put_packed(self, sha256: str, packed: AsyncIterator[bytes]) -> int:
        data = b"".join([chunk async for chunk in packed])
        packing.unpack(data, sha256, at_most=limits.OBJECT)
        self.packed.setdefault(sha256, data)
        return len(self.packed[sha256])

    async def get(self, sha256: str, *, at_most: int) -> bytes:
        if sha256 not in self.packed:
            raise NotFound(f"object {sha256[:12]} is not kept here")
        return packing.unpack(self.packed[sha256], sha256, at_most=at_most)

    async def missing(self, digests: Iterable[str]) -> frozenset[str]:
        return frozenset(d for d in digests if d not in self.packed)

    async def size(self, sha256: str) -> int:
        if sha256 not in self.packed:
            raise NotFound(f"object {sha256[:12]} is not kept here")
        return len(self.packed[sha256])


def _meets_its_port(store: MemoryObjects) -> ObjectStore:
    return store
