"""When a JWT key is made, used and dropped.

A verifier knows a key only after the bundle that carries it has reached it, so a new key
waits until the published bundle has it, and an old one stays published until every token
that it signed has expired everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

LIFE: Final = timedelta(days=30)
"""A key is followed by the next one after this time."""
KEPT: Final = timedelta(days=1)
"""An old key stays published for so long after its successor is in use: tokens live minutes,
and a region that is cut off keeps using what it has."""
MOST: Final = 4
"""Keys of one issuer in a bundle; more than two only after clocks jumped."""


@dataclass(frozen=True, slots=True)
class JwtKey:
    """One key of an issuer."""

    kid: str
    spki: bytes
    """DER SubjectPublicKeyInfo, ECDSA P-256."""
    made: datetime


def lacks_next(keys: Sequence[JwtKey], now: datetime) -> bool:
    """Whether another key is to be made now."""
    return not keys or now >= max(key.made for key in keys) + LIFE


def in_use(keys: Sequence[JwtKey], published: Collection[str]) -> JwtKey | None:
    """The newest key that the published bundle carries; None while it carries none."""
    known = [key for key in keys if key.kid in published]
    return max(known, key=lambda key: key.made, default=None)


def outlived(
    keys: Sequence[JwtKey], published: Collection[str], now: datetime
) -> tuple[JwtKey, ...]:
    """Keys to drop: older than the one in use, which has been there long enough."""
    current = in_use(keys, published)
    if current is None or now < current.made + KEPT:
        return ()
    return tuple(key for key in keys if key.made < current.made)
