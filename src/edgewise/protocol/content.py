"""What is addressed by the digest of its bytes: releases, parts, trees, file contents.

Every one of them is an **object**: named by the SHA-256 of its uncompressed bytes and
served zstd-compressed under ``object_path``. A release names parts, a part names trees,
a tree names file contents, so one signed release digest fixes every byte that runs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, Literal, NamedTuple

import msgspec

from edgewise.model.labels import Labels
from edgewise.model.names import Digest
from edgewise.protocol import limits
from edgewise.protocol.egress import EgressRules
from edgewise.protocol.tree_checks import all_sound, check_each, check_xattrs

SCHEMA: Final = 1


def object_path(sha256: str) -> str:
    """Where an object lies below the content root; immutable, cacheable for ever."""
    return f"objects/{sha256[:2]}/{sha256[2:]}.zst"


# Trees


class Attributes(NamedTuple):
    """What a file has besides its content. Files share an inode only where all of it is equal."""

    mode: int
    """Permission bits, at most 0o7777."""
    uid: int | None = None
    """None, as in plain trees: whoever lays the tree out."""
    gid: int | None = None
    xattrs: tuple[tuple[str, bytes], ...] = ()
    """Name and value, sorted by name."""
    sparse: bool = False
    """Its blocks of zeros take no space."""

    @property
    def key(self) -> str:
        """Short, and fit for a file name: what a kept file is named by, besides its content."""
        return _key_of(*self)


@lru_cache(1024)
def _key_of(
    mode: int,
    uid: int | msgspec.UnsetType | None,
    gid: int | msgspec.UnsetType | None,
    xattrs: tuple[tuple[str, bytes], ...],
    sparse: bool,
) -> str:
    if uid is None or uid is msgspec.UNSET or gid is msgspec.UNSET:
        return f"{mode:o}"
    words = [f"{mode:o}", str(uid), str(gid)]
    if xattrs:
        marks = (b"%d:%d:" % (len(n), len(v)) + n.encode() + v for n, v in xattrs)
        words.append(Digest.of(b"".join(marks)).sha256[:32])
    return ".".join(words) + ("s" if sparse else "")


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """One path of a tree. Plain trees have ``file``, ``dir`` and ``link``, and no owners.

    Checked by the ``Tree`` that it is in, with all others at once.
    """

    path: str
    """Relative, POSIX separators, no ``..``, no empty or ``.`` segments."""
    kind: Literal["file", "dir", "link", "hard", "char", "block", "fifo"]
    mode: int = 0o644
    """Permission bits, at most 0o7777."""
    size: int = 0
    """Bytes of a file."""
    sha256: str = ""
    """Content of a file."""
    target: str = ""
    """Where a link points: in plain trees never absolute, never out of the tree. Of ``hard``:
    the path of a ``file`` that comes earlier; this is a second name of the same inode."""
    uid: int | msgspec.UnsetType = msgspec.UNSET
    """In system trees, of every entry but ``hard``."""
    gid: int | msgspec.UnsetType = msgspec.UNSET
    xattrs: tuple[tuple[str, bytes], ...] = ()
    """Name and value, sorted by name; ``security.capability`` is one."""
    sparse: bool = False
    """The file's blocks of zeros (4,096 bytes, aligned) are holes."""
    device: tuple[int, int] | msgspec.UnsetType = msgspec.UNSET
    """Major and minor number of ``char`` and ``block``."""

    @property
    def attributes(self) -> Attributes:
        """All but its content; plain entries leave the owner to whoever lays them out."""
        if self.uid is msgspec.UNSET or self.gid is msgspec.UNSET:
            return Attributes(self.mode)
        return Attributes(self.mode, self.uid, self.gid, self.xattrs, self.sparse)

    @property
    def key(self) -> str:
        """``attributes.key``, which an update asks for of each file, again and again."""
        return _key_of(self.mode, self.uid, self.gid, self.xattrs, self.sparse)


