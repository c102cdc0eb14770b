"""Deltas that lie, though somebody signed them: refused as Untrusted, in bounded memory.

Every digest is right here, so that what is behind it is reached: a head or a part that was made to
hurt, as a stolen key of the hub could make it.
"""

import hashlib
import json
import lzma
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.delivery import delta
from edgewise.delivery.delta import Expansion, Part, Piece
from edgewise.delivery.delta_table import varints
from edgewise.delivery.trees import make_tree, reference
from edgewise.model.errors import Untrusted
from edgewise.protocol import limits
from edgewise.protocol.content import Entry, Tree

LZMA = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
WORD = b"\2" * 32
Columns = tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[int]]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tree_of(files: dict[str, bytes]) -> Tree:
    return make_tree(Entry(p, "file", 0o644, len(d), sha(d)) for p, d in files.items())


OLD_FILES = {f"old{n}": random.Random(n).randbytes(3000) for n in range(5)}
NEW_FILES = {f"new{n}": random.Random(n + 99).randbytes(2000 + n) for n in range(5)}
OLD, NEW = tree_of(OLD_FILES), tree_of(NEW_FILES)
KEPT = {sha(data): data for data in OLD_FILES.values()}


def read_kept(sha256: str, offset: int, length: int) -> bytes:
    """Old content as a node reads it: never more than a part may need, from a real offset."""
    assert sha256 in KEPT
    assert 0 <= length <= limits.PART_BASE + 1, "a part makes the node read without bound"
    assert 0 <= offset < 1 << 63, "an offset that no file can have"
    return KEPT[sha256][offset : offset + length]


def signed(table: bytes) -> tuple[bytes, str]:
    """A head around a table, and its digest: what a stolen key would sign."""
    packed = zstandard.ZstdCompressor(level=3).compress(table)
    data = struct.pack("<4sI", b"EWD1", len(packed)) + packed
    return data, sha(data)


def table(
    lines: Sequence[tuple[int, int, int]],
    columns: Columns = ((), (), (), ()),
    expansions: bytes = b"\0",
    *,
    base: bytes = WORD,
    manifest_size: int = 10,
    count: int | None = None,
) -> bytes:
    """A table whose parts are (kind, packed length, pieces); the manifest comes by itself."""
    lines = [(delta.MANIFEST, 5, 0), *lines]
    return b"".join(
        (
            base,
            bytes.fromhex(reference(NEW)[0].sha256),
            varints([manifest_size, len(lines) if count is None else count]),
            bytes(kind for kind, _, _ in lines),
            WORD * len(lines),
            varints(length for _, length, _ in lines),
            varints(pieces for _, _, pieces in lines),
            *(varints(column) for column in columns),
            expansions,
        )
    )


def opened(table_bytes: bytes) -> delta.Delta:
    """Through everything that a node does with a head. Raises Untrusted."""
    head = delta.open_head(*signed(table_bytes))
    return head.resolve(OLD if head.base else None, NEW)


def part_of(kind: int, packed: bytes, *pieces: Piece) -> Part:
    return Part(kind, sha(packed), 0, len(packed), pieces)


def piece(length: int, *, base: str = "", size: int = 0, expansion: Expansion | None = None):
    size = size or length
    base_size = len(KEPT[base]) if base else 0
    return Piece("a" * 64, size, 0, length, base, base_size, expansion)


ANY_BASE = next(iter(KEPT))


# Heads


GOOD = table(
    [(delta.PREFIX, 70, 2), (delta.SOLID, 30, 1)], ((0, 0, 0), (0, 0, 0), (0, 0, 0), (1, 1, 0))
)


def test_a_sound_table_is_read():
    found = opened(GOOD)
    assert [len(part.pieces) for part in found.parts] == [2, 1]
    assert [piece.base for part in found.parts for piece in part.pieces][-1] == ""


def test_a_table_that_is_cut_anywhere_is_refused():
    for length in range(len(GOOD)):
        with pytest.raises(Untrusted):
            opened(GOOD[:length])


