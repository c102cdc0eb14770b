"""Makes ``.ewd`` files (docs/internals/delta.md): deltas between two trees, and packs.

Laws: what is written is read back with the node's own code and compared before it has its
name; memory is bounded by ``jobs`` times a few parts (and ``delta_trial.WINDOW``), whatever
the trees; the same trees and terms give the same bytes.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from edgewise.backends.files import recompress
from edgewise.backends.files.copies import Copy, cut, kept
from edgewise.backends.files.delta_trial import Pair, Way, packed_with, tried
from edgewise.backends.files.program_copies import predictions
from edgewise.delivery import delta
from edgewise.delivery.bases import Bases
from edgewise.delivery.delta import Expansion, Part, Piece, contents
from edgewise.delivery.delta_table import head, unsigned, varints, written_part
from edgewise.delivery.references import NOTHING, References, written
from edgewise.model.errors import Untrusted
from edgewise.protocol import limits
from edgewise.protocol.codec import encode
from edgewise.protocol.content import Entry, Tree
from edgewise.protocol.delta import DeltaRef

CACHE: Final = 512 << 20
"""Bytes of found copies kept between runs; the least recently used go first."""
EXPANDED: Final = 256 << 20
"""A gzip file that expands to more travels as it is."""
_LEVEL: Final = 19
_PACK_LEVEL: Final = 12
"""A pack is made of whole trees: level 19 takes eight times as long for 5 % less."""
_FILTERS: Final = [
    {
        "id": lzma.FILTER_LZMA2,
        "preset": 9 | lzma.PRESET_EXTREME,
        "dict_size": delta.DICTIONARY // 2,
        "lc": 4,  # differences have no alignment: 0.7 % less than with the preset's 3, 0, 2
        "lp": 0,
        "pb": 0,
    }
]
_X86: Final = [{"id": lzma.FILTER_X86}, *_FILTERS]
_ELF_X86: Final = (3, 62)

A = TypeVar("A")
R = TypeVar("R")


class Side(NamedTuple):
    """One tree and where its contents are."""

    tree: Tree
    sha256: str
    """Of its manifest."""
    open: Callable[[str], Path]
    """A file that holds an object's bytes, while the delta is made."""


@dataclass(frozen=True, slots=True)
class MakeTerms:
    """How a delta is made."""

    jobs: int = field(default_factory=lambda: os.cpu_count() or 1)
    cache: Path | None = None
    """A folder for what was found about pairs of contents."""
    recompress: bool = True
    """Let gzip files and kernel images travel expanded where this machine makes them again."""
    progress: Callable[[int, int], None] = lambda done, total: None
    """Called with new bytes that were dealt with, and all of them; in two rounds."""
    nice: int = 0


@dataclass(frozen=True, slots=True)
class Made:
    """What was made."""

    ref: DeltaRef
    objects: int
    """New contents."""
    object_bytes: int
    """Theirs, unpacked: what travels (packed) without the delta."""
    recompressed: int
    """Of them, gzip files and kernel images that travel expanded."""


class _New(NamedTuple):
    """One new content and how it will come."""

    sha256: str
    path: str
    """For sorting: what is alike comes together."""
    file: Path
    size: int
    base: str = ""
    old: Path | None = None
    old_size: int = 0
    expansion: Expansion | None = None

    @property
    def pair(self) -> Pair:
        assert self.old is not None
        form = "x" if self.expansion else "="  # of this version's search: older ones had "-"
        return Pair(self.file, self.old, f"{self.sha256}{form}{self.base}")


class _Slice(NamedTuple):
    """A range of a new content in one part."""

    new: _New
    offset: int
    length: int

    @property
    def piece(self) -> Piece:
        new = self.new
        return Piece(
            new.sha256, new.size, self.offset, self.length, new.base, new.old_size, new.expansion
        )


class _Job(NamedTuple):
    """One part to be packed."""

    kind: int
    slices: tuple[_Slice, ...]
    cache: Path


