"""Join tokens: what they say, and whether a join with one is let through.

Laws:
- A key that has used a token may use it again, with the same name, for the same answer: a
  lost reply burns nothing, even when the token has expired since.
- Any other key counts as a use; ``uses`` of them are let through, before ``expires``.
- A name belongs to one enrolment key until it is forgotten.
- Every refusal has a reason of its own, except that an unknown token and a wrong secret
  look the same from outside.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from edgewise.identity.names import HUB, Organisation
from edgewise.identity.ports import Enrolled, TokenRecord
from edgewise.model.errors import BadUsage
from edgewise.model.labels import check_labels
from edgewise.model.names import is_name
from edgewise.model.quantity import format_duration
from edgewise.protocol.api import TokenRequest
from edgewise.protocol.join import JoinRequest

LONGEST: Final = timedelta(days=30)
"""A token on a desk is a key on a desk."""
SHORTEST: Final = timedelta(seconds=10)
MOST_USES: Final = 100_000
MOST_LABELS: Final = 64
MOST_URLS: Final = 8
KEPT_AFTER_EXPIRY: Final = timedelta(days=30)
"""Spent and expired tokens stay listed, and lost replies repeatable, for this long."""

Reason = Literal[
    "unknown-token",
    "wrong-role",
    "wrong-region",
    "relay-through-relay",
    "other-name",
    "forgotten",
    "expired",
    "spent",
    "name-taken",
    "quarantined",
    "token-not-allowed",
    "tpm-required",
    "not-listed",
    "listed-twice",
    "listed-as-other",
    "bad-name",
]


@dataclass(frozen=True, slots=True)
class Accepted:
    """Let it in. ``repeat``: the same key asked before; nothing is used up."""

    repeat: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """Keep it out; ``what`` and ``hint`` are for the person at the node."""

    reason: Reason
    what: str
    hint: str


def checked_terms(request: TokenRequest, organisation: Organisation) -> timedelta:
    """How long the token shall live. Raises BadUsage for terms that make no sense."""
    try:
        check_labels(request.labels)
    except ValueError as error:
        raise BadUsage(str(error)) from error
    if len(request.labels) > MOST_LABELS:
        raise BadUsage(f"{len(request.labels)} labels, at most {MOST_LABELS} are possible")
    organisation.domain(request.region)
    if not 1 <= request.uses <= MOST_USES:
        raise BadUsage(f"uses {request.uses} is not between 1 and {MOST_USES}")
    low, high = SHORTEST.total_seconds(), LONGEST.total_seconds()
    if not low <= request.ttl_s <= high:
        asked = f"{request.ttl_s:.0f} s" if request.ttl_s < high else "longer"
        raise BadUsage(
            f"a token lives {format_duration(SHORTEST)} to {format_duration(LONGEST)}, not {asked}",
            hint="for example 1h; a fleet that joins over weeks needs a token a week",
        )
    if request.role == "relay" and request.via:
        raise BadUsage("a relay joins at the hub, not through another relay")
    return timedelta(seconds=request.ttl_s)


def secret_text(data: bytes) -> str:
    """Random bytes as they stand in a token."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def secret_digest(secret: str) -> str:
    """What the hub keeps of a secret. 256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def key_digest(spki: bytes) -> str:
    """An enrolment key's identifier: hex SHA-256 of its DER SubjectPublicKeyInfo."""
    return hashlib.sha256(spki).hexdigest()


def join_proof_bytes(request: JoinRequest) -> bytes:
    """What the enrolment key signs at a join: all that the hub goes by.

    A relay in between can change none of it; secrets are sealed to the age recipient.
    """
    fields = (
        join_subject(request),
        request.role,
        request.name,
        request.age_recipient,
        request.platform,
        "\n".join(request.urls),
    )
    # Hashed one by one, so that no field can end where another begins.
    parts = [*(field.encode() for field in fields), request.ca_csr, request.csr]
    return b"join/2\0" + b"".join(hashlib.sha256(part).digest() for part in parts)


def join_subject(request: JoinRequest) -> str:
    """What a join is by: its token, or the nonce of its proof."""
    proof = request.tpm or request.factory
    return request.token or (proof.nonce if proof is not None else "")


def renew_proof_bytes(csr: bytes) -> bytes:
    """What an enrolment key in a TPM signs at a renewal."""
    return b"renew/1\0" + csr


