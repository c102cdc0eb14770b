"""What delivery needs from the outside."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Protocol


class Source(Protocol):
    """Somewhere content can be read from: a relay, the hub, a CDN, a USB stick.

    Implementations: net.client.HttpSource, testing.source.MemorySource.
    """

    def read(self, path: str, *, at_most: int, start: int = 0) -> AsyncIterator[bytes]:
        """The bytes of ``path`` (below the content root) from offset ``start`` on.

        Raises NotFound when there is no such path, TryLater when the source cannot be
        reached or breaks off, Untrusted when more than ``at_most`` bytes come.
        """


class ObjectStore(Protocol):
    """Objects as the hub and relays keep them: zstd-compressed, by digest of the content.

    Implementations: backends.files.objects, (later) backends.s3; testing.objects.
    """

    async def put(self, sha256: str, content: AsyncIterator[bytes] | bytes) -> int:
        """Keep uncompressed ``content``; returns the stored (compressed) size in bytes.

        Raises Untrusted when the content does not match the digest: nothing is kept then.
        Raises NeedsPerson when the disk is full.
        """

    async def put_packed(self, sha256: str, packed: AsyncIterator[bytes]) -> int:
        """Keep bytes that are compressed already (a relay's fetch), verified the same way."""

    async def get(self, sha256: str, *, at_most: int) -> bytes:
        """Uncompressed content of a small object. Raises NotFound."""

    async def missing(self, digests: Iterable[str]) -> frozenset[str]:
        """Which of these are not kept here."""

    async def size(self, sha256: str) -> int:
        """Stored (compressed) size in bytes. Raises NotFound."""
