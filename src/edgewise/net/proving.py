"""The paths by which machines prove what they are: the same on the hub and on a relay."""

from __future__ import annotations

from edgewise.model.errors import Conflict, Forbidden, NotFound, TryLater, Untrusted
from edgewise.net.routes import ANYONE, Answer, Caller, Route
from edgewise.protocol import limits
from edgewise.protocol.attest import (
    AttestChallenge,
    AttestChallengeRequest,
    AttestReply,
    AttestRequest,
    JoinChallenge,
    JoinChallengeRequest,
)


def proof_routes(
    join_challenge: Answer, attest_challenge: Answer, attest: Answer, nodes: frozenset[Caller]
) -> list[Route]:
    """``nodes``: who may attest here."""
    errors = (Forbidden, Conflict, Untrusted, NotFound, TryLater)
    return [
        Route(
            "POST",
            "/v1/join/challenge",
            "A nonce for a machine that joins by its TPM or its factory certificate",
            join_challenge,
            ANYONE,
            JoinChallengeRequest,
            JoinChallenge,
            errors=(Forbidden, Untrusted, TryLater),
            at_most=limits.RECORD,
            changes=False,
        ),
        Route(
            "POST",
            "/v1/attest/challenge",
            "A nonce for a node's next quote",
            attest_challenge,
            nodes,
            AttestChallengeRequest,
            AttestChallenge,
            errors=errors,
            at_most=limits.RECORD,
        ),
        Route(
            "POST",
            "/v1/attest",
            "What a node's TPM says of its boot",
            attest,
            nodes,
            AttestRequest,
            AttestReply,
            errors=errors,
            at_most=limits.RECORD,
        ),
    ]
