"""What this node's link costs: said by a person or a script, kept in a file of its state."""

from __future__ import annotations

from pathlib import Path

from edgewise.runtime.durable import disk_error

_MARK = "link-metered"


def is_metered(state: Path) -> bool:
    """Whether the link was said to cost by the byte."""
    return (state / _MARK).exists()


def set_metered(state: Path, metered: bool) -> None:
    """Idempotent; the next fetch reads it. Raises NeedsPerson when it cannot be written."""
    try:
        if metered:
            (state / _MARK).touch(mode=0o644)
        else:
            (state / _MARK).unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(error, state) from error
