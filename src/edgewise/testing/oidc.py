"""A small OpenID provider on a loopback port: discovery, keys, device authorisation.

It signs real tokens, and lies in whatever way a test asks for.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

from aiohttp import web
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

CLIENT = "edgewise"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def number(value: int) -> str:
    return b64(value.to_bytes((value.bit_length() + 7) // 8, "big"))


class OidcProviderFake:
    """``await OidcProviderFake.start()``; close it at the end."""

    def __init__(self) -> None:
        self.rsa = rsa.generate_private_key(65537, 2048)
        self.ec = ec.generate_private_key(ec.SECP256R1())
        self.kid = "k1"
        self.claims: dict[str, Any] = {}
        """Over those of a good token; None removes one."""
        self.header: dict[str, Any] = {}
        self.algorithm = "RS256"
        self.answers: list[dict[str, Any]] = []
        """What the token endpoint says first, one a call."""
        self.forge: Callable[[str], str] = lambda token: token
        self.requests: list[dict[str, str]] = []
        self.codes: dict[str, dict[str, str]] = {}
        self.status = 200
        self.issuer = ""
        self.said_issuer = ""
        self.user_code = "WDJB-MJHT"
        self.last = ""
        self._runner: web.AppRunner | None = None

    @classmethod
    async def start(cls) -> OidcProviderFake:
        provider = cls()
        app = web.Application()
        app.router.add_get("/.well-known/openid-configuration", provider._discovery)
        app.router.add_get("/keys", provider._keys)
        app.router.add_post("/device", provider._device)
        app.router.add_post("/token", provider._token)
        provider._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await provider._runner.setup()
        site = web.TCPSite(provider._runner, "127.0.0.1", 0)
        await site.start()
        provider.issuer = f"http://127.0.0.1:{provider._runner.addresses[0][1]}"
        return provider

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _discovery(self, request: web.Request) -> web.Response:
        return self._json(
            {
                "issuer": self.said_issuer or self.issuer,
                "jwks_uri": f"{self.issuer}/keys",
                "token_endpoint": f"{self.issuer}/token",
                "device_authorization_endpoint": f"{self.issuer}/device",
            }
        )

    async def _keys(self, request: web.Request) -> web.Response:
        public = self.rsa.public_key().public_numbers()
        curve = self.ec.public_key().public_numbers()
        return self._json(
            {
                "keys": [
                    {"kty": "oct", "kid": "shared", "k": b64(b"not for anybody")},
                    {"kty": "RSA", "kid": self.kid, "use": "sig", "n": number(public.n),
                     "e": number(public.e)},
                    {"kty": "EC", "kid": f"{self.kid}-ec", "crv": "P-256",
                     "x": b64(curve.x.to_bytes(32, "big")), "y": b64(curve.y.to_bytes(32, "big"))},
                ]
            }
        )  # fmt: skip

    async def _device(self, request: web.Request) -> web.Response:
        form = {key: str(value) for key, value in (await request.post()).items()}
        self.requests.append(form)
        code = f"device-{len(self.requests)}"
        self.codes[code] = form
        return self._json(
            {
                "device_code": code,
                "user_code": self.user_code,
                "verification_uri": f"{self.issuer}/agree",
                "expires_in": 600,
                "interval": 1,
            }
        )

    async def _token(self, request: web.Request) -> web.Response:
        form = {key: str(value) for key, value in (await request.post()).items()}
        self.requests.append(form)
        if self.answers:
            return self._json(self.answers.pop(0), 400)
        asked = self.codes.pop(form.get("device_code", ""), None)
        challenge = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        if asked is None or asked["code_challenge"] != b64(challenge):
            return self._json({"error": "invalid_grant"}, 400)
        self.last = self.forge(self.token(asked["nonce"]))
        return self._json({"access_token": "x", "token_type": "Bearer", "id_token": self.last})

    def token(self, nonce: str) -> str:
        """An ID token, good unless the test asked for something else."""
        now = int(time.time())
        claims = {
            "iss": self.issuer, "sub": "248289761001", "aud": CLIENT, "iat": now,
            "exp": now + 300, "nonce": nonce, "email": "anna.schmidt@acme.example",
            "email_verified": True, "groups": ["shops"], **self.claims,
        }  # fmt: skip
        claims = {key: value for key, value in claims.items() if value is not None}
        kid = self.kid if self.algorithm != "ES256" else f"{self.kid}-ec"
        return self.signed({"alg": self.algorithm, "kid": kid, **self.header}, claims)

    def signed(self, header: dict[str, Any], claims: dict[str, Any]) -> str:
        """A token with this header and these claims."""
        text = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}"
        return f"{text}.{b64(self._signature(str(header['alg']), text.encode()))}"

    def _signature(self, algorithm: str, text: bytes) -> bytes:
        match algorithm:
            case "none":
                return b""
            case "HS256":
                pem = self.rsa.public_key().public_bytes(
                    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
                )
                return hmac.new(pem, text, hashlib.sha256).digest()
            case "ES256":
                r, s = decode_dss_signature(self.ec.sign(text, ec.ECDSA(hashes.SHA256())))
                return r.to_bytes(32, "big") + s.to_bytes(32, "big")
            case "PS256":
                pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
                return self.rsa.sign(text, pss, hashes.SHA256())
            case _:
                return self.rsa.sign(text, padding.PKCS1v15(), hashes.SHA256())

    def _json(self, value: Any, status: int = 200) -> web.Response:
        return web.json_response(value, status=status if self.status == 200 else self.status)
