"""The words that every document is written in: names, durations, shares, sizes.

A word is a string with a pattern, so that the decoder, the JSON Schema and the error
message all come from one place. ``extra["like"]`` is what an error shows as accepted.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

API_VERSION = "edgewise.dev/v1"


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """What every struct of a document has in common: camelCase, and no unknown field."""


class Misfit(ValueError):
    """A value that is malformed only together with its neighbours; ``field`` is where."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def _word(pattern: str, like: str) -> Meta:
    # In Python "$" also matches before a final newline; the lookahead closes that gap and
    # means nothing in ECMA 262, which JSON Schema uses.
    return Meta(pattern=f"^({pattern})$(?!\n)", extra={"like": like})


_NAME = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_DURATION = r"([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+"
_PERCENT = r"(100(\.0+)?|[0-9]{1,2}(\.[0-9]+)?)%"
_KEY = r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"

Name = Annotated[str, _word(_NAME, "a DNS label (a-z, 0-9, '-', at most 63)")]
Duration = Annotated[str, _word(_DURATION, "30s, 10m, 1h30m or 2d")]
Percent = Annotated[str, _word(_PERCENT, "10%")]
Count = Annotated[int, Meta(ge=0)]
ShareWord = Annotated[str, _word(rf"[0-9]{{1,9}}|{_PERCENT}", "5 or 10%")] | Count
Size = Annotated[str, _word(r"[0-9]{1,15}(Ki|Mi|Gi|Ti|k|M|G|T)?", "500k, 64Mi or 2G")] | Count
Cpu = (
    Annotated[str, _word(r"[0-9]{1,6}m?|[0-9]{1,4}\.[0-9]+", "250m, 2 or 0.5")]
    | Annotated[float, Meta(ge=0)]
    | Count
)
LabelKey = Annotated[str, _word(_KEY, "a Kubernetes label key")]
LabelValue = Annotated[
    str,
    _word(
        r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?",
        "at most 63 of A-Z a-z 0-9 . _ - and alphanumeric at both ends",
    ),
]
VarName = Annotated[str, _word(r"[A-Za-z_][A-Za-z0-9_]{0,62}", "a variable name (A-Z a-z 0-9 _)")]
VarValue = str | int | float | bool
EnvName = Annotated[str, _word(r"[A-Za-z_][A-Za-z0-9_]*", "NAME (A-Z a-z 0-9 _)")]
Text = Annotated[str, Meta(min_length=1, extra={"like": "some text"})]
AbsolutePath = Annotated[str, _word(r"/[^\n\u0000]*", "an absolute path such as /etc/app.conf")]
FileMode = Annotated[str, _word(r"0?[0-7]{3,4}", '"0644" (octal, in quotes)')]
Port = Annotated[int, Meta(ge=1, le=65535)]
Version = Annotated[
    str, _word(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}", '"1.2.0" (letters, digits, . _ + -)')
]
PlatformWord = Annotated[
    str, _word(r"[a-z0-9]+/[a-z0-9_]+(/v[0-9]+)?", "linux/amd64 or linux/arm64")
]
Sha256 = Annotated[str, _word(r"sha256:[0-9a-f]{64}", "sha256: and 64 hex digits")]
KeyId = Annotated[str, _word(r"[0-9a-f]{64}", "64 hex digits, as `edgewise key ls` prints them")]
Cron = Annotated[
    str,
    _word(r"[0-9*,/-]+ +[0-9*,/-]+ +[0-9*,/-]+ +[0-9A-Za-z*,/-]+ +[0-9A-Za-z*,/-]+", '"0 3 * * *"'),
]
TimeZone = Annotated[
    str, _word(r"Node|[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*", "Node, UTC or Europe/Berlin")
]
WorkloadPath = Annotated[
    str,
    _word(
        r"/app(/(?!\.{1,2}(/|$))[A-Za-z0-9._-]{1,63}){1,8}",
        "a path below /app/ such as /app/shops/till",
    ),
]
DnsName = Annotated[
    str,
    _word(
        r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
        r"(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*",
        "a DNS name such as till.shops.internal",
    ),
]
TrustDomain = Annotated[
    str, _word(r"[a-z0-9]([a-z0-9._-]{0,253}[a-z0-9])?", "a trust domain such as partner.example")
]
SignalName = Annotated[str, _word(r"SIG[A-Z0-9]+", "SIGTERM or SIGHUP")]


class Metadata(Strict, frozen=True, kw_only=True):
    """Who the document is."""

    name: Name
    """Unique among documents of the kind."""
    labels: dict[LabelKey, LabelValue] = {}
    """For a Node: what selectors match. For other kinds: for people and tools."""
    annotations: dict[str, str] = {}
    """Free text for people and tools; never interpreted."""


class Ref(Strict, frozen=True, kw_only=True):
    """Another document, by name."""

    name: Name


class Subject(Strict, frozen=True, kw_only=True):
    """Who: a person or a group of the organisation."""

    kind: Annotated[str, _word("User|Group", "User or Group")]
    name: Text