class Top(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The directory that a system tree is laid out in."""

    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    xattrs: tuple[tuple[str, bytes], ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.mode <= 0o7777 or not (
            0 <= self.uid <= limits.OWNER and 0 <= self.gid <= limits.OWNER
        ):
            raise ValueError("the mode or an owner of the tree's top is out of range")
        check_xattrs(".", self.xattrs)


class Tree(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A directory's content, sorted by path; parents come before what is in them."""

    entries: tuple[Entry, ...]
    schema: Literal[1] = 1
    system: Top | msgspec.UnsetType = msgspec.UNSET
    """Present where the tree has owners, xattrs, devices and links to anywhere: that of an
    operating system. Absent in plain trees, which keep the digest they had."""

    def __post_init__(self) -> None:
        if len(self.entries) > limits.ENTRIES:
            raise ValueError(f"a tree has at most {limits.ENTRIES} entries")
        if not all_sound(self.entries, plain=self.system is msgspec.UNSET):
            check_each(self.entries, plain=self.system is msgspec.UNSET)


class TreeRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tree by the digest of its manifest, with what it takes to fetch and keep it."""

    sha256: str
    size: int
    """Bytes of all its files, uncompressed."""
    files: int

    def __post_init__(self) -> None:
        Digest(self.sha256)


class EvidenceRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An object that says what is in an artifact, or where it comes from (docs/provenance.md)."""

    kind: Literal["sbom", "provenance"]
    media_type: str
    sha256: str
    size: int
    """Bytes, at most ``limits.EVIDENCE``."""
    platform: str = ""
    """Of an SBOM; provenance speaks of every platform."""

    def __post_init__(self) -> None:
        Digest(self.sha256)
        if not 0 <= self.size <= limits.EVIDENCE:
            raise ValueError(f"{self.kind} has {self.size} bytes, at most {limits.EVIDENCE}")


Shape = Literal["oci", "ostree", "disk"]
"""A container image, an OSTree commit, a raw disk image (docs/internals/shapes.md)."""


class Artifact(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named, versioned set of trees, one for each platform; a target of the builder's role."""

    name: str
    version: str
    trees: dict[str, TreeRef]
    """Platform (``linux/amd64``) to tree."""
    built_from: str = ""
    """Free text of the build: a commit, a pipeline; shown, never interpreted."""
    evidence: tuple[EvidenceRef, ...] | msgspec.UnsetType = msgspec.UNSET
    """SBOMs by platform, then provenance. Absent where there is none, so that artifacts without
    keep the digest they had."""
    schema: Literal[1] = 1
    system: bool | msgspec.UnsetType = msgspec.UNSET
    """True: its trees are system trees, so no app may name it. Absent otherwise."""
    shape: Shape | msgspec.UnsetType = msgspec.UNSET
    """What its trees stand for, when it is no directory; no app may name it then."""

    def sbom(self, platform: str) -> EvidenceRef | None:
        """What says what is in the tree of this platform."""
        found = (e for e in self.all_evidence if e.kind == "sbom" and e.platform == platform)
        return next(found, None)

    @property
    def provenance(self) -> EvidenceRef | None:
        """What says where the trees come from."""
        return next((e for e in self.all_evidence if e.kind == "provenance"), None)

    @property
    def all_evidence(self) -> tuple[EvidenceRef, ...]:
        """Empty where there is none."""
        return () if self.evidence is msgspec.UNSET else self.evidence


def artifact_target(name: str, version: str) -> str:
    """The artifact's TUF target path."""
    return f"artifacts/{name}/{version}.json"


def release_target(sha256: str) -> str:
    """A release's TUF target path."""
    return f"releases/{sha256}.json"


def channel_target(fleet: str) -> str:
    """A fleet's channel's TUF target path."""
    return f"channels/{fleet}.json"


# Parts: what a release puts on a node


class HttpProbe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="http"):
    """GET ``http://host:port/path``; 200 to 399 is healthy."""

    port: int
    path: str = "/"
    host: str = "127.0.0.1"


class TcpProbe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="tcp"):
    """A connection that is accepted is healthy."""

    port: int
    host: str = "127.0.0.1"