def make_delta(base: Side | None, tree: Side, out: Path, terms: MakeTerms | None = None) -> Made:
    """Write the delta from ``base`` (None: a pack) to ``tree`` to ``out``; blocking.

    ``out`` is complete and checked when it appears. Raises Untrusted when what was made does
    not give the new contents back, which would be a mistake here or changed files.
    """
    terms = terms or MakeTerms()
    olds = contents(base.tree) if base else {}
    news = {one: size for one, size in contents(tree.tree).items() if one not in olds}
    with (
        _folder(terms.cache) as cache,
        tempfile.TemporaryDirectory(prefix="edgewise-delta-") as scratch,
        _workers(terms) as workers,
    ):
        maker = _Maker(terms, cache, Path(scratch), workers)
        found = maker.sources(base, tree, olds, news)
        jobs = list(maker.jobs(found, pack=base is None))
        numbers = {one: n for n, one in enumerate(news)}
        made = _write(out, base, tree, maker.packed(jobs), olds, numbers)
        expansions = {new.sha256 for new in found if new.expansion}
        scratch_bytes = sum(new.size + new.old_size for new in found if new.expansion is not None)
        _prune(cache)
    ref = DeltaRef(
        sha256=made.sha256,
        head=made.head,
        lead=made.lead,
        size=made.size,
        tree=tree.sha256,
        base=base.sha256 if base else "",
        scratch=scratch_bytes,
    )
    return Made(ref, len(news), sum(news.values()), len(expansions))


class _Maker:
    def __init__(
        self, terms: MakeTerms, cache: Path, scratch: Path, workers: Executor | None
    ) -> None:
        self._terms = terms
        self._cache = cache
        self._scratch = scratch
        self._workers = workers

    # What comes from what

    def sources(
        self,
        base: Side | None,
        tree: Side,
        olds: Mapping[str, int],
        news: Mapping[str, int],
    ) -> list[_New]:
        """Every new content with its base, and both in the form in which they are compared."""
        bases = Bases(base.tree.entries if base else ())
        first = dict[str, Entry]()
        for entry in tree.tree.entries:
            if entry.kind == "file" and entry.sha256 in news:
                first.setdefault(entry.sha256, entry)
        found = []
        for sha256, entry in first.items():
            new = _New(sha256, entry.path, tree.open(sha256), entry.size)
            old = bases.choose(entry) if base else None
            if base and old is not None and old.sha256 in olds:
                new = new._replace(base=old.sha256, old=base.open(old.sha256), old_size=old.size)
            found.append(new)
        if not self._terms.recompress:
            return found
        asked = [(new, self._scratch) for new in found if new.old is not None]
        expanded = {new.sha256: new for new in self._map(_expanded, asked) if new is not None}
        return [expanded.get(new.sha256, new) for new in found]

    # Parts

    def jobs(self, found: list[_New], *, pack: bool) -> Iterator[_Job]:
        """The parts, in the file's order."""
        with_base = [new for new in found if new.old is not None]
        total = sum(new.size for new in found)
        done = sum(new.size for new in found if new.old is None)
        ways: dict[str, Way] = {}
        asked = sorted(with_base, key=lambda new: -new.size)  # the longest first
        for new, way in zip(
            asked, self._map(_way, [(new.pair, self._cache) for new in asked]), strict=True
        ):
            ways[new.sha256] = way
            done += new.size
            self._terms.progress(done, 2 * total)
        alone = [
            new
            if ways.get(new.sha256) != "solid"
            else new._replace(base="", old=None, old_size=0, **self._as_it_is(new))
            for new in found
            if ways.get(new.sha256, "solid") == "solid"
        ]
        prefixed = [new for new in found if ways.get(new.sha256) == "prefix"]
        copied = [new for new in found if ways.get(new.sha256) == "bsdiff"]
        for kind, slices in (
            *((delta.BSDIFF, one) for one in _filled(_by_likeness(copied))),
            *((delta.PREFIX, one) for one in _filled_with_bases(_by_likeness(prefixed))),
            *(_solid(_by_likeness(alone), pack=pack)),
        ):
            yield _Job(kind, tuple(slices), self._cache)

    def _as_it_is(self, new: _New) -> dict[str, Any]:
        """A content without a base travels unexpanded: there is nothing to gain."""
        if new.expansion is None:
            return {}
        name = self._scratch / f"{new.sha256}.was"
        return {"expansion": None, "file": Path(os.readlink(name)), "size": _size_of(name)}

    def packed(self, jobs: list[_Job]) -> Iterator[tuple[Part, bytes]]:
        """The parts' bytes, in the jobs' order."""
        total = sum(piece.length for job in jobs for piece in job.slices)
        done = 0
        for job, data in zip(jobs, self._map(_pack, [(job,) for job in jobs]), strict=True):
            pieces = [one.piece for one in job.slices]
            done += sum(piece.length for piece in pieces)
            self._terms.progress(total + done, 2 * total)
            kind, packed = data
            yield written_part(kind, packed, pieces), packed

    def _map(self, ask: Callable[..., R], arguments: list[Any]) -> Iterable[R]:
        if self._workers is None or len(arguments) < 2:
            return (ask(*one) for one in arguments)
        return self._workers.map(ask, *zip(*arguments, strict=True))


def _size_of(path: Path) -> int:
    return path.stat().st_size


