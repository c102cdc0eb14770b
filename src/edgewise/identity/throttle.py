"""How fast a stranger may guess, without giving it the power to lock anybody out.

Three counts, none of which ever blocks for good:
- one name from one address: after a few failures each further one waits twice as long;
- one address: a supply of failures that refills slowly, whatever names it tries;
- one name from addresses where it never logged in: such a supply as well. Addresses that
  the person has used are not asked about it, so a botnet slows down only newcomers.

Everything is pure: times are monotonic seconds, given by the caller.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final, TypeVar

K = TypeVar("K")
V = TypeVar("V")
FREE: Final = 5
"""Failures of one name from one address before waiting begins."""
LONGEST: Final = 900.0
"""Seconds between two tries of one name from one address, at the worst."""
LONGEST_AT_HOME: Final = 30.0
"""The same, where the person has logged in before: it may share the address with others."""
SUPPLY: Final = 30
"""Failures that an address, or a name from strange addresses, has in stock."""
REFILL: Final = 30.0
"""Seconds until one more is there."""
REMEMBERED: Final = 10_000
"""Entries of each kind; the one that was touched longest ago goes first."""


@dataclass(slots=True)
class _Supply:
    left: float
    at: float

    def wait(self, now: float) -> float:
        """Seconds until one can be taken."""
        self.left = min(float(SUPPLY), self.left + (now - self.at) / REFILL)
        self.at = now
        return 0.0 if self.left >= 1 else (1 - self.left) * REFILL


@dataclass(slots=True)
class _Failures:
    count: int = 0
    until: float = 0.0


def network_of(address: str) -> str:
    """What counts as one address: IPv6 users have a whole /64 each."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return address


@dataclass(slots=True)
class Throttle:
    """One for each kind of secret that can be guessed."""

    _pairs: OrderedDict[tuple[str, str], _Failures] = field(default_factory=OrderedDict)
    _addresses: OrderedDict[str, _Supply] = field(default_factory=OrderedDict)
    _names: OrderedDict[str, _Supply] = field(default_factory=OrderedDict)

    def attempt(self, name: str, address: str, *, at_home: bool, now: float) -> float:
        """Seconds to wait before this try; 0 lets it through and counts it as failed.

        Call ``succeeded`` when it was not: tries that run side by side count as well.
        """
        network = network_of(address)
        pair = _touched(self._pairs, (name, network), _Failures())
        supplies = [_touched(self._addresses, network, _Supply(SUPPLY, now))]
        if not at_home:
            supplies.append(_touched(self._names, name, _Supply(SUPPLY, now)))
        wait = max(pair.until - now, *(supply.wait(now) for supply in supplies))
        if wait > 0:
            return wait
        pair.count += 1
        if pair.count >= FREE:
            longest = LONGEST_AT_HOME if at_home else LONGEST
            pair.until = now + min(longest, 2.0 ** (pair.count - FREE))
        for supply in supplies:
            supply.left -= 1
        return 0.0

    def succeeded(self, name: str, address: str, *, at_home: bool) -> None:
        """The try was good: it counts for nothing."""
        network = network_of(address)
        self._pairs.pop((name, network), None)
        supplies = [self._addresses.get(network), None if at_home else self._names.get(name)]
        for supply in supplies:
            if supply is not None:
                supply.left = min(float(SUPPLY), supply.left + 1)


def _touched(known: OrderedDict[K, V], key: K, new: V) -> V:
    found = known.setdefault(key, new)
    known.move_to_end(key)
    if len(known) > REMEMBERED:
        known.popitem(last=False)
    return found
