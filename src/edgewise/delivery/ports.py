"""What delivery needs from the outside."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import IO, Literal, Protocol

from edgewise.model.errors import TryLater
from edgewise.protocol.bundles import TrustBundles
from edgewise.protocol.channel import Channel, NodeRecord, Signed
from edgewise.protocol.content import Attributes, Tree
from edgewise.protocol.installed import Installed


class NotHere(TryLater):
    """It would have to be fetched, and the caller wanted only what is here already."""


class Source(Protocol):
    """Somewhere content can be read from: a relay, the hub, a CDN, a USB stick.

    Implementations: net.client.HttpSource, testing.source.MemorySource.
    """

    def read(
        self, path: str, *, at_most: int, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        """The bytes of ``path`` (below the content root) from offset ``start`` on, up to
        offset ``end`` where it is given; nothing when ``start`` is at or behind the file's
        end. ``at_most`` counts the bytes that come.

        Raises NotFound when there is no such path, TryLater when the source cannot be
        reached or breaks off, Untrusted when more than ``at_most`` bytes come.
        """


@dataclass(frozen=True, slots=True)
class Opened:
    """An answer that has begun."""

    size: int
    """Bytes of the whole file, not only of the range that was asked for."""
    pieces: AsyncIterator[bytes]
    """Raises as ``Source.read``."""


class Upstream(Source, Protocol):
    """Where a relay fetches from: the hub, and what may stand before it.

    Implementations: net.sources.Sources, testing.source.MemorySource.
    """

    def open(
        self, path: str, *, at_most: int, start: int = 0, end: int | None = None
    ) -> AbstractAsyncContextManager[Opened]:
        """As ``Source.read``, and says how large the file is. Raises what that raises."""

    def blame(self, path: str, why: str) -> None:
        """What came for ``path`` did not verify: ask somebody else first for a while."""


@dataclass(frozen=True, slots=True)
class Served:
    """A file that can be handed on, whole or in part, now or as it arrives."""

    size: int
    etag: str
    """Without quotes."""
    read: Callable[[int, int], AsyncIterator[bytes]]
    """The bytes from an offset up to another. Raises TryLater and Untrusted."""


class Shelf(Protocol):
    """What a relay keeps of objects and deltas. Implementation: backends.files.shelf."""

    @property
    def stored_bytes(self) -> int:
        """What is kept takes so many bytes of the disk."""

    @property
    def fetched_bytes(self) -> int:
        """So many came from upstream since the start."""

    async def open(
        self, path: str, start: int = 0, end: int | None = None, *, here: bool = False
    ) -> Served:
        """``path`` (an object or a delta), fetched from upstream where it is not here.

        ``start`` and ``end`` say what will be read. With ``here`` nothing is fetched: raises
        NotHere when it is not all on the disk. Raises NotFound, TryLater, Untrusted.
        """

    async def ensure(self, path: str) -> None:
        """Have all of it here. Raises as ``open``, and NeedsPerson when the disk is full."""

    async def put(self, sha256: str, data: bytes) -> None:
        """Keep a small object. Raises Untrusted, NeedsPerson."""

    async def get(self, sha256: str, *, at_most: int) -> bytes:
        """A small object's content. Raises NotFound when it is not here."""

    def has(self, sha256: str) -> bool:
        """Whether all of an object is here."""

    def pin(self, held: Collection[str], releases: Collection[str], lists: Collection[str]) -> None:
        """Digests: objects that stay whatever else must go, and releases and delta lists
        such that what they lead to goes last. In place of what was pinned before."""

    async def close(self) -> None:
        """Stop fetching; what came is kept for the next time."""


class ObjectStore(Protocol):
    """Objects as the hub and relays keep them: zstd-compressed, by digest of the content.

    Implementations: backends.files.objects; testing.objects.
    """

    async def put(self, sha256: str, content: AsyncIterator[bytes] | bytes) -> int:
        """Keep uncompressed ``content``; returns the stored (compressed) size in bytes.

        Raises Untrusted when the content does not match the digest: nothing is kept then.
        Raises NeedsPerson when the disk is full.
        """

    async def put_all(self, contents: Mapping[str, bytes]) -> None:
        """Keep several small uncompressed contents by digest, for little more than one costs.

        Raises as ``put``; nothing is kept when one does not match its digest.
        """

    async def put_packed(self, sha256: str, packed: AsyncIterator[bytes]) -> int:
        """Keep bytes that are compressed already (a relay's fetch), verified the same way."""

    async def get(self, sha256: str, *, at_most: int) -> bytes:
        """Uncompressed content of a small object. Raises NotFound."""

    async def missing(self, digests: Iterable[str]) -> frozenset[str]:
        """Which of these are not kept here."""

    async def size(self, sha256: str) -> int:
        """Stored (compressed) size in bytes. Raises NotFound."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What the hub says, after every check."""

    record: NodeRecord | None
    """None: the node was never given one (or its signer was replaced): sync with record 0."""
    channel: Channel | None
    """None: no fleet, or the fleet has no channel yet."""
    timestamp: int
    """Version of the newest trusted timestamp."""
    offline: bool = False
    """The channel came on removable media: the hub's own word may be newer."""


