"""The hub's TUF repository: what is current, what follows, in which order it is written.

Laws: role metadata, then snapshot, then timestamp, each synced before the next, so that a
crash between any two leaves the old repository valid; memory follows the disk; a rotation
passes only through states in which old and new clients both verify. Time is an argument.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from edgewise.delivery import trust
from edgewise.model.errors import NeedsPerson
from edgewise.protocol.channel import Signed

KEPT_VERSIONS: Final = 32
"""Old versions of a metadata file that stay for nodes in the middle of reading."""
_TOP: Final = ("root", "targets", "snapshot", "timestamp")
_SIGNS: Final[Mapping[str, tuple[str, ...]]] = {
    "root": ("root",),
    "targets": ("targets",),
    "online": ("timestamp", "snapshot", "channels"),
    "builder": ("builds",),
}
_SIGNER_OF: Final = {role: name for name, roles in _SIGNS.items() for role in roles}


@dataclass(frozen=True, slots=True)
class KeyLine:
    """One signing key or role, for `edgewise doctor`."""

    name: str
    present: bool
    expires: datetime
    """Of the metadata that it signs."""
    advice: str
    """Empty: nothing to do."""


class Repository:
    """Not safe for two writers: the publisher holds a lock around every change."""

    def __init__(
        self,
        files: trust.MetadataFiles,
        keys: trust.TrustKeys,
        mode: Literal["hub", "builder"] | None,
    ) -> None:
        """``mode`` None: as it is; a new repository starts with ``hub``."""
        self._files = files
        self._keys = keys
        self._wanted = mode
        self.mode: Literal["hub", "builder"] = mode or "hub"
        self.roles: dict[str, Metadata[Any]] = {}
        self.bytes: dict[str, bytes] = {}
        self._online: CryptoSigner

    def open(self, now: datetime) -> None:
        """Load, or make with new keys; finish what a crash cut off; follow a changed mode.

        Raises NeedsPerson when a key that is needed for this is not here.
        """
        if self._files.read("timestamp.json") is None:
            self._create(now)
        else:
            self._load()
            if self._wanted is None:
                own = self._keys.signer("builder")
                held = {key.keyid for key in self.builder_keys()}
                self.mode = "hub" if own and own.public_key.keyid in held else "builder"
        self._settle(now)

    def sign(
        self, purpose: Literal["node-record/1", "bundle/1", "media/1"], payload: bytes
    ) -> Signed:
        """A record, trust bundles or media, signed with the channels key (about 0.1 ms)."""
        unsigned = Signed(purpose, payload, self.online_id, b"")
        signature = bytes.fromhex(self._online.sign(unsigned.signed_bytes).signature)
        return Signed(purpose, payload, self.online_id, signature)

    def root_chain(self) -> dict[str, bytes]:
        """Every root after the first by file name: what leads from a join to now."""
        newest = self.roles["root"].signed.version
        names = [f"{version}.root.json" for version in range(2, newest + 1)]
        return {name: data for name in names if (data := self._files.read(name)) is not None}

    def key_lines(self, now: datetime) -> tuple[KeyLine, ...]:
        """The signing keys and what should be done about them."""
        lines = []
        for name, roles in _SIGNS.items():
            present = self._keys.signer(name) is not None
            signs = [self.roles[role].signed for role in roles if role in self.roles]
            if not signs:
                continue  # nothing is built yet
            expires = min(one.expires for one in signs)
            late = expires - now < trust.LIVES[roles[0]] / 4
            advice = ""
            if name in ("root", "targets") and present and not late:
                advice = f"move keys/{name}.pem to a safe place off this machine"
            elif name == "builder" and present and self.mode == "hub":
                advice = "who has this hub can run code on every node: use trust: builder"
            elif name == "online" and len(self.roles["root"].signed.roles["timestamp"].keyids) > 1:
                advice = "a rotation was cut off: `edgewise key rotate online` finishes it"
            elif late and not present:
                advice = f"bring keys/{name}.pem back before {expires:%Y-%m-%d} to sign again"
            lines.append(KeyLine(name, present, expires, advice))
        return tuple(lines)

    def targets(self, role: str) -> dict[str, Any]:
        """The target files of ``builds`` or ``channels``, by path."""
        return self.roles[role].signed.targets if role in self.roles else {}

    def builder_keys(self) -> list[Key]:
        """Who may sign ``builds``."""
        delegations = self.roles["targets"].signed.delegations
        return [delegations.keys[k] for k in delegations.roles["builds"].keyids]

    def commit(
        self,
        changed: Mapping[str, Metadata[Any]],
        now: datetime,
        as_signed: Mapping[str, bytes] | None = None,
    ) -> None:
        """Roles, then snapshot, then timestamp; memory follows when all of it is on disk."""
        data = {role: trust.serialise(metadata) for role, metadata in changed.items()}
        data |= as_signed or {}
        before = self.roles.get("snapshot")
        meta = dict(before.signed.meta) if before else {}
        for role, metadata in changed.items():
            meta[f"{role}.json"] = trust.meta_file(metadata.signed.version, data[role])
        snapshot = Snapshot(
            version=_version(before) + 1,
            expires=trust.expiry("snapshot", now),
            meta=meta,
        )
        following: dict[str, Metadata[Any]] = dict(changed)
        following["snapshot"] = trust.signed(snapshot, [self._online])
        data["snapshot"] = trust.serialise(following["snapshot"])
        stamp = Timestamp(
            version=(self.roles["timestamp"].signed.version if "timestamp" in self.roles else 0)
            + 1,
            expires=trust.expiry("timestamp", now),
            snapshot_meta=trust.meta_file(snapshot.version, data["snapshot"]),
            unrecognized_fields={trust.SIGNED_AT: now.replace(microsecond=0).isoformat()},
        )
        following["timestamp"] = trust.signed(stamp, [self._online])
        data["timestamp"] = trust.serialise(following["timestamp"])
        self._write(following, data)
        self.roles.update(following)
        self.bytes.update(data)

    def refresh(self, now: datetime) -> tuple[str, ...]:
        """Sign again what has used up a good part of its life; call it daily or oftener.

        Returns the roles that were signed. What needs a key that is not here is left, and
        ``key_lines`` says so.
        """
        changed: dict[str, Metadata[Any]] = {}
        for role in ("targets", "builds", "channels"):
            signer = self._signer(role)
            if role not in self.roles or signer is None or not self._is_due(role, now):
                continue
            changed[role] = self._again(role, self.roles[role].signed, signer, now)
        root_key = self._keys.signer("root")
        renewed = root_key is not None and self._is_due("root", now)
        if renewed and root_key is not None:
            root: Root = self.roles["root"].signed
            self._write_root(_renewed_root(root, now), [root_key])
        stale = any(self._is_due(role, now) for role in ("snapshot", "timestamp"))
        if changed or stale or renewed:
            self.commit(changed, now)
        done = ["root"] if renewed else []
        return (*done, *changed, *(["snapshot", "timestamp"] if changed or stale else []))

    def rotate_root(self, now: datetime) -> None:
        """A new root key: the new root is signed by the old key and by the new one."""
        old = self.offline_key("root")
        new = self._keys.create("root")
        root: Root = self.roles["root"].signed
        following = _renewed_root(root, now)
        following.revoke_key(old.public_key.keyid, "root")
        following.add_key(new.public_key, "root")
        self._write_root(following, [old, new])
        self._keys.promote("root")

    def rotate_online(self, now: datetime) -> None:
        """A new online key, by way of a root that trusts both: valid at every moment.

        Node records and trust bundles have to be signed again afterwards (``sign``).
        """
        root_key, old = self.offline_key("root"), self._online
        self.offline_key("targets")
        new = self._keys.create("online")
        both = _renewed_root(self.roles["root"].signed, now)
        for role in ("snapshot", "timestamp"):
            both.add_key(new.public_key, role)
        self._write_root(both, [root_key])
        builders = self.builder_keys()
        self._delegate(builders, [old.public_key, new.public_key], now)
        self._keys.promote("online")
        self._use_online(new)
        channels = self.roles["channels"].signed
        self.commit({"channels": self._again("channels", channels, new, now)}, now)
        self._delegate(builders, [new.public_key], now)
        only = _renewed_root(self.roles["root"].signed, now)
        for role in ("snapshot", "timestamp"):
            for keyid in set(only.roles[role].keyids) - {new.public_key.keyid}:
                only.revoke_key(keyid, role)
        self._write_root(only, [root_key])

    def set_builders(self, keys: Sequence[Key], now: datetime) -> None:
        """Say who may sign ``builds``. Raises NeedsPerson when the targets key is not here."""
        self._delegate(keys, [self._online.public_key], now)

    # How

    def _create(self, now: datetime) -> None:
        made = {name: self._keys.signer(name) or self._keys.create(name) for name in _SIGNS}
        public = {name: [signer.public_key] for name, signer in made.items()}
        top = {role: public[_SIGNER_OF[role]] for role in _TOP}
        root = trust.new_root(top, 1, now)
        self._write_root(root, [made["root"]])
        self._use_online(made["online"])
        builders = public["builder"] if self.mode == "hub" else []
        targets = trust.new_targets(builders, public["online"], 1, now)
        roles: dict[str, Metadata[Any]] = {
            "targets": trust.signed(targets, [made["targets"]]),
            "channels": self.next_channels({}, now),
        }
        if self.mode == "hub":
            empty = trust.successor_of_builds(None, now, {}, frozenset())
            roles["builds"] = trust.signed(empty, [made["builder"]])
        self.commit(roles, now)

    def _load(self) -> None:
        roots = [int(n.split(".")[0]) for n in self._files.names() if n.endswith(".root.json")]
        self._take("root", max(roots), Root)
        data = self._files.read("timestamp.json") or b""
        self.bytes["timestamp"] = data
        stamp = trust.parse(data, Timestamp, what="timestamp.json")
        self.roles["timestamp"] = stamp
        self._take("snapshot", stamp.signed.snapshot_meta.version, Snapshot)
        for name, meta in self.roles["snapshot"].signed.meta.items():
            self._take(name.removesuffix(".json"), meta.version, Targets)

    def _take(self, role: str, version: int, kind: Any) -> None:
        data = self._files.read(f"{version}.{role}.json")
        if data is None:
            raise NeedsPerson(
                f"the hub's content/tuf/{version}.{role}.json is gone",
                hint="restore the hub's data directory from its backup",
            )
        self.roles[role] = trust.parse(data, kind, what=f"{role}.json")
        self.bytes[role] = data

    def _settle(self, now: datetime) -> None:
        """After a start: finish a rotation that a crash cut, follow a changed mode."""
        for name in ("root", "online"):
            following = self._keys.signer(f"{name}.next")
            trusted = self.roles["root"].signed.roles[_SIGNS[name][0]].keyids
            current = self._keys.signer(name)
            if following is not None and following.public_key.keyid in trusted:
                if current is None or current.public_key.keyid not in trusted:
                    self._keys.promote(name)
        online = self._keys.signer("online")
        if online is None:
            raise NeedsPerson("the hub's keys/online.pem is gone", hint="restore it from a backup")
        if online.public_key.keyid not in self.roles["root"].signed.roles["timestamp"].keyids:
            raise NeedsPerson("keys/online.pem is not the key that the root names")
        self._use_online(online)
        own = self._keys.signer("builder")
        held = {key.keyid for key in self.builder_keys()}
        if own is not None and (own.public_key.keyid in held) != (self.mode == "hub"):
            others = [k for k in self.builder_keys() if k.keyid != own.public_key.keyid]
            mine = [own.public_key] if self.mode == "hub" else []
            self._delegate([*others, *mine], [online.public_key], now)
            self.refresh(now)

    def _use_online(self, signer: CryptoSigner) -> None:
        self._online = signer
        self.online_id = trust.key_id(signer.public_key)

    def _signer(self, role: str) -> CryptoSigner | None:
        if _SIGNER_OF[role] == "online":
            return self._online
        if role == "builds" and self.mode == "builder":
            return None
        return self._keys.signer(_SIGNER_OF[role])

    def offline_key(self, name: str) -> CryptoSigner:
        """Raises NeedsPerson when the key is not here."""
        signer = self._keys.signer(name)
        if signer is None:
            raise NeedsPerson(f"keys/{name}.pem is not here", hint="bring it back for this step")
        return signer

    def _is_due(self, role: str, now: datetime) -> bool:
        left: Any = self.roles[role].signed.expires - now
        if role == "timestamp":
            return bool(left < trust.TIMESTAMP_LIFE * 6 / 7)
        return bool(left < trust.LIVES[role] / 2)

    def _again(
        self, role: str, payload: Targets, signer: CryptoSigner, now: datetime
    ) -> Metadata[Any]:
        following = Targets.from_dict(payload.to_dict())
        following.version += 1
        following.expires = trust.expiry(role, now)
        return trust.signed(following, [signer])

    def next_channels(self, targets: dict[str, Any], now: datetime) -> Metadata[Any]:
        """The successor of ``channels`` with these targets, signed."""
        before = self.roles.get("channels")
        payload = Targets(
            version=_version(before) + 1,
            expires=trust.expiry("channels", now),
            targets=targets,
        )
        return trust.signed(payload, [self._online])

    def _delegate(self, builders: Sequence[Key], channels: Sequence[Key], now: datetime) -> None:
        signer = self.offline_key("targets")
        version = self.roles["targets"].signed.version + 1
        payload = trust.new_targets(builders, channels, version, now)
        self.commit({"targets": trust.signed(payload, [signer])}, now)

    def _write_root(self, root: Root, signers: Sequence[CryptoSigner]) -> None:
        metadata = trust.signed(root, signers)
        data = trust.serialise(metadata)
        self._files.write(f"{root.version}.root.json", data)
        self.roles["root"], self.bytes["root"] = metadata, data

    def _write(self, following: Mapping[str, Metadata[Any]], data: Mapping[str, bytes]) -> None:
        for role, metadata in following.items():
            if role != "timestamp":
                self._files.write(f"{metadata.signed.version}.{role}.json", data[role])
        self._files.write("timestamp.json", data["timestamp"])
        for role in following:
            newest = following[role].signed.version
            if newest > KEPT_VERSIONS:
                self._files.remove(f"{newest - KEPT_VERSIONS}.{role}.json")


def _renewed_root(root: Root, now: datetime) -> Root:
    following = Root.from_dict(root.to_dict())
    following.version += 1
    following.expires = trust.expiry("root", now)
    return following


def _version(metadata: Metadata[Any] | None) -> int:
    return int(metadata.signed.version) if metadata else 0
