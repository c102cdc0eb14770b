"""The one encoding of everything that is signed, hashed or sent: canonical JSON.

Keys are sorted, there is no white space, bytes are base64, times are RFC 3339 in UTC.
The same value gives the same bytes on every machine, so digests can be compared.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from edgewise.model.errors import Untrusted

T = TypeVar("T")

_encoder = msgspec.json.Encoder(order="sorted")


def encode(value: Any) -> bytes:
    """Canonical JSON of a message."""
    return _encoder.encode(value)


def decode(data: bytes, kind: type[T], *, what: str, at_most: int = 1 << 20) -> T:
    """A message from bytes that somebody else wrote.

    ``what`` names the thing in the error; ``at_most`` is its size bound in bytes.
    Raises Untrusted for bytes that are too many, not JSON, or of another shape.
    """
    if len(data) > at_most:
        raise Untrusted(f"{what} has {len(data)} bytes, at most {at_most} are accepted")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Untrusted(f"{what} is malformed: {error}") from error
