"""Every benchmark ends here: a table for people, bench/results/NAME.json for the docs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """Cores, memory, kernel and Python, in a line."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return (
        f"{os.cpu_count()} cores, {pages / 2**30:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}"
    )


def write(
    name: str, figures: Mapping[str, float], command: str, more: Mapping[str, object] | None = None
) -> None:
    """Print a table and keep the figures, with ``more`` about what was measured."""
    RESULTS.mkdir(exist_ok=True)
    document = {
        "figures": {key: round(value, 4) for key, value in figures.items()},
        "command": command,
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
        **(more or {}),
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")
    width = max(map(len, figures))
    for key, value in figures.items():
        print(f"{key:<{width}}  {value:>12,.3f}")
    print(f"({document['machine']}; {command})")
