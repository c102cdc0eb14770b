"""Delta files whose parts are any bytes: for those who only check them and pass them on."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import zstandard

from edgewise.protocol.delta import delta_path


def delta_file(parts: Sequence[bytes], *, tree: bytes = bytes(32)) -> tuple[str, bytes]:
    """A path below the content root, and the file. The first part stands for the manifest."""
    kinds = bytes([0] + [3] * (len(parts) - 1))
    table = bytearray(bytes(32) + tree + _number(0) + _number(len(parts)) + kinds)
    table += b"".join(hashlib.sha256(part).digest() for part in parts)
    for column in ([len(part) for part in parts], [0] * len(parts), [0]):
        table += b"".join(map(_number, column))
    packed = zstandard.ZstdCompressor().compress(bytes(table))
    head = struct.pack("<4sI", b"EWD1", len(packed)) + packed
    return delta_path(hashlib.sha256(head).hexdigest()), head + b"".join(parts)


def _number(value: int) -> bytes:
    """LEB128."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
