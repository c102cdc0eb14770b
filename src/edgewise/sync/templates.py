"""Templates in documents: Jinja2, strict, sandboxed, and bounded by construction.

The language is cut down to what a bound can be given for: values, filters of a short list,
``if``, and loops that are neither nested nor longer than ``ROUNDS``. There are no
assignments, macros, calls or imports, so no expression can grow what it produces beyond
the sizes checked here.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from types import TracebackType
from typing import Any, Final

import jinja2
from jinja2 import nodes
from jinja2.sandbox import SandboxedEnvironment

from edgewise.sync.suggest import did_you_mean

SOURCE: Final = 64 << 10
"""Characters of one template."""
LOOPED_SOURCE: Final = 8 << 10
"""Characters of one template that has a loop."""
OUTPUT: Final = 1 << 20
"""Characters that one template may produce."""
ROUNDS: Final = 1000
"""Rounds of one loop."""
LOOPS: Final = 10
"""Loops of one template."""
NUMBER: Final = 10**18
"""Largest product."""
NAMES: Final = ("node", "vars", "fleet")
ATTRIBUTES: Final = {"node": ("name", "labels"), "fleet": ("name",)}

_ALLOWED: Final = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.Name,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Const,
    nodes.Filter,
    nodes.Test,
    nodes.If,
    nodes.For,
    nodes.CondExpr,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.Neg,
    nodes.Concat,
    nodes.Add,
    nodes.Sub,
    nodes.Mul,
    nodes.Div,
    nodes.FloorDiv,
    nodes.Mod,
    nodes.List,
    nodes.Tuple,
    nodes.Call,
    nodes.Keyword,
)


class Mistake(Exception):
    """A template that does not parse or render. ``line`` counts from 1, within the template."""

    def __init__(self, message: str, hint: str = "", line: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.line = line


class Names:
    """What a template may look things up in: by attribute or by item, nothing else."""

    __slots__ = ("known", "read", "what")

    def __init__(
        self, what: str, read: Callable[[str], Any], known: Callable[[], Iterable[str]]
    ) -> None:
        self.what = what
        self.read = read
        """Returns the value, or None when there is none."""
        self.known = known

    def __contains__(self, name: str) -> bool:
        return self.read(name) is not None

    def __str__(self) -> str:
        raise jinja2.UndefinedError(f"{self.what} is no text\nname one of its values")


def is_template(text: str) -> bool:
    """Whether there is anything to render."""
    return "{" in text and ("{{" in text or "{%" in text or "{#" in text)


def check(source: str) -> Mistake | None:
    """What is wrong with a template before any value is known."""
    try:
        _compiled(source)
    except Mistake as mistake:
        return mistake
    return None


def render(source: str, context: Mapping[str, Any]) -> str:
    """The text. Raises Mistake."""
    template = _compiled(source)
    pieces: list[str] = []
    size = 0
    try:
        for piece in template.generate(context):
            pieces.append(piece)
            size += len(piece)
            if size > OUTPUT:
                raise Mistake(f"the template makes more than {OUTPUT:,} characters")
    except jinja2.UndefinedError as error:
        message, _, hint = str(error).partition("\n")
        raise Mistake(message, hint, _line(error.__traceback__)) from error
    except (jinja2.TemplateError, *_ILLEGAL) as error:
        raise Mistake(f"template: {error}", "", _line(error.__traceback__)) from error
    return "".join(pieces)


_ILLEGAL: Final = (TypeError, ValueError, ArithmeticError, LookupError, RecursionError)


class _Environment(SandboxedEnvironment):
    intercepted_binops = frozenset({"*", "%"})

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, Names):
            return self._look_up(obj, attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, Names):
            return self._look_up(obj, str(argument))
        return super().getitem(obj, argument)

    def _look_up(self, names: Names, name: str) -> Any:
        value = names.read(name)
        if value is not None:
            return value
        hint = did_you_mean(name, names.known())
        return self.undefined(hint=f"{names.what}.{name} is missing\n{hint}")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        # Text times a number and text % values can make gigabytes of a few characters.
        if not all(isinstance(value, (int, float)) for value in (left, right)):
            raise TypeError(f"{operator} is for numbers only")
        result = super().call_binop(context, operator, left, right)
        if abs(result) > NUMBER:
            raise ValueError(f"{left} {operator} {right} is too large")
        return result


def _range(*numbers: int) -> range:
    steps = range(*numbers)
    if len(steps) > ROUNDS:
        raise ValueError(f"range{numbers} has {len(steps):,} rounds; at most {ROUNDS} are run")
    return steps


def _text(value: Any) -> str:
    text = str(value)
    if len(text) > OUTPUT:
        raise ValueError(f"a value has more than {OUTPUT:,} characters")
    return text


def _replace(value: Any, old: str, new: str) -> str:
    text = _text(value)
    if text.count(str(old)) * len(str(new)) > OUTPUT:
        raise ValueError(f"replace makes more than {OUTPUT:,} characters")
    return text.replace(str(old), str(new))


def _join(values: Iterable[Any], between: str = "") -> str:
    parts = [_text(value) for value in values]
    if sum(map(len, parts)) + len(parts) * len(str(between)) > OUTPUT:
        raise ValueError(f"join makes more than {OUTPUT:,} characters")
    return str(between).join(parts)


def _split(value: Any, between: str) -> list[str]:
    parts = _text(value).split(str(between))
    if len(parts) > ROUNDS:
        raise ValueError(f"split makes {len(parts):,} parts; at most {ROUNDS}")
    return parts


def _default(value: Any, otherwise: Any = "") -> Any:
    return otherwise if isinstance(value, jinja2.Undefined) else value


FILTERS: Final[dict[str, Callable[..., Any]]] = {
    "default": _default,
    "d": _default,
    "lower": lambda value: _text(value).lower(),
    "upper": lambda value: _text(value).upper(),
    "trim": lambda value: _text(value).strip(),
    "replace": _replace,
    "join": _join,
    "split": _split,
    "int": lambda value: int(_text(value)[:19]),
    "float": lambda value: float(_text(value)[:40]),
    "string": _text,
    "length": len,
    "first": lambda value: next(iter(value)),
    "last": lambda value: value[-1],
    "tojson": lambda value: json.dumps(_scalar(value)),
    "quote": lambda value: shlex.quote(_text(value)),
}


def _scalar(value: Any) -> Any:
    if not isinstance(value, (str, int, float, bool, list, tuple)):
        raise TypeError(f"tojson is for values, not for {type(value).__name__}")
    return value


def _environment() -> _Environment:
    environment = _Environment(
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        cache_size=0,
    )
    environment.filters = dict(FILTERS)
    tests = ("defined", "undefined", "in", "eq", "ne", "none", "string", "number")
    environment.tests = {name: environment.tests[name] for name in tests}
    environment.globals = {"range": _range}
    return environment


_ENVIRONMENT: Final = _environment()


@lru_cache(maxsize=4096)
def _compiled(source: str) -> jinja2.Template:
    if len(source) > SOURCE:
        raise Mistake(
            f"a template of {len(source):,} characters; at most {SOURCE:,} are rendered",
            "split the file, or say template: false when it is none",
        )
    try:
        tree = _ENVIRONMENT.parse(source)
        _check_tree(tree, source)
        return _ENVIRONMENT.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise Mistake(f"template: {error.message}", _syntax_hint(error), error.lineno) from error
    except (RecursionError, MemoryError, SyntaxError, ValueError) as error:
        raise Mistake("template: it is nested too deeply", "make it simpler") from error


def _syntax_hint(error: jinja2.TemplateSyntaxError) -> str:
    message = error.message or ""
    if message.startswith("No filter named"):
        return did_you_mean(message.split("'")[1], FILTERS)
    return "write {{ node.labels.NAME }}; for text that is no template say template: false"


def _check_tree(tree: nodes.Template, source: str) -> None:
    local = {"loop"}
    loops = list(tree.find_all(nodes.For))
    for loop in loops:
        local |= {name.name for name in loop.target.find_all(nodes.Name)}
        if isinstance(loop.target, nodes.Name):
            local.add(loop.target.name)
        if loop.recursive or next(_inside(loop), None) is not None:
            raise Mistake("template: loops inside loops are not accepted", "", loop.lineno)
    if len(loops) > LOOPS:
        raise Mistake(f"template: {len(loops)} loops, at most {LOOPS}", "", loops[-1].lineno)
    if loops and len(source) > LOOPED_SOURCE:
        raise Mistake(f"template: with a loop it may have {LOOPED_SOURCE:,} characters")
    for node in tree.find_all(nodes.Node):
        _check_node(node, local)


def _inside(loop: nodes.For) -> Iterator[nodes.Node]:
    for child in (*loop.body, *loop.else_):
        if isinstance(child, nodes.For):
            yield child
        yield from child.find_all(nodes.For)


def _check_node(node: nodes.Node, local: set[str]) -> None:
    if not isinstance(node, _ALLOWED):
        word = type(node).__name__.lower()
        raise Mistake(
            f"template: {word} is not accepted", "use values, filters, if and for", node.lineno
        )
    if isinstance(node, nodes.Call):
        if not (isinstance(node.node, nodes.Name) and node.node.name == "range"):
            raise Mistake(
                "template: calls are not accepted",
                f"use a filter: {', '.join(sorted(FILTERS))}",
                node.lineno,
            )
    if isinstance(node, nodes.Name) and node.ctx == "load":
        known = {*NAMES, "range", *local}
        if node.name not in known:
            hint = f"vars.{node.name}" if node.name.isidentifier() else ""
            raise Mistake(
                f"template: {node.name!r} is not known",
                did_you_mean(node.name, known, otherwise=f"did you mean {hint}?"),
                node.lineno,
            )
    if isinstance(node, nodes.Getattr) and isinstance(node.node, nodes.Name):
        attributes = ATTRIBUTES.get(node.node.name)
        if attributes and node.attr not in attributes:
            raise Mistake(
                f"template: {node.node.name}.{node.attr} is not known",
                did_you_mean(node.attr, attributes),
                node.lineno,
            )


def _line(trace: TracebackType | None) -> int:
    line = 1
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