class ExecProbe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="exec"):
    """A command in the app's tree; exit 0 is healthy."""

    command: tuple[str, ...]


class Probe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One check, repeated; thresholds count consecutive answers. Seconds throughout."""

    check: HttpProbe | TcpProbe | ExecProbe
    period_s: float = 10.0
    timeout_s: float = 1.0
    initial_delay_s: float = 0.0
    failure_threshold: int = 3
    success_threshold: int = 1


class Probes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Kubernetes' three: startup gates the others, liveness restarts, readiness counts."""

    startup: Probe | None = None
    liveness: Probe | None = None
    readiness: Probe | None = None


class Hook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A command run in the app's tree around an update."""

    command: tuple[str, ...]
    timeout_s: float = 60.0
    on_failure: Literal["Rollback", "Ignore"] = "Rollback"


class Dependency(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Start only after another app of the same node is in this condition."""

    name: str
    condition: Literal["Started", "Healthy"] = "Started"


class WorkloadRegistration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="identity"):
    """Which processes of a node may have a SPIFFE ID, and what comes with it."""

    name: str
    """Of the WorkloadIdentity document; for an app's own identity, of the app."""
    path: str
    """Of the SPIFFE ID, below the trust domain of the node: ``/app/shops/till``."""
    selectors: tuple[str, ...]
    """All must hold (model.selectors)."""
    ttl_s: float = 0.0
    """Asked lifetime of an X509-SVID; 0: the issuer's own. It may be cut, never stretched."""
    dns: tuple[str, ...] = ()
    hint: str = ""
    federates_with: tuple[str, ...] = ()
    """Other organisations' trust domains whose bundles the workload gets."""


class IngressPort(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A port of the node that leads to an app; see ``model.documents.ingress.IngressRule``."""

    port: int
    to: int
    allow: tuple[str, ...]
    address: str = "0.0.0.0"


class ProcessApp(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="process"):
    """A signed tree plus a command, run under the agent's supervisor."""

    name: str
    trees: dict[str, TreeRef]
    command: tuple[str, ...]
    """The first word is looked up in the tree when it holds a ``/``, else on PATH."""
    env: dict[str, str] = {}
    user: str = ""
    """Empty: the agent's own user."""
    memory_bytes: int = 0
    """0: no limit."""
    cpu_milli: int = 0
    """0: no limit."""
    probes: Probes = Probes()
    min_ready_s: float = 10.0
    """Seconds of unbroken health before an update of this app counts as good."""
    stop_signal: str = "SIGTERM"
    stop_timeout_s: float = 10.0
    restart: Literal["Always", "OnFailure", "Never"] = "Always"
    depends_on: tuple[Dependency, ...] = ()
    pre_update: tuple[Hook, ...] = ()
    post_update: tuple[Hook, ...] = ()
    identity: WorkloadRegistration | msgspec.UnsetType = msgspec.UNSET
    """Absent, not null, where there is none: apps without one keep the digest they had."""
    ingress: tuple[IngressPort, ...] | msgspec.UnsetType = msgspec.UNSET
    """Absent where there is none, as above."""


class ConfigFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file that must be on the node with just this text."""

    path: str
    """Absolute on the node."""
    content: str
    mode: int = 0o644
    owner: str = ""
    """``user`` or ``user:group``; empty: the agent's own."""


class OnChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What happens when a file below one of ``paths`` changed."""

    paths: tuple[str, ...]
    action: Literal["restart", "signal", "run"]
    app: str = ""
    """For ``restart`` and ``signal``: the app."""
    signal: str = "SIGHUP"
    command: tuple[str, ...] = ()
    """For ``run``."""


class FilesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="config"):
    """Files with drift correction."""

    name: str
    files: tuple[ConfigFile, ...]
    on_change: tuple[OnChange, ...] = ()


class SealedSecret(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="secret"):
    """A secret by the digest of its ciphertext in git.

    What the node can open is in its record: ``NodeRecord.sealed[source]`` is the digest of
    an object encrypted to this node's own key.
    """

    name: str
    source: str
    """SHA-256 of the ciphertext document as committed."""
    mount_path: str
    """Directory on the node (tmpfs); one file a key."""
    keys: tuple[str, ...]
    mode: int = 0o400
    owner: str = ""


class NotActedOn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="accepted"):
    """A document of a kind or type whose engine is not there yet; nodes ignore it, loudly."""

    name: str
    kind: str
    body: dict[str, str] = {}


Part = ProcessApp | FilesConfig | SealedSecret | WorkloadRegistration | EgressRules | NotActedOn


# Releases


class Window(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A cron expression (five fields) and how long it stays open."""

    at: str
    duration_s: float
    time_zone: str = "UTC"
    """An IANA name, or ``Node`` for the node's own."""


class DeliverySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How bytes come to a node."""

    max_rate: int = 0
    """Bytes a second that a node downloads at most; 0: no bound."""
    metered: Literal["Allow", "DeltasOnly", "Never"] = "Allow"
    """What may travel over a link that costs by the byte."""
    spread_s: float = 0.0
    """Nodes start to fetch spread over these seconds."""
    reserve: int = -1
    """Bytes of disk that a fetch leaves free; -1: the agent's own default."""


class NodeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Fleet-wide rules that the node itself follows."""

    drift: Literal["Report", "Correct"] = "Correct"
    drift_interval_s: float = 300.0
    download_window: Window | None = None
    apply_window: Window | None = None
    delivery: DeliverySettings | msgspec.UnsetType = msgspec.UNSET
    """Absent where the fleet says nothing of it, so that such releases keep their digest."""

    @property
    def travel(self) -> DeliverySettings:
        """How bytes come, with what is left out."""
        return DeliverySettings() if self.delivery is msgspec.UNSET else self.delivery


class PartRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part and its variants.

    ``nodes[name]`` wins, for nodes with overrides of their own; else the values of the
    labels in ``by``, joined by ``variant_key``, choose from ``variants``.
    """

    kind: Literal["app", "config", "secret", "identity", "egress", "other"]
    name: str
    by: tuple[str, ...]
    variants: dict[str, str]
    nodes: dict[str, str] = {}

    def choose(self, node: str, labels: Labels) -> str | None:
        """The digest of the part for this node, or None where no variant was compiled."""
        return self.nodes.get(node) or self.variants.get(variant_key(self.by, labels))


def variant_key(by: tuple[str, ...], labels: Labels) -> str:
    """Label values joined by ``|``; ``~`` stands for a label that the node lacks.

    Neither character can occur in a label value (Kubernetes' rule).
    """
    return "|".join(labels.get(key, "~") for key in by)


class Release(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one fleet should run. Same content, same digest: nothing to do."""

    fleet: str
    parts: tuple[PartRef, ...]
    """Sorted by (kind, name)."""
    settings: NodeSettings = NodeSettings()
    schema: Literal[1] = 1

    def selection(self, node: str, labels: Labels) -> tuple[tuple[str, str, str], ...]:
        """(kind, name, part digest) for one node, in order.

        Raises KeyError with the part's name where the release has no variant for the node.
        A part with the digest ``""`` is one the node does not get.
        """
        chosen = []
        for ref in self.parts:
            digest = ref.choose(node, labels)
            if digest is None:
                raise KeyError(ref.name)
            if digest:
                chosen.append((ref.kind, ref.name, digest))
        return tuple(chosen)
