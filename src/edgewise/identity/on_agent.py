"""What identity does on a node (and on a relay, which joins in the same way).

Runs in the worker: it needs ``cryptography`` and ``pyrage``. Files of ``identity/``:
``enrolment.key`` (never expires; ``tpm.json`` when the key is in a TPM), ``age.key``,
``svid.pem``, ``svid.key``, ``roots.pem``, ``identity.json``, ``tuf-root.json``; relays also
``ca.pem`` and ``ca.key``. With a TPM: ``seal.json``, and ``.sealed`` after the names of keys.

Laws: a key is on disk before anybody hears of it; what the far end answers is checked
against the token and our own keys before anything is replaced; nothing here is lost when
it is cut off, and running it again goes on.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Final, Literal, Protocol

import pyrage
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from msgspec import structs

from edgewise.identity import card as cards
from edgewise.identity import tpm_node, tpm_sealing
from edgewise.identity.attestation import attest_binding, binding, factory_bytes
from edgewise.identity.bundles import roots_for
from edgewise.identity.card import Card
from edgewise.identity.ports import AttestLine, JoinLine, OpenTpm, WorkloadIssuerLine
from edgewise.identity.signatures import (
    FileKey,
    issued_by,
    key_der,
    key_pem,
    sign_with,
)
from edgewise.identity.tokens import (
    join_proof_bytes,
    rejoin_proof_bytes,
    renew_proof_bytes,
)
from edgewise.identity.tpm_node import TpmFile, TpmKey
from edgewise.identity.tpm_sealing import Vault
from edgewise.identity.tpm_structures import Sealed
from edgewise.model.errors import NeedsPerson, Untrusted
from edgewise.model.names import SpiffeId
from edgewise.protocol.attest import (
    AttestChallengeRequest,
    AttestReply,
    AttestRequest,
    FactoryProof,
    JoinChallengeRequest,
    TpmProof,
)
from edgewise.protocol.bundles import TrustBundles
from edgewise.protocol.channel import Signed
from edgewise.protocol.codec import decode, encode
from edgewise.protocol.join import (
    JoinReply,
    JoinRequest,
    RejoinRequest,
    RenewReply,
    RenewRequest,
    Token,
)
from edgewise.protocol.tasks import SvidAsk, SvidIssued
from edgewise.protocol.workload import WorkloadRequest, X509Wanted
from edgewise.runtime.credentials import (
    CredentialFiles,
    certificates_in,
    fingerprint,
    pem_of,
    seal_file,
    sealed_path,
    wipe,
    write_private,
)

BUNDLES_FILE: Final = "bundles.json"
"""What to trust, as the hub signed it: for the resident agent and its workloads."""

_AGE: Final = "age.key"

Purpose = Literal["node-record/1", "receipt/1", "bundle/1"]


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine says of itself when it joins."""

    role: Literal["node", "relay"]
    name: str
    platform: str = ""
    urls: tuple[str, ...] = ()
    """Relays: where nodes reach it."""


class EnrolmentKey(Protocol):
    """The key that never expires: in a file or in a TPM."""

    @property
    def spki(self) -> bytes:
        """DER SubjectPublicKeyInfo."""

    def sign(self, data: bytes) -> bytes:
        """DER ECDSA over SHA-256."""


@dataclass(frozen=True, slots=True)
class ByTpm:
    """Join with the enrolment key in a TPM, and its proof."""

    place: str
    unique: bytes
    """32 unpredictable bytes, for a key that is not made yet."""


@dataclass(frozen=True, slots=True)
class ByFactory:
    """Join with the certificate of the factory: PEM files, the device's certificate first."""

    certificates: Path
    key: Path


