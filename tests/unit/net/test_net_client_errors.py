"""Problem documents become our errors, whatever a server writes in them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.model.errors import (
    BadUsage,
    Conflict,
    EdgewiseError,
    Forbidden,
    NeedsPerson,
    NotFound,
    TryLater,
    Unauthenticated,
    Untrusted,
)
from edgewise.net.client import LONGEST_WAIT, Endpoint, error_of
from edgewise.net.problems import encoded, internal, problem_of
from edgewise.protocol.api import Problem
from edgewise.protocol.codec import encode


@pytest.mark.parametrize(
    "error",
    [
        NotFound("no node x"),
        Conflict("changed"),
        Forbidden("not yours"),
        BadUsage("what"),
        TryLater("soon"),
        Untrusted("forged"),
        NeedsPerson("disk full", hint="free some"),
    ],
)
def test_an_error_survives_the_wire(error: EdgewiseError) -> None:
    problem = problem_of(error)
    found = error_of(problem.status, {}, encoded(problem))
    assert type(found) is type(error)
    assert (str(found), found.hint, found.exit_code) == (str(error), error.hint, error.exit_code)


def test_a_missing_certificate_is_told_apart_from_a_wrong_one() -> None:
    problem = problem_of(Unauthenticated())
    assert isinstance(error_of(401, {}, encoded(problem)), Forbidden)


def test_a_mistake_of_the_hub_needs_a_person_but_a_bare_500_is_tried_again() -> None:
    assert isinstance(error_of(500, {}, encoded(internal("x"))), NeedsPerson)
    assert isinstance(error_of(500, {}, b"<html>"), TryLater)
    assert isinstance(error_of(502, {"retry-after": "7"}, b""), TryLater)


def test_a_redirect_is_never_followed() -> None:
    assert isinstance(error_of(302, {"location": "http://evil"}, b""), Untrusted)


def test_a_server_cannot_write_to_the_terminal_nor_send_us_away_for_ever() -> None:
    bad = Problem("", "", 503, "\x1b[2Jhello\r\n", exit_code=3, retry_after_s=1e300)
    error = error_of(503, {}, encode(bad))
    assert isinstance(error, TryLater)
    assert "\x1b" not in str(error)
    assert "\n" not in str(error)
    assert error.wait == LONGEST_WAIT


@given(
    st.integers(300, 599),
    st.one_of(
        st.binary(max_size=200),
        st.builds(
            lambda s, e, r: encode(Problem("", "t", s, "d", exit_code=e, retry_after_s=r)),
            st.integers(-5, 999),
            st.integers(-5, 9),
            st.floats(allow_infinity=False, allow_nan=False),
        ),
    ),
)
def test_every_failure_becomes_one_of_our_errors(status: int, body: bytes) -> None:
    error = error_of(status, {}, body)
    assert isinstance(error, EdgewiseError)
    if isinstance(error, TryLater):
        assert math.isfinite(error.wait.total_seconds())
        assert error.wait.total_seconds() > 0


@pytest.mark.parametrize(
    "url", ["ftp://x", "https://x/path", "https://", "https://a@b", "http://x:99999", "https://x y"]
)
def test_a_url_that_is_no_origin_is_refused_early(url: str) -> None:
    with pytest.raises(BadUsage):
        Endpoint((url,))
