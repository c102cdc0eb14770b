"""Ranges, entity tags and HEAD, as RFC 9110 words them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from edgewise.net.ranges import Wanted, asked, wanted

TAG = '"abc"'


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", (206, 0, 1)),
        ("bytes=0-", (206, 0, 10)),
        ("bytes=3-5", (206, 3, 6)),
        ("bytes=3-500", (206, 3, 10)),
        ("bytes=-4", (206, 6, 10)),
        ("bytes=-400", (206, 0, 10)),
        ("bytes=9-", (206, 9, 10)),
        ("bytes=10-", (416, 0, 0)),
        ("bytes=-0", (416, 0, 0)),
        ("bytes=5-3", (200, 0, 10)),
        ("bytes=0-1,4-5", (200, 0, 10)),
        ("bytes=", (200, 0, 10)),
        ("bytes=-", (200, 0, 10)),
        ("lines=1-2", (200, 0, 10)),
        ("bytes=1-2junk", (200, 0, 10)),
        ("bytes=99999999999999999999-", (200, 0, 10)),
        ("", (200, 0, 10)),
    ],
)
def test_a_range_gives_these_bytes(header: str, expected: tuple[int, int, int]) -> None:
    assert wanted({"Range": header}, 10, TAG) == Wanted(*expected)


def test_content_range_says_what_it_is() -> None:
    assert wanted({"Range": "bytes=3-5"}, 10, TAG).headers(10) == {"Content-Range": "bytes 3-5/10"}
    assert wanted({"Range": "bytes=10-"}, 10, TAG).headers(10) == {"Content-Range": "bytes */10"}
    assert wanted({}, 10, TAG).headers(10) == {}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If-None-Match": '"abc"'}, 304),
        ({"If-None-Match": 'W/"abc"'}, 304),
        ({"If-None-Match": '"x", "abc"'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"x"'}, 200),
        ({"If-None-Match": "abc"}, 200),
        ({"Range": "bytes=0-1", "If-Range": '"abc"'}, 206),
        ({"Range": "bytes=0-1", "If-Range": 'W/"abc"'}, 200),
        ({"Range": "bytes=0-1", "If-Range": '"x"'}, 200),
        ({"Range": "bytes=0-1", "If-Range": "Wed, 21 Oct 2015 07:28:00 GMT"}, 200),
    ],
)
def test_entity_tags_decide(headers: dict[str, str], status: int) -> None:
    assert wanted(headers, 10, TAG).status == status


def test_an_empty_file_has_no_range() -> None:
    assert wanted({"Range": "bytes=0-"}, 0, TAG).status == 416
    assert wanted({}, 0, TAG) == Wanted(200, 0, 0)


@given(some.text(max_size=40), some.integers(0, 1000))
def test_whatever_the_header_says_the_bytes_are_within_the_file(header: str, size: int) -> None:
    found = wanted({"Range": header, "If-Range": header, "If-None-Match": header}, size, TAG)
    assert 0 <= found.start <= found.end <= size


def test_the_hint_is_what_the_request_says() -> None:
    assert asked({"Range": "bytes=3-5"}) == (3, 6)
    assert asked({"Range": "bytes=3-"}) == (3, None)
    assert asked({"Range": "bytes=-3"}) == (0, None)
    assert asked({}) == (0, None)