@dataclass(frozen=True, slots=True)
class MachineIdentity:
    """The identity kept in one directory (``<state>/identity``)."""

    directory: Path
    open_tpm: OpenTpm | None = None
    """How a TPM is reached; None where there is no need: relays, tests."""

    @property
    def credentials(self) -> CredentialFiles:
        """Certificate, key and roots, for TLS."""
        return CredentialFiles(self.directory)

    def card(self) -> Card:
        """Raises NeedsPerson when this machine has not joined."""
        path = self.directory / cards.FILE
        try:
            return decode(path.read_bytes(), Card, what=str(path), at_most=cards.AT_MOST)
        except OSError as error:
            raise NeedsPerson(
                f"this machine has not joined: {path} is not there",
                hint="`edgewise node token` at the hub, then `edgewise agent join TOKEN` here",
            ) from error

    @property
    def tuf_root(self) -> bytes:
        """The initial TUF root metadata. Raises NeedsPerson before the join."""
        return _read(self.directory / "tuf-root.json")

    def enrolment_key(self) -> EnrolmentKey:
        """The key that never expires; made at the first call, unless it is in the TPM."""
        found = self.tpm_key()
        return found if found is not None else FileKey(_key(self.directory / "enrolment.key"))

    def tpm_key(self) -> TpmKey | None:
        """The enrolment key in the TPM, if it is there."""
        path = self.directory / cards.TPM_FILE
        if not path.exists():
            return None
        file = decode(_read(path), TpmFile, what=str(path), at_most=cards.AT_MOST)
        return TpmKey(file, self._tpm())

    def make_tpm_key(self, by: ByTpm) -> TpmKey:
        """The enrolment key in the TPM; made at the first call."""
        if (found := self.tpm_key()) is not None:
            return found
        file = tpm_node.make_key(by.place, by.unique, self._tpm())
        write_private(self.directory / cards.TPM_FILE, encode(file))
        return TpmKey(file, self._tpm())

    def vault(self) -> Vault | None:
        """What opens sealed keys; None where they are plain files."""
        path = self.directory / tpm_sealing.FILE
        if not path.exists():
            return None
        key = self.tpm_key()
        if key is None:
            raise NeedsPerson(f"{path} is there without {cards.TPM_FILE}", hint="put it back")
        sealed = decode(_read(path), Sealed, what=str(path), at_most=tpm_sealing.LARGEST)
        return Vault(key.file.place, sealed, key.open, os.urandom)

    def seal(self) -> None:
        """Seal the keys of a node with a TPM; repeating it goes on where it was cut off."""
        key = self.tpm_key()
        if key is None:
            return
        vault = self.vault()
        if vault is None:
            vault = tpm_sealing.make(key.file.place, key.open, os.urandom)
            write_private(self.directory / tpm_sealing.FILE, encode(vault.sealed))
        self.credentials.settle()
        for name in (self.credentials.key.name, _AGE):
            seal_file(self.directory / name, partial(vault.wrap, name))
        wipe(self.directory / "enrolment.key")  # of a join without the TPM that never ended

    def own_key(self) -> SvidIssued | None:
        """Certificate and key, where the key is sealed; None where it is a plain file."""
        files = self.credentials
        if not files.exist or not files.sealed_key.exists():
            return None
        card, chain = self.card(), certificates_in(files.chain)
        key = _parsed(self._private(files.key), files.sealed_key)
        return SvidIssued(card.spiffe_id, chain, key_der(key), card.not_before, card.not_after)

    def _private(self, path: Path) -> bytes:
        """A private file's content: the sealed one counts."""
        sealed = sealed_path(path)
        if not sealed.exists():
            return _read(path)
        vault = self.vault()
        if vault is None:
            raise NeedsPerson(f"{self.directory / tpm_sealing.FILE} is gone", hint="put it back")
        return vault.unwrap(path.name, _read(sealed))

    def _tpm(self) -> OpenTpm:
        if self.open_tpm is None:
            raise NeedsPerson("this machine's key is in its TPM, which cannot be reached here")
        return self.open_tpm

    def age_identity(self) -> pyrage.x25519.Identity:
        """What secrets for this machine are sealed to; made at the first call."""
        path, vault = self.directory / _AGE, self.vault()
        if not path.exists() and not sealed_path(path).exists():
            made = f"{pyrage.x25519.Identity.generate()}\n".encode()
            if vault is None:
                write_private(path, made)
            else:
                write_private(sealed_path(path), vault.wrap(_AGE, made))
        try:
            return pyrage.x25519.Identity.from_str(self._private(path).decode().strip())
        except (pyrage.IdentityError, ValueError) as error:
            raise NeedsPerson(
                f"{path} is damaged", hint="join this machine again with an empty state directory"
            ) from error

    def open_sealed(self, sealed: bytes) -> bytes:
        """Plaintext of an object that the hub sealed to this machine. Raises Untrusted."""
        try:
            return bytes(pyrage.decrypt(sealed, [self.age_identity()]))
        except pyrage.DecryptError as error:
            raise Untrusted(
                f"a secret cannot be opened with this machine's key: {error}",
                hint="was the node joined again since? the hub reseals at the next commit",
            ) from error

    def sign(self, purpose: Purpose, payload: bytes) -> Signed:
        """Sign with the enrolment key: receipts."""
        key = self.enrolment_key()
        unsigned = Signed(purpose, payload, fingerprint(key.spki), b"")
        return Signed(purpose, payload, unsigned.key_id, key.sign(unsigned.signed_bytes))