def test_a_head_file_that_is_cut_anywhere_is_refused():
    data, _ = signed(GOOD)
    for length in range(len(data)):
        with pytest.raises(Untrusted):
            delta.open_head(data[:length], sha(data[:length]))


def test_a_head_that_goes_on_is_refused():
    data, _ = signed(GOOD)
    for more in (b"\0", data, bytes(100)):
        with pytest.raises(Untrusted):
            delta.open_head(data + more, sha(data + more))
    with pytest.raises(Untrusted, match="after its end"):
        opened(GOOD + b"\0")


@given(st.integers(0, len(GOOD) * 8 - 1), st.integers(0, len(GOOD) * 8 - 1))
@settings(max_examples=400, deadline=None)
def test_a_table_with_flipped_bits_is_sound_or_untrusted(one: int, other: int):
    changed = bytearray(GOOD)
    for bit in {one, other}:
        changed[bit // 8] ^= 1 << bit % 8
    try:
        found = opened(bytes(changed))
    except Untrusted:
        return
    _within_bounds(found)


@given(st.binary(max_size=300), st.integers(0, len(GOOD)))
@settings(max_examples=300, deadline=None)
def test_a_table_with_any_bytes_in_it_is_sound_or_untrusted(data: bytes, at: int):
    try:
        found = opened(GOOD[:at] + data + GOOD[at + len(data) :])
    except Untrusted:
        return
    _within_bounds(found)


def _within_bounds(found: delta.Delta) -> None:
    sizes = {entry.sha256: entry.size for entry in NEW.entries}
    olds = {entry.sha256: entry.size for entry in OLD.entries}
    for part in found.parts:
        assert 0 <= part.start
        assert 0 <= part.length <= 2 * limits.PART_OUTPUT
        assert sum(one.length for one in part.pieces) <= limits.PART_OUTPUT
        for one in part.pieces:
            whole = one.expansion.size if one.expansion else sizes[one.sha256]
            assert 0 <= one.offset < one.offset + one.length <= whole
            assert not one.base or one.base_size == olds[one.base]
    for before, after in pairwise(found.parts):
        assert before.start + before.length == after.start


REFUSED = {
    "a billion parts": table([], count=1 << 30),
    "more parts than bytes": table([], count=300),
    "no part at all": table([], count=0),
    "a manifest larger than a tree may be": table([], manifest_size=limits.TREE + 1),
    "a part longer than two of its outputs": table([(delta.SOLID, 2 * limits.PART_OUTPUT + 1, 0)]),
    "two manifests": table([(delta.MANIFEST, 5, 0)]),
    "a trillion pieces": table([(delta.SOLID, 5, 1 << 40)]),
    "an object behind the last": table([(delta.SOLID, 5, 1)], ((2 * 5,), (0,), (0,), (0,))),
    "an object before the first": table([(delta.SOLID, 5, 1)], ((1,), (0,), (0,), (0,))),
    "an old object behind the last": table(
        [(delta.PREFIX, 5, 1)], ((0,), (0,), (0,), (2 * 5 + 1,))
    ),
    "an old object before the first": table([(delta.PREFIX, 5, 1)], ((0,), (0,), (0,), (2,))),
    "an old object of a pack": table(
        [(delta.PREFIX, 5, 1)], ((0,), (0,), (0,), (1,)), base=bytes(32)
    ),
    "a piece behind its object's end": table([(delta.SOLID, 5, 1)], ((0,), (2001,), (0,), (0,))),
    "a piece over its object's end": table([(delta.SOLID, 5, 1)], ((0,), (1990,), (11,), (0,))),
    "a piece of nothing": table([(delta.SOLID, 5, 1)], ((0,), (2000,), (0,), (0,))),
    "a number of ten bytes": GOOD[:64] + b"\xff" * 9 + b"\1" + GOOD[65:],
    "an expansion of an object that is not there": table(
        [], expansions=varints([1, 1 << 40, 1, 5, 0])
    )
    + b"!",
    "an expansion larger than an object may be": table(
        [], expansions=varints([1, 0, 1, limits.OBJECT + 1, 0])
    ),
    "an expansion with a detail without end": table([], expansions=varints([1, 0, 1, 5, 1 << 40])),
    "a billion expansions": table([], expansions=varints([1 << 30])),
    "more output than a part may have": table(
        [(delta.SOLID, 5, 1)],
        ((0,), (0,), (limits.PART_OUTPUT + 1,), (0,)),
        varints([1, 0, 1, 1 << 30, 0]),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_is_refused_that_speaks_of(name: str):
    with pytest.raises(Untrusted):
        opened(REFUSED[name])


def test_pieces_that_overlap_give_no_more_than_the_parts_bound():
    """The same object over and over: each part keeps its bound, and the digest decides."""
    one = table([(delta.SOLID, 5, 40)], ((0, *[1] * 39), [0] * 40, [2000] * 40, [0] * 40))
    assert {p.sha256 for p in opened(one).parts[0].pieces} == {NEW.entries[0].sha256}
    many = limits.PART_OUTPUT // 2000 + 1
    with pytest.raises(Untrusted, match="yields more"):
        opened(table([(delta.SOLID, 5, many)], ((0, *[1] * (many - 1)), *([0] * many,) * 3)))


def test_a_manifest_of_another_tree_is_refused():
    data = reference(OLD)[1]
    packed = zstandard.compress(data)
    head = delta.open_head(*signed(table([], manifest_size=len(data))))
    with pytest.raises(Untrusted):
        head.manifest(packed, b"")


# Parts


def decoded(part: Part, packed: bytes) -> list[tuple[Piece, bytes]]:
    return list(delta.decode(part, packed, read_kept))


def patch(control: bytes, difference: bytes, insert: bytes, *, sizes: Sequence[int] = ()) -> bytes:
    sizes = sizes or (len(control), len(difference), len(insert))
    packed = lzma.compress(control + difference + insert, format=lzma.FORMAT_RAW, filters=LZMA)
    return varints(sizes) + packed


def good_part(kind: int) -> tuple[Part, bytes]:
    data = b"what is new here " * 40
    if kind in COPIES:
        control = varints([1, 2 * 10, 100, len(data) - 100])
        if kind == delta.PREDICTED:
            # One step (all is 1 further), and words of four bytes that hold addresses.
            control += varints([1, 0, 2, 0, 2 << 40, 1, 0, 0, 2 * 4, 2 * 20, 2 * 4, 0, 0])
        packed = patch(control, bytes(100), data[100:])
    elif kind == delta.PREFIX:
        known = zstandard.ZstdCompressionDict(KEPT[ANY_BASE], dict_type=1)
        packed = zstandard.ZstdCompressor(dict_data=known).compress(data)
    else:
        filters = [{"id": lzma.FILTER_X86}] if kind == delta.SOLID_X86 else []
        packed = lzma.compress(data, format=lzma.FORMAT_RAW, filters=[*filters, *LZMA])
    base = ANY_BASE if kind in (*COPIES, delta.PREFIX) else ""
    return part_of(kind, packed, piece(len(data), base=base)), packed


COPIES = (delta.BSDIFF, delta.PREDICTED)
KINDS = (delta.PREFIX, *COPIES, delta.SOLID, delta.SOLID_X86)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_part_is_decoded(kind: int):
    part, packed = good_part(kind)
    ((_, data),) = decoded(part, packed)
    assert len(data) == part.pieces[0].length
    assert data[100:] == (b"what is new here " * 40)[100:]


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_that_is_cut_anywhere_is_refused(kind: int):
    part, packed = good_part(kind)
    for length in range(len(packed)):
        with pytest.raises(Untrusted):
            decoded(part_of(kind, packed[:length], *part.pieces), packed[:length])


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_that_is_another_than_the_head_says_is_refused(kind: int):
    part, packed = good_part(kind)
    for other in KINDS:
        _, foreign = good_part(other)
        if foreign != packed:
            with pytest.raises(Untrusted, match="not what its head says"):
                decoded(part, foreign)


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_with_flipped_bits_gives_the_right_length_or_is_untrusted(kind: int):
    part, packed = good_part(kind)
    for bit in range(len(packed) * 8):
        changed = bytearray(packed)
        changed[bit // 8] ^= 1 << bit % 8
        _right_length_or_untrusted(part_of(kind, bytes(changed), *part.pieces), bytes(changed))


@given(st.sampled_from([*KINDS, 0, 6, 255]), st.binary(max_size=400))
@settings(max_examples=400, deadline=None)
def test_a_part_of_any_bytes_gives_the_right_length_or_is_untrusted(kind: int, packed: bytes):
    pieces = piece(100, base=ANY_BASE), piece(50)
    _right_length_or_untrusted(part_of(kind, packed, *pieces), packed)


numbers = st.one_of(st.integers(0, 300), st.integers(0, (1 << 63) - 1))


@given(
    st.sampled_from(COPIES),
    st.lists(numbers, max_size=24),
    st.binary(max_size=60),
    st.binary(max_size=60),
)
@settings(max_examples=800, deadline=None)
def test_any_control_of_a_patch_gives_the_right_length_or_is_untrusted(
    kind: int, control: list[int], difference: bytes, insert: bytes
):
    packed = patch(varints(control), difference, insert)
    total = len(difference) + len(insert)
    if total:
        pieces = piece(total, base=ANY_BASE)
        _right_length_or_untrusted(part_of(kind, packed, pieces), packed)


def _right_length_or_untrusted(part: Part, packed: bytes) -> None:
    try:
        found = decoded(part, packed)
    except Untrusted:
        return
    assert [len(data) for _, data in found] == [one.length for one in part.pieces]


def test_controls_that_reach_out_of_the_old_file_are_refused():
    base = piece(100, base=ANY_BASE)
    for control in (
        [1, 2 * 2950, 100, 0],  # over its end
        [1, 2 * (1 << 62), 100, 0],  # far behind it
        [1, 2 * 5 - 1, 100, 0],  # before its start
        [3, 2 * (1 << 61), 2 * (1 << 61), 2 * (1 << 61), 50, 50, 0, 0, 0, 0],  # by steps
        [1, 0, 101, 0],  # more than there is difference
        [1, 0, 100, 1],  # more than the piece
        [2, 0, 0, 50, 51, 0, 0],
        [0],
        [1 << 40],
    ):
        packed = patch(varints(control), bytes(100), b"")
        for kind in COPIES:
            with pytest.raises(Untrusted):
                decoded(part_of(kind, packed, base), packed)


def test_sizes_of_a_patch_that_cannot_be_are_refused():
    for sizes in (
        (1 << 40, 0, 100),
        (0, 1 << 40, 100),
        (4, 100, 1 << 62),
        (4, 0, 0),
        (4, 101, 0),
        (limits.PART_CONTROL + 1, 100, 0),
    ):
        packed = patch(varints([1, 0, 100, 0]), bytes(100), b"", sizes=sizes)
        with pytest.raises(Untrusted):
            decoded(part_of(delta.BSDIFF, packed, piece(100, base=ANY_BASE)), packed)


def test_a_part_that_needs_more_old_content_than_it_may_is_refused():
    large = {f"{n:064x}": limits.PART_BASE // 3 for n in range(4)}
    pieces = [Piece("a" * 64, 10, 0, 10, name, size) for name, size in large.items()]
    taken = []

    def read(sha256: str, offset: int, length: int) -> bytes:
        taken.append(length)
        return bytes(min(length, large[sha256] - offset))

    packed = zstandard.compress(bytes(40))
    with pytest.raises(Untrusted, match="more old content"):
        list(delta.decode(part_of(delta.PREFIX, packed, *pieces), packed, read))
    assert sum(taken) <= 2 * limits.PART_BASE


# Bombs: read in a process of its own, with an address space that they would burst


def frame_that_says_a_terabyte() -> bytes:
    return b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little") + b"\x01\0\0"


def frame_with_a_window_of_a_gigabyte() -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=30, write_content_size=0)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return packer.compress(b"x" * 100) + packer.flush()


def lzma_of_zeros(size: int) -> bytes:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0}]
    return lzma.compress(bytes(size), lzma.FORMAT_RAW, filters=filters)


LARGE = 1 << 27
MOST = (limits.PART_CONTROL - 8) // 3
"""Copies that the largest control can speak of, with a byte for each number."""
PARTS: dict[str, Callable[[], tuple[int, int, bytes]]] = {
    "a frame that says a terabyte": lambda: (delta.PREFIX, 100, frame_that_says_a_terabyte()),
    "a frame with a window of a gigabyte": lambda: (
        delta.PREFIX,
        100,
        frame_with_a_window_of_a_gigabyte(),
    ),
    "a frame that unpacks to more than it says": lambda: (
        delta.PREFIX,
        100,
        zstandard.ZstdCompressor(write_content_size=False).compress(bytes(LARGE)),
    ),
    "a frame that says its many zeros": lambda: (
        delta.PREFIX,
        100,
        zstandard.compress(bytes(LARGE)),
    ),
    "LZMA of many zeros": lambda: (delta.SOLID, 100, lzma_of_zeros(LARGE)),
    "a control larger than it may be": lambda: (
        delta.BSDIFF,
        4,
        patch(varints([5_000_000]) + bytes(5_000_000), b"", b"abcd"),
    ),
    "a control of all the copies it can say": lambda: (
        delta.BSDIFF,
        4,
        patch(varints([MOST]) + bytes(3 * MOST), b"", b"abcd"),
    ),
    "copies of a byte each": lambda: (
        delta.BSDIFF,
        MOST,
        patch(varints([MOST]) + bytes(MOST) + b"\1" * MOST + bytes(MOST), bytes(MOST), b""),
    ),
}


def many_pieces(count: int) -> bytes:
    return table([(delta.SOLID, 5, count)], ([0] * count,) * 4)


HEADS: dict[str, Callable[[], bytes]] = {
    "as many pieces as a table can say": lambda: many_pieces(4_000_000),
    "as many pieces as a delta may have": lambda: many_pieces(limits.ENTRIES),
    "as many parts as a table can say": lambda: table([(delta.SOLID, 5, 0)] * 400_000),
    "as many parts as a delta may have": lambda: table(
        [(delta.SOLID, 5, 0)] * (limits.DELTA_PARTS - 1)
    ),
    "a table of many zeros": lambda: bytes(LARGE),
}
READ = """
import hashlib, json, resource, sys
from edgewise.delivery import delta
from edgewise.model.errors import Untrusted
from edgewise.protocol.content import Tree
kind, length = int(sys.argv[1]), int(sys.argv[2])
data = sys.stdin.buffer.read()
sha256 = hashlib.sha256(data).hexdigest()
old = bytes(4 << 20)
def used():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
space = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (space + (768 << 20),) * 2)
before, said = used(), "read"
try:
    if kind < 0:
        delta.open_head(data, sha256).resolve(Tree(()), Tree(()))
    else:
        piece = delta.Piece("a" * 64, length, 0, length, "b" * 64, len(old))
        part = delta.Part(kind, sha256, 0, len(data), (piece,))
        for _ in delta.decode(part, data, lambda _, at, size: old[at : at + size]):
            pass
except Untrusted as error:
    said = str(error)
print(json.dumps([said, (used() - before) / 1024]))
"""


def memory_of(kind: int, length: int, data: bytes) -> tuple[str, float]:
    """What reading it comes to, and the MiB that it took at most."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(kind), str(length)],
        input=data,
        capture_output=True,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert not done.returncode, done.stderr[-1000:].decode()
    said, mib = json.loads(done.stdout)
    return said, mib


@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_read_in_bounded_memory_that_is(name: str):
    kind, length, packed = PARTS[name]()
    assert len(packed) < 20_000, "it is small on the wire"
    said, mib = memory_of(kind, length, packed)
    assert mib < 64, f"{said}: {mib:.0f} MiB"


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_read_in_bounded_memory_that_has(name: str):
    data, _ = signed(HEADS[name]())
    assert len(data) < 20_000, "it is small on the wire"
    said, mib = memory_of(-1, 0, data)
    assert mib < 96, f"{said}: {mib:.0f} MiB"
