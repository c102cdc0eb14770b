"""Webhooks wake the hub only when the git server proves itself and our branch moved."""

import hashlib
import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.model.errors import BadUsage, EdgewiseError, Forbidden, NotFound, Untrusted
from edgewise.sync.webhooks import MAX_BODY, PROVIDERS, Ignored, Wake, recognise

SECRET = "correct horse"
AFTER = "1f" * 20


def push(ref: str = "refs/heads/main", after: str = AFTER) -> bytes:
    return json.dumps({"ref": ref, "after": after, "commits": [{"id": after}]}).encode()


def signed(provider: str, body: bytes, secret: str = SECRET, event: str = "") -> dict[str, str]:
    mac = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {
        "github": {"X-GitHub-Event": event or "push", "X-Hub-Signature-256": f"sha256={mac}"},
        "gitlab": {"X-Gitlab-Event": event or "Push Hook", "X-Gitlab-Token": secret},
        "gitea": {"X-Gitea-Event": event or "push", "X-Gitea-Signature": mac},
    }[provider]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_signed_push_of_the_followed_branch_wakes_the_hub(provider: str) -> None:
    body = push()
    woken = recognise(provider, signed(provider, body), body, secret=SECRET, branch="main")
    assert woken == Wake(provider, "main", AFTER)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_replayed_push_says_the_same_again_and_nothing_more(provider: str) -> None:
    body = push()
    calls = {
        recognise(provider, signed(provider, body), body, secret=SECRET, branch="main")
        for _ in range(2)
    }
    assert calls == {Wake(provider, "main", AFTER)}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_another_secret_is_refused_with_what_to_set(provider: str) -> None:
    body = push()
    with pytest.raises(Untrusted, match="does not match the hub's secret") as caught:
        recognise(provider, signed(provider, body, "guess"), body, secret=SECRET, branch="main")
    assert "webhook_secret" in caught.value.hint


@pytest.mark.parametrize("provider", ["github", "gitea"])
def test_a_body_changed_on_its_way_is_refused(provider: str) -> None:
    headers = signed(provider, push())
    with pytest.raises(Untrusted, match="does not match"):
        recognise(provider, headers, push(after="2f" * 20), secret=SECRET, branch="main")


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_call_without_proof_is_refused(provider: str) -> None:
    with pytest.raises(Untrusted, match="has no x-"):
        recognise(provider, {}, push(), secret=SECRET, branch="main")


def test_without_a_secret_webhooks_are_off() -> None:
    body = push()
    with pytest.raises(Forbidden, match="webhooks are off"):
        recognise("gitlab", {"X-Gitlab-Token": ""}, body, secret="", branch="main")


def test_an_unknown_git_server_is_not_found() -> None:
    with pytest.raises(NotFound, match="'svn'"):
        recognise("svn", {}, b"", secret=SECRET, branch="main")


def test_a_body_beyond_the_bound_is_not_even_hashed() -> None:
    with pytest.raises(BadUsage, match="bytes, at most"):
        recognise("github", {}, b" " * (MAX_BODY + 1), secret=SECRET, branch="main")


def test_a_signed_form_body_says_which_content_type_to_choose() -> None:
    body = b"payload=%7B%7D"
    with pytest.raises(BadUsage, match="not a JSON push") as caught:
        recognise("github", signed("github", body), body, secret=SECRET, branch="main")
    assert "application/json" in caught.value.hint


@pytest.mark.parametrize(
    ("body", "event", "reason"),
    [
        (push("refs/heads/feature"), "", "branch 'feature' moved"),
        (push("refs/tags/v1"), "", "is not a branch"),
        (push(after="0" * 40), "", "was deleted"),
        (b"{}", "ping", "is not a push"),
    ],
)
def test_other_branches_tags_deletions_and_pings_wake_nobody(
    body: bytes, event: str, reason: str
) -> None:
    answer = recognise(
        "github", signed("github", body, event=event), body, secret=SECRET, branch="main"
    )
    assert isinstance(answer, Ignored)
    assert reason in answer.reason


@given(
    provider=st.sampled_from(PROVIDERS),
    headers=st.dictionaries(
        st.sampled_from(
            ["X-Hub-Signature-256", "X-Gitlab-Token", "X-Gitea-Signature", "X-GitHub-Event"]
        ),
        st.text(max_size=80),
    ),
    body=st.binary(max_size=200),
)
def test_no_call_without_the_secret_ever_wakes(
    provider: str, headers: dict[str, str], body: bytes
) -> None:
    with pytest.raises(EdgewiseError):
        recognise(provider, headers, body, secret=SECRET, branch="main")
