"""The cheapest ways for contents to come: parts of deltas and packs, or whole objects. Pure.

Laws, checked by tests/unit/delivery/test_delivery_ways.py:
1. Every wanted object comes by exactly one way, and nothing comes that nobody needs.
2. A part is chosen only when all its bases are here, or come by earlier parts (a chain: these
   need only what is here). An object that spans parts gets all of them, or none.
3. The choice never costs more than everything whole.
4. A file in ``refused`` is not touched; so whoever refuses at least one file between two
   choices ends, at the latest with every object whole.
5. The same input gives the same choice.

The choice is greedy weighted set cover (Chvatal 1979): the exact one is NP-hard, and what
greedy loses is bounded by the harmonic number, in practice near nothing, because the parts
of one delta hardly overlap.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

Way = Literal["delta", "chain", "pack", "whole"]
"""How an object comes: from what is here; from that by a second delta; from nothing with
others; alone."""
WAYS: Final[tuple[Way, ...]] = ("delta", "chain", "pack", "whole")
RANGE: Final = 8 << 20
"""Bytes asked for at once: a server that ends long answers costs at most this, and three
ranges travel side by side."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What things cost, in bytes of the link."""

    request: int = 32 << 10
    """Round trip times goodput: 50 ms at 5 Mbit/s. Also the gap that is read through."""
    whole: float = 0.45
    """Packed bytes of a whole object for each unpacked one, as long as they are not known."""


class OfferedPart(NamedTuple):
    """A part of a delta as far as choosing goes."""

    start: int
    """Where it lies in the file, packed."""
    length: int
    yields: tuple[str, ...]
    """Objects that it brings, or brings pieces of."""
    needs: tuple[str, ...]
    """Old objects without which it cannot be read."""
    scratch: int = 0
    """Bytes of disk beside the new files: expanded contents."""
    output: int = 0
    """Bytes that it yields; 0: not known."""


class Offer(NamedTuple):
    """An opened delta or pack."""

    file: str
    """Digest of its head."""
    base: str
    """Digest of the tree it starts from; empty: a pack."""
    parts: tuple[OfferedPart, ...]


class Range(NamedTuple):
    """One request: bytes ``[start, end)`` of a delta, with the wanted parts in them."""

    file: str
    start: int
    end: int
    parts: tuple[int, ...]
    """Indexes, in the order in which they arrive; what lies between is passed over."""
    way: Way
    first: bool = False
    """Others need what it brings: every range with it comes before every one without."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What to ask for, in order."""

    ranges: tuple[Range, ...]
    whole: tuple[str, ...]
    """Objects that come alone."""
    by: Mapping[str, Way]
    """The way of each wanted object."""
    prices: Mapping[str, float]
    """What each would cost whole."""
    bytes: Mapping[Way, int]
    """Planned bytes by way; of whole objects, as far as their packed size is known."""
    requests: int
    scratch: int
    """Bytes of disk beside the new files, at most."""
    passing: frozenset[str]
    """Objects that come only because others need them (the middle of a chain)."""

    @property
    def total(self) -> int:
        """Planned bytes."""
        return sum(self.bytes.values())

    def fields(self) -> dict[str, int]:
        """For one line of a log: how many objects and bytes come by which way."""
        said: dict[str, int] = {"requests": self.requests}
        for way in WAYS:
            objects = sum(1 for found in self.by.values() if found == way)
            if objects or self.bytes.get(way):
                said[f"{way}_objects"] = objects
                said[f"{way}_bytes"] = self.bytes.get(way, 0)
        return said


@dataclass(frozen=True, slots=True)
class Situation:
    """What a choice depends on beside the offers."""

    here: Callable[[str], bool]
    """Whether an object is in the store."""
    packed: Mapping[str, int] = field(default_factory=dict)
    """Packed sizes of whole objects, as far as known."""
    refused: frozenset[str] = frozenset()
    """Deltas that were wrong in this fetch."""


class _Unit(NamedTuple):
    """Parts that only make sense together: those that a large object spans."""

    number: int
    offer: int
    parts: tuple[int, ...]
    completes: tuple[str, ...]
    absent: frozenset[str]
    """Bases that are not here."""


