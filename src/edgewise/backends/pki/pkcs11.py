"""The root's key in a PKCS#11 token: an HSM, a smart card, or SoftHSM2.

Named by a URI of RFC 7512::

    pkcs11:token=edgewise?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=/etc/edgewise/pin

The key is made in the token and cannot leave it. A session is open only while something is
done. Needs the extra ``edgewise[pkcs11]``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import parse_qs, unquote

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from edgewise.backends.pki.certificates import Key
from edgewise.backends.pki.keys import KeyStore
from edgewise.model.errors import BadUsage, NeedsPerson


@dataclass(frozen=True, slots=True)
class TokenUri:
    """Where the token is and what opens it."""

    token: str
    """Its label."""
    module: str
    """Path of the PKCS#11 library."""
    pin_source: Path
    """File with the PIN."""

    @classmethod
    def parse(cls, text: str) -> TokenUri:
        """From RFC 7512 text. Raises BadUsage, naming what is missing."""
        head, _, query = text.removeprefix("pkcs11:").partition("?")
        path = dict(part.partition("=")[::2] for part in head.split(";") if part)
        asked = parse_qs(query)
        token = unquote(path.get("token", ""))
        module = asked.get("module-path", [""])[0]
        source = asked.get("pin-source", [""])[0].removeprefix("file:")
        if not text.startswith("pkcs11:") or not (token and module and source):
            raise BadUsage(
                f"{text[:100]!r} does not name a token, its module-path and a pin-source",
                hint="pkcs11:token=LABEL?module-path=/usr/lib/...so&pin-source=/path/to/pin",
            )
        return cls(token, module, Path(source))


@dataclass(frozen=True, slots=True)
class TokenKeys:
    """Keys by their label in one token."""

    uri: TokenUri

    def has(self, name: str) -> bool:
        """See ``KeyStore``."""
        with self._session() as session:
            return bool(self._objects(session, name, private=True))

    def load(self, name: str) -> Key | None:
        """See ``KeyStore``."""
        from pkcs11.util.ec import encode_ec_public_key

        with self._session() as session:
            found = self._objects(session, name, private=False)
            if not found or not self._objects(session, name, private=True):
                return None
            spki = encode_ec_public_key(found[0])
        public = serialization.load_der_public_key(spki)
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise NeedsPerson(f"the key {name} in token {self.uri.token} is not ECDSA P-256")
        return TokenKey(self, name, public)

    def create(self, name: str) -> Key:
        """See ``KeyStore``."""
        from pkcs11 import Attribute, KeyType, Mechanism
        from pkcs11.util.ec import encode_named_curve_parameters

        self.destroy(name)
        with self._session(write=True) as session:
            curve = {Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
            parameters = session.create_domain_parameters(KeyType.EC, curve, local=True)
            parameters.generate_keypair(mechanism=Mechanism.EC_KEY_PAIR_GEN, store=True, label=name)
        key = self.load(name)
        if key is None:
            raise NeedsPerson(f"token {self.uri.token} did not keep the new key {name}")
        return key

    def move(self, name: str, to: str) -> None:
        """See ``KeyStore``."""
        from pkcs11 import Attribute

        if not self.has(name):
            return
        self.destroy(to)
        with self._session(write=True) as session:
            for private in (False, True):  # the private half last: it is what ``has`` looks for
                for one in self._objects(session, name, private=private):
                    one[Attribute.LABEL] = to

    def destroy(self, name: str) -> None:
        """See ``KeyStore``."""
        with self._session(write=True) as session:
            for private in (True, False):
                for one in self._objects(session, name, private=private):
                    one.destroy()

    def sign_digest(self, name: str, digest: bytes) -> bytes:
        """``r`` and ``s`` of an ECDSA signature over a digest."""
        from pkcs11 import Mechanism

        with self._session() as session:
            found = self._objects(session, name, private=True)
            if not found:
                raise NeedsPerson(f"token {self.uri.token} has no key {name} any more")
            return bytes(found[0].sign(digest, mechanism=Mechanism.ECDSA))

    def _objects(self, session: Any, name: str, *, private: bool) -> list[Any]:
        from pkcs11 import Attribute, ObjectClass

        kind = ObjectClass.PRIVATE_KEY if private else ObjectClass.PUBLIC_KEY
        return list(session.get_objects({Attribute.CLASS: kind, Attribute.LABEL: name}))

    @contextmanager
    def _session(self, *, write: bool = False) -> Iterator[Any]:
        try:
            import pkcs11
        except ImportError as error:
            raise NeedsPerson(
                "PKCS#11 needs the package python-pkcs11", hint="pip install 'edgewise[pkcs11]'"
            ) from error
        try:
            pin = self.uri.pin_source.read_text().strip()
            token = pkcs11.lib(self.uri.module).get_token(token_label=self.uri.token)
            with token.open(rw=write, user_pin=pin) as session:
                yield session
        except OSError as error:
            raise NeedsPerson(
                f"the PIN of token {self.uri.token} cannot be read: {error.strerror}"
            ) from error
        except (pkcs11.PKCS11Error, RuntimeError) as error:
            why = str(error) or type(error).__name__
            raise NeedsPerson(
                f"token {self.uri.token} ({self.uri.module}) cannot be used: {why}",
                hint="is it plugged in, is the PIN right, and does `pkcs11-tool -T` list it?",
            ) from error


class TokenKey(ec.EllipticCurvePrivateKey):
    """A P-256 key whose private half stays in the token."""

    def __init__(self, store: TokenKeys, name: str, public: ec.EllipticCurvePublicKey) -> None:
        self._store = store
        self._name = name
        self._public = public

    @property
    def curve(self) -> ec.EllipticCurve:
        """P-256."""
        return self._public.curve

    @property
    def key_size(self) -> int:
        """In bits."""
        return self._public.key_size

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The half that may be known."""
        return self._public

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """A DER signature over SHA-256 of ``data``."""
        if not isinstance(signature_algorithm.algorithm, hashes.SHA256):
            raise BadUsage("the root signs with ECDSA over SHA-256 only")
        raw = self._store.sign_digest(self._name, hashlib.sha256(data).digest())
        half = len(raw) // 2
        return encode_dss_signature(
            int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big")
        )

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> bytes:
        """Not for a signing key."""
        self._stays()

    def private_numbers(self) -> ec.EllipticCurvePrivateNumbers:
        """It cannot leave the token."""
        self._stays()

    def private_bytes(self, *_: Any) -> bytes:
        """It cannot leave the token."""
        self._stays()

    def __copy__(self) -> TokenKey:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> TokenKey:
        return self

    def _stays(self) -> NoReturn:
        raise NeedsPerson(f"the key {self._name} does not leave its token")


def _meets_its_port(keys: TokenKeys) -> KeyStore:
    return keys
