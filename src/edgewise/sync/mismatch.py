"""All the ways in which data differs from a struct, each with its path.

The decoder (msgspec) stops at the first; a person who repairs a document wants them all.
This walk is only taken for documents that the decoder refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import msgspec
from msgspec import inspect as shape

from edgewise.model.documents.words import Misfit
from edgewise.sync.suggest import did_you_mean
from edgewise.sync.yaml_text import Path

SHOWN = 60
"""Characters of a wrong value that an error repeats."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A mistake at a path of a document."""

    path: Path
    message: str
    hint: str = ""
    value: str = ""
    at_key: bool = False
    """The key is wrong, not what it holds."""
    line_offset: int = 0
    """Lines below the start of the value, for multi-line text."""


def findings(data: Any, kind: type) -> tuple[Finding, ...]:
    """Why ``data`` is no ``kind``; empty when it is."""
    return tuple(_walk(data, _shape(kind), ()))


@lru_cache(maxsize=256)
def _shape(kind: type) -> shape.Type:
    return shape.type_info(kind)


def dotted(path: Path) -> str:
    """``spec.stages[0].name``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def shown(value: Any) -> str:
    """A value as an error repeats it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "empty"
    if isinstance(value, dict):
        return "a map"
    if isinstance(value, list):
        return "a list"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _walk(data: Any, wanted: shape.Type, path: Path) -> Iterator[Finding]:
    like = ""
    if isinstance(wanted, shape.Metadata):
        like = (wanted.extra or {}).get("like", "")
        wanted = wanted.type
    match wanted:
        case shape.StructType():
            yield from _struct(data, wanted, path)
        case shape.DictType():
            yield from _map(data, wanted, path)
        case shape.VarTupleType() | shape.ListType():
            yield from _list(data, wanted, path)
        case shape.UnionType():
            yield from _union(data, wanted, path)
        case shape.LiteralType():
            if data not in wanted.values or isinstance(data, bool):
                choices = [str(v) for v in wanted.values]
                yield _wrong(data, path, f"one of {', '.join(choices)}", choices)
        case shape.AnyType():
            pass
        case _:
            yield from _scalar(data, wanted, path, like)


def _struct(data: Any, wanted: shape.StructType, path: Path) -> Iterator[Finding]:
    if not isinstance(data, dict):
        yield _wrong(data, path, "a map")
        return
    fields = {field.encode_name: field for field in wanted.fields}
    names = [*fields, wanted.tag_field] if wanted.tag_field else list(fields)
    clean = True
    for key, value in data.items():
        if key == wanted.tag_field:
            continue
        if key not in fields:
            clean = False
            where = dotted(path) or "the document"
            hint = did_you_mean(key, names, otherwise=f"{where} takes {', '.join(sorted(names))}")
            yield Finding((*path, key), f"unknown field {key!r} in {where}", hint, key, at_key=True)
            continue
        for finding in _walk(value, fields[key].type, (*path, key)):
            clean = False
            yield finding
    for name, field in fields.items():
        if field.required and name not in data:
            clean = False
            yield Finding(
                path, f"{dotted((*path, name))} is missing", f"it takes {said(field.type)}"
            )
    if clean:
        yield from _built(data, wanted, path)


def _built(data: Any, wanted: shape.StructType, path: Path) -> Iterator[Finding]:
    """What only the struct's own check finds, now that every field is good."""
    try:
        msgspec.convert(data, wanted.cls)
    except msgspec.ValidationError as error:
        cause = error.__cause__
        field = cause.field if isinstance(cause, Misfit) else ""
        message = str(cause) if cause else str(error)
        yield Finding((*path, field) if field else path, f"{dotted(path)}: {message}")


def _map(data: Any, wanted: shape.DictType, path: Path) -> Iterator[Finding]:
    if not isinstance(data, dict):
        yield _wrong(data, path, "a map")
        return
    yield from _length(len(data), wanted, path, "entries")
    for key, value in data.items():
        for finding in _walk(key, wanted.key_type, (*path, key)):
            yield Finding(
                finding.path, f"key {finding.message}", finding.hint, str(key), at_key=True
            )
        yield from _walk(value, wanted.value_type, (*path, key))


def _list(data: Any, wanted: shape.VarTupleType | shape.ListType, path: Path) -> Iterator[Finding]:
    if not isinstance(data, list):
        yield _wrong(data, path, f"a list (- {said(wanted.item_type)})")
        return
    yield from _length(len(data), wanted, path, "items")
    for index, item in enumerate(data):
        yield from _walk(item, wanted.item_type, (*path, index))


def _length(count: int, wanted: Any, path: Path, what: str) -> Iterator[Finding]:
    if wanted.min_length is not None and count < wanted.min_length:
        yield Finding(path, f"{dotted(path)} has {count} {what}, at least {wanted.min_length}")
    if wanted.max_length is not None and count > wanted.max_length:
        yield Finding(path, f"{dotted(path)} has {count} {what}, at most {wanted.max_length}")


