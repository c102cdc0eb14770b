"""What sync needs from the outside, and what it hands on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

import msgspec

from edgewise.model.documents import DeviceList
from edgewise.model.documents.federation import FederatedTrustDomainSpec
from edgewise.model.documents.inventory import ArtifactRules
from edgewise.model.documents.joining import JoinSpec
from edgewise.model.roles import Binding
from edgewise.model.rules import RolloutRules
from edgewise.protocol.api import SourceProblem
from edgewise.protocol.content import Artifact


@dataclass(frozen=True, slots=True)
class Blob:
    """One file of a revision: its git blob id (for caches) and its bytes."""

    id: str
    data: bytes
    refused: str = ""
    """Why the file was not read (too big); ``data`` then is no document. Empty: it was."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The YAML files of one commit."""

    branch: str
    commit: str
    """Full hex object id."""
    author: str
    subject: str
    files: Mapping[str, Blob]
    """Path to file; only those below the workspace's paths and ``edgewise.yaml`` matter."""

    @property
    def revision(self) -> str:
        """As people read it: ``main@sha1:<40 hex>``."""
        return f"{self.branch}@sha1:{self.commit}"


class Repository(Protocol):
    """A git repository with the fleet's documents.

    Implementation: backends.git.repository. Raises NotFound for an unknown revision.
    """

    async def head(self) -> str | None:
        """Commit id of the followed branch; None while it has no commit."""

    async def snapshot(self, revision: str) -> Snapshot: ...


class CommitCheck(Protocol):
    """Whether a commit may move the fleet. Implementation: backends.git.signatures."""

    async def check(self, commit: str, previous: str | None) -> str:
        """Who signed ``commit``; empty where the rules ask for no signature.

        ``previous`` is the last good revision, whose rules count; None before the first.
        Raises Untrusted with the commit and the reason.
        """


@dataclass(frozen=True, slots=True)
class JoinedNode:
    """A node that has joined, as matching sees it."""

    name: str
    labels: Mapping[str, str]
    platform: str = ""
    """As the node reported it (``linux/arm64``); empty while it is not known."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything a compile depends on besides the commit.

    With ``trust: builder`` the joined nodes do not take part (only the repo's inventory
    does), so that the same commit gives the same digests anywhere.
    """

    artifacts: Mapping[tuple[str, str], Artifact]
    """(name, version) to the published artifact."""
    joined: tuple[JoinedNode, ...] = ()
    trust: Literal["hub", "builder"] = "hub"
    """How the hub runs. The stricter of this and the Workspace's ``trust`` counts."""
    signers: Mapping[tuple[str, str], frozenset[str]] | None = None
    """(name, version) of each artifact with good provenance to the builder keys that signed it;
    None: who signed is not judged."""


@dataclass(frozen=True, slots=True)
class Member:
    """A node of a fleet, as compiled."""

    name: str
    labels: Mapping[str, str]
    selection: str
    """Digest of what this node runs under the release: equal selections need no change."""
    held: bool = False


@dataclass(frozen=True, slots=True)
class CompiledFleet:
    """One fleet of one commit: its release and who is in it."""

    name: str
    release: str
    """Digest (hex) of ``documents[release]``."""
    documents: Mapping[str, bytes]
    """Digest to canonical bytes: the release and all its parts."""
    members: Mapping[str, Member]
    rules: RolloutRules
    stages: Mapping[str, str]
    """Node to the name of its stage; every member has one."""
    trees: Mapping[str, int] = field(default_factory=dict)
    """Tree digest to its size in bytes."""
    suspended: bool = False


@dataclass(frozen=True, slots=True)
class Compiled:
    """A commit that compiled."""

    revision: str
    fleets: Mapping[str, CompiledFleet]
    unplaced: tuple[str, ...] = ()
    """Joined nodes that no fleet selects."""
    not_acted_on: tuple[str, ...] = ()
    """``file:line kind/name`` of documents whose engine comes later."""
    secrets: Mapping[str, bytes] = field(default_factory=dict)
    """Source digest to the ciphertext document, for resealing."""
    held: str = ""
    """Why this change waits for a person (mass deletion), or empty."""
    warnings: tuple[SourceProblem, ...] = ()
    """What compiles but is probably not meant, such as a selector that matches nothing."""
    trust: Literal["hub", "builder"] = "hub"
    """``builder``: only a builder may sign these releases."""
    join: JoinSpec = field(default_factory=JoinSpec)
    """Who may join and by which proof."""
    artifacts: ArtifactRules = field(default_factory=ArtifactRules)
    """What artifacts must bring."""
    device_lists: tuple[DeviceList, ...] = ()
    """Machines that may join without a token, by name of the list."""
    federated: tuple[FederatedTrustDomainSpec, ...] = ()
    """Other organisations' trust domains, by name of the document."""
    bindings: tuple[Binding, ...] = ()
    """Who may do what, by name of the document."""


class CommitSeen(msgspec.Struct, frozen=True):
    """A commit that the hub has looked at: for `edgewise trace` and for status."""

    revision: str
    """``main@sha1:<40 hex>``."""
    author: str
    subject: str
    seen: datetime
    compiled: bool
    """Whether it compiled; then ``releases`` says to what."""
    problems: tuple[SourceProblem, ...] = ()
    releases: dict[str, str] = {}
    """Fleet to release digest."""
    held: str = ""
    """Why it waits for a person; empty when it does not, or when one agreed."""

    @property
    def commit(self) -> str:
        """The full object id."""
        return self.revision.rpartition(":")[2]


class CompileMemory(Protocol):
    """Remembers commits across restarts; at least the newest thousand.

    Implementations: backends.sqlite.source, testing.commits.
    """

    async def remember(self, seen: CommitSeen) -> None:
        """Keep, or replace what was known of the same commit."""

    async def recall(self, commit: str) -> CommitSeen | None:
        """By object id or a prefix of at least 4 digits; the newest of several."""

    async def newest(self) -> CommitSeen | None:
        """The last one that was remembered for the first time."""

    async def last_good(self) -> CommitSeen | None:
        """The newest one that compiled and was not held: the fleets follow it."""


class CompileFailed(Exception):
    """A commit with mistakes: all of them, in file order. The fleet stays as it is."""

    def __init__(self, problems: tuple[SourceProblem, ...]) -> None:
        super().__init__("; ".join(map(str, problems[:3])))
        self.problems = problems
