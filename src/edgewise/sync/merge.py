"""Strategic merge: a patch over a spec, by name.

Source: Kubernetes "Strategic Merge Patch", cut down to one rule for each shape. Maps are
merged; lists whose items all have the same naming field are merged by it; other lists
and scalars are replaced; null removes.
"""

from __future__ import annotations

from typing import Any, Final

NAMING: Final = ("name", "path", "containerPort")
"""Fields that name an item of a list, first match."""


def merged(value: Any, patch: Any) -> Any:
    """``value`` with ``patch`` over it; neither is changed."""
    if isinstance(value, dict) and isinstance(patch, dict):
        result = dict(value)
        for key, change in patch.items():
            if change is None:
                result.pop(key, None)
            else:
                result[key] = merged(result.get(key), change)
        return result
    if isinstance(value, list) and isinstance(patch, list):
        return _lists(value, patch)
    return patch


def _lists(value: list[Any], patch: list[Any]) -> list[Any]:
    items = [*value, *patch]
    naming = next((f for f in NAMING if items and all(_named(i, f) for i in items)), None)
    if naming is None:
        return patch
    changes = {item[naming]: item for item in patch}
    result = [merged(item, changes.pop(item[naming], {})) for item in value]
    return result + [item for item in patch if item[naming] in changes]


def _named(item: Any, field: str) -> bool:
    return isinstance(item, dict) and isinstance(item.get(field), (str, int))
