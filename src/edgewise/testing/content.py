"""A hub's content in memory: publish releases and read them like a node would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from securesystemslib.signer import CryptoSigner

from edgewise.delivery.on_hub import Publisher
from edgewise.delivery.trees import make_tree, reference
from edgewise.delivery.trust import MetadataFiles, TrustKeys
from edgewise.model.names import Digest
from edgewise.protocol.channel import Bitmap, Channel, NodeRecord, Signed
from edgewise.protocol.codec import encode
from edgewise.protocol.content import Entry, Part, PartRef, ProcessApp, Release, TreeRef
from edgewise.runtime.clock import Clock
from edgewise.testing.objects import MemoryObjects
from edgewise.testing.source import MemorySource

PLATFORM = "linux/amd64"


class MemoryMetadata:
    """TUF files below ``tuf/`` of a source's files; ``writes`` lists names in order."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files
        self.writes: list[str] = []

    def read(self, name: str) -> bytes | None:
        return self._files.get(f"tuf/{name}")

    def write(self, name: str, data: bytes) -> None:
        self._files[f"tuf/{name}"] = data
        self.writes.append(name)

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(name.removeprefix("tuf/") for name in self._files))

    def remove(self, name: str) -> None:
        self._files.pop(f"tuf/{name}", None)


class MemoryKeys:
    """Take a key offline by deleting it from ``keys``."""

    def __init__(self) -> None:
        self.keys: dict[str, CryptoSigner] = {}

    def signer(self, name: str) -> CryptoSigner | None:
        return self.keys.get(name)

    def create(self, name: str) -> CryptoSigner:
        slot = f"{name}.next" if name in self.keys else name
        self.keys[slot] = CryptoSigner.generate_ed25519()
        return self.keys[slot]

    def promote(self, name: str) -> None:
        if f"{name}.next" in self.keys:
            self.keys[f"{name}.old"] = self.keys[name]
            self.keys[name] = self.keys.pop(f"{name}.next")


class Content:
    """A publisher and a source that serves what it publishes. ``await Content.open(clock)``."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.objects = MemoryObjects()
        self.metadata = MemoryMetadata(self.files)
        self.keys = MemoryKeys()
        self.source = MemorySource(self.files, self.objects)
        self.publisher: Publisher

    @classmethod
    async def open(cls, clock: Clock, mode: Literal["hub", "builder"] = "hub") -> Content:
        """A new hub."""
        content = cls()
        await content.reopen(clock, mode)
        return content

    async def reopen(self, clock: Clock, mode: Literal["hub", "builder"] = "hub") -> None:
        """Start the hub again on what is kept."""
        self.publisher = await Publisher.open(
            self.metadata, self.keys, self.objects, clock=clock, mode=mode
        )

    async def tree(self, files: Mapping[str, bytes]) -> TreeRef:
        """A tree of plain files (mode 0755 below ``bin/``), its objects kept."""
        entries: dict[str, Entry] = {}
        for path, data in files.items():
            for index, char in enumerate(path):
                if char == "/":
                    entries[path[:index]] = Entry(path[:index], "dir", 0o755)
            mode = 0o755 if path.startswith("bin/") else 0o644
            digest = Digest.of(data).sha256
            entries[path] = Entry(path, "file", mode, len(data), digest)
            await self.objects.put(digest, data)
        ref, manifest = reference(make_tree(entries.values()))
        await self.objects.put(ref.sha256, manifest)
        return ref

    async def documents(
        self,
        apps: Mapping[str, Mapping[str, bytes]],
        *,
        fleet: str = "lab",
        more: tuple[Part, ...] = (),
    ) -> tuple[str, dict[str, bytes]]:
        """A release of process apps and further parts: its digest and its documents."""
        documents: dict[str, bytes] = {}
        refs: list[PartRef] = []
        for name, files in sorted(apps.items()):
            ref = await self.tree(files)
            app = encode(ProcessApp(name, {PLATFORM: ref}, ("bin/run",)))
            documents[Digest.of(app).sha256] = app
            refs.append(PartRef("app", name, (), {"": Digest.of(app).sha256}))
        for part in more:
            data = encode(part)
            documents[Digest.of(data).sha256] = data
            refs.append(PartRef("other", part.name, (), {"": Digest.of(data).sha256}))
        release = encode(Release(fleet, tuple(refs)))
        documents[Digest.of(release).sha256] = release
        return Digest.of(release).sha256, documents

    async def release(self, apps: Mapping[str, Mapping[str, bytes]], *, fleet: str = "lab") -> str:
        """Publish a release; returns its digest."""
        digest, documents = await self.documents(apps, fleet=fleet)
        await self.publisher.publish_release(digest, documents)
        return digest

    async def announce(self, sequence: int, stable: str, *, fleet: str = "lab") -> Channel:
        """Publish a channel."""
        channel = Channel(fleet, sequence, stable=stable, wave=Bitmap.of([]).data)
        await self.publisher.publish_channels([channel])
        return channel

    def record(self, node: str = "n1", sequence: int = 1, *, fleet: str = "lab") -> Signed:
        """A signed record."""
        return self.publisher.sign_record(NodeRecord(node, sequence, fleet))


def _meets_its_port(files: MemoryMetadata, keys: MemoryKeys) -> tuple[MetadataFiles, TrustKeys]:
    return files, keys
