"""TUF metadata as values: who signs what, and the checks that need nothing but bytes.

Source: The Update Framework specification 1.0. Laws:
- the offline keys (``root``, ``targets``) say who the builders and the hub are;
- ``builds`` (builder keys) says what may run: artifacts and releases;
- ``channels`` (the hub's online key) says who runs what now, and signs node records;
- ``snapshot`` and ``timestamp`` (online key) tie these together and age.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Protocol, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.signer import CryptoSigner, Key, SSlibKey
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from edgewise.model.errors import Untrusted
from edgewise.protocol.channel import Signed

ROOT_LIFE: Final = timedelta(days=365)
"""The root key is fetched from its safe once a year."""
TARGETS_LIFE: Final = timedelta(days=365)
"""It changes only when a builder comes or goes; same occasion as the root."""
BUILDS_LIFE: Final = timedelta(days=365)
"""A builder signs at every release; a fleet left alone for a year should be looked at."""
SNAPSHOT_LIFE: Final = timedelta(days=30)
"""Re-signed by the hub at half of it; a hub that was away for two weeks loses nothing."""
CHANNELS_LIFE: Final = timedelta(days=30)
"""As the snapshot, which ages with it."""
TIMESTAMP_LIFE: Final = timedelta(days=7)
"""How long a relay can hide a change from its nodes before they notice (freeze attack),
and how long the hub may be away before nodes accept nothing new."""

LIVES: Final[Mapping[str, timedelta]] = {
    "root": ROOT_LIFE,
    "targets": TARGETS_LIFE,
    "builds": BUILDS_LIFE,
    "channels": CHANNELS_LIFE,
    "snapshot": SNAPSHOT_LIFE,
    "timestamp": TIMESTAMP_LIFE,
}
BUILDS_PATHS: Final = ["artifacts/*/*", "releases/*"]
CHANNELS_PATHS: Final = ["channels/*"]
SIGNED_AT: Final = "x-edgewise-signed"
"""Extra field of the timestamp: when it was signed. Nodes without a clock start from it."""
ADDED: Final = "added"
"""Custom field of a target of ``builds``: the version of ``builds`` that brought it."""
KEPT_RELEASES: Final = 200
"""Releases listed in ``builds``: the oldest that no channel names go first."""
BUNDLED_BUILDS: Final = 8 << 10
"""Bytes up to which ``builds`` rides in every wake-up (about 30 targets). A larger one is
fetched by a node only when its version changed, once a release instead of once a step."""

_COMPACT = JSONSerializer(compact=True)
M = TypeVar("M", Root, Targets, Snapshot, Timestamp)


class MetadataFiles(Protocol):
    """Where TUF metadata is kept on the hub. Implementation: backends.tuf.repository."""

    def read(self, name: str) -> bytes | None:
        """``12.snapshot.json``, ``timestamp.json``; None when there is no such file."""

    def write(self, name: str, data: bytes) -> None:
        """Atomic and durable. Raises NeedsPerson when the disk is full."""

    def names(self) -> tuple[str, ...]: ...
    def remove(self, name: str) -> None: ...


class TrustKeys(Protocol):
    """The hub's signing keys: ``root``, ``targets``, ``online`` and ``builder``.

    Implementation: backends.tuf.repository.
    """

    def signer(self, name: str) -> CryptoSigner | None:
        """None when the key is not here (taken offline)."""

    def create(self, name: str) -> CryptoSigner:
        """A new key, kept as ``<name>.next`` while there is one of that name."""

    def promote(self, name: str) -> None:
        """Make ``<name>.next`` the key; the old one stays as ``<name>.old``. Idempotent."""


def serialise(metadata: Metadata[Any]) -> bytes:
    """The bytes that are published: compact JSON."""
    return metadata.to_bytes(_COMPACT)


def signed(payload: M, signers: Sequence[CryptoSigner]) -> Metadata[M]:
    """``payload`` with one signature for each signer."""
    metadata = Metadata(payload)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata


def parse(data: bytes, kind: type[M], *, what: str) -> Metadata[M]:
    """Metadata from bytes, its type checked, its signatures not. Raises Untrusted."""
    try:
        metadata = Metadata[M].from_bytes(data)
    except (DeserializationError, RecursionError) as error:
        raise Untrusted(f"{what} is not TUF metadata: {error}") from error
    if not isinstance(metadata.signed, kind):
        raise Untrusted(f"{what} is TUF metadata of type {metadata.signed.type}")
    return metadata


def expiry(role: str, now: datetime) -> datetime:
    """When metadata of ``role`` that is signed now shall expire."""
    return (now + LIVES[role]).replace(microsecond=0)


# Keys


def public_bytes(key: Key) -> bytes:
    """DER SubjectPublicKeyInfo. Raises Untrusted for anything but ed25519."""
    try:
        raw = bytes.fromhex(key.keyval["public"])
        public = Ed25519PublicKey.from_public_bytes(raw)
    except (KeyError, ValueError) as error:
        raise Untrusted(f"TUF key {key.keyid[:12]} is not ed25519") from error
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def key_id(key: Key) -> str:
    """Our key identifier: hex SHA-256 of the DER SubjectPublicKeyInfo."""
    return hashlib.sha256(public_bytes(key)).hexdigest()


def tuf_key(public: Ed25519PublicKey) -> SSlibKey:
    """As TUF metadata carries it."""
    return SSlibKey.from_crypto(public)


def check_signed(message: Signed, keys: Mapping[str, Ed25519PublicKey], *, purpose: str) -> None:
    """Raises Untrusted unless ``message`` has this purpose and one of ``keys`` signed it."""
    if message.purpose != purpose:
        raise Untrusted(f"expected a {purpose}, got a {message.purpose}")
    key = keys.get(message.key_id)
    if key is None:
        raise Untrusted(f"{purpose} is signed by an unknown key {message.key_id[:12]}")
    try:
        key.verify(message.signature, message.signed_bytes)
    except InvalidSignature:
        raise Untrusted(f"the signature of a {purpose} is wrong") from None


def delegated_keys(targets: Targets, role: str) -> dict[str, Ed25519PublicKey]:
    """Our key identifier to key, of a role that ``targets`` delegates to."""
    found: dict[str, Ed25519PublicKey] = {}
    delegations = targets.delegations
    if delegations is None or not delegations.roles or role not in delegations.roles:
        return found
    for keyid in delegations.roles[role].keyids:
        key = delegations.keys[keyid]
        raw = bytes.fromhex(key.keyval["public"])
        found[key_id(key)] = Ed25519PublicKey.from_public_bytes(raw)
    return found


# Building


def new_root(keys: Mapping[str, Sequence[Key]], version: int, now: datetime) -> Root:
    """``keys`` by top-level role; the threshold is one for each role."""
    root = Root(version=version, expires=expiry("root", now), consistent_snapshot=True)
    for role, several in keys.items():
        for key in several:
            root.add_key(key, role)
    return root


def new_targets(
    builders: Sequence[Key], channels: Sequence[Key], version: int, now: datetime
) -> Targets:
    """The top-level targets: no files of its own, two terminating delegations."""
    roles = {
        "builds": DelegatedRole(
            "builds", [k.keyid for k in builders], 1, True, paths=list(BUILDS_PATHS)
        ),
        "channels": DelegatedRole(
            "channels", [k.keyid for k in channels], 1, True, paths=list(CHANNELS_PATHS)
        ),
    }
    keys = {key.keyid: key for key in (*builders, *channels)}
    return Targets(
        version=version,
        expires=expiry("targets", now),
        delegations=Delegations(keys=keys, roles=roles),
    )


def target_of(path: str, content: bytes, *, added: int | None = None) -> TargetFile:
    """A target file entry for ``content``."""
    target = TargetFile.from_data(path, content, ["sha256"])
    if added is not None:
        target.unrecognized_fields["custom"] = {ADDED: added}
    return target


def added_in(target: TargetFile) -> int:
    """The version of ``builds`` that brought the target; 0 when it does not say."""
    custom = target.unrecognized_fields.get("custom")
    value = custom.get(ADDED, 0) if isinstance(custom, dict) else 0
    return value if isinstance(value, int) else 0


def target_digest(target: TargetFile) -> str:
    """The SHA-256 under which the target's content is kept as an object. Raises Untrusted."""
    found = target.hashes.get("sha256")
    if found is None:
        raise Untrusted(f"target {target.path} has no SHA-256")
    return found


