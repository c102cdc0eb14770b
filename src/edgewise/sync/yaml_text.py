"""YAML text to plain data, with bounds that hold before memory or time is spent.

The file is walked event by event, so a bomb ends at the first event that is too much.
What is left out of YAML on purpose: anchors and aliases (a few lines can stand for
gigabytes), tags (a document is data) and merge keys. Plain scalars are read by the core
schema of YAML 1.2 (section 10.3.2): ``yes``, ``no``, ``on`` and ``0644`` mean what they say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

FILE_BYTES: Final = 1 << 20
"""One file: about 12,000 rows of a NodeSet."""
DEPTH: Final = 32
"""Maps and lists inside each other; the deepest kind needs 9."""
VALUES: Final = 300_000
"""Scalars, maps and lists in one file."""
DOCUMENTS: Final = 1000
"""Documents in one file."""
FLAWS: Final = 100
"""Mistakes reported of one file."""

Path = tuple[str | int, ...]

_INT = re.compile(r"[-+]?[0-9]{1,30}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?")
_WORDS: Final[dict[str, Any]] = {
    "": None,
    "~": None,
    "null": None,
    "Null": None,
    "NULL": None,
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}


@dataclass(frozen=True, slots=True)
class Flaw:
    """A mistake in the text itself. Line and column count from 1."""

    line: int
    column: int
    message: str
    hint: str = ""


@dataclass(slots=True)
class Marks:
    """Where keys and values of one document stand, by path; (line, column) from 1."""

    keys: dict[Path, tuple[int, int]] = field(default_factory=dict)
    values: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def find(self, path: Path, *, at_key: bool) -> tuple[int, int]:
        """Where ``path`` is, or the nearest thing around it that exists."""
        for end in range(len(path), -1, -1):
            near = path[:end]
            first, second = (self.keys, self.values) if at_key else (self.values, self.keys)
            if at := first.get(near) or second.get(near):
                return at
        return (1, 1)


@dataclass(frozen=True, slots=True)
class Text:
    """A file as data: one value for each document, and what is wrong with it."""

    documents: tuple[Any, ...] = ()
    lines: tuple[int, ...] = ()
    """Where each document starts."""
    flaws: tuple[Flaw, ...] = ()
    marks: tuple[Marks, ...] = ()
    """Filled by ``locate`` only."""


class _TooMuch(Exception):
    def __init__(self, flaw: Flaw) -> None:
        super().__init__(flaw.message)
        self.flaw = flaw


def read(data: bytes) -> Text:
    """All documents of a file. Never raises: what cannot be read is a flaw."""
    if len(data) > FILE_BYTES:
        what = f"the file has {len(data):,} bytes; at most {FILE_BYTES:,} are read"
        return Text(flaws=(Flaw(1, 1, what, "split it: a kind may be spread over many files"),))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        byte = data[error.start]
        return Text(
            flaws=(Flaw(line, column, f"byte 0x{byte:02x} is not UTF-8", "save it as UTF-8"),)
        )
    return _Builder(text, marked=False).run()


def locate(data: bytes) -> tuple[Marks, ...]:
    """Where everything stands, document by document; for files that ``read`` accepted."""
    return _Builder(data.decode("utf-8"), marked=True).run().marks


@dataclass(slots=True)
class _Open:
    """A map or list that is being filled."""

    value: Any
    path: Path
    key: str | None = None
    """The key whose value comes next."""


class _Builder:
    def __init__(self, text: str, *, marked: bool) -> None:
        self._text = text
        self._marked = marked
        self._documents: list[Any] = []
        self._lines: list[int] = []
        self._marks: list[Marks] = []
        self._flaws: list[Flaw] = []
        self._open: list[_Open] = []
        self._count = 0

    def run(self) -> Text:
        try:
            for event in yaml.parse(self._text, Loader=yaml.CSafeLoader):
                self._take(event)
        except yaml.MarkedYAMLError as error:
            self._flaws.append(_malformed(error))
        except yaml.YAMLError as error:
            said = str(error).partition("\n")[0]
            self._flaws.append(Flaw(1, 1, f"not YAML: {said}", "remove the control character"))
        except _TooMuch as error:
            self._flaws.append(error.flaw)
        return Text(
            tuple(self._documents), tuple(self._lines), tuple(self._flaws), tuple(self._marks)
        )

    def _take(self, event: Any) -> None:
        match event:
            case yaml.ScalarEvent():
                self._no_anchor(event)
                self._scalar(event)
            case yaml.MappingStartEvent():
                self._start(event, {})
            case yaml.SequenceStartEvent():
                self._start(event, [])
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._open.pop()
            case yaml.AliasEvent():
                self._no_anchor(event)
            case yaml.DocumentStartEvent():
                if len(self._documents) >= DOCUMENTS:
                    raise _TooMuch(
                        _flaw(event, f"more than {DOCUMENTS} documents in one file", "split it")
                    )
                self._marks.append(Marks())
            case _:
                pass

    def _no_anchor(self, event: Any) -> None:
        if event.anchor is not None:
            raise _TooMuch(
                _flaw(
                    event,
                    f"YAML anchors and aliases are not accepted (&{event.anchor})",
                    "write the value out, or use vars and overlays of the Fleet",
                )
            )

    def _start(self, event: Any, value: Any) -> None:
        self._no_anchor(event)
        if len(self._open) >= DEPTH:
            raise _TooMuch(
                _flaw(event, f"more than {DEPTH} maps and lists inside each other", "flatten it")
            )
        if self._open and isinstance(self._open[-1].value, dict) and self._open[-1].key is None:
            raise _TooMuch(_flaw(event, "a map or list cannot be a key", 'quote it: "{...}"'))
        self._check_tag(event)
        path = self._place(event, value)
        self._open.append(_Open(value, path))

    def _scalar(self, event: Any) -> None:
        holder = self._open[-1] if self._open else None
        if holder is not None and isinstance(holder.value, dict) and holder.key is None:
            self._take_key(event, holder)
            return
        self._check_tag(event)
        plain = event.implicit[0] and event.tag is None
        self._place(event, _resolve(event.value) if plain else event.value)

    def _take_key(self, event: Any, holder: _Open) -> None:
        key: str = event.value
        holder.key = key
        path = (*holder.path, key)
        if key == "<<":
            self._add(_flaw(event, "merge keys (<<) are not accepted", "write the fields out"))
        if key in holder.value:
            self._add(
                _flaw(event, f"key {key!r} occurs twice in the same map", "remove one of the two")
            )
        if self._marked:
            self._marks[-1].keys.setdefault(path, _at(event))

    def _place(self, event: Any, value: Any) -> Path:
        self._count += 1
        if self._count > VALUES:
            raise _TooMuch(_flaw(event, f"more than {VALUES:,} values in one file", "split it"))
        if not self._open:
            self._documents.append(value)
            self._lines.append(event.start_mark.line + 1)
            path: Path = ()
        else:
            holder = self._open[-1]
            if isinstance(holder.value, dict):
                path = (*holder.path, holder.key or "") if self._marked else ()
                holder.value[holder.key] = value
                holder.key = None
            else:
                path = (*holder.path, len(holder.value)) if self._marked else ()
                holder.value.append(value)
        if self._marked:
            self._marks[-1].values.setdefault(path, _at(event))
        return path

    def _check_tag(self, event: Any) -> None:
        if event.tag not in (None, "!"):
            self._add(_flaw(event, f"YAML tags are not accepted ({event.tag})", "remove the tag"))

    def _add(self, flaw: Flaw) -> None:
        self._flaws.append(flaw)
        if len(self._flaws) >= FLAWS:
            raise _TooMuch(Flaw(flaw.line, flaw.column, "too many mistakes; the rest was not read"))


def _resolve(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    first = text[0]
    if first in "-+.0123456789":
        if _INT.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
    return text


def _at(event: Any) -> tuple[int, int]:
    return (event.start_mark.line + 1, event.start_mark.column + 1)


def _flaw(event: Any, message: str, hint: str = "") -> Flaw:
    return Flaw(*_at(event), message, hint)


def _malformed(error: yaml.MarkedYAMLError) -> Flaw:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    context = f" ({error.context})" if error.context else ""
    hint = (
        "indent with spaces"
        if "tab" in str(error.problem) or "'\\t'" in str(error.problem)
        else "check the indentation and quotes here and in the line above"
    )
    return Flaw(line, column, f"not YAML: {error.problem}{context}", hint)
