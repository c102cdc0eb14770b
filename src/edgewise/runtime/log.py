"""One line per fact, as fields: JSON for machines, ``key=value`` for a terminal."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Literal, Protocol, TextIO

import msgspec

from edgewise.model.quantity import format_duration
from edgewise.runtime.clock import Clock

Level = Literal["debug", "info", "warning", "error"]
_ORDER: tuple[Level, ...] = ("debug", "info", "warning", "error")


class Log(Protocol):
    """What every part logs through; fields are JSON values."""

    def event(self, what: str, /, level: Level = "info", **fields: object) -> None:
        """Something happened."""

    def decision(self, what: str, /, *, because: object, **fields: object) -> None:
        """Something was decided, and why."""


class StreamLog:
    """Lines on a stream, by default standard error."""

    def __init__(
        self,
        clock: Clock,
        role: str,
        *,
        stream: TextIO | None = None,
        as_json: bool = False,
        lowest: Level = "info",
    ) -> None:
        self._clock = clock
        self._role = role
        self._stream = stream or sys.stderr
        self._json = as_json
        self._lowest = _ORDER.index(lowest)

    def event(self, what: str, /, level: Level = "info", **fields: object) -> None:
        if _ORDER.index(level) < self._lowest:
            return
        at = self._clock.now().isoformat(timespec="milliseconds")
        if self._json:
            fields = {name: _plain(value) for name, value in fields.items()}
            whole = {"time": at, "level": level, "role": self._role, "event": what, **fields}
            line = msgspec.json.encode(whole, enc_hook=str).decode()
        else:
            text = " ".join(f"{k}={_plain(v)}" for k, v in fields.items())
            line = _one_line(f"{at} {level:<7} {self._role} {what} {text}".rstrip())
        print(line, file=self._stream, flush=True)

    def decision(self, what: str, /, *, because: object, **fields: object) -> None:
        self.event(what, "info", **fields, because=because)


def _one_line(text: str) -> str:
    """Names and reasons may come from strangers: nobody writes lines or colours of his own."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _plain(value: object) -> object:
    if isinstance(value, timedelta):
        return format_duration(value)
    if isinstance(value, (str, int, float, bool, type(None), list, dict, tuple)):
        return value
    return str(value)


def _meets_its_port(log: StreamLog) -> Log:
    return log
