"""Files and functions stay small enough to hold in one's head (docs/adr/0001)."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "edgewise"
FILE_LINES = 600
FUNCTION_LINES = 80
PARAMETERS = 6


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text())
    return [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def test_no_file_is_longer_than_600_lines() -> None:
    lengths = {p: len(p.read_text().splitlines()) for p in SOURCE.rglob("*.py")}
    assert {str(p): n for p, n in lengths.items() if n > FILE_LINES} == {}


def test_no_function_is_longer_than_80_lines() -> None:
    long = [
        f"{path.name}:{f.lineno} {f.name}"
        for path in SOURCE.rglob("*.py")
        for f in functions(path)
        if (f.end_lineno or f.lineno) - f.lineno + 1 > FUNCTION_LINES
    ]
    assert long == []


def test_no_module_is_called_by_a_word_that_says_nothing() -> None:
    banned = {
        "manager",
        "helper",
        "helpers",
        "util",
        "utils",
        "common",
        "misc",
        "base",
        "core",
        "handler",
    }
    assert [str(p) for p in SOURCE.rglob("*.py") if p.stem in banned] == []
