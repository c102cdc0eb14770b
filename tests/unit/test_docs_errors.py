"""docs/errors.md documents every error that a caller can meet, and no other."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import edgewise
from edgewise.model.errors import EdgewiseError
from edgewise.net.problems import HTTP_ONLY

ERRORS = Path(__file__).parents[2] / "docs" / "errors.md"


def names(kind: type[EdgewiseError]) -> set[str]:
    return {kind.__name__}.union(*(names(below) for below in kind.__subclasses__()))


def test_every_error_is_documented() -> None:
    for module in pkgutil.walk_packages(edgewise.__path__, "edgewise."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    ours = {name for name in names(EdgewiseError) if not name.startswith("_")}
    headings = set(re.findall(r"^## (\w+)$", ERRORS.read_text(), re.MULTILINE))
    assert headings == ours | set(HTTP_ONLY)