def _way(pair: Pair, cache: Path) -> Way:
    return tried(pair, cache)


def _expanded(new: _New, scratch: Path) -> _New | None:
    """The pair in its expanded form; None when it is not one of packed files of the same form
    of which the new one comes again."""
    assert new.old is not None
    with new.file.open("rb") as source, new.old.open("rb") as old:
        form_of = recompress.form_of(source.read(4200))
        if form_of is None or form_of != recompress.form_of(old.read(4200)):
            return None
        source.seek(0)
        old.seek(0)
        form, old_form = scratch / new.sha256, scratch / f"{new.base}.old"
        with form.open("w+b") as target:
            expansion = recompress.expansion_of(source, target, at_most=EXPANDED)
        if expansion is None:
            form.unlink()
            return None
        try:
            waiting = old_form.with_suffix(f".{os.getpid()}")
            with waiting.open("wb") as target:
                for piece in recompress.expanded(old, at_most=EXPANDED):
                    target.write(piece)
            waiting.rename(old_form)
        except Untrusted:
            return None
    (scratch / f"{new.sha256}.was").symlink_to(new.file.resolve())
    return new._replace(
        file=form,
        size=expansion.size,
        old=old_form,
        old_size=old_form.stat().st_size,
        expansion=expansion,
    )


def _by_likeness(news: list[_New]) -> list[_New]:
    def key(new: _New) -> tuple[str, str, str]:
        directory, _, name = new.path.rpartition("/")
        return (name.rpartition(".")[2] if "." in name else "", directory, name)

    return sorted(news, key=key)


def _cuts(new: _New) -> Iterator[_Slice]:
    for offset in range(0, new.size, limits.PART_OUTPUT):
        yield _Slice(new, offset, min(limits.PART_OUTPUT, new.size - offset))


def _filled(news: list[_New]) -> Iterator[list[_Slice]]:
    """Slices in parts of at most ``PART_OUTPUT``; a content is cut only where it has to be."""
    run: list[_Slice] = []
    size = 0
    for new in news:
        for one in _cuts(new):
            if size + one.length > limits.PART_OUTPUT:
                yield run
                run, size = [], 0
            run.append(one)
            size += one.length
    if run:
        yield run


def _filled_with_bases(news: list[_New]) -> Iterator[list[_Slice]]:
    run: list[_Slice] = []
    seen: dict[str, int] = {}
    for new in news:
        one = _Slice(new, 0, new.size)
        more = 0 if new.base in seen else new.old_size
        output = sum(other.length for other in run) + one.length
        if run and (output > limits.PART_OUTPUT or sum(seen.values()) + more > limits.PART_BASE):
            yield run
            run, seen = [], {}
        run.append(one)
        seen[new.base] = new.old_size
    if run:
        yield run


def _solid(news: list[_New], *, pack: bool) -> Iterator[tuple[int, list[_Slice]]]:
    """Contents without a base. Programs come apart from the rest, for the x86 filter."""
    if pack:
        yield from ((delta.PREFIX, one) for one in _filled(news))
        return
    programs = [new for new in news if _is_x86(new.file)]
    named = {new.sha256 for new in programs}
    yield from ((delta.SOLID_X86, one) for one in _filled(programs))
    yield from (
        (delta.SOLID, one) for one in _filled([new for new in news if new.sha256 not in named])
    )


def _is_x86(file: Path) -> bool:
    with file.open("rb") as source:
        start = source.read(20)
    return start[:4] == b"\x7fELF" and int.from_bytes(start[18:20], "little") in _ELF_X86


# Packing, in the workers


def _pack(job: _Job) -> tuple[int, bytes]:
    """A part's bytes, proven to give the new contents back."""
    kind, packed = job.kind, b""
    if kind == delta.BSDIFF:
        kind, packed = _pack_copies(job)
    if not packed:
        data = b"".join(_read(one.new.file, one.offset, one.length) for one in job.slices)
        if kind == delta.PREFIX:
            bases = bytes(delta.prefix_of([one.piece for one in job.slices], _reader(job)))
            level = _LEVEL if bases else _PACK_LEVEL
            packed = packed_with(data, bases, level)
        else:
            filters = _X86 if kind == delta.SOLID_X86 else _FILTERS
            packed = lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters)
    _prove(job, kind, packed)
    return kind, packed


