"""API tokens: how they are written, read and bounded. Pure.

``ewt_<identifier>_<secret>``: a fixed beginning that secret scanners can look for, an
identifier that may be shown, and 256 random bits, of which the hub keeps a SHA-256 only.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from datetime import timedelta
from typing import Final

from edgewise.identity.people import Grant, Rights
from edgewise.identity.people_ports import ApiToken
from edgewise.model.errors import BadUsage
from edgewise.model.quantity import format_duration

SHORTEST: Final = timedelta(minutes=1)
LONGEST: Final = timedelta(days=366)
"""A token on a dashboard's disk is a key under its doormat: it has to be made anew."""
MOST_NOTE: Final = 200
_FORM = re.compile(r"ewt_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")


def written(identifier: bytes, secret: bytes) -> tuple[str, str, str]:
    """(identifier, whole token, digest to keep) from 8 and 32 random bytes."""
    text = base64.urlsafe_b64encode(secret).decode().rstrip("=")
    return identifier.hex(), f"ewt_{identifier.hex()}_{text}", _digest(text)


def read(text: str) -> tuple[str, str] | None:
    """(identifier, secret), or None for what is no API token."""
    found = _FORM.fullmatch(text)
    return (found[1], found[2]) if found else None


def fits(token: ApiToken, secret: str) -> bool:
    """Whether the secret is the token's, in constant time."""
    return hmac.compare_digest(token.secret_sha256, _digest(secret))


def rights(token: ApiToken, owner: Rights) -> Rights:
    """What the token may do: its own role, as far as its owner has it now."""
    return Rights((Grant(token.role, token.selector, token.fleets, "api-token"),), within=owner)


def checked_life(seconds: float) -> timedelta:
    """Raise BadUsage for a life that is too short or too long."""
    low, high = SHORTEST.total_seconds(), LONGEST.total_seconds()
    if not low <= seconds <= high:
        raise BadUsage(
            f"an API token lives {format_duration(SHORTEST)} to {format_duration(LONGEST)}, not "
            f"{seconds / 86400:.6g} days",
            hint="for example --expires 30d",
        )
    return timedelta(seconds=seconds)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
