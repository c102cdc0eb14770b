"""Kept files that are taken as they are, and those that are hashed first."""

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from edgewise.backends.files import scrubbing
from edgewise.backends.files.node_store import NodeStore
from edgewise.protocol.content import Attributes
from edgewise.protocol.installed import Installed

RELEASE = "ab" * 32
CONTENT = b"content of a file" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SIZE = len(CONTENT)
ROTTEN = b"X" + CONTENT[1:]


def kept_in(store: NodeStore, key: str = "644") -> Path:
    return store.root / "store" / "objects" / SHA256[:2] / f"{SHA256[2:]}-{key}"


def keep(store: NodeStore, mode: int = 0o644) -> Path:
    """Fetch and finish a release with one file."""
    with store.fetching():
        store.keep_file(SHA256, Attributes(mode), iter([CONTENT]))
        store.begin(RELEASE)
        store.finish(Installed(RELEASE, "n", "linux/amd64"), {})
    return kept_in(store, f"{mode:o}")


def rot(path: Path) -> None:
    """Other bytes, and nothing that a file system would tell."""
    about = path.stat()
    with path.open("r+b") as file:
        file.write(ROTTEN)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


@pytest.fixture
def store(tmp_path: Path) -> NodeStore:
    return NodeStore(tmp_path / "node")


def test_a_sealed_file_is_not_read_again(store: NodeStore) -> None:
    path = keep(store)
    rot(path)
    assert store.verify(SHA256, "644", (), SIZE), "nobody read it"
    assert not store.verify(SHA256, "644"), "without its size it is always hashed"
    assert not path.exists()


def overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(ROTTEN)


def cut_short(path: Path) -> None:
    about = path.stat()
    os.truncate(path, 5)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def copied_without_times(path: Path) -> None:
    path.unlink()
    path.write_bytes(ROTTEN)
    path.chmod(0o644)


def on_a_disk_without_nanoseconds(path: Path) -> None:
    rot(path)
    os.utime(path, (path.stat().st_mtime // 1, path.stat().st_mtime // 1))


def writable_for_others(path: Path) -> None:
    rot(path)
    path.chmod(0o666)


def another_mode(path: Path) -> None:
    path.chmod(0o4755)


def turned_into_a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    "change",
    [
        overwritten,
        cut_short,
        copied_without_times,
        on_a_disk_without_nanoseconds,
        writable_for_others,
        another_mode,
        turned_into_a_link,
    ],
)
def test_whatever_touches_a_file_breaks_its_seal(
    store: NodeStore, change: Callable[[Path], None]
) -> None:
    path = keep(store)
    change(path)
    assert not store.verify(SHA256, "644", (), SIZE)
    assert not os.path.lexists(path)
    assert store.kept(SHA256) == ()


def test_the_seal_of_one_content_is_not_that_of_another(store: NodeStore) -> None:
    path = keep(store)
    other = hashlib.sha256(ROTTEN).hexdigest()
    named = store.root / "store" / "objects" / other[:2] / f"{other[2:]}-644"
    named.parent.mkdir(exist_ok=True)
    path.rename(named)
    assert not store.verify(other, "644", (), SIZE)


def test_a_file_that_others_may_write_is_never_sealed(store: NodeStore) -> None:
    rot(keep(store, 0o666))
    assert not store.verify(SHA256, "666", (), SIZE)


def test_a_fetch_that_does_not_finish_seals_nothing(store: NodeStore) -> None:
    with store.fetching():
        store.keep_file(SHA256, Attributes(0o644), iter([CONTENT]))
    rot(kept_in(store))
    assert not store.verify(SHA256, "644", (), SIZE)


def test_a_file_of_before_there_were_seals_is_hashed_once(store: NodeStore) -> None:
    store.keep_file(SHA256, Attributes(0o644), iter([CONTENT]))
    with store.fetching():
        assert store.verify(SHA256, "644", (), SIZE)
        store.begin(RELEASE)
        store.finish(Installed(RELEASE, "n", "linux/amd64"), {})
    rot(kept_in(store))
    assert store.verify(SHA256, "644", (), SIZE), "nobody read it"


def test_an_app_that_writes_between_the_check_and_the_sync_is_not_sealed(store: NodeStore) -> None:
    store.keep_file(SHA256, Attributes(0o644), iter([CONTENT]))
    with store.fetching():
        assert store.verify(SHA256, "644", (), SIZE)
        overwritten(kept_in(store))
        store.begin(RELEASE)
        store.finish(Installed(RELEASE, "n", "linux/amd64"), {})
    assert not store.verify(SHA256, "644", (), SIZE)


def test_a_seal_keeps_the_second_in_which_the_file_was_written(store: NodeStore) -> None:
    path = keep(store)
    os.utime(path, (7, 7))
    with store.fetching():
        store.verify(SHA256, "644", (), SIZE)
        store.begin(RELEASE)
        store.finish(Installed(RELEASE, "n", "linux/amd64"), {})
    assert int(path.stat().st_mtime) == 7


def test_a_damaged_file_is_not_copied_to_another_mode(store: NodeStore) -> None:
    rot(keep(store))
    assert not store.copy(SHA256, "644", Attributes(0o755))
    assert store.kept(SHA256) == ()
    assert not list((store.root / "staging").glob(".*"))


# Scrubbing


def test_scrubbing_finds_what_rotted_and_the_next_fetch_brings_it_anew(store: NodeStore) -> None:
    path = keep(store)
    assert [step.damaged for step in scrubbing.scrub(store.root, 17)] == [""]
    rot(path)
    assert SHA256 in [step.damaged for step in scrubbing.scrub(store.root, 17)]
    assert path.exists(), "a running app may have it open; it goes when it is replaced"
    assert not store.verify(SHA256, "644", (), SIZE)


def test_scrubbing_reads_little_at_a_time(store: NodeStore) -> None:
    content = os.urandom(3 * scrubbing.PIECE + 5)
    with store.fetching():
        store.keep_file(hashlib.sha256(content).hexdigest(), Attributes(0o644), iter([content]))
        store.begin(RELEASE)
        store.finish(Installed(RELEASE, "n", "linux/amd64"), {})
    steps = list(scrubbing.scrub(store.root))
    assert [step.bytes for step in steps[:3]] == [scrubbing.PIECE] * 3
    assert len(steps) == 4
    assert not any(step.damaged for step in steps)


def test_scrubbing_leaves_alone_what_has_no_seal_or_goes_away(store: NodeStore) -> None:
    path = keep(store)
    overwritten(path)
    steps = scrubbing.scrub(store.root)
    assert not next(steps).damaged, "it is hashed before it is used"
    path.unlink()
    assert list(scrubbing.scrub(store.root)) == []
    (path.parent / "no-digest").mkdir()
    os.mkfifo(path)
    assert not any(step.damaged for step in scrubbing.scrub(store.root))


def test_a_file_that_is_written_while_it_is_scrubbed_is_not_called_damaged(
    store: NodeStore,
) -> None:
    path = keep(store)
    steps = scrubbing.scrub(store.root)
    next(steps)
    overwritten(path)
    assert not any(step.damaged for step in steps)
    assert stat.S_ISREG(path.stat().st_mode)