def choose(
    wanted: Mapping[str, int], offers: Sequence[Offer], about: Situation, prices: Prices
) -> Choice:
    """The way of each object of ``wanted`` (digest to unpacked bytes), none of them here."""
    return _Choosing(wanted, offers, about, prices).run()


class _Choosing:
    def __init__(
        self,
        wanted: Mapping[str, int],
        offers: Sequence[Offer],
        about: Situation,
        prices: Prices,
    ) -> None:
        self._offers = [offer for offer in offers if offer.file not in about.refused]
        self._about = about
        self._prices = prices
        self._ratios = _ratios(self._offers, prices.whole)
        self._whole = {sha256: self._whole_price(sha256, wanted[sha256]) for sha256 in wanted}
        self._sizes = wanted
        self._where = [_where(offer) for offer in self._offers]
        self._units: list[_Unit] = []
        for index, offer in enumerate(self._offers):
            for parts in _together(offer, wanted):
                self._unit(index, parts)
        self._makers: dict[str, list[_Unit]] = {}
        self._made: dict[tuple[int, tuple[int, ...]], _Unit] = {}
        self._taken: set[int] = set()
        self._parts: list[set[int]] = [set() for _ in self._offers]
        self._covered: dict[str, int] = {}
        self._helps: dict[int, tuple[_Unit, ...]] = {}

    def _whole_bytes(self, sha256: str, size: int) -> int:
        known = self._about.packed.get(sha256)
        if known is not None:
            return known
        return int(size * self._ratios.get(sha256, self._prices.whole)) + 16

    def _whole_price(self, sha256: str, size: int) -> float:
        return self._prices.request + self._whole_bytes(sha256, size)

    # Units

    def _unit(self, index: int, parts: tuple[int, ...]) -> _Unit:
        offer, here = self._offers[index], self._about.here
        inside = {sha256 for part in parts for sha256 in offer.parts[part].yields}
        absent = {s for part in parts for s in offer.parts[part].needs if not here(s)}
        completes = tuple(sorted(inside & self._whole.keys()))
        unit = _Unit(len(self._units), index, parts, completes, frozenset(absent))
        self._units.append(unit)
        return unit

    def _makers_of(self, base: str) -> list[_Unit]:
        """Units that bring an absent base from what is here."""
        if base not in self._makers:
            self._makers[base] = []
            for index, offer in enumerate(self._offers):
                where = self._where[index]
                parts = tuple(where.get(base, ()))
                needs = (sha256 for part in parts for sha256 in offer.parts[part].needs)
                if parts and all(self._about.here(sha256) for sha256 in needs):
                    made = self._made.get((index, parts))
                    if made is None:
                        made = self._unit(index, parts)
                        whole = tuple(s for s in made.completes if where[s] <= set(parts))
                        made = self._units[-1] = made._replace(completes=whole)
                        self._made[index, parts] = made
                    self._makers[base].append(made)
        return self._makers[base]

    def _price(self, units: Iterable[_Unit]) -> float:
        """What taking these costs now: bytes, and requests for runs that join nothing."""
        total = 0.0
        new: defaultdict[int, set[int]] = defaultdict(set)
        for unit in units:
            if unit.number not in self._taken:
                new[unit.offer].update(unit.parts)
        for index, parts in new.items():
            offer, taken = self._offers[index], self._parts[index]
            total += sum(offer.parts[part].length for part in parts)
            for part in parts - taken:
                if part - 1 in parts or part - 1 in taken:
                    continue
                end = part + 1
                while end in parts:
                    end += 1
                total += 0.0 if end in taken else self._prices.request
        return total

    def _with_help(self, unit: _Unit) -> tuple[_Unit, ...] | None:
        """The unit after those that bring its absent bases; None when nothing does."""
        helps: dict[int, _Unit] = {}
        for base in sorted(unit.absent):
            makers = [m for m in self._makers_of(base) if m.offer != unit.offer]
            if not makers:
                return None
            best = min(makers, key=lambda maker: (self._price([maker]), maker.number))
            helps[best.number] = best
        return (*helps.values(), unit)

    # Choosing

    def run(self) -> Choice:
        self._take_what_pays()
        self._drop_what_does_not()
        return self._choice()

    def _gain(self, units: tuple[_Unit, ...]) -> float:
        fresh = {sha256 for unit in units for sha256 in unit.completes}
        return sum(self._whole[sha256] for sha256 in fresh if sha256 not in self._covered)

    def _take_what_pays(self) -> None:
        waiting: list[tuple[float, int]] = []

        def consider(unit: _Unit) -> tuple[float, tuple[_Unit, ...]] | None:
            units = self._with_help(unit)
            if units is None or unit.number in self._taken:
                return None
            price, gain = self._price(units), self._gain(units)
            return (price / gain, units) if gain > price else None

        def look() -> bool:
            # A unit may begin to pay when its neighbours are taken: it needs no own request.
            for unit in list(self._units):
                if found := consider(unit):
                    heapq.heappush(waiting, (found[0], unit.number))
            return bool(waiting)

        while waiting or look():
            said, number = heapq.heappop(waiting)
            found = consider(self._units[number])
            if found is None:
                continue
            ratio, units = found
            # Gains only shrink, so a unit that is still the best by its old figure is the best.
            if ratio > said + 1e-9 and waiting and ratio > waiting[0][0]:
                heapq.heappush(waiting, (ratio, number))
                continue
            self._take(units)

    def _take(self, units: tuple[_Unit, ...]) -> None:
        unit = units[-1]
        self._helps[unit.number] = units[:-1]
        for each in units:
            if each.number not in self._taken:
                self._taken.add(each.number)
                self._parts[each.offer].update(each.parts)
            for sha256 in each.completes:
                self._covered.setdefault(sha256, each.number)

    def _drop_what_does_not(self) -> None:
        """Leave out units whose objects come with others anyway, dearest first."""
        while self._drop_once():
            pass
        self._covered = {}
        helping = self._helping()
        for number in sorted(self._taken, key=lambda n: (n not in helping, n)):
            for sha256 in self._units[number].completes:
                self._covered.setdefault(sha256, number)

    def _helping(self) -> set[int]:
        return {unit.number for helps in self._helps.values() for unit in helps}

    def _drop_once(self) -> bool:
        count: Counter[str] = Counter()
        for number in self._taken:
            count.update(self._units[number].completes)
        dropped, helping = False, self._helping()
        for number in sorted(self._taken, key=lambda n: (-self._bytes(self._units[n]), n)):
            unit = self._units[number]
            mine = [sha256 for sha256 in unit.completes if count[sha256] == 1]
            worth = sum(self._whole[sha256] for sha256 in mine)
            if number not in helping and worth < max(1.0, self._bytes(unit)):
                dropped = True
                self._taken.discard(number)
                self._helps.pop(number, None)
                count.subtract(unit.completes)
        self._parts = [set() for _ in self._offers]
        for number in self._taken:
            self._parts[self._units[number].offer].update(self._units[number].parts)
        return dropped

    def _bytes(self, unit: _Unit) -> float:
        offer = self._offers[unit.offer]
        return sum(offer.parts[part].length for part in unit.parts)

    # The result

    def _choice(self) -> Choice:
        ranges = list(self._ranges())
        whole = tuple(sorted(s for s in self._whole if s not in self._covered))
        all_whole = sum(self._whole.values())
        spent = sum(self._whole[s] for s in whole) + sum(
            self._prices.request + (r.end - r.start) for r in ranges
        )
        if ranges and spent > all_whole:  # joined ranges cost more than they were thought to
            self._taken, self._covered, ranges = set(), {}, []
            self._parts = [set() for _ in self._offers]
            whole = tuple(sorted(self._whole))
        by: dict[str, Way] = {sha256: "whole" for sha256 in whole}
        for sha256, number in self._covered.items():
            by[sha256] = self._way(self._units[number])
        planned: defaultdict[Way, int] = defaultdict(int)
        for each in ranges:
            planned[each.way] += each.end - each.start
        if whole:
            planned["whole"] = sum(self._whole_bytes(s, self._sizes[s]) for s in whole)
        units = [self._units[number] for number in self._taken]
        needed = {sha256 for unit in units for sha256 in unit.absent}
        return Choice(
            ranges=tuple(ranges),
            whole=whole,
            by=by,
            prices=self._whole,
            bytes=dict(planned),
            requests=len(ranges) + len(whole),
            scratch=sum(
                self._offers[unit.offer].parts[part].scratch
                for unit in units
                for part in unit.parts
            ),
            passing=frozenset(needed - self._whole.keys()),
        )

    def _way(self, unit: _Unit) -> Way:
        if unit.absent:
            return "chain"
        return "delta" if self._offers[unit.offer].base else "pack"

    def _ranges(self) -> Iterator[Range]:
        """Helps first; then file by file, in file order, adjacent parts joined."""
        helping = self._helping()
        asked: set[tuple[int, int]] = set()
        for first in (True, False):
            for index, offer in enumerate(self._offers):
                parts: dict[int, Way] = {}
                for number in self._taken:
                    unit = self._units[number]
                    if unit.offer == index and (number in helping) == first:
                        way: Way = "chain" if first else self._way(unit)
                        parts.update(
                            (part, way) for part in unit.parts if (index, part) not in asked
                        )
                asked.update((index, part) for part in parts)
                yield from _joined(offer, parts, self._prices.request, first=first)


