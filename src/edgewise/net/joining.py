"""The way to an identity over the network: first contact by token, rejoin, renewal.

First contact: the root certificates are fetched over a connection that proves nothing, and
the one with the digest in the token is kept; everything else, the secret first of all, only
travels over a second connection that is verified against that root, to a hub or a relay.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from edgewise.identity.card import Card
from edgewise.identity.names import is_server
from edgewise.identity.ports import HubDoor
from edgewise.identity.rotation import clock_is_wrong
from edgewise.model.errors import EdgewiseError, NotFound, TryLater, Untrusted
from edgewise.net.client import Client, Endpoint
from edgewise.net.tls import (
    CredentialFiles,
    Shown,
    client_context,
    pinned,
    pinned_context,
    unverified_context,
)
from edgewise.protocol.attest import (
    AttestChallenge,
    AttestChallengeRequest,
    AttestReply,
    AttestRequest,
    JoinChallenge,
    JoinChallengeRequest,
)
from edgewise.protocol.bundles import TrustReply
from edgewise.protocol.codec import decode, encode
from edgewise.protocol.join import (
    JoinReply,
    JoinRequest,
    RejoinChallenge,
    RejoinRequest,
    RenewReply,
    RenewRequest,
    Roots,
    Token,
)
from edgewise.runtime.clock import Clock

TRUST = 16 << 20
"""Bytes of trust bundles and of the TUF metadata that verifies them."""
REPLY = 4 << 20
"""Bytes of any answer here: a chain, roots, and the TUF root metadata."""


@dataclass(frozen=True, slots=True)
class Doorway:
    """``HubDoor`` over HTTPS. Close it after use."""

    client: Client

    async def join(self, request: JoinRequest) -> JoinReply:
        answer = await self.client.request("POST", "/v1/join", encode(request), at_most=REPLY)
        return decode(answer.body, JoinReply, what="the answer to a join", at_most=REPLY)

    async def join_challenge(self, request: JoinChallengeRequest) -> JoinChallenge:
        answer = await self.client.request("POST", "/v1/join/challenge", encode(request))
        return decode(answer.body, JoinChallenge, what="a challenge")

    async def attest_challenge(self, request: AttestChallengeRequest) -> AttestChallenge:
        answer = await self.client.request("POST", "/v1/attest/challenge", encode(request))
        return decode(answer.body, AttestChallenge, what="a challenge")

    async def attest(self, request: AttestRequest) -> AttestReply:
        answer = await self.client.request("POST", "/v1/attest", encode(request))
        return decode(answer.body, AttestReply, what="the answer to a quote")

    async def challenge(self) -> RejoinChallenge:
        answer = await self.client.request("POST", "/v1/rejoin/challenge", b"{}")
        return decode(answer.body, RejoinChallenge, what="a challenge")

    async def rejoin(self, request: RejoinRequest) -> JoinReply:
        answer = await self.client.request("POST", "/v1/rejoin", encode(request), at_most=REPLY)
        return decode(answer.body, JoinReply, what="the answer to a rejoin", at_most=REPLY)

    async def renew(self, request: RenewRequest) -> RenewReply:
        answer = await self.client.request("POST", "/v1/renew", encode(request), at_most=REPLY)
        return decode(answer.body, RenewReply, what="the answer to a renewal", at_most=REPLY)

    async def close(self) -> None:
        """Close its connections."""
        await self.client.close()


async def by_token(token: Token, clock: Clock) -> Doorway:
    """First contact. Raises TryLater or Untrusted when no URL of the token will do."""
    failures: list[EdgewiseError] = []
    for url in token.urls:
        try:
            root = await _root_of(url, token, clock)
        except (TryLater, Untrusted) as error:
            failures.append(error)
            continue
        tls = pinned_context(root, check_time=not clock_is_wrong(clock.now()))
        # Only this URL: another one might be somebody else, and the secret is sent once.
        return Doorway(Client(Endpoint((url,), tls, is_server), clock))
    if len(failures) == 1:
        raise failures[0]
    what = "; ".join(map(str, failures)) or "the token names no URL"
    if failures and all(isinstance(error, Untrusted) for error in failures):
        raise Untrusted(what, hint="is the token from this hub?")
    raise TryLater(what)


def by_identity(
    card: Card,
    credentials: CredentialFiles,
    clock: Clock,
    *,
    expired: bool = False,
    own: Shown | None = None,
) -> Doorway:
    """For renewal with the present certificate, or (``expired``) for rejoin without it.

    ``own``: see ``client_context``.
    """
    check_time = not clock_is_wrong(clock.now(), card.validity)
    if expired:
        tls = pinned_context(credentials.root_certificates(), check_time=check_time)
    else:
        tls = client_context(credentials, check_time=check_time, own=own)
    return Doorway(Client(Endpoint(card.urls, tls, card.expects), clock))


async def ask_for_trust(urls: tuple[str, ...], clock: Clock) -> TrustReply:
    """Signed trust bundles from whoever answers first. Nothing in the answer is proven.

    Raises TryLater when nobody answers, Untrusted for an answer of another shape.
    """
    async with Client(Endpoint(urls, unverified_context()), clock) as stranger:
        answer = await stranger.request("GET", "/v1/trust", timeout=30.0, at_most=TRUST)
    return decode(answer.body, TrustReply, what="the trust bundles", at_most=TRUST)


@dataclass(frozen=True, slots=True)
class HeldMetadata:
    """TUF metadata that came with an answer, as a source (``delivery.ports.Source``)."""

    files: Mapping[str, bytes]

    async def read(
        self, path: str, *, at_most: int, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        data = self.files.get(path.removeprefix("tuf/"))
        if data is None or len(data) > at_most:
            raise NotFound(f"the answer has no {path[:100]}")
        yield data[start:end]


async def _root_of(url: str, token: Token, clock: Clock) -> tuple[bytes, ...]:
    async with Client(Endpoint((url,), unverified_context()), clock) as stranger:
        answer = await stranger.request("GET", "/v1/roots", timeout=15.0, at_most=64 << 10)
    found = decode(answer.body, Roots, what="the root certificates", at_most=64 << 10)
    return pinned(found.roots, token.root)


def _meets_its_port(doorway: Doorway) -> HubDoor:
    return doorway
