"""The hub as an OpenID relying party: device authorisation for people at a command line.

Sources: RFC 8628 (device authorisation grant), OpenID Connect Discovery 1.0, RFC 7636 (PKCE).
The device code never leaves the hub; the command only has a handle. What the provider says is
believed when its ID token is good (identity/id_tokens.py), fetched over verified TLS.
"""

from __future__ import annotations

import base64
import hashlib
import re
import ssl
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec

from edgewise.identity import id_tokens
from edgewise.identity.people import MOST_GROUPS
from edgewise.identity.throttle import network_of
from edgewise.model.errors import BadUsage, Forbidden, NeedsPerson, TryLater, Untrusted
from edgewise.net.logins import Person, Provider
from edgewise.protocol.people import DeviceStart
from edgewise.runtime.chance import Chance
from edgewise.runtime.clock import Clock

T = TypeVar("T")
GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
LARGEST: Final = 1 << 20
"""Bytes of any answer of the provider."""
PATIENCE: Final = timedelta(seconds=10)
"""For one answer of the provider."""
FRESH: Final = timedelta(hours=1)
"""How long discovery and keys are believed."""
KEYS_AGAIN: Final = 10.0
"""Seconds between two fetches of the keys because of an unknown one: tokens are made up easily."""
MOST_FLOWS: Final = 1000
MOST_FLOWS_EACH: Final = 20
"""Logins under way, in all and from one address."""
SLOWER: Final = 5.0
"""Seconds that slow_down adds to the interval (RFC 8628, section 3.5)."""


