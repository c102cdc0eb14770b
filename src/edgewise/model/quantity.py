"""Durations, shares and sizes as people write them in documents.

Durations: Go's notation as Kubernetes and Flux use it (``90s``, ``10m``, ``1h30m``).
Sizes and CPU: Kubernetes quantities (``192Mi``, ``250m``).
Shares: an absolute count (``5``) or a percentage (``10%``).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import timedelta

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}
_SIZE = re.compile(r"(\d+)(Ki|Mi|Gi|Ti|k|M|G|T)?")
_CPU = re.compile(r"(\d+)(m)?|(\d+\.\d+)")
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d+)?)%")


def parse_duration(text: str) -> timedelta:
    """``"1h30m"`` to a timedelta; raises ValueError with the accepted form."""
    found = _DURATION.findall(text)
    if not found or "".join(n + u for n, u in found) != text:
        raise ValueError(f"duration {text!r} is not like 30s, 10m, 1h30m or 2d")
    return timedelta(seconds=sum(float(n) * _DURATION_UNITS[u] for n, u in found))


def format_duration(value: timedelta) -> str:
    """The shortest notation, largest units first: ``1h30m``; ``0s`` for nothing."""
    left = round(value.total_seconds() * 1000)
    parts = []
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def parse_bytes(text: str) -> int:
    """``"192Mi"`` to bytes; raises ValueError with the accepted form."""
    found = _SIZE.fullmatch(text)
    if not found:
        raise ValueError(f"size {text!r} is not like 500k, 64Mi or 2G")
    return int(found[1]) * _SIZE_UNITS[found[2] or ""]


def parse_cpu_milli(text: str) -> int:
    """``"250m"``, ``"2"`` or ``"0.5"`` to thousandths of a core."""
    found = _CPU.fullmatch(text)
    if not found:
        raise ValueError(f"cpu {text!r} is not like 250m, 2 or 0.5")
    if found[3]:
        return round(float(found[3]) * 1000)
    return int(found[1]) * (1 if found[2] else 1000)


@dataclass(frozen=True, slots=True)
class Share:
    """A count, or a percentage of some total: exactly one of the two is set."""

    count: int | None = None
    percent: float | None = None

    def __post_init__(self) -> None:
        if (self.count is None) == (self.percent is None):
            raise ValueError("a share is either a count or a percentage")
        if self.count is not None and self.count < 0:
            raise ValueError(f"share {self.count} is negative")
        if self.percent is not None and not 0 <= self.percent <= 100:
            raise ValueError(f"share {self.percent}% is not between 0% and 100%")

    @classmethod
    def parse(cls, value: str | int) -> Share:
        """From ``5``, ``"5"`` or ``"10%"``."""
        if isinstance(value, int):
            return cls(count=value)
        if found := _PERCENT.fullmatch(value):
            return cls(percent=float(found[1]))
        if value.isdecimal():
            return cls(count=int(value))
        raise ValueError(f"{value!r} is neither a count (5) nor a percentage (10%)")

    def of(self, total: int) -> int:
        """How many of ``total``, rounded up so that a non-zero share is never nothing."""
        if self.count is not None:
            return min(self.count, total)
        return min(total, math.ceil((self.percent or 0.0) / 100 * total - 1e-9))

    def exceeded_by(self, part: int, total: int) -> bool:
        """Whether ``part`` of ``total`` is more than this share allows."""
        if self.count is not None:
            return part > self.count
        return total > 0 and part / total * 100 > (self.percent or 0.0) + 1e-9

    def reached_by(self, part: int, total: int) -> bool:
        """Whether ``part`` of ``total`` is at least this share (nothing reaches nothing)."""
        if self.count is not None:
            return part >= min(self.count, total)
        return part * 100 >= (self.percent or 0.0) * total - 1e-9

    def __str__(self) -> str:
        return str(self.count) if self.count is not None else f"{self.percent:g}%"
