"""Numbers of a delta's table and parts: unsigned LEB128, and signed ones by zigzag. Pure."""

from __future__ import annotations

from edgewise.model.errors import Untrusted


class NumberReader:
    """Reads numbers from unpacked table bytes; every overrun is Untrusted."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def at(self) -> int:
        """Bytes that were read."""
        return self._at

    def bytes(self, count: int) -> bytes:
        found = self._data[self._at : self._at + count]
        if len(found) != count:
            raise Untrusted("the delta's table ends early")
        self._at += count
        return found

    def number(self) -> int:
        return self.numbers(1)[0]

    def numbers(self, count: int) -> list[int]:
        """LEB128, at most 9 bytes each."""
        data, at = self._data, self._at
        if count > len(data) - at:
            raise Untrusted("the delta's table ends early")
        found: list[int] = []
        try:
            for _ in range(count):
                byte = data[at]
                at += 1
                if byte < 128:
                    found.append(byte)
                    continue
                value, shift = byte & 127, 7
                while byte > 127:
                    if shift > 56:
                        raise Untrusted("a number of the delta's table is too large")
                    byte = data[at]
                    at += 1
                    value |= (byte & 127) << shift
                    shift += 7
                found.append(value)
        except IndexError:
            raise Untrusted("the delta's table ends early") from None
        self._at = at
        return found

    def end(self) -> None:
        if self._at != len(self._data):
            raise Untrusted("the delta's table goes on after its end")


def zigzag(number: int) -> int:
    """A signed number from its unsigned form."""
    return (number >> 1) ^ -(number & 1)