async def join(
    identity: MachineIdentity,
    token: Token,
    machine: Machine,
    line: JoinLine,
    by: ByTpm | ByFactory | None = None,
) -> Card:
    """Join, or repeat a join whose answer was lost.

    A ``token`` without identifier only says where and whom to trust: ``by`` lets in.
    Raises what the hub says, and Untrusted for an answer that does not fit the token.
    """
    enrolment = identity.make_tpm_key(by) if isinstance(by, ByTpm) else identity.enrolment_key()
    identity.seal()
    key = ec.generate_private_key(ec.SECP256R1())
    csr = _request(key, machine.name)
    ca_csr = b""
    if machine.role == "relay":
        ca_csr = _request(_key(identity.directory / "ca.key"), machine.name)
    tpm, factory = await _proofs(identity, by, enrolment, csr, line)
    request = JoinRequest(
        token=token.identifier,
        secret=token.secret,
        role=machine.role,
        name=machine.name,
        enrolment_key=enrolment.spki,
        csr=csr,
        proof=b"",
        age_recipient=str(identity.age_identity().to_public()),
        ca_csr=ca_csr,
        platform=machine.platform,
        urls=machine.urls,
        tpm=tpm,
        factory=factory,
    )
    proof = enrolment.sign(join_proof_bytes(request))
    reply = await line.join(structs.replace(request, proof=proof))
    if token.tuf_root and hashlib.sha256(reply.tuf_root).hexdigest() != token.tuf_root:
        raise Untrusted(
            "the answer carries another TUF root than the token names",
            hint="somebody between here and the hub changed it; join at the hub's own URL",
        )
    roots = tuple(root for root in reply.roots if fingerprint(root) == token.root)
    if not roots:
        raise Untrusted("the answer lacks the root certificate that the token names")
    card = _checked(reply, key, machine, roots)
    write_private(identity.directory / "tuf-root.json", reply.tuf_root, mode=0o644)
    identity.credentials.trust(roots)
    _keep_ca(identity, reply.ca_chain)
    _write_card(identity, card)
    # Last: with the certificate in place the machine counts as joined.
    _keep_pair(identity, key, reply.chain)
    return card


async def _proofs(
    identity: MachineIdentity,
    by: ByTpm | ByFactory | None,
    enrolment: EnrolmentKey,
    csr: bytes,
    line: JoinLine,
) -> tuple[TpmProof | None, FactoryProof | None]:
    """What the machine shows besides a token: a fresh challenge's answer."""
    match by:
        case None:
            return None, None
        case ByTpm():
            made = identity.make_tpm_key(by)
            with made.open(made.file.place) as tpm:
                keys = tpm_node.keys_of(tpm)
            challenge = await line.join_challenge(JoinChallengeRequest(keys))
            bound = binding(challenge.nonce, enrolment.spki, csr)
            return made.prove(keys, challenge, bound), None
        case ByFactory(certificates, file):
            chain = certificates_in(certificates)
            nonce = (await line.join_challenge(JoinChallengeRequest())).nonce
            proof = sign_with(_read(file), factory_bytes(nonce, enrolment.spki, csr), str(file))
            return None, FactoryProof(nonce, chain, proof)


async def attest(identity: MachineIdentity, line: AttestLine) -> AttestReply:
    """Say anew what was booted. Raises NeedsPerson without a TPM, and what the hub says."""
    key = identity.tpm_key()
    if key is None:
        raise NeedsPerson("this node has no TPM to attest with", hint="join it with --tpm")
    name = identity.card().name
    challenge = await line.attest_challenge(AttestChallengeRequest(name))
    bound = attest_binding(challenge.nonce, name)
    quote = tpm_node.quote(key.file.place, key.open, bound, challenge.pcrs)
    return await line.attest(AttestRequest(name, challenge.nonce, quote))


