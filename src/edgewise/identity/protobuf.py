"""The wire format of Protocol Buffers, as far as the Workload API and Envoy's SDS need it. Pure.

Source: protobuf.dev, "Encoding". A message is read as field number to values in order; what a
field means is the business of who reads it. Written by hand because the protobuf package would
cost the resident agent 10 MB for a dozen messages.

Laws: ``read`` raises Malformed for any bytes that are no message, and never anything else;
unknown fields are kept apart and harm nothing; nesting is never followed deeper than a reader
asks for.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Final

FIELDS: Final = 4096
"""Fields in one message that we read: a request names at most a few hundred things."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Malformed(ValueError):
    """These bytes are no message."""


Message = dict[int, list[int | bytes]]
"""Field number to its values: integers of varint fields, bytes of all others."""


def read(data: bytes) -> Message:
    """The fields of one message. Raises Malformed."""
    found: Message = {}
    at, count = 0, 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if not 1 <= number < 1 << 29:
            raise Malformed(f"field number {number} cannot be")
        value: int | bytes
        if kind == _VARINT:
            value, at = _varint(data, at)
        else:
            size = 8 if kind == _FIXED64 else 4
            if kind == _BYTES:
                size, at = _varint(data, at)
            elif kind not in (_FIXED64, _FIXED32):
                raise Malformed(f"wire type {kind} is not used any more")
            if size > len(data) - at:
                raise Malformed(f"field {number} ends after the message")
            value, at = data[at : at + size], at + size
        count += 1
        if count > FIELDS:
            raise Malformed(f"more than {FIELDS} fields")
        found.setdefault(number, []).append(value)
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise Malformed("a number is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
    raise Malformed("a number has more than ten bytes")


def texts(message: Message, number: int) -> tuple[str, ...]:
    """Values of a repeated string field. Raises Malformed."""
    found = []
    for value in message.get(number, ()):
        if not isinstance(value, bytes):
            raise Malformed(f"field {number} is no text")
        try:
            found.append(value.decode())
        except UnicodeDecodeError as error:
            raise Malformed(f"field {number} is not UTF-8") from error
    return tuple(found)


def text(message: Message, number: int) -> str:
    """The value of a string field, "" when it is absent. Raises Malformed."""
    return (texts(message, number) or ("",))[-1]


def messages(message: Message, number: int) -> tuple[Message, ...]:
    """Values of a repeated message field. Raises Malformed."""
    found = []
    for value in message.get(number, ()):
        if not isinstance(value, bytes):
            raise Malformed(f"field {number} is no message")
        found.append(read(value))
    return tuple(found)


# Writing


def varint(value: int) -> bytes:
    """An unsigned integer."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, value: str | bytes) -> bytes:
    """A string, bytes or message field, even when it is empty (as in a repeated one)."""
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | _BYTES) + varint(len(data)) + data


def plain(number: int, value: str | bytes) -> bytes:
    """As proto3 writes a single field: an empty one is left out."""
    return field(number, value) if value else b""


def mapping(number: int, values: Mapping[str, bytes]) -> bytes:
    """``map<string, bytes>``, sorted by key."""
    return b"".join(field(number, plain(1, key) + plain(2, values[key])) for key in sorted(values))


def repeated(number: int, values: Iterable[str | bytes]) -> bytes:
    """A repeated field."""
    return b"".join(field(number, value) for value in values)


# google.protobuf.Struct: the claims of a JWT

DEPTH: Final = 32
"""Nested claims that are passed on; deeper ones are left out, as null."""


def structure(values: Mapping[str, object], depth: int = DEPTH) -> bytes:
    """A ``google.protobuf.Struct`` (struct.proto) of JSON values."""
    return b"".join(
        field(1, plain(1, key) + field(2, _value(value, depth))) for key, value in values.items()
    )


def _value(value: object, depth: int) -> bytes:
    match value:
        case bool():
            return varint(4 << 3 | _VARINT) + varint(int(value))
        case int() | float():
            return varint(2 << 3 | _FIXED64) + struct.pack("<d", _double(value))
        case str():
            return field(3, value)
        case dict() if depth:
            return field(5, structure(value, depth - 1))
        case list() | tuple() if depth:
            return field(6, b"".join(field(1, _value(one, depth - 1)) for one in value))
        case _:
            return varint(1 << 3 | _VARINT) + b"\0"


def _double(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
