"""Power cuts while a node takes over release metadata: python-tuf's writes are cut as well.

python-tuf writes without fsync and moves ``root.json`` in two steps. So two things are
tried: the process ends at any change of the disk, and a file that was written shortly
before is empty or half there after the power is back.
"""

import os
import tempfile
from pathlib import Path

import pytest
import tuf.ngclient.updater as tuf_updater

import edgewise.backends.tuf.client as client_module
import edgewise.runtime.durable as durable_module
from edgewise.backends.tuf.client import NodeTrust
from edgewise.model.errors import Untrusted
from edgewise.protocol.bundles import TrustBundles
from edgewise.protocol.codec import encode
from edgewise.testing.clock import ManualClock
from edgewise.testing.content import Content
from edgewise.testing.source import MemorySource


class PowerCut(BaseException):
    """The process ends here: nothing that catches Exception may go on."""


class Cut:
    """A module whose n-th change of the disk, and every one after it, is a power cut."""

    CHANGES = frozenset(
        {"replace", "rename", "remove", "unlink", "symlink", "link", "fsync", "open", "fdopen"}
        | {"NamedTemporaryFile"}
    )

    def __init__(self, real: object, count: list[int]) -> None:
        self._real = real
        self._count = count

    def __getattr__(self, name: str) -> object:
        real = getattr(self._real, name)
        if name not in self.CHANGES:
            return real

        def counted(*given: object, **named: object) -> object:
            if self._count[0] <= 0:
                raise PowerCut
            self._count[0] -= 1
            return real(*given, **named)

        return counted


class World:
    """A hub with a second root and a third channel, and a node that knows the first ones."""

    def __init__(self) -> None:
        self.clock = ManualClock()

    async def open(self) -> "World":
        self.content = await Content.open(self.clock)
        self.root = self.content.publisher.root
        release = await self.content.release({"hello": {"bin/run": b"x"}})
        await self.content.announce(1, release)
        self.old = self.snapshot()
        await self.content.publisher.rotate("root")
        await self.content.announce(2, release)
        self.release = release
        self.bundles = self.content.publisher.sign_bundles(encode(TrustBundles(1, {})))
        return self

    def snapshot(self) -> MemorySource:
        return MemorySource(dict(self.content.files), self.content.objects)

    async def verify(self, root: Path, source: MemorySource | None = None) -> int:
        trust = NodeTrust(root, self.root, node="n1", clock=self.clock)
        found = await trust.verify({}, self.content.record(), source or self.content.source)
        assert found.channel is not None
        return found.channel.sequence

    async def is_sound(self, root: Path) -> None:
        """It takes the newest, permits what a builder signed, and goes back for nobody."""
        trust = NodeTrust(root, self.root, node="n1", clock=self.clock)
        assert (await trust.bundles(self.bundles, self.content.source)).sequence == 1
        assert await self.verify(root) == 2
        assert await trust.permission(self.release, self.content.source) > 0
        with pytest.raises(Untrusted):
            await self.verify(root, self.old)
        assert await self.verify(root) == 2
        left = [path.name for path in root.iterdir() if path.name.startswith("tmp")]
        assert left == [], "half-written files do not gather"


@pytest.fixture
async def world() -> World:
    return await World().open()


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many changes of the disk are left before the power goes."""
    count = [1 << 30]
    for module in (tuf_updater, durable_module, client_module):
        monkeypatch.setattr(module, "os", Cut(os, count))
    monkeypatch.setattr(tuf_updater, "tempfile", Cut(tempfile, count))
    return count


@pytest.mark.parametrize("known", ["first", "nothing"])
async def test_a_node_killed_at_any_write_of_its_metadata_goes_on(
    world: World, tmp_path: Path, cut: list[int], known: str
) -> None:
    for survive in range(200):
        root = tmp_path / str(survive)
        if known == "first":
            assert await world.verify(root, world.old) == 1
        cut[0] = survive
        try:
            await world.verify(root)
            ended = True
        except PowerCut:
            ended = False
        finally:
            cut[0] = 1 << 30
        if ended or survive % 6 == 0:
            await world.is_sound(root)
        else:
            assert await world.verify(root) == 2
        if ended:
            break
    assert 20 < survive < 199, "the whole way was cut, write by write"


@pytest.mark.parametrize("left", ["nothing", "half", "zeros", "gone"])
async def test_metadata_that_never_reached_the_disk_is_fetched_again(
    world: World, tmp_path: Path, left: str
) -> None:
    assert await world.verify(tmp_path / "model") == 2
    torn = [
        path.relative_to(tmp_path / "model")
        for path in sorted((tmp_path / "model").rglob("*.json"))
        # Those are ours, and synced before they get their name.
        if path.name not in ("seen.json", "record.json", "channel.json")
    ]
    assert len(torn) > 6
    for name in torn:
        root = tmp_path / str(name).replace("/", "-")
        assert await world.verify(root) == 2
        data = (root / name).read_bytes()
        if left == "gone":
            (root / name).unlink()
        else:
            kept = {"nothing": b"", "half": data[: len(data) // 2], "zeros": bytes(len(data))}
            (root / name).write_bytes(kept[left])
        await world.is_sound(root)


@pytest.mark.parametrize("left", [b"", b"\0" * 400])
async def test_all_of_it_at_once_may_be_torn(world: World, tmp_path: Path, left: bytes) -> None:
    assert await world.verify(tmp_path) == 2
    for path in sorted(tmp_path.rglob("*.json")):
        if path.name not in ("seen.json", "record.json", "channel.json"):
            path.write_bytes(left)
    await world.is_sound(tmp_path)
