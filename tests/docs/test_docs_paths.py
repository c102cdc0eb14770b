"""What the docs point at exists: links, files and folders."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    p.relative_to(ROOT)
    for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]
)
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")
SOURCE = re.compile(
    r"`((?:model|protocol|runtime|sync|rollout|delivery|heal|identity|net|host|backends|roles|cli"
    r"|testing)/[a-z_/]*(?:\.py)?)`"
)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = (ROOT / page).read_text()
    broken = [to for to in LINK.findall(text) if not (ROOT / page.parent / to).exists()]
    assert broken == []


@pytest.mark.parametrize("page", ["README.md", "docs/tour.md", "CONTRIBUTING.md"])
def test_every_source_file_that_the_tour_names_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    named = SOURCE.findall(text)
    gone = [path for path in named if not (ROOT / "src" / "edgewise" / path).exists()]
    assert gone == []


def test_the_readme_names_every_room() -> None:
    text = (ROOT / "README.md").read_text()
    rooms = {p.name for p in (ROOT / "src" / "edgewise").iterdir() if (p / "__init__.py").exists()}
    rooms |= {"tests", "bench", "docs", "examples", "schemas", "changes"}
    assert {room for room in rooms if f"{room}/" not in text} == set()