class OidcSettings(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """The file of ``edgewise up --oidc``. It is not in the fleet repo: who may push there must
    not choose who vouches for people."""

    issuer: str
    client_id: str
    client_secret_file: str = ""
    """Empty for a public client."""
    scopes: tuple[str, ...] = ("openid", "profile", "email", "groups")
    name_claim: str = "email"
    """What becomes the user's name. ``email`` counts only when the provider has verified it."""
    email_domain: str = ""
    """Only addresses of this domain get in; it is left out of the name."""
    groups_claim: str = "groups"
    ca_file: str = ""
    """Certificates that the provider's must chain to; empty: the system's."""
    session_hours: float = 24.0
    """How long a login holds before the provider is asked again."""


class _Discovery(msgspec.Struct, frozen=True):
    issuer: str
    jwks_uri: str
    token_endpoint: str
    device_authorization_endpoint: str = ""


class _Keys(msgspec.Struct, frozen=True):
    keys: tuple[dict[str, Any], ...]


class _Device(msgspec.Struct, frozen=True):
    device_code: str
    user_code: str
    verification_uri: str
    expires_in: float
    verification_uri_complete: str = ""
    interval: float = 5.0


class _Token(msgspec.Struct, frozen=True):
    id_token: str = ""
    error: str = ""
    error_description: str = ""


@dataclass(slots=True)
class _Flow:
    """One login under way."""

    device_code: str
    verifier: str
    nonce: str
    network: str
    expires: float
    interval: float
    next: float


@dataclass(slots=True)
class OidcProvider:
    """See ``read_settings``."""

    settings: OidcSettings
    clock: Clock
    chance: Chance
    secret: str = ""
    _flows: OrderedDict[str, _Flow] = field(default_factory=OrderedDict)
    _discovery: tuple[float, _Discovery] | None = None
    _keys: tuple[float, tuple[id_tokens.Jwk, ...]] = (-1e9, ())
    _seen: OrderedDict[str, float] = field(default_factory=OrderedDict)

    @property
    def issuer(self) -> str:
        return self.settings.issuer

    @property
    def session(self) -> timedelta:
        return timedelta(hours=self.settings.session_hours)

    async def begin(self, address: str) -> DeviceStart:
        now = self.clock.monotonic()
        self._forget(now)
        network = network_of(address)
        mine = sum(1 for flow in self._flows.values() if flow.network == network)
        if len(self._flows) >= MOST_FLOWS or mine >= MOST_FLOWS_EACH:
            raise TryLater("too many logins are under way", wait=timedelta(seconds=30))
        found = await self._discovered()
        if not found.device_authorization_endpoint:
            raise NeedsPerson(
                f"{self.issuer} does not offer device authorisation",
                hint="switch it on for this client at the provider (RFC 8628)",
            )
        verifier, nonce = self._secret(), self._secret()
        challenge = hashlib.sha256(verifier.encode()).digest()
        asked = {
            **self._client(),
            "scope": " ".join(self.settings.scopes),
            "nonce": nonce,
            "code_challenge": base64.urlsafe_b64encode(challenge).decode().rstrip("="),
            "code_challenge_method": "S256",
        }
        _, said = await self._fetch(found.device_authorization_endpoint, _Device, asked)
        handle = self._secret()
        interval = max(1.0, min(60.0, said.interval))
        life = max(1.0, min(1800.0, said.expires_in))
        self._flows[handle] = _Flow(
            said.device_code, verifier, nonce, network, now + life, interval, now + interval
        )
        return DeviceStart(
            handle,
            said.user_code[:64],
            _shown(said.verification_uri),
            _shown(said.verification_uri_complete),
            life,
            interval,
        )

    async def poll(self, handle: str) -> Person | float:
        now = self.clock.monotonic()
        self._forget(now)
        flow = self._flows.get(handle)
        if flow is None:
            raise Forbidden(
                "this login is not under way: it was finished, refused, or took too long",
                hint="run `edgewise login` again",
            )
        if now < flow.next:
            return flow.next - now
        flow.next = now + flow.interval
        found = await self._discovered()
        asked = {
            **self._client(),
            "grant_type": GRANT,
            "device_code": flow.device_code,
            "code_verifier": flow.verifier,
        }
        _, said = await self._fetch(found.token_endpoint, _Token, asked)
        if said.error:
            return self._refused(handle, flow, said)
        # Whatever comes of it, this code is used up.
        self._flows.pop(handle, None)
        return await self._person(said.id_token, flow.nonce)

    def _refused(self, handle: str, flow: _Flow, said: _Token) -> float:
        """RFC 8628, section 3.5."""
        match said.error:
            case "authorization_pending":
                return flow.interval
            case "slow_down":
                flow.interval += SLOWER
                flow.next = self.clock.monotonic() + flow.interval
                return flow.interval
        self._flows.pop(handle, None)
        if said.error == "expired_token":
            raise Forbidden("nobody agreed in time", hint="run `edgewise login` again")
        if said.error == "access_denied":
            raise Forbidden("the login was refused at the provider")
        why = f"{said.error} {said.error_description}".strip()[:200]
        raise Forbidden(f"the provider refuses: {why}", hint="run `edgewise login` again")

    async def _person(self, text: str, nonce: str) -> Person:
        token = id_tokens.opened(text)
        key = id_tokens.key_of(token, await self._jwks())
        if key is None:
            key = id_tokens.key_of(token, await self._jwks(again=True))
        if key is None:
            raise Untrusted("the provider's ID token is refused: its key is not published")
        expected = id_tokens.Expected(self.issuer, self.settings.client_id, nonce)
        now = self.clock.now()
        claims = id_tokens.checked(token, key, expected, now)
        self._only_once(text, now)
        return person_of(claims, self.settings)

    def _only_once(self, text: str, now: datetime) -> None:
        digest = hashlib.sha256(text.encode()).hexdigest()
        if digest in self._seen:
            raise Untrusted("the provider's ID token is refused: it was used before")
        self._seen[digest] = now.timestamp()
        while len(self._seen) > MOST_FLOWS * 10:
            self._seen.popitem(last=False)

    def _forget(self, now: float) -> None:
        for handle in [h for h, flow in self._flows.items() if flow.expires <= now]:
            del self._flows[handle]

    def _secret(self) -> str:
        return base64.urlsafe_b64encode(self.chance.token(32)).decode().rstrip("=")

    def _client(self) -> dict[str, str]:
        secret = {"client_secret": self.secret} if self.secret else {}
        return {"client_id": self.settings.client_id, **secret}

    async def _discovered(self) -> _Discovery:
        now = self.clock.monotonic()
        if self._discovery is not None and now - self._discovery[0] < FRESH.total_seconds():
            return self._discovery[1]
        url = f"{self.issuer.rstrip('/')}/.well-known/openid-configuration"
        _, found = await self._fetch(url, _Discovery)
        if found.issuer != self.issuer:
            raise Untrusted(
                f"{url} speaks for issuer {found.issuer[:100]!r}, not {self.issuer}",
                hint="write the issuer in the hub's OIDC file exactly as the provider does",
            )
        for endpoint in (
            found.jwks_uri, found.token_endpoint, found.device_authorization_endpoint,
        ):  # fmt: skip
            if endpoint:
                _check_url(endpoint)
        self._discovery = now, found
        return found

    async def _jwks(self, *, again: bool = False) -> tuple[id_tokens.Jwk, ...]:
        at, keys = self._keys
        age = self.clock.monotonic() - at
        if age < KEYS_AGAIN or (age < FRESH.total_seconds() and not again):
            return keys
        _, found = await self._fetch((await self._discovered()).jwks_uri, _Keys)
        keys = tuple(_known(found.keys[:100]))
        self._keys = self.clock.monotonic(), keys
        return keys

    async def _fetch(
        self, url: str, kind: type[T], form: Mapping[str, str] | None = None
    ) -> tuple[int, T]:
        """One call, without redirects. Raises TryLater when it cannot be had now."""
        try:
            async with (
                aiohttp.ClientSession(
                    timeout=aiohttp.ClientTimeout(total=PATIENCE.total_seconds()),
                    connector=aiohttp.TCPConnector(ssl=_tls(self.settings.ca_file)),
                ) as session,
                session.request(
                    "POST" if form is not None else "GET",
                    url,
                    data=form,
                    allow_redirects=False,
                    headers={"Accept": "application/json"},
                ) as answer,
            ):
                data = await answer.content.read(LARGEST)
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise TryLater(
                f"the OpenID provider {self.issuer} cannot be reached: {error}",
                hint="open logins go on; the administrator's certificate always works",
            ) from error
        if status >= 500 or 300 <= status < 400:
            raise TryLater(f"the OpenID provider {self.issuer} answered {status}")
        try:
            return status, msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, RecursionError) as error:
            raise TryLater(
                f"the OpenID provider {self.issuer} answered {status} with nothing that fits"
            ) from error


