"""An error on the wire. Apart from ``api``: every node needs it, and nothing else of that."""

from __future__ import annotations

import msgspec


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """RFC 9457 problem details; ``hint`` is the next move, ``exit_code`` the CLI's."""

    type: str
    """``https://edgewise.dev/errors/<Name>``, documented in docs/errors.md."""
    title: str
    status: int
    detail: str
    hint: str = ""
    exit_code: int = 4
    retry_after_s: float = 0.0
