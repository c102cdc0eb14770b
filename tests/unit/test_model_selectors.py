"""Selectors as people type them on a command line."""

from __future__ import annotations

import pytest

from edgewise.model.labels import parse_selector

NODE = {"site": "berlin", "ring": "canary", "gpu": ""}


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True),
        ("site=berlin", True),
        ("site==berlin, ring = canary", True),
        ("site!=berlin", False),
        ("gpu", True),
        ("!gpu", False),
        ("!retired,site", True),
        ("ring in (canary, early)", True),
        ("ring notin (canary),site=berlin", False),
        ("color!=red", True),
    ],
)
def test_a_typed_selector_means_what_kubectl_means(text: str, matches: bool) -> None:
    assert parse_selector(text).matches(NODE) is matches


@pytest.mark.parametrize("text", ["=x", "a=b=c", "ring in canary", "a b", "()", "a=é"])
def test_what_cannot_be_read_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_selector(text)