def _pack_copies(job: _Job) -> tuple[int, bytes]:
    """Kind and bytes; none where the copies are more than a part may have: such contents
    hardly agree."""
    said = [_said(one, job.cache) for one in job.slices]
    kind = delta.PREDICTED if any(one.references for one in said) else delta.BSDIFF
    control: list[bytes] = []
    for one in said:
        end = 0
        moves = []
        for copy in one.copies:
            moves.append(unsigned(copy.start - end))
            end = copy.start + len(copy.difference)
        control += [
            varints(moves),
            varints(len(copy.difference) for copy in one.copies),
            varints(len(copy.insert) for copy in one.copies),
        ]
        if kind == delta.PREDICTED:
            control.append(varints(written(one.references or NOTHING)))
    numbers = varints(len(one.copies) for one in said) + b"".join(control)
    if len(numbers) > limits.PART_CONTROL:
        return delta.SOLID, b""
    plain = (
        numbers,
        b"".join(copy.difference for one in said for copy in one.copies),
        b"".join(copy.insert for one in said for copy in one.copies),
    )
    packed = lzma.compress(b"".join(plain), format=lzma.FORMAT_RAW, filters=_FILTERS)
    return kind, varints(len(one) for one in plain) + packed


class _Said(NamedTuple):
    """What a part says of a slice."""

    copies: list[Copy]
    references: References | None


def _said(one: _Slice, cache: Path) -> _Said:
    """The copies of a slice; of a program, with its references put right before."""
    pair = one.new.pair
    runs = cut(kept(cache / pair.name), limits.PART_OUTPUT)
    number = one.offset // limits.PART_OUTPUT
    copies = next(run for n, run in enumerate(runs) if n == number)
    found = predictions(pair, cache)
    if found is None:
        return _Said(copies, None)
    return _Said(*found.of(copies, one.offset))


def _reader(job: _Job) -> delta.Read:
    files = {one.new.base: one.new.old for one in job.slices if one.new.old is not None}

    def read(sha256: str, offset: int, length: int) -> bytes:
        return _read(files[sha256], offset, length)

    return read


def _prove(job: _Job, kind: int, packed: bytes) -> None:
    pieces = [one.piece for one in job.slices]
    part = written_part(kind, packed, pieces)
    for one, (_, data) in zip(job.slices, delta.decode(part, packed, _reader(job)), strict=True):
        if data != _read(one.new.file, one.offset, one.length):
            raise Untrusted(f"a part for {one.new.path} does not give it back: did it change?")


def _read(path: Path, offset: int, length: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, length, offset)
    finally:
        os.close(fd)


# The file


class _Written(NamedTuple):
    sha256: str
    head: int
    lead: int
    size: int


def _write(
    out: Path,
    base: Side | None,
    tree: Side,
    parts: Iterator[tuple[Part, bytes]],
    olds: Mapping[str, int],
    numbers: Mapping[str, int],
) -> _Written:
    """Parts go to a file beside; the head, which has their digests, comes before them."""
    old = encode(base.tree) if base else b""
    new = encode(tree.tree)
    packed = packed_with(new, old, _LEVEL)
    manifest = written_part(delta.MANIFEST, packed, ())
    lines = []
    with tempfile.TemporaryFile(dir=out.parent) as body:
        for part, data in parts:
            lines.append(part)
            body.write(data)
        order = {one: n for n, one in enumerate(olds)}
        trees = (base.sha256 if base else "", tree.sha256)
        first = head(trees, len(new), [manifest, *lines], order, numbers)
        body.seek(0)
        waiting = out.with_name(f".{out.name}.{os.getpid()}")
        try:
            with waiting.open("wb") as target:
                target.write(first)
                target.write(packed)
                while data := body.read(1 << 20):
                    target.write(data)
                target.flush()
                os.fsync(target.fileno())
                size = target.tell()
            _check_head(first, base, tree, packed, old)
            waiting.rename(out)
        finally:
            waiting.unlink(missing_ok=True)
    return _Written(hashlib.sha256(first).hexdigest(), len(first), len(first) + len(packed), size)


def _check_head(first: bytes, base: Side | None, tree: Side, packed: bytes, old: bytes) -> None:
    found = delta.open_head(first, hashlib.sha256(first).hexdigest())
    manifest = found.manifest(packed, old)
    found.resolve(base.tree if base else None, delta.parse_tree(manifest))


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="edgewise-pairs-") as made:
        yield Path(made)


def _prune(cache: Path) -> None:
    kept_files = sorted(
        (about.st_mtime, about.st_size, one) for one in cache.iterdir() for about in (one.stat(),)
    )
    total = sum(size for _, size, _ in kept_files)
    for _, size, one in kept_files:
        if total <= CACHE:
            return
        one.unlink()
        total -= size


@contextmanager
def _workers(terms: MakeTerms) -> Iterator[Executor | None]:
    if terms.jobs == 1:
        yield None
        return
    with ProcessPoolExecutor(terms.jobs, initializer=os.nice, initargs=(terms.nice,)) as pool:
        yield pool