def _union(data: Any, wanted: shape.UnionType, path: Path) -> Iterator[Finding]:
    options = wanted.types
    structs = [t for t in options if isinstance(t, shape.StructType)]
    if len(structs) > 1 and isinstance(data, dict):
        yield from _tagged(data, structs, path)
        return
    attempts = [list(_walk(data, option, path)) for option in options]
    if not all(attempts):
        return
    for option, attempt in zip(options, attempts, strict=True):
        if isinstance(data, dict) and isinstance(option, shape.StructType):
            yield from attempt
            return
        if isinstance(data, list) and isinstance(option, shape.VarTupleType):
            yield from attempt
            return
    yield _wrong(data, path, said(wanted))


def _tagged(data: dict[str, Any], structs: list[shape.StructType], path: Path) -> Iterator[Finding]:
    tag_field = structs[0].tag_field or "type"
    tags = {str(s.tag): s for s in structs}
    if tag_field not in data:
        yield Finding(
            path, f"{dotted((*path, tag_field))} is missing", f"it takes {', '.join(sorted(tags))}"
        )
    elif data[tag_field] not in tags:
        yield _wrong(data[tag_field], (*path, tag_field), f"one of {', '.join(tags)}", list(tags))
    else:
        yield from _struct(data, tags[data[tag_field]], path)


def _scalar(data: Any, wanted: shape.Type, path: Path, like: str) -> Iterator[Finding]:
    accepted = like or said(wanted)
    if isinstance(wanted, shape.StrType):
        if not isinstance(data, str):
            number = isinstance(data, (int, float, bool))
            hint = f'write it in quotes: "{shown(data)}"' if number else f"it takes {accepted}"
            yield Finding(path, f"{dotted(path)} is {shown(data)}, not text", hint, shown(data))
            return
        try:
            msgspec.convert(data, _annotated(wanted))
        except msgspec.ValidationError:
            yield _wrong(data, path, accepted)
        return
    try:
        msgspec.convert(data, _annotated(wanted))
    except msgspec.ValidationError:
        yield _wrong(data, path, accepted)


def _annotated(wanted: shape.Type) -> Any:
    """The type back from its description, for the scalars that documents use."""
    match wanted:
        case shape.StrType():
            return Annotated[
                str,
                msgspec.Meta(
                    pattern=wanted.pattern,
                    min_length=wanted.min_length,
                    max_length=wanted.max_length,
                ),
            ]
        case shape.IntType():
            return Annotated[int, _bounds(wanted)]
        case shape.FloatType():
            return Annotated[float, _bounds(wanted)]
        case shape.BoolType():
            return bool
        case shape.NoneType():
            return None
        case _:
            raise TypeError(f"documents have no {wanted!r}")


def _bounds(wanted: shape.IntType | shape.FloatType) -> msgspec.Meta:
    if wanted.gt is not None:
        return msgspec.Meta(gt=wanted.gt, le=wanted.le)
    return msgspec.Meta(ge=wanted.ge, le=wanted.le)


def _wrong(data: Any, path: Path, accepted: str, choices: list[str] | None = None) -> Finding:
    hint = f"it takes {accepted}"
    if choices and isinstance(data, str):
        hint = did_you_mean(data, choices, otherwise=hint)
    what = dotted(path) or "the document"
    return Finding(path, f"{what} is {shown(data)}", hint, shown(data))


def said(wanted: shape.Type) -> str:
    """A type in words."""
    match wanted:
        case shape.Metadata():
            like = (wanted.extra or {}).get("like")
            return like or said(wanted.type)
        case shape.UnionType():
            words = dict.fromkeys(
                said(t) for t in wanted.types if not isinstance(t, shape.NoneType)
            )
            return " or ".join(words)
        case shape.IntType():
            return f"a whole number{_range(wanted)}"
        case shape.FloatType():
            return f"a number{_range(wanted)}"
        case shape.BoolType():
            return "true or false"
        case shape.LiteralType():
            return ", ".join(str(v) for v in wanted.values)
        case shape.StructType() | shape.DictType():
            return "a map"
        case shape.VarTupleType() | shape.ListType():
            return "a list"
        case _:
            return "text"


def _range(wanted: shape.IntType | shape.FloatType) -> str:
    low = wanted.ge if wanted.ge is not None else wanted.gt
    above = "from" if wanted.ge is not None else "above"
    if low is not None and wanted.le is not None:
        return f" {above} {low:,.0f} to {wanted.le:,.0f}"
    if low is not None:
        return f" of at least {low:,.0f}" if wanted.ge is not None else f" above {low:,.0f}"
    return ""