def _ratios(offers: Iterable[Offer], usual: float) -> dict[str, float]:
    """How well contents pack alone, as their parts tell: of one without a base hardly better
    than in it, of a delta never better than the delta. What is packed already (pictures,
    archives) shows itself so."""
    found: dict[str, float] = {}
    for offer in offers:
        for part in offer.parts:
            if part.output:
                ratio = min(1.0, 1.05 * part.length / part.output)
                ratio = max(ratio, usual) if part.needs else ratio
                for sha256 in part.yields:
                    found[sha256] = max(ratio, found.get(sha256, 0.0))
    return found


def _where(offer: Offer) -> dict[str, set[int]]:
    """Object to the parts that bring it or pieces of it."""
    found: defaultdict[str, set[int]] = defaultdict(set)
    for index, part in enumerate(offer.parts):
        for sha256 in part.yields:
            found[sha256].add(index)
    return dict(found)


def _together(offer: Offer, wanted: Collection[str]) -> list[tuple[int, ...]]:
    """Indexes of parts that bring something; together where a wanted object spans them."""
    leader = list(range(len(offer.parts)))

    def find(index: int) -> int:
        while leader[index] != index:
            leader[index] = leader[leader[index]]
            index = leader[index]
        return index

    seen: dict[str, int] = {}
    useful: set[int] = set()
    for index, part in enumerate(offer.parts):
        for sha256 in part.yields:
            if sha256 not in wanted:
                continue
            if sha256 in seen:
                leader[find(index)] = find(seen[sha256])
            seen[sha256] = index
            useful.add(index)
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for index in sorted(useful):
        groups[find(index)].append(index)
    return [tuple(group) for group in groups.values()]


