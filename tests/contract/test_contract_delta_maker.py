"""Making deltas: the fake and the process beside the hub keep the same promises."""

from __future__ import annotations

import asyncio
import gzip
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from random import Random

import pytest

from edgewise.backends.files.delta_files import FileDeltas
from edgewise.backends.files.objects import FileObjects
from edgewise.delivery.trees import make_tree, reference
from edgewise.model.errors import NotFound
from edgewise.model.names import Digest
from edgewise.protocol.content import Entry
from edgewise.protocol.delta import delta_path
from edgewise.testing.deltas import MemoryDeltaMaker

PLENTY = 1 << 30


class Making:
    """A maker, and trees that it can work with."""

    def __init__(self, kind: str, place: Path) -> None:
        self.place = place
        self.objects = FileObjects(place / "content")
        self.maker: MemoryDeltaMaker | FileDeltas = MemoryDeltaMaker([])
        self.kind = kind
        if kind == "files":
            self.maker = FileDeltas(place / "content", place / "deltas", jobs=1)

    async def tree(self, files: Mapping[str, bytes]) -> str:
        """Its digest; manifest and contents are kept."""
        entries = []
        for path, data in files.items():
            digest = Digest.of(data).sha256
            entries.append(Entry(path, "file", 0o644, len(data), digest))
            await self.objects.put(digest, data)
        ref, manifest = reference(make_tree(entries))
        await self.objects.put(ref.sha256, manifest)
        if isinstance(self.maker, MemoryDeltaMaker):
            self.maker.trees.add(ref.sha256)
        return ref.sha256

    def damage(self, sha256: str, at: int) -> None:
        """Flip a byte of a kept file."""
        if isinstance(self.maker, MemoryDeltaMaker):
            data = bytearray(self.maker.files[sha256])
            data[at] ^= 1
            self.maker.files[sha256] = bytes(data)
            return
        path = self.maker.path(sha256)
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)


@pytest.fixture(params=["memory", "files"])
def making(request: pytest.FixtureRequest, tmp_path: Path) -> Making:
    return Making(request.param, tmp_path)


def files(version: int) -> dict[str, bytes]:
    body = bytearray(Random(1).randbytes(60_000))
    body[100 * version : 100 * version + 50] = Random(version).randbytes(50)
    return {"app": bytes(body), "same": b"same", "notes": b"version %d" % version}


def nothing(done: int, total: int) -> None:
    return None


async def test_a_delta_and_a_pack_are_kept_whole_under_their_names(making: Making) -> None:
    old, new = await making.tree(files(1)), await making.tree(files(2))
    seen: list[tuple[int, int]] = []
    progress = lambda done, total: seen.append((done, total))  # noqa: E731
    delta = await making.maker.make(old, new, at_most=PLENTY, progress=progress)
    pack = await making.maker.make("", new, at_most=PLENTY, progress=nothing)
    assert delta is not None
    assert pack is not None
    assert (delta.base, delta.tree, pack.base, pack.tree) == (old, new, "", new)
    assert all(making.maker.check(one, whole=True) for one in (delta, pack))
    assert {(sha256, size) for sha256, _, size in making.maker.kept()} == {
        (delta.sha256, delta.size), (pack.sha256, pack.size),
    }  # fmt: skip
    assert seen
    assert all(0 <= done <= total for done, total in seen)


async def test_what_is_larger_than_it_may_be_is_not_kept(making: Making) -> None:
    new = await making.tree(files(2))
    assert await making.maker.make("", new, at_most=100, progress=nothing) is None
    assert making.maker.kept() == ()


async def test_an_absent_object_is_named_and_nothing_is_kept(making: Making) -> None:
    old = await making.tree(files(1))
    with pytest.raises(NotFound, match="abababababab"):
        await making.maker.make(old, "ab" * 32, at_most=PLENTY, progress=nothing)
    assert making.maker.kept() == ()


