"""Webhooks: is this call from our git server, and does it speak of our branch?

Pure, on bytes. A recognised call only wakes the follower, which then asks git itself, so
a replayed call costs one look and can never bring in a commit.

Sources: GitHub "Validating webhook deliveries" (X-Hub-Signature-256: HMAC-SHA256 of the
body), GitLab "Webhooks: validate payloads by using a secret token" (X-Gitlab-Token),
Gitea "Webhooks" (X-Gitea-Signature: HMAC-SHA256 of the body, bare hex).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from edgewise.model.errors import BadUsage, Forbidden, NotFound, Untrusted

PROVIDERS = ("github", "gitlab", "gitea")
MAX_BODY = 5 << 20
"""Bytes. Push payloads list at most a few thousand commits; ours is read for its ref only."""


@dataclass(frozen=True, slots=True)
class Wake:
    """The followed branch moved, says the git server: look now."""

    provider: str
    branch: str
    commit: str
    """What the server says is the new head; for logs only, never trusted."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """A genuine call that changes nothing for us (answer 200, do not wake)."""

    reason: str


class _Push(msgspec.Struct, frozen=True):
    ref: str = ""
    after: str = ""


@dataclass(frozen=True, slots=True)
class _Provider:
    event_header: str
    push_events: frozenset[str]
    proof_header: str
    secret_setting: str


_KNOWN = {
    "github": _Provider(
        "x-github-event", frozenset({"push"}), "x-hub-signature-256", "Secret of the webhook"
    ),
    "gitlab": _Provider(
        "x-gitlab-event",
        frozenset({"Push Hook", "System Hook"}),
        "x-gitlab-token",
        "Secret token of the webhook",
    ),
    "gitea": _Provider(
        "x-gitea-event", frozenset({"push"}), "x-gitea-signature", "Secret of the webhook"
    ),
}


def recognise(
    provider: str, headers: Mapping[str, str], body: bytes, *, secret: str, branch: str
) -> Wake | Ignored:
    """What a call of POST /v1/hooks/{provider} means.

    ``headers`` in any case; ``secret`` is the hub's webhook secret, empty when webhooks are
    off; ``branch`` is the followed branch, without ``refs/heads/``. Raises NotFound for a
    provider that does not exist, Forbidden when no secret is set, Untrusted when the proof
    is missing or wrong, BadUsage for a body that is too big or not a push.
    """
    known = _KNOWN.get(provider)
    if known is None:
        raise NotFound(
            f"there is no webhook for {provider!r}", hint=f"use one of: {', '.join(PROVIDERS)}"
        )
    if not secret:
        raise Forbidden(
            "webhooks are off: the hub has no webhook secret",
            hint="start the hub with --webhook-secret FILE, and set the same at the git server",
        )
    if len(body) > MAX_BODY:
        raise BadUsage(f"the webhook has {len(body)} bytes, at most {MAX_BODY} are read")
    given = {name.lower(): value for name, value in headers.items()}
    _check_proof(provider, known, given.get(known.proof_header, ""), body, secret)
    event = given.get(known.event_header, "")
    if event not in known.push_events:
        return Ignored(f"{provider} event {event[:64]!r} is not a push")
    try:
        push = msgspec.json.decode(body, type=_Push)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadUsage(
            f"the {provider} webhook is not a JSON push event: {error}",
            hint="set the webhook's content type to application/json",
        ) from error
    return _meaning(provider, push, branch)


def _check_proof(provider: str, known: _Provider, proof: str, body: bytes, secret: str) -> None:
    if not proof:
        raise Untrusted(
            f"the {provider} webhook has no {known.proof_header} header",
            hint=f"set the {known.secret_setting} to the hub's webhook_secret",
        )
    if provider == "gitlab":
        expected = secret
    else:
        expected = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
        proof = proof.removeprefix("sha256=") if provider == "github" else proof
    if not hmac.compare_digest(expected.encode(), proof.encode(errors="replace")):
        raise Untrusted(
            f"the {known.proof_header} of the {provider} webhook does not match the hub's secret",
            hint=f"set the {known.secret_setting} to the hub's webhook_secret",
        )


def _meaning(provider: str, push: _Push, branch: str) -> Wake | Ignored:
    prefix = "refs/heads/"
    if not push.ref.startswith(prefix):
        return Ignored(f"{push.ref[:128]!r} is not a branch")
    moved = push.ref.removeprefix(prefix)
    if moved != branch:
        return Ignored(f"branch {moved[:128]!r} moved, the hub follows {branch!r}")
    if push.after and not push.after.strip("0"):
        return Ignored(f"branch {branch!r} was deleted; the fleets keep what they have")
    return Wake(provider, branch, push.after)
