"""What a bundle carries whole, and what its deltas and packs bring. Pure.

Law: what is left out is what a node with the named trees, and with the prices of a link, takes by
the deltas that are in the bundle; it never needs this machine's gzip. So nodes that get the
bundle through a relay find what they ask for, as those do that read it themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from edgewise.delivery.opening import Opened, offer_of
from edgewise.delivery.ways import Choice, Prices, Situation, choose


def left_out(
    wanted: Mapping[str, int],
    trees: Mapping[str, Iterable[str]],
    opened: Sequence[Opened],
    here: Callable[[str], bool],
) -> frozenset[str]:
    """Objects of ``wanted`` (digest to bytes, none empty) that need not be in the bundle whole.

    ``trees`` are the release's, each with its objects; ``here`` says what receivers have.
    """
    prices = Prices()
    without = choose(wanted, (), Situation(here), prices)
    worth = [one for one in opened if _opens(one, trees, without, prices)]
    offers = [
        offer_of(one, lambda piece: piece.expansion is None, lambda _: False) for one in worth
    ]
    choice = choose(wanted, offers, Situation(here), prices)
    return frozenset(sha256 for sha256, way in choice.by.items() if way != "whole")


def _opens(
    one: Opened, trees: Mapping[str, Iterable[str]], without: Choice, prices: Prices
) -> bool:
    """As ``opening.Shelf.open_next`` decides it."""
    lacking = sum(without.prices.get(sha256, 0.0) for sha256 in trees.get(one.ref.tree, ()))
    return prices.request + one.ref.lead < lacking