def rejoin_proof_bytes(nonce: str, csr: bytes, last: str) -> bytes:
    """What the enrolment key signs at a rejoin."""
    return b"rejoin/1\0" + nonce.encode() + b"\0" + last.encode() + b"\0" + csr


def check_shape(request: JoinRequest) -> None:
    """Raise BadUsage for a request that no agent of ours would send."""
    proofs = [proof for proof in (request.tpm, request.factory) if proof is not None]
    if len(proofs) > 1 or not (request.token or proofs):
        raise BadUsage(
            "a machine joins with a token, a TPM or a factory certificate",
            hint="a token may stand beside a TPM; make one with `edgewise node token`",
        )
    if request.factory is not None and request.token:
        raise BadUsage("a token and a factory certificate do not go together", hint="leave one out")
    if request.role == "relay" and not request.token:
        raise BadUsage("a relay joins with a token", hint="`edgewise node token --relay`")
    unnamed = request.name == "" and not request.token  # the fleet repo names it
    if not unnamed and not is_name(request.name):
        raise BadUsage(
            f"node name {request.name[:80]!r} is not a DNS label", hint="use a-z, 0-9 and '-'"
        )
    if len(request.urls) > MOST_URLS or any(len(url) > 300 for url in request.urls):
        raise BadUsage(f"at most {MOST_URLS} URLs of at most 300 characters")
    if len(request.platform) > 64 or len(request.age_recipient) > 128:
        raise BadUsage("platform or age recipient is too long")
    if request.role == "relay" and not (request.ca_csr and request.urls):
        raise BadUsage("a relay joins with a CA request and the URLs where nodes reach it")


def decide_join(
    request: JoinRequest,
    token: TokenRecord | None,
    holder: Enrolled | None,
    *,
    now: datetime,
    via_region: str = "",
) -> Accepted | Refused:
    """Whether this join is let through. Its proof has been checked already.

    ``holder`` has the wanted name now, if anybody; ``via_region`` is the region of the
    relay that passed the request on, empty for the hub's own port.
    """
    if token is None or not hmac.compare_digest(token.secret_sha256, secret_digest(request.secret)):
        return Refused(
            "unknown-token",
            "this token is not known here, or was revoked",
            "make a new one with `edgewise node token`",
        )
    if refused := _place(request, token, via_region):
        return refused
    key = key_digest(request.enrolment_key)
    same_key = holder is not None and holder.key == request.enrolment_key
    if holder is not None and same_key and holder.quarantined:
        return Refused(
            "quarantined",
            f"{request.name} is quarantined: {holder.quarantined}",
            f"`edgewise node release {request.name}` lifts it",
        )
    bound = token.bound.get(key)
    if bound is not None:
        return _again(request, bound, same_key=same_key)
    if now >= token.expires:
        return Refused(
            "expired",
            f"the token expired at {token.expires:%Y-%m-%d %H:%M} UTC",
            "make a new one with `edgewise node token`, and check this machine's clock",
        )
    if len(token.bound) >= token.uses:
        return Refused(
            "spent",
            f"the token was for {token.uses} use(s), and all are taken by other keys",
            "make one token for each node, or one with --uses N",
        )
    if holder is not None and not same_key:
        return Refused(
            "name-taken",
            f"the name {request.name} belongs to a {holder.role} with another key",
            f"choose another name, or `edgewise node forget {request.name}` first",
        )
    return Accepted(repeat=False)


def _place(request: JoinRequest, token: TokenRecord, via_region: str) -> Refused | None:
    if request.role != token.role:
        return Refused(
            "wrong-role",
            f"the token is for a {token.role}, not for a {request.role}",
            "make one with the right --role",
        )
    if via_region and request.role == "relay":
        return Refused(
            "relay-through-relay", "a relay joins at the hub itself", "use the hub's URL"
        )
    if via_region and via_region != HUB and token.region != via_region:
        return Refused(
            "wrong-region",
            f"the token is for region {token.region}, this relay is of {via_region}",
            "use the URL of a relay of the token's region, or make another token",
        )
    return None


def _again(request: JoinRequest, bound: str, *, same_key: bool) -> Accepted | Refused:
    if bound != request.name:
        return Refused(
            "other-name",
            f"this key joined with the token as {bound}, not as {request.name}",
            f"join as {bound}, or start with an empty state directory and a new token",
        )
    if not same_key:
        return Refused(
            "forgotten",
            f"{request.name} was forgotten after it joined with this token",
            "make a new token for it",
        )
    return Accepted(repeat=True)