async def renew(identity: MachineIdentity, line: JoinLine) -> Card:
    """Replace certificate and key before they expire. Roots stay: a relay cannot change them.

    Raises what the far end says; the old certificate then stays in use.
    """
    card = identity.card()
    key = ec.generate_private_key(ec.SECP256R1())
    ca_csr = b""
    if card.role == "relay":
        ca_csr = _request(_key(identity.directory / "ca.key"), card.name)
    csr, in_tpm = _request(key, card.name), identity.tpm_key()
    proof = in_tpm.sign(renew_proof_bytes(csr)) if in_tpm is not None else b""
    reply: RenewReply = await line.renew(RenewRequest(csr, ca_csr, proof))
    return _renewed(identity, card, key, reply.chain, reply.ca_chain)


async def rejoin(identity: MachineIdentity, line: JoinLine) -> Card:
    """A new certificate by the enrolment key, for a node that was away too long."""
    card = identity.card()
    enrolment = identity.enrolment_key()
    key = ec.generate_private_key(ec.SECP256R1())
    csr = _request(key, card.name)
    nonce = (await line.challenge()).nonce
    last = _serial_of(identity)
    proof = enrolment.sign(rejoin_proof_bytes(nonce, csr, last))
    reply = await line.rejoin(RejoinRequest(card.name, nonce, csr, proof, last))
    # The hub may have moved it to another region; who the hub is never changes.
    moved = structs.replace(
        card, spiffe_id=reply.spiffe_id, region=reply.region, urls=reply.urls or card.urls
    )
    _check_name(moved.spiffe_id, card)
    return _renewed(identity, moved, key, reply.chain, ())


async def svids(
    identity: MachineIdentity, wanted: tuple[SvidAsk, ...], line: WorkloadIssuerLine
) -> tuple[SvidIssued, ...]:
    """X509-SVIDs for workloads of this node, in the order of ``wanted``, in one request.

    Keys are made here and written nowhere. Raises what the far end says, and Untrusted for
    SVIDs that are not what was asked for.
    """
    card, roots = identity.card(), identity.credentials.root_certificates()
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in wanted]
    asked = [
        X509Wanted(one.path, _request(key, one.path), one.dns, one.ttl_s)
        for one, key in zip(wanted, keys, strict=True)
    ]
    reply = await line.workloads(WorkloadRequest(x509=tuple(asked)))
    if len(reply.x509) != len(wanted):
        raise Untrusted(f"{len(reply.x509)} identities came for {len(wanted)} that were asked for")
    issued = []
    for one, key, svid in zip(wanted, keys, reply.x509, strict=True):
        leaf, _ = _leaf(svid.chain, key, SpiffeId(card.id.trust_domain, one.path), roots)
        issued.append(
            SvidIssued(
                svid.spiffe_id,
                svid.chain,
                key_der(key),
                leaf.not_valid_before_utc,
                leaf.not_valid_after_utc,
            )
        )
    return tuple(issued)


def trust(identity: MachineIdentity, bundles: TrustBundles) -> bool:
    """Use verified trust bundles from now on; whether the roots are others than before.

    Raises Untrusted for bundles that would leave this machine without a root.
    """
    card = identity.card()
    hub = SpiffeId.parse(card.hub_id)
    roots = roots_for(bundles, card.id.trust_domain, hub.trust_domain)
    write_private(identity.directory / BUNDLES_FILE, encode(bundles), mode=0o644)
    if roots == identity.credentials.root_certificates():
        return False
    identity.credentials.trust(roots)
    return True


def _renewed(
    identity: MachineIdentity,
    card: Card,
    key: ec.EllipticCurvePrivateKey,
    chain: tuple[bytes, ...],
    ca_chain: tuple[bytes, ...],
) -> Card:
    fresh = _card_with(card, *_leaf(chain, key, card.id, identity.credentials.root_certificates()))
    _keep_ca(identity, ca_chain)
    _keep_pair(identity, key, chain)
    _write_card(identity, fresh)
    return fresh


