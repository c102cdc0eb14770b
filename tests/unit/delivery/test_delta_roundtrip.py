"""A delta gives back just what it was made from, and each way of packing is taken."""

import gzip
import hashlib
import random
from pathlib import Path

import pytest

from edgewise.backends.files.copies import search
from edgewise.backends.files.delta_maker import Made, MakeTerms, Side, make_delta
from edgewise.backends.files.recompress import expanded, recompress
from edgewise.delivery import delta
from edgewise.delivery.delta import Piece, contents
from edgewise.delivery.trees import make_tree, reference
from edgewise.model.errors import Untrusted
from edgewise.protocol import limits
from edgewise.protocol.content import Entry


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def side(folder: Path, files: dict[str, bytes]) -> Side:
    folder.mkdir(exist_ok=True)
    entries = [
        Entry(name, "dir", 0o755) for name in {p.partition("/")[0] for p in files if "/" in p}
    ]
    for path, data in files.items():
        sha256 = hashlib.sha256(data).hexdigest()
        (folder / sha256).write_bytes(data)
        entries.append(Entry(path, "file", 0o644, len(data), sha256))
    tree = make_tree(entries)
    return Side(tree, reference(tree)[0].sha256, lambda sha256: folder / sha256)


def applied(made: Made, file: Path, base: Side | None) -> dict[str, bytes]:
    """Object to content, by the node's way of reading."""
    data = file.read_bytes()
    assert len(data) == made.ref.size
    head = delta.open_head(data[: made.ref.head], made.ref.sha256)
    old = reference(base.tree)[1] if base else b""
    manifest = head.manifest(data[made.ref.head : made.ref.lead], old)
    parts = head.resolve(base.tree if base else None, delta.parse_tree(manifest)).parts
    found: dict[str, bytearray] = {}
    forms: dict[str, Piece] = {}

    def read(sha256: str, offset: int, length: int) -> bytes:
        assert base is not None
        with base.open(sha256).open("rb") as kept:
            if any(p.base == sha256 and p.expansion for part in parts for p in part.pieces):
                return b"".join(expanded(kept, at_most=1 << 30))[offset : offset + length]
            return kept.read()[offset : offset + length]

    for part in parts:
        packed = data[part.start : part.start + part.length]
        for piece, content in delta.decode(part, packed, read):
            whole = found.setdefault(piece.sha256, bytearray(piece.size))
            whole[piece.offset : piece.offset + piece.length] = content
            forms[piece.sha256] = piece
    again = {}
    for sha256, whole in found.items():
        expansion = forms[sha256].expansion
        if expansion is None:
            again[sha256] = bytes(whole)
        else:
            out = bytearray()
            form = file.with_suffix(".form")
            form.write_bytes(whole)
            with form.open("rb") as source:
                recompress(expansion, source, out.extend)
            again[sha256] = bytes(out)
    return again


PROGRAM = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\x3e\x00" + noise(300_000)
TEXT = b"\n".join(b"line %d says %d" % (n, n * n % 977) for n in range(20_000))
BIG = PROGRAM[:20] + noise(4_300_000, 4)
OLD = {
    "bin/app": PROGRAM,
    "doc/change.gz": gzip.compress(TEXT, 9, mtime=0),
    "doc/guide-1.2.txt": TEXT,
    "lib/big.so": BIG,
    "same": b"the same" * 100,
    "zeros": bytes(5_000_000),
}
NEW = {
    "bin/app": PROGRAM[:1000]
    + b"a patch"
    + PROGRAM[1000:200_000]
    + noise(500, 2)
    + PROGRAM[200_000:],
    "bin/new": PROGRAM[:20] + noise(50_000, 3) + b"call" * 9000,
    "doc/change.gz": gzip.compress(TEXT[:5000] + b"news\n" + TEXT[5000:], 9, mtime=0),
    "doc/guide-1.3.txt": TEXT[:70_000] + b"one more line\n" + TEXT[70_000:],
    "empty": b"",
    "large": b"".join(b"%d," % (n % 3000) for n in range(1_000_000)),
    "lib/big.so": BIG[:2_000_000] + b"in the middle" + BIG[2_000_000:],
    "news.txt": b"nothing before was like this " * 50,
    "same": b"the same" * 100,
    "zeros": bytes(9_000_000) + b"!",
}