def person_of(claims: Mapping[str, Any], settings: OidcSettings) -> Person:
    """Whom good claims name. Raises Forbidden where they name nobody who may come in."""
    value = claims.get(settings.name_claim)
    if not isinstance(value, str) or not value:
        raise Forbidden(
            f"the provider does not say your {settings.name_claim}",
            hint="choose another nameClaim, or add a scope (docs/people.md)",
        )
    if settings.name_claim == "email" and claims.get("email_verified") is not True:
        raise Forbidden("the provider has not verified your address")
    if settings.email_domain:
        address = value if settings.name_claim == "email" else claims.get("email")
        local, at, domain = str(address).rpartition("@")
        if not at or domain.lower() != settings.email_domain.lower():
            raise Forbidden(f"only addresses of {settings.email_domain} may log in")
        value = local if settings.name_claim == "email" else value
    groups = claims.get(settings.groups_claim, [])
    named = [groups] if isinstance(groups, str) else groups
    if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
        raise Forbidden(f"the claim {settings.groups_claim} is no list of names")
    if len(named) > MOST_GROUPS:
        raise Forbidden(
            f"you are in {len(named)} groups, at most {MOST_GROUPS} are looked at",
            hint="let the provider send only those that Edgewise needs",
        )
    name = re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-")[:63].strip("-")
    subject = f"{claims['iss']}\0{claims['sub']}"
    return Person(subject, name, tuple(sorted(set(named))))


def read_settings(file: Path, clock: Clock, chance: Chance) -> OidcProvider:
    """From the file of ``--oidc``. Raises BadUsage, naming what does not fit."""
    try:
        settings = msgspec.yaml.decode(file.read_bytes(), type=OidcSettings)
        named = settings.client_secret_file
        secret = (file.parent / named).read_text().strip() if named else ""
    except OSError as error:
        raise BadUsage(f"cannot read {error.filename}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise BadUsage(f"{file}: {error}", hint="docs/people.md has an example") from error
    _check_url(settings.issuer)
    if "openid" not in settings.scopes or not 0 < settings.session_hours <= 24 * 30:
        raise BadUsage(f"{file}: scopes lack openid, or sessionHours is not 0 to 720")
    return OidcProvider(settings, clock, chance, secret)


def _known(keys: tuple[dict[str, Any], ...]) -> list[id_tokens.Jwk]:
    """Those that we can read; a provider may publish others beside them."""
    found = []
    for key in keys:
        try:
            found.append(msgspec.convert(key, id_tokens.Jwk))
        except msgspec.ValidationError:
            continue
    return found


def _check_url(url: str) -> None:
    """https, or http to this very machine (a provider behind a sidecar; tests)."""
    parts = urlsplit(url)
    local = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")
    if not parts.hostname or not (parts.scheme == "https" or local):
        raise BadUsage(f"{url[:200]!r} is not like https://id.example.org")


def _shown(url: str) -> str:
    """A URL that may be shown to a person in a terminal."""
    return url if len(url) <= 500 and url.isprintable() and url.isascii() else ""


def _tls(ca_file: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file or None)


def _meets_its_port(provider: OidcProvider) -> Provider:
    return provider
