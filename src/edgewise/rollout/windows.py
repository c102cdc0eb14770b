"""When a node may download or apply: a cron expression and how long it stays open.

Five fields (minute, hour, day of month, month, day of week) as crontab(5) has them: lists,
ranges, steps and names; when both days are restricted, either is enough. Times are wall
times of the window's zone. A start that falls into the hour that daylight saving skips
happens right after it; one in the repeated hour happens once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache

from edgewise.protocol.content import Window

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_HORIZON = timedelta(days=4 * 366 + 1)
"""Far enough for the 29th of February."""


@dataclass(frozen=True, slots=True)
class Cron:
    """The values at which an expression fires."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool
    """Both day fields are restricted, so a day that fits one of them fits."""

    def fits(self, day: date) -> bool:
        """Whether it fires on this day at all."""
        in_month = day.day in self.days
        in_week = day.isoweekday() % 7 in self.weekdays
        both = in_month or in_week if self.either_day else in_month and in_week
        return day.month in self.months and both


@lru_cache(maxsize=16)
def parse_cron(text: str) -> Cron:
    """Raises ValueError that names the field."""
    fields = text.lower().split()
    if len(fields) != 5:
        raise ValueError(f"cron {text!r} has {len(fields)} fields, not 5 (min hour day month dow)")
    minute, hour, day, month, weekday = fields
    return Cron(
        minutes=_values(minute, 0, 59, "minute"),
        hours=_values(hour, 0, 23, "hour"),
        days=_values(day, 1, 31, "day"),
        months=_values(month, 1, 12, "month", _MONTHS),
        weekdays=frozenset(d % 7 for d in _values(weekday, 0, 7, "day of week", _DAYS)),
        either_day=day != "*" and weekday != "*",
    )


def _values(
    field: str, low: int, high: int, name: str, names: tuple[str, ...] = ()
) -> frozenset[int]:
    chosen: set[int] = set()
    for item in field.split(","):
        span, slash, step = item.partition("/")
        first, dash, last = span.partition("-")
        try:
            start = low if span == "*" else _number(first, low, names)
            if span == "*" or (slash and not dash):
                end = high
            else:
                end = _number(last, low, names) if dash else start
            stride = int(step) if slash else 1
        except ValueError:
            raise ValueError(f"cron {name} {item!r} is not a number, range or step") from None
        if not (low <= start <= end <= high and stride > 0):
            raise ValueError(f"cron {name} {item!r} is outside {low}-{high}")
        chosen.update(range(start, end + 1, stride))
    return frozenset(chosen)


def _number(text: str, low: int, names: tuple[str, ...]) -> int:
    return names.index(text) + low if text in names else int(text)


def _zone(window: Window, node_zone: str) -> tzinfo:
    name = node_zone if window.time_zone == "Node" else window.time_zone
    if name == "UTC":
        return UTC
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # 0.4 MB that few nodes need

    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        # A node without tzdata must not stay shut for ever; docs/agent.md says so.
        return UTC


def _firings(cron: Cron, zone: tzinfo, day: date) -> Iterator[datetime]:
    if not cron.fits(day):
        return
    for hour in sorted(cron.hours):
        for minute in sorted(cron.minutes):
            local = datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone)
            yield local.astimezone(UTC)


def is_open(window: Window | None, now: datetime, node_zone: str = "UTC") -> bool:
    """Whether ``now`` lies in an opening. No window is always open."""
    if window is None:
        return True
    cron, zone = parse_cron(window.at), _zone(window, node_zone)
    length = timedelta(seconds=window.duration_s)
    day, last = (now - length).astimezone(zone).date(), now.astimezone(zone).date()
    while day <= last:
        if any(start <= now < start + length for start in _firings(cron, zone, day)):
            return True
        day += timedelta(days=1)
    return False


def closes(window: Window | None, now: datetime, node_zone: str = "UTC") -> datetime | None:
    """When the opening that ``now`` lies in ends, the latest of several; None for no window.
    Another opening may begin just then: look again."""
    if window is None:
        return None
    cron, zone = parse_cron(window.at), _zone(window, node_zone)
    length = timedelta(seconds=window.duration_s)
    day, last = (now - length).astimezone(zone).date(), now.astimezone(zone).date()
    ends = [now]
    while day <= last:
        ends += [start + length for start in _firings(cron, zone, day) if start <= now]
        day += timedelta(days=1)
    return max(ends)


def next_open(window: Window | None, now: datetime, node_zone: str = "UTC") -> datetime | None:
    """When it is open next: ``now`` while it is; None when it never opens in four years."""
    if is_open(window, now, node_zone) or window is None:
        return now
    cron, zone = parse_cron(window.at), _zone(window, node_zone)
    day = now.astimezone(zone).date()
    end = (now + _HORIZON).astimezone(zone).date()
    while day <= end:
        for start in _firings(cron, zone, day):
            if start > now:
                return start
        day += timedelta(days=1)
    return None


def share_of(node: str, release: str) -> float:
    """0 to 1, always the same for this node and release, spread evenly over nodes: which
    share of a fleet's ``spread`` it waits before it fetches."""
    digest = hashlib.sha256(f"{node} {release}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)