@pytest.fixture(scope="module", params=[True, False])
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    old, new = side(folder / "old", OLD), side(folder / "new", NEW)
    terms = MakeTerms(jobs=1, recompress=request.param, cache=folder / "pairs")
    return make_delta(old, new, folder / "d.ewd", terms), folder / "d.ewd", old, new


def test_a_delta_gives_the_new_contents_back(made):
    about, file, old, new = made
    found = applied(about, file, old)
    olds = contents(old.tree)
    assert set(found) == {one for one in contents(new.tree) if one not in olds}
    for sha256, data in found.items():
        assert hashlib.sha256(data).hexdigest() == sha256
    assert about.objects == len(found)


def test_a_delta_is_far_smaller_than_what_is_new(made):
    about, _, _, _ = made
    assert about.ref.size < 400_000 < about.object_bytes


def test_every_way_of_packing_is_reached(made):
    about, file, old, new = made
    data = file.read_bytes()
    head = delta.open_head(data[: about.ref.head], about.ref.sha256)
    parts = head.resolve(old.tree, new.tree).parts
    assert {part.kind for part in parts} == {
        delta.PREFIX,
        delta.BSDIFF,
        delta.SOLID,
        delta.SOLID_X86,
    }
    pieces = [piece for part in parts for piece in part.pieces]
    assert any(not piece.whole and piece.base for piece in pieces), "a cut file with a base"
    assert any(not piece.whole and not piece.base for piece in pieces), "and one without"
    assert any(piece.expansion for piece in pieces) == bool(about.recompressed)
    assert all(sum(p.length for p in part.pieces) <= limits.PART_OUTPUT for part in parts)


def test_the_same_trees_give_the_same_bytes(made, tmp_path):
    about, file, old, new = made
    terms = MakeTerms(jobs=1, recompress=bool(about.recompressed))
    assert make_delta(old, new, tmp_path / "again.ewd", terms) == about
    assert (tmp_path / "again.ewd").read_bytes() == file.read_bytes()


def test_a_pack_gives_everything_from_nothing(tmp_path):
    new = side(tmp_path / "new", NEW)
    about = make_delta(None, new, tmp_path / "p.ewd", MakeTerms(jobs=1))
    found = applied(about, tmp_path / "p.ewd", None)
    assert set(found) == set(contents(new.tree))
    assert about.ref.base == ""


def test_two_trees_with_the_same_contents_make_a_delta_of_a_manifest(tmp_path):
    old, new = side(tmp_path / "o", OLD), side(tmp_path / "o", {**OLD, "copy": TEXT})
    about = make_delta(old, new, tmp_path / "d.ewd", MakeTerms(jobs=1))
    assert applied(about, tmp_path / "d.ewd", old) == {}
    assert about.ref.size == about.ref.lead


def test_a_head_under_another_name_is_refused(made):
    about, file, _, _ = made
    data = bytearray(file.read_bytes()[: about.ref.head])
    data[-1] ^= 1
    with pytest.raises(Untrusted, match="not what its name says"):
        delta.open_head(bytes(data), about.ref.sha256)


def test_a_part_of_another_delta_is_refused(made):
    about, file, old, new = made
    data = file.read_bytes()
    head = delta.open_head(data[: about.ref.head], about.ref.sha256)
    one, other = head.resolve(old.tree, new.tree).parts[:2]
    with pytest.raises(Untrusted, match="not what its head says"):
        list(delta.decode(one, data[other.start : other.start + other.length], lambda *_: b""))


def test_addition_is_bytewise_and_wraps():
    old, difference = noise(200_001, 5), noise(70_000, 6) + bytes(66_000) + noise(64_001, 7)
    expected = bytes((a + b) & 255 for a, b in zip(old, difference, strict=True))
    assert delta.add(old, difference) == expected


RUNS = (
    b"",
    bytes(20_000),
    noise(3000, 8) + b"\xff" * 9000 + noise(5000, 9) + bytes(5000) + noise(10, 10),
    b"\xff" * 9000 + noise(3000, 8) + noise(5000, 9)[:2500] + bytes(7000) + noise(5000, 9)[2500:],
    bytes(5000) + noise(3000, 8) + b"\xff" * 4096,
    noise(8000, 8) * 2,
)


@pytest.mark.parametrize("old", RUNS)
@pytest.mark.parametrize("new", RUNS)
def test_long_runs_of_one_byte_are_found_and_come_back(old, new):
    made = bytearray()
    for start, difference, insert in search(new, old):
        made += delta.add(old[start : start + len(difference)], difference) + insert
    assert bytes(made) == new
