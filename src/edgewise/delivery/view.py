"""A hub's repository as anybody can check it from its files alone. Pure; reading is an argument.

For people who verify (``artifact verify``, ``bundle show``): every signature from a root on, and
a list of what has expired instead of a refusal. What a node accepts is decided by
backends.tuf.client, which knows what it has seen before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

from edgewise.delivery import trust
from edgewise.model.errors import NotFound, Untrusted
from edgewise.model.names import Digest

Read = Callable[[str], bytes | None]
"""The bytes of a path below the content root; None when there is none."""
ROOTS: Final = 256
"""Root versions followed, as python-tuf does."""
DELEGATED: Final = ("builds", "channels")


@dataclass(frozen=True, slots=True)
class View:
    """Metadata whose signatures hold."""

    root: Metadata[Root]
    first_root: str
    """SHA-256 of the root that was begun with: compare it with one that you know."""
    timestamp: Timestamp
    targets: Targets
    roles: dict[str, Targets]
    """``builds`` and ``channels``, where there are."""
    files: dict[str, bytes]
    """Every file that was read, by its name below ``tuf/``."""
    expired: tuple[str, ...]
    """``timestamp on 2026-01-31``, for people."""

    def target(self, path: str) -> TargetFile | None:
        """A target of ``builds`` or ``channels``."""
        role = "channels" if path.startswith("channels/") else "builds"
        found = self.roles.get(role)
        return found.targets.get(path) if found else None

    def builders(self) -> list[Key]:
        """Who may sign builds."""
        return keys_of(self.targets, "builds")


def keys_of(targets: Targets, role: str) -> list[Key]:
    """The keys of a role that ``targets`` delegates to."""
    delegations = targets.delegations
    if delegations is None or not delegations.roles or role not in delegations.roles:
        return []
    return [delegations.keys[keyid] for keyid in delegations.roles[role].keyids]


def read_view(read: Read, now: datetime, root: bytes | None = None) -> View:
    """Follow the roots, then timestamp, snapshot, targets and what these delegate.

    ``root``: metadata that is believed; without it the oldest root that is there is. Raises
    NotFound for a file that is missing, Untrusted for one that does not verify.
    """
    files: dict[str, bytes] = {}

    def file(name: str) -> bytes:
        data = read(f"tuf/{name}")
        if data is None:
            raise NotFound(f"there is no tuf/{name}", hint="name the directory with tuf/ in it")
        files[name] = data
        return data

    first = root if root is not None else _oldest_root(read)
    trusted = trust.parse(first, Root, what="root.json")
    files[f"{trusted.signed.version}.root.json"] = first
    trust.verify(trusted.signed, "root", trusted)
    for version in range(trusted.signed.version + 1, trusted.signed.version + ROOTS):
        data = read(f"tuf/{version}.root.json")
        if data is None:
            break
        trusted = trust.follow_root(trusted, data)
        files[f"{version}.root.json"] = data
    stamp = trust.parse(file("timestamp.json"), Timestamp, what="timestamp.json")
    trust.verify(trusted.signed, "timestamp", stamp)
    about = stamp.signed.snapshot_meta
    snapshot = _fixed(file(f"{about.version}.snapshot.json"), about, Snapshot, "snapshot")
    trust.verify(trusted.signed, "snapshot", snapshot)
    meta = snapshot.signed.meta
    about = meta["targets.json"]
    targets = _fixed(file(f"{about.version}.targets.json"), about, Targets, "targets")
    trust.verify(trusted.signed, "targets", targets)
    checked: dict[str, Metadata[Any]] = {
        "root": trusted, "timestamp": stamp, "snapshot": snapshot, "targets": targets,
    }  # fmt: skip
    for role in DELEGATED:
        if f"{role}.json" in meta:
            about = meta[f"{role}.json"]
            delegated = _fixed(file(f"{about.version}.{role}.json"), about, Targets, role)
            trust.verify(targets.signed, role, delegated)
            checked[role] = delegated
    return View(
        trusted,
        Digest.of(first).sha256,
        stamp.signed,
        targets.signed,
        {role: checked[role].signed for role in DELEGATED if role in checked},
        files,
        tuple(
            f"{role} on {metadata.signed.expires:%Y-%m-%d}"
            for role, metadata in checked.items()
            if metadata.signed.expires <= now
        ),
    )


def _oldest_root(read: Read) -> bytes:
    for version in range(1, ROOTS):
        if (data := read(f"tuf/{version}.root.json")) is not None:
            return data
    raise NotFound("there is no tuf/1.root.json", hint="name the directory with tuf/ in it")


def _fixed(data: bytes, about: Any, kind: Any, role: str) -> Metadata[Any]:
    """Metadata whose version, and hash where there is one, were signed above it."""
    hashes = about.hashes or {}
    if "sha256" in hashes and Digest.of(data).sha256 != hashes["sha256"]:
        raise Untrusted(f"{role}.json is not the file that was signed")
    metadata: Metadata[Any] = trust.parse(data, kind, what=f"{role}.json")
    if metadata.signed.version != about.version:
        raise Untrusted(f"{role}.json is version {metadata.signed.version}, not {about.version}")
    return metadata