def successor_of_builds(
    current: Targets | None, now: datetime, add: Mapping[str, bytes], keep: frozenset[str]
) -> Targets:
    """The next version of ``builds`` with the targets in ``add`` (path to content).

    Releases beyond ``KEPT_RELEASES`` are left out, oldest first, never those in ``add`` or
    ``keep`` (release digests that channels name).
    """
    version = (current.version if current else 0) + 1
    targets = dict(current.targets) if current else {}
    for path, content in add.items():
        if path not in targets or not _same(targets[path], content):
            targets[path] = target_of(path, content, added=version)
    releases = sorted(
        (path for path in targets if path.startswith("releases/")),
        key=lambda path: (added_in(targets[path]), path),
    )
    spared = {f"releases/{sha256}.json" for sha256 in keep} | set(add)
    surplus = len(releases) - KEPT_RELEASES
    for path in [p for p in releases if p not in spared][: max(0, surplus)]:
        del targets[path]
    return Targets(version=version, expires=expiry("builds", now), targets=targets)


def _same(target: TargetFile, content: bytes) -> bool:
    return target.hashes.get("sha256") == hashlib.sha256(content).hexdigest()


def meta_file(version: int, data: bytes) -> MetaFile:
    """A reference to metadata that fixes its every byte."""
    return MetaFile(version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})


# Checks for those who pass metadata on (relays) or take it from builders (the hub)


def follow_root(trusted: Metadata[Root], data: bytes) -> Metadata[Root]:
    """The next root, signed by the old keys and by its own. Raises Untrusted."""
    following = parse(data, Root, what="root.json")
    if following.signed.version != trusted.signed.version + 1:
        raise Untrusted(
            f"root.json is version {following.signed.version}, expected"
            f" {trusted.signed.version + 1}"
        )
    verify(trusted.signed, "root", following)
    verify(following.signed, "root", following)
    return following


def verify(delegator: Root | Targets, role: str, metadata: Metadata[Any]) -> None:
    """Raises Untrusted unless enough of the role's keys signed."""
    try:
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError) as error:
        raise Untrusted(f"{role}.json: {error}") from error


def signed_at(timestamp: Timestamp) -> datetime | None:
    """When the timestamp was signed, by the hub's clock; None when it does not say."""
    value = timestamp.unrecognized_fields.get(SIGNED_AT)
    if not isinstance(value, str):
        return None
    try:
        when = datetime.fromisoformat(value)
    except ValueError:
        return None
    return when if when.tzinfo else None


def matches(target: TargetFile, content: bytes) -> bool:
    """Whether ``content`` is what the target names."""
    return len(content) == target.length and _same(target, content)