class Trust(Protocol):
    """A node's checks of what the hub says. Implementation: backends.tuf.client."""

    async def verify(
        self, metadata: Mapping[str, bytes], record: Signed | None, source: Source
    ) -> Verified:
        """Check a sync reply's ``metadata`` and ``record``; fetch what is missing.

        Either may be empty: the newest known one then counts. Raises Untrusted for what is
        forged, older than what was seen, or for another node or fleet; TryLater for metadata
        that has expired and when the source cannot be reached. Nothing installed changes.
        """

    async def bundles(self, signed: Signed, source: Source) -> TrustBundles:
        """What trust bundles say. Raises as ``verify``; an older sequence is Untrusted."""

    async def permission(self, release: str, source: Source) -> int:
        """The length of a release that a builder signed. Raises Untrusted when none did."""

    def content_urls(self) -> tuple[str, ...]:
        """File servers that the newest verified channel names."""

    def deltas(self) -> str:
        """Digest of the ``DeltaList`` that the newest verified channel names; empty: none."""


Scratch = Literal["new", "full", "old"]
"""Putting a new content together; its expanded form; the expanded form of an old content."""


class NodeFiles(Protocol):
    """A node's store and releases. Implementation: backends.files.node_store.

    Calls block for at most one local file operation. Writing raises NeedsPerson when the
    disk is full. Nothing under ``releases`` is visible before ``finish``.
    """

    def free_bytes(self) -> int: ...
    def free_inodes(self) -> int:
        """How many more files and directories fit; very many where there is no such bound."""

    def fetching(self) -> AbstractContextManager[None]:
        """While held, ``collect`` deletes no object."""

    def staged(self, release: str) -> Installed | None: ...
    def installed(self) -> tuple[Installed, ...]:
        """Every complete release here."""

    def packed_sizes(self, release: str) -> dict[str, int]:
        """Bytes that each object of that release took to travel, as far as known."""

    def document(self, sha256: str) -> bytes | None:
        """A kept document, verified; None when absent or damaged."""

    def keep_document(self, sha256: str, data: bytes) -> None: ...
    def kept(self, sha256: str) -> tuple[str, ...]:
        """The ``Attributes.key`` under which a file's content is kept; not verified."""

    def verify(
        self,
        sha256: str,
        key: str,
        xattrs: tuple[tuple[str, bytes], ...] | None = None,
        size: int | None = None,
    ) -> bool:
        """Whether the kept file still is what its name says; one that is not is dropped.

        Content, mode and owner are checked, and xattrs where they are given. With ``size``,
        the content of a file that bears a seal and has that size is not read (ADR 0016).
        """

    def keep_file(self, sha256: str, attributes: Attributes, content: Iterable[bytes]) -> None:
        """Keep a file; nothing stays when ``content`` raises. The caller makes sure that the
        content is what ``sha256`` says. NeedsPerson also where this process may not give files
        that owner."""

    def copy(self, sha256: str, have: str, want: Attributes) -> bool:
        """Keep a file that is here under the key ``have`` with other attributes too. False: it
        was damaged, and is dropped."""

    def partial(self, sha256: str) -> AbstractContextManager[IO[bytes]]:
        """The packed bytes downloaded so far, open for reading and appending."""

    def drop_partial(self, sha256: str) -> None: ...
    def has_partial(self, sha256: str) -> int:
        """Bytes in it."""

    def open_kept(self, sha256: str) -> IO[bytes]:
        """A kept content, whatever its attributes; not verified. Raises NotFound."""

    def scratch(self, sha256: str, use: Scratch) -> AbstractContextManager[IO[bytes]]:
        """A file of its own for this use of an object, made when it is not there, open for
        reading and writing anywhere. It stays until it is dropped, or ``collect`` sweeps."""

    def has_scratch(self, sha256: str, use: Scratch) -> bool: ...
    def drop_scratch(self, sha256: str, use: Scratch) -> None: ...
    def begin(self, release: str) -> None: ...
    def lay_out(self, release: str, directory: str, tree: Tree) -> None:
        """Make a tree in the staged release, its files linked to the kept ones."""

    def finish(self, installed: Installed, packed_sizes: dict[str, int]) -> None:
        """Sync everything, then make the release visible."""
