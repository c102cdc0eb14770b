"""JSON Schemas and the reference of every kind, from the structs that check documents. Pure.

Editors complete and check with ``schemas/*.json``; docs/fleet-repo.md ends with
``reference()``. Both are committed, and a test says when they are stale.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise
from typing import Any, Final

import msgspec
from msgspec import inspect as shape

from edgewise.model.documents import ACTED_ON, KINDS
from edgewise.sync.mismatch import said

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
ANY: Final = "edgewise.json"
"""The schema of whatever kind a document is of; what editors are pointed at."""
LATER: Final = "*Checked and listed by `edgewise plan`, not yet acted on.*"


def schemas() -> dict[str, dict[str, Any]]:
    """File name to schema: one for each kind, and ``edgewise.json`` for all of them."""
    files = {}
    for kind, struct in KINDS.items():
        body = msgspec.json.schema(struct)
        _describe(body["$defs"])
        files[f"{kind}.json"] = {"$schema": DIALECT, "title": kind, **body}
    (refs, defs) = msgspec.json.schema_components(
        tuple(KINDS.values()), ref_template="#/$defs/{name}"
    )
    _describe(defs)
    files[ANY] = {
        "$schema": DIALECT,
        "title": "A document of an Edgewise fleet repo",
        "oneOf": list(refs),
        "$defs": dict(defs),
    }
    return files


def _describe(defs: dict[str, Any]) -> None:
    """Field docstrings as descriptions, which editors show beside the field."""
    for name, body in defs.items():
        struct = _structs().get(name)
        if struct is None:
            continue
        for field, text in field_docs(struct).items():
            if field in body.get("properties", {}):
                body["properties"][field] = {**body["properties"][field], "description": text}


@cache
def _structs() -> dict[str, type]:
    found: dict[str, type] = {}
    for struct in KINDS.values():
        for each in _below(struct):
            found[each.__name__] = each
    return found


def _below(struct: type) -> Iterator[type]:
    """The struct and every struct in its fields, in the order of a reader."""
    seen: set[type] = set()
    waiting = [shape.type_info(struct)]
    while waiting:
        for each in _struct_types(waiting.pop(0)):
            if each.cls not in seen:
                seen.add(each.cls)
                yield each.cls
                waiting.extend(field.type for field in each.fields)


def _struct_types(kind: shape.Type) -> Iterable[shape.StructType]:
    match kind:
        case shape.StructType():
            return (kind,)
        case shape.Metadata():
            return _struct_types(kind.type)
        case shape.UnionType():
            return [s for option in kind.types for s in _struct_types(option)]
        case shape.VarTupleType() | shape.ListType():
            return _struct_types(kind.item_type)
        case shape.DictType():
            return _struct_types(kind.value_type)
        case _:
            return ()


@cache
def field_docs(struct: type) -> dict[str, str]:
    """Name in YAML to the text under the field, inherited ones first."""
    names = dict(
        zip(struct.__struct_fields__, struct.__struct_encode_fields__, strict=True)  # type: ignore[attr-defined]
    )
    docs: dict[str, str] = {}
    for each in reversed(struct.__mro__):
        if each in (object, msgspec.Struct) or not issubclass(each, msgspec.Struct):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(each)))
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for statement, after in pairwise(body):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and statement.target.id in names
            ):
                docs[names[statement.target.id]] = " ".join(str(after.value.value).split())
    return docs


# Markdown


def reference() -> str:
    """Every kind and field as Markdown tables."""
    pieces = []
    for kind, struct in KINDS.items():
        acted = (
            ""
            if kind in ACTED_ON
            else "\n\n*Checked and listed by `edgewise plan`, not yet acted on.*"
        )
        pieces.append(f"### {kind}\n\n{_doc(struct)}{acted}\n")
        for each in _below(struct):
            if each is not struct and each.__name__ not in ("Metadata", "Selector", "Requirement"):
                pieces.append(_table(each))
    return "\n".join(pieces)


def _table(struct: type) -> str:
    info = shape.type_info(struct)
    if not isinstance(info, shape.StructType):
        raise TypeError(f"{struct!r} is no struct")
    docs = field_docs(struct)
    tag = f" (`{info.tag_field}: {info.tag}`)" if info.tag_field else ""
    lines = [f"**{struct.__name__}**{tag}: {_doc(struct)}\n", "| field | takes | default | |"]
    lines.append("|---|---|---|---|")
    for field in info.fields:
        name, text = field.encode_name, docs.get(field.encode_name, "")
        takes = said(field.type).replace("|", "\\|")
        lines.append(f"| `{name}` | {takes} | {_default(field)} | {text} |".replace("``", "`"))
    return "\n".join(lines) + "\n"


def _default(field: shape.Field) -> str:
    if field.required:
        return "required"
    value = field.default
    if value is msgspec.NODEFAULT or value in ((), None, "") or isinstance(value, msgspec.Struct):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`"


def _doc(struct: type) -> str:
    text = " ".join((struct.__doc__ or "").split())
    return text.replace("``", "`")