def _joined(offer: Offer, parts: Mapping[int, Way], gap: int, *, first: bool) -> Iterator[Range]:
    start = end = 0
    run: list[int] = []
    for index in sorted(parts, key=lambda index: offer.parts[index].start):
        part = offer.parts[index]
        stop = part.start + part.length
        if run and (
            part.start - end > gap or stop - start > RANGE or parts[index] != parts[run[0]]
        ):
            yield Range(offer.file, start, end, tuple(run), parts[run[0]], first)
            run = []
        if not run:
            start = part.start
        run.append(index)
        end = stop
    if run:
        yield Range(offer.file, start, end, tuple(run), parts[run[0]], first)


def candidates(
    tree: str, here: Collection[str], refs: Iterable[tuple[str, str, str]]
) -> list[tuple[str, ...]]:
    """Which deltas to open for a tree, as alternatives in order: files that lead to it.

    ``refs`` are (file, base tree, tree); ``here`` the trees that are here, nearest first.
    One of: a direct delta from each tree that is here; a chain of two; a pack.
    """
    by_target: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for file, base, target in refs:
        by_target[target].append((file, base))
    order = {sha256: index for index, sha256 in enumerate(here)}
    leading = by_target.get(tree, [])
    near = [(order[base], file) for file, base in leading if base in order]
    chains = [
        (order[base], first, second)
        for second, middle in leading
        if middle and middle not in order
        for first, base in by_target.get(middle, [])
        if base in order
    ]
    packs = [(file,) for file, base in leading if not base]
    return [
        *((file,) for _, file in sorted(near)),
        *((first, second) for _, first, second in sorted(chains)),
        *packs,
    ]
