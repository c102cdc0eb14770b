"""Deltas as people see them: one line each, and the wait for those of a new version."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from edgewise.cli.session import Session, size
from edgewise.model.errors import NotFound

if TYPE_CHECKING:
    from edgewise.cli.client import Client
    from edgewise.protocol.travel import DeltaLine

ASK_EVERY: Final = timedelta(milliseconds=300)
SHOW_EVERY: Final = 25
"""Per cent of one delta that is said anew."""


def follow(session: Session, client: Client, name: str, version: str) -> None:
    """Say what becomes of each delta to this version, until none is left to be made.

    The rollout does not need them: whoever stops waiting loses nothing.
    """
    from edgewise.protocol.travel import DeltaStatus
    from edgewise.runtime.clock import SystemClock

    clock = SystemClock()
    said: dict[tuple[str, str], str] = {}
    try:
        while True:
            lines = client.get("/v1/deltas", DeltaStatus).deltas
            mine = [one for one in lines if (one.artifact, one.version) == (name, version)]
            for one in mine:
                text = progress_of(one)
                if text and said.get((one.tree, one.base)) != text:
                    said[one.tree, one.base] = text
                    session.note(f"  {text}")
            if not any(one.state in ("Waiting", "Making") for one in mine):
                return
            asyncio.run(clock.sleep(ASK_EVERY))
    except NotFound:
        return  # an older hub, which makes none
    except KeyboardInterrupt:
        session.note("the hub goes on making them: `edgewise delta ls`")


def progress_of(line: DeltaLine) -> str:
    """``from 1.0.0: 1.2 MB of 40 MB, 97 % saved``; empty when there is nothing to say."""
    start = f"from {line.base_version}" if line.base else "first install"
    if len(line.platforms) == 1:
        start += f" on {line.platforms[0]}"
    match line.state:
        case "Ready":
            saved = f"{saving(line)} saved" if line.base or line.objects < 2 else ""
            instead = f"one file instead of {line.objects}" if not line.base else ""
            rest = saved or f"{saving(line)} saved, {instead}"
            return f"{start}: {size(line.size)} of {size(line.plain)}, {rest}"
        case "Making":
            step = line.percent // SHOW_EVERY * SHOW_EVERY
            return f"{start}: {step} % made" if 0 < step < 100 else ""
        case "Failed":
            return f"{start}: failed, nodes fetch whole files: {line.why}"
        case _:
            return ""


def saving(line: DeltaLine) -> str:
    """``97 %`` of what fetching whole files takes; never all of it."""
    left = max(1, round(100 * line.size / max(1, line.plain)))
    return f"{100 - left} %"