def _checked(
    reply: JoinReply,
    key: ec.EllipticCurvePrivateKey,
    machine: Machine,
    roots: tuple[bytes, ...],
) -> Card:
    try:
        own, hub = SpiffeId.parse(reply.spiffe_id), SpiffeId.parse(reply.hub_id)
    except ValueError as error:
        raise Untrusted(f"the answer has a malformed identity: {error}") from error
    named = machine.name or own.name  # a machine that proves itself may be given its name
    if (own.role, own.name) != (machine.role, named) or hub.path != "/hub":
        raise Untrusted(f"the answer is for {own}, not for {machine.role} {named}")
    leaf, root = _leaf(reply.chain, key, own, roots)
    now = leaf.not_valid_before_utc
    blank = Card(str(own), str(hub), machine.role, named, reply.region, reply.urls, "", now, now)
    return _card_with(blank, leaf, root)


def _check_name(spiffe_id: str, card: Card) -> None:
    try:
        own = SpiffeId.parse(spiffe_id)
    except ValueError as error:
        raise Untrusted(f"the answer has a malformed identity: {error}") from error
    if own.path != card.id.path:
        raise Untrusted(f"the answer is for {own}, not for {card.id}")


def _card_with(card: Card, leaf: x509.Certificate, root: str) -> Card:
    return structs.replace(
        card,
        serial=f"{leaf.serial_number:x}",
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        root=root,
    )


def _leaf(
    chain: tuple[bytes, ...],
    key: ec.EllipticCurvePrivateKey,
    own: SpiffeId,
    roots: tuple[bytes, ...],
) -> tuple[x509.Certificate, str]:
    """The leaf, once it is for our key and our name and chains to a root by signatures; and
    that root's fingerprint.

    Name constraints and times are OpenSSL's to judge, at the first handshake.
    """
    if not 1 <= len(chain) <= 4 or any(len(der) > 16 << 10 for der in chain):
        raise Untrusted("the answer has no sensible certificate chain")
    try:
        found = [x509.load_der_x509_certificate(der) for der in chain]
        names = found[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        anchors = {fingerprint(der): x509.load_der_x509_certificate(der) for der in roots}
        for lower, upper in pairwise(found):
            lower.verify_directly_issued_by(upper)
        above = [name for name, root in anchors.items() if issued_by(found[-1], root)]
    except (
        ValueError,
        TypeError,
        InvalidSignature,
        UnsupportedAlgorithm,
        x509.ExtensionNotFound,
    ) as error:
        raise Untrusted(f"the certificates of the answer do not hold: {error}") from error
    if not above:
        raise Untrusted("the new certificate does not come from the root that this machine trusts")
    if found[0].public_key() != key.public_key() or uris != [str(own)]:
        raise Untrusted("the new certificate is for another key or another name")
    return found[0], above[0]


def _keep_pair(
    identity: MachineIdentity, key: ec.EllipticCurvePrivateKey, chain: tuple[bytes, ...]
) -> None:
    files, vault = identity.credentials, identity.vault()
    if vault is None:
        files.replace(key_pem=key_pem(key), chain=chain)
    else:
        files.replace_sealed(sealed_key=vault.wrap(files.key.name, key_pem(key)), chain=chain)


def _keep_ca(identity: MachineIdentity, chain: tuple[bytes, ...]) -> None:
    if chain:
        write_private(identity.directory / "ca.pem", pem_of(chain).encode(), mode=0o644)


def _write_card(identity: MachineIdentity, card: Card) -> None:
    write_private(identity.directory / cards.FILE, encode(card), mode=0o644)


def _serial_of(identity: MachineIdentity) -> str:
    """Of the certificate on disk; empty when it is lost: a rejoin works without."""
    if not identity.credentials.exist:
        return ""
    leaf = certificates_in(identity.credentials.chain)[0]
    try:
        return f"{x509.load_der_x509_certificate(leaf).serial_number:x}"
    except ValueError:
        return ""


def _request(key: ec.EllipticCurvePrivateKey, name: str) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"edgewise {name}"[:64])])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    if not path.exists():
        write_private(path, key_pem(ec.generate_private_key(ec.SECP256R1())))
    return _parsed(_read(path), path)


def _parsed(pem: bytes, path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise NeedsPerson(
            f"{path} is damaged: {error}", hint="put it back, or join again with a new token"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise NeedsPerson(f"{path} is not an ECDSA key", hint="join again with a new token")
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NeedsPerson(
            f"{path} cannot be read: {error.strerror}", hint="join again with a new token"
        ) from error