async def test_damage_to_the_head_is_noticed_at_once_and_any_other_by_a_whole_check(
    making: Making,
) -> None:
    new = await making.tree(files(2))
    pack = await making.maker.make("", new, at_most=PLENTY, progress=nothing)
    assert pack is not None
    making.damage(pack.sha256, pack.size - 1)
    assert not making.maker.check(pack, whole=True)
    making.damage(pack.sha256, pack.size - 1)
    assert making.maker.check(pack, whole=True)
    making.damage(pack.sha256, 20)
    assert not making.maker.check(pack, whole=False)
    making.maker.remove(pack.sha256)
    making.maker.remove(pack.sha256)
    assert not making.maker.check(pack, whole=False)
    assert making.maker.kept() == ()


async def test_a_cancelled_call_leaves_nothing(making: Making) -> None:
    new = await making.tree(files(2))
    if isinstance(making.maker, MemoryDeltaMaker):
        making.maker.gate = asyncio.Event()
    call = asyncio.create_task(making.maker.make("", new, at_most=PLENTY, progress=nothing))
    if isinstance(making.maker, MemoryDeltaMaker):
        await making.maker.started.wait()
    else:
        await child_of(making)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert making.maker.kept() == ()
    assert children() == []
    assert not (making.place / "deltas").exists() or leftovers(making) == []


def leftovers(making: Making) -> list[Path]:
    return [one for one in (making.place / "deltas").iterdir() if one.name != "pairs"]


def children() -> list[int]:
    """Pids of makers that this process has started and that have not ended."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                words = (folder / "cmdline").read_bytes()
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if b"delta_process" in words and int(stat[1]) == os.getpid() and stat[0] != "Z":
                found.append(int(folder.name))
    return found


async def child_of(making: Making) -> int:
    """The maker's process, once it is there."""
    for _ in range(2000):
        if found := children():
            return found[0]
        await asyncio.to_thread(os.sched_yield)
    raise AssertionError("no process was started")


async def test_a_maker_that_is_killed_is_a_failure_with_a_next_move(tmp_path: Path) -> None:
    making = Making("files", tmp_path)
    new = await making.tree(files(2))
    call = asyncio.create_task(making.maker.make("", new, at_most=PLENTY, progress=nothing))
    os.kill(await child_of(making), signal.SIGKILL)
    with pytest.raises(Exception, match="ended with -9") as failed:
        await call
    assert "--delta-versions 0" in failed.value.hint  # type: ignore[attr-defined]
    assert making.maker.kept() == ()
    assert leftovers(making) == []


async def test_a_disk_that_fills_up_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    making = Making("files", tmp_path)
    new = await making.tree({"large": Random(1).randbytes(3 << 20)})
    # No loop device in a test: a bound on the size of files fails the same write.
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(Exception, match=r"disk|writing below") as failed:
            await making.maker.make("", new, at_most=PLENTY, progress=nothing)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert failed.value.hint  # type: ignore[attr-defined]
    assert making.maker.kept() == ()
    assert leftovers(making) == []


async def test_what_a_killed_hub_left_is_gone_after_the_next_start(tmp_path: Path) -> None:
    making = Making("files", tmp_path)
    (tmp_path / "deltas" / "tmpleft").mkdir()
    (tmp_path / "deltas" / "tmpleft" / "out.ewd").write_bytes(b"half")
    FileDeltas(tmp_path / "content", tmp_path / "deltas")
    assert leftovers(making) == []
    assert (tmp_path / "content" / delta_path("a" * 64)).parent.parent.is_dir()


async def test_a_hub_told_so_asks_no_node_to_compress_again(tmp_path: Path) -> None:
    def release(version: int) -> dict[str, bytes]:
        text = b"".join(b"line %d of release %d\n" % (n, n // 9000 * version) for n in range(9100))
        return {"changelog.gz": gzip.compress(text, 9, mtime=0)}

    expanded = []
    for recompress in (True, False):
        making = Making("files", tmp_path / str(recompress))
        making.maker = FileDeltas(
            making.place / "content", making.place / "deltas", jobs=1, recompress=recompress
        )
        trees = [await making.tree(release(version)) for version in (1, 2)]
        ref = await making.maker.make(*trees, at_most=PLENTY, progress=lambda done, total: None)
        assert ref is not None
        expanded.append(ref.scratch > 0)
    assert expanded == [True, False]
