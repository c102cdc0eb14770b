"""What every object store must do; the fake and the real one run the same tests."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edgewise.backends.files.objects import FileObjects
from edgewise.delivery import packing
from edgewise.delivery.ports import ObjectStore
from edgewise.model.errors import NotFound, Untrusted
from edgewise.model.names import Digest
from edgewise.testing.objects import MemoryObjects


@pytest.fixture(params=["memory", "files"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    return MemoryObjects() if request.param == "memory" else FileObjects(tmp_path)


def sha(data: bytes) -> str:
    return Digest.of(data).sha256


async def stream(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def test_what_was_put_comes_back(store: ObjectStore) -> None:
    size = await store.put(sha(b"hello"), b"hello")
    assert await store.get(sha(b"hello"), at_most=5) == b"hello"
    assert await store.size(sha(b"hello")) == size


async def test_an_empty_file_is_an_object_too(store: ObjectStore) -> None:
    await store.put(sha(b""), stream(b""))
    assert await store.get(sha(b""), at_most=0) == b""


async def test_a_stream_is_kept_like_bytes(store: ObjectStore) -> None:
    data = os.urandom(100_000)
    await store.put(sha(data), stream(data))
    assert await store.get(sha(data), at_most=len(data)) == data


async def test_other_content_than_the_name_says_leaves_nothing_behind(store: ObjectStore) -> None:
    for content in (b"other", stream(b"other")):
        with pytest.raises(Untrusted, match="other content"):
            await store.put(sha(b"hello"), content)
    with pytest.raises(NotFound):
        await store.get(sha(b"hello"), at_most=5)


async def test_packed_bytes_are_verified_before_they_are_kept(store: ObjectStore) -> None:
    good = packing.pack(b"hello" * 100)
    name = sha(b"hello" * 100)
    for bad in (good[:-3], b"not zstd", good + b"tail", packing.pack(b"other")):
        with pytest.raises(Untrusted):
            await store.put_packed(name, stream(bad))
    assert await store.missing([name]) == {name}
    await store.put_packed(name, stream(good))
    assert await store.get(name, at_most=500) == b"hello" * 100


async def test_an_object_larger_than_asked_for_is_refused(store: ObjectStore) -> None:
    await store.put(sha(b"hello"), b"hello")
    with pytest.raises(Untrusted, match="more than the 4 bytes"):
        await store.get(sha(b"hello"), at_most=4)


async def test_missing_names_only_what_is_not_there(store: ObjectStore) -> None:
    await store.put(sha(b"a"), b"a")
    assert await store.missing([sha(b"a"), sha(b"b")]) == {sha(b"b")}
    with pytest.raises(NotFound):
        await store.size(sha(b"b"))


@pytest.mark.parametrize("many", [3, 30])
async def test_several_are_put_together_or_none_of_them(store: ObjectStore, many: int) -> None:
    contents = {sha(text): text for text in (b"a", b"", *(b"%d" % n for n in range(many - 2)))}
    with pytest.raises(Untrusted, match="other content"):
        await store.put_all({**contents, sha(b"hello"): b"other"})
    assert await store.missing(contents) == set(contents)
    await store.put(sha(b"a"), b"a")
    for _ in range(2):
        await store.put_all(contents)
    assert [await store.get(one, at_most=2) for one in contents] == list(contents.values())
    await store.put_all({})


async def test_many_at_once_may_put_the_same_object(store: ObjectStore) -> None:
    data = os.urandom(50_000)
    sizes = await asyncio.gather(*(store.put(sha(data), stream(data)) for _ in range(20)))
    assert len(set(sizes)) == 1
    assert await store.get(sha(data), at_most=len(data)) == data


async def test_files_left_by_a_crash_are_gone_after_the_next_start(tmp_path: Path) -> None:
    FileObjects(tmp_path)
    left = tmp_path / "objects" / ".incoming" / "half"
    left.write_bytes(b"x")
    FileObjects(tmp_path)
    assert not left.exists()


async def test_collection_spares_what_is_named_and_what_is_new(tmp_path: Path) -> None:
    store = FileObjects(tmp_path)
    for data in (b"kept", b"old", b"new"):
        await store.put(sha(data), data)
    os.utime(store.path(sha(b"old")), (1, 1))
    os.utime(store.path(sha(b"kept")), (1, 1))
    assert await store.collect([sha(b"kept")], unused_since=1000.0) > 0
    assert await store.missing([sha(b"kept"), sha(b"old"), sha(b"new")]) == {sha(b"old")}


async def test_a_zip_bomb_uses_little_memory(tmp_path: Path) -> None:
    bomb = packing.pack(b"\0" * (64 << 20))
    assert len(bomb) < 10_000
    with pytest.raises(Untrusted, match="more than"):
        packing.unpack(bomb, sha(b"x"), at_most=1000)
