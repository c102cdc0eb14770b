"""Whom a workload identity is for: selectors over facts that a process cannot choose.

Written ``type:fact:value`` as SPIFFE tools do (``unix:uid:1000``). All selectors of one
identity must hold. Two parties read them: the compiler, to refuse what can never hold, and
the node, to compare them with a caller.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

Fact = Literal["uid", "gid", "user", "group", "path", "sha256", "unit", "app", "container"]

_NAME: Final = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_ACCOUNT: Final = r"[A-Za-z_][A-Za-z0-9_.@-]{0,254}\$?"
_UNIT: Final = (
    r"[A-Za-z0-9:_.\\@-]{1,240}\.(service|scope|socket|mount|swap|target|device|timer|path)"
)

KINDS: Final[dict[str, tuple[Fact, re.Pattern[str], str]]] = {
    "unix:uid": ("uid", re.compile(r"0|[1-9][0-9]{0,9}"), "unix:uid:1000"),
    "unix:gid": ("gid", re.compile(r"0|[1-9][0-9]{0,9}"), "unix:gid:1000"),
    "unix:user": ("user", re.compile(_ACCOUNT), "unix:user:www-data"),
    "unix:group": ("group", re.compile(_ACCOUNT), "unix:group:www-data"),
    "unix:path": ("path", re.compile(r"/[^\0\n]{1,4095}"), "unix:path:/usr/sbin/nginx"),
    "unix:sha256": ("sha256", re.compile(r"[0-9a-f]{64}"), "unix:sha256: and 64 hex digits"),
    "systemd:unit": ("unit", re.compile(_UNIT), "systemd:unit:nginx.service"),
    "edgewise:app": ("app", re.compile(_NAME), "edgewise:app:till"),
    "container:id": ("container", re.compile(r"[0-9a-f]{64}"), "container:id: and 64 hex digits"),
}
"""What may stand before the value: the fact of a caller, the form of its value, an example."""


@dataclass(frozen=True, slots=True)
class WorkloadSelector:
    """One condition on a caller."""

    fact: Fact
    value: str
    text: str
    """As written."""

    @classmethod
    def parse(cls, text: str) -> WorkloadSelector:
        """From ``unix:uid:1000``. Raises UnknownKind, or ValueError for a value of no such form."""
        first, _, rest = text.partition(":")
        second, colon, value = rest.partition(":")
        kind = f"{first}:{second}"
        if kind not in KINDS or not colon:
            raise UnknownKind(kind if rest else text)
        fact, form, like = KINDS[kind]
        if not form.fullmatch(value):
            raise ValueError(f"selector {text[:80]!r} has a value that cannot be; like {like}")
        return cls(fact, value, text)


class UnknownKind(ValueError):
    """A selector of a kind that does not exist; ``kind`` is what stands there."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"selector kind {kind[:60]!r} does not exist; one of {', '.join(KINDS)}")
        self.kind = kind
