"""Full disks and power cuts on a node: what is active is always one whole release."""

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgewise.backends.files.layout as layout_module
import edgewise.backends.files.node_store as node_store_module
import edgewise.runtime.durable as durable_module
from edgewise.backends.files.node_store import NodeStore
from edgewise.backends.tuf.client import NodeTrust
from edgewise.delivery.on_agent import Terms, fetch
from edgewise.model.errors import NeedsPerson
from edgewise.protocol.channel import NodeRecord
from edgewise.testing.clock import ManualClock
from edgewise.testing.content import PLATFORM, Content

OLD = {"bin/run": b"old", "data/same": b"same"}
NEW = {"bin/run": b"new", "data/same": b"same", "data/more": os.urandom(300_000)}


class PowerCut(BaseException):
    """The process ends here: nothing that catches Exception may go on."""


class CountingOs:
    """``os`` whose n-th change of the disk fails, and every one after it."""

    CHANGES = frozenset(
        {"rename", "link", "symlink", "fsync", "open", "fchmod", "unlink", "chmod", "fdopen"}
    ) | {"mkdir", "pwrite", "chown", "fchown", "setxattr", "ftruncate"}

    def __init__(
        self, survive: int, failure: BaseException, spare: frozenset[str] = frozenset()
    ) -> None:
        self.left = survive
        self.changes = self.CHANGES - spare
        self.failure = failure
        self.reached = False

    def __getattr__(self, name: str) -> object:
        real = getattr(os, name)
        if name not in self.changes:
            return real

        def counted(*given: object, **named: object) -> object:
            if self.left <= 0:
                self.reached = True
                raise self.failure
            self.left -= 1
            return real(*given, **named)

        return counted


class World:
    content: Content
    old: str
    new: str

    async def verify(self, root: Path) -> None:
        await self.trust(root).verify({}, self.content.record(), self.content.source)

    def trust(self, root: Path) -> NodeTrust:
        return NodeTrust(root / "trust", self.root, node="n1", clock=self.clock)

    async def install(self, root: Path, release: str, reserve: int = 0) -> None:
        store = NodeStore(root)
        await fetch(
            release,
            NodeRecord("n1", 1, "lab"),
            Terms(PLATFORM, reserve=reserve, at_once=1),
            trust=self.trust(root),
            store=store,
            source=self.content.source,
        )
        store.activate(release)

    def runs(self, root: Path) -> str:
        """The active release, after checking that it is whole."""
        active = NodeStore(root).active()
        assert active is not None
        top = NodeStore(root).release_directory(active.release) / "apps" / "hello"
        files = OLD if active.release == self.old else NEW
        assert {
            str(path.relative_to(top)): path.read_bytes()
            for path in top.rglob("*")
            if path.is_file()
        } == files
        return active.release


@pytest.fixture
async def world() -> World:
    world = World()
    world.clock = ManualClock()
    world.content = await Content.open(world.clock)
    world.root = world.content.publisher.root
    world.old = await world.content.release({"hello": OLD})
    world.new = await world.content.release({"hello": NEW})
    await world.content.announce(1, world.new)
    return world


async def test_a_node_killed_between_any_two_writes_has_one_whole_release(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: list[str] = []
    for survive in range(0, 200):
        root = tmp_path / str(survive)
        await world.verify(root)
        await world.install(root, world.old)
        with monkeypatch.context() as patch:
            shim = CountingOs(survive, PowerCut())
            patch.setattr(node_store_module, "os", shim)
            patch.setattr(layout_module, "os", shim)
            patch.setattr(durable_module, "os", shim)
            # Inside the downloading tasks a power cut arrives as a group of one.
            with contextlib.suppress(PowerCut, BaseExceptionGroup):
                await world.install(root, world.new)
        outcomes.append(world.runs(root))
        NodeStore(root).collect()
        assert world.runs(root) == outcomes[-1]
        if not shim.reached:
            break
        if survive % 10 == 0:  # and it is not stuck
            await world.install(root, world.new)
            assert world.runs(root) == world.new
    assert outcomes[0] == world.old
    assert outcomes[-1] == world.new
    assert len(outcomes) > 30
    assert outcomes == sorted(outcomes, key=lambda release: release == world.new)


async def test_a_disk_that_fills_at_any_write_leaves_the_old_release_running(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = 0
    for survive in range(0, 200, 3):
        root = tmp_path / str(survive)
        await world.verify(root)
        await world.install(root, world.old)
        with monkeypatch.context() as patch:
            shim = CountingOs(survive, OSError(errno.ENOSPC, "full"), frozenset({"unlink"}))
            patch.setattr(node_store_module, "os", shim)
            patch.setattr(layout_module, "os", shim)
            patch.setattr(durable_module, "os", shim)
            try:
                await world.install(root, world.new)
            except NeedsPerson:
                told += 1
        world.runs(root)
        if not shim.reached:
            break
        await world.install(root, world.new)
        assert world.runs(root) == world.new
    assert told > 5


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB; needs root."""
    path = tmp_path / "small"
    path.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", os.fsencode(path), b"tmpfs", 0, b"size=1m") != 0:
        pytest.skip("mounting a small disk needs root")
    yield path
    libc.umount2(os.fsencode(path), 2)


async def test_a_release_that_does_not_fit_is_refused_before_the_first_byte(
    world: World, small_disk: Path
) -> None:
    big = await world.content.release({"hello": {"bin/run": os.urandom(2_000_000)}})
    await world.verify(small_disk)
    await world.install(small_disk, world.old)
    served = world.content.source.served
    with pytest.raises(NeedsPerson, match="bytes and 0 in reserve"):
        await world.install(small_disk, big)
    assert world.content.source.served - served < 20_000  # documents, no content
    assert world.runs(small_disk) == world.old


@pytest.fixture
def few_inodes(tmp_path: Path) -> Iterator[Path]:
    """A file system that takes 200 files; needs root."""
    path = tmp_path / "few"
    path.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", os.fsencode(path), b"tmpfs", 0, b"size=9m,nr_inodes=200") != 0:
        pytest.skip("mounting a small disk needs root")
    yield path
    libc.umount2(os.fsencode(path), 2)


async def test_a_release_of_more_files_than_the_disk_takes_is_refused_before_the_first_byte(
    world: World, few_inodes: Path
) -> None:
    many = await world.content.release(
        {"hello": {f"data/{number}": b"%d" % number for number in range(300)}}
    )
    await world.verify(few_inodes)
    await world.install(few_inodes, world.old)
    served = world.content.source.served
    with pytest.raises(NeedsPerson, match="inodes"):
        await world.install(few_inodes, many)
    assert world.content.source.served - served < 50_000  # documents, no content
    assert world.runs(few_inodes) == world.old


async def test_a_disk_that_somebody_else_fills_meanwhile_is_a_clear_error(
    world: World, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.verify(small_disk)
    await world.install(small_disk, world.old)
    monkeypatch.setattr(NodeStore, "free_bytes", lambda self: 1 << 40)
    hog = small_disk / "hog"
    hog.write_bytes(b"\0" * (os.statvfs(small_disk).f_bavail * 4096 - 100_000))
    with pytest.raises(NeedsPerson, match="is full"):
        await world.install(small_disk, world.new)
    assert world.runs(small_disk) == world.old
    hog.unlink()
    await world.install(small_disk, world.new)
    assert world.runs(small_disk) == world.new
