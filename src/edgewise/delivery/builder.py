"""What a builder signs: the successor of ``builds`` and the documents it names. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import TargetFile, Targets

from edgewise.delivery import trust
from edgewise.delivery.contents import named_by_target
from edgewise.model.errors import BadUsage, Conflict, Forbidden, Untrusted
from edgewise.model.names import Digest, Platform, is_name
from edgewise.protocol.api import Builds, BuildsUpload
from edgewise.protocol.content import (
    Artifact,
    EvidenceRef,
    Shape,
    TreeRef,
    artifact_target,
    release_target,
)

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


def artifact_path(name: str, version: str) -> str:
    """Its target path. Raises BadUsage, with the accepted form, for a name or version that is
    none."""
    if not is_name(name):
        raise BadUsage(f"artifact name {name!r} is not a DNS label (a-z, 0-9, '-')")
    if not _VERSION.fullmatch(version):
        raise BadUsage(
            f"version {version!r} cannot be part of {artifact_target(name, 'VERSION')}",
            hint="letters, digits and . _ + -, at most 100, and a letter or digit first",
        )
    return artifact_target(name, version)


def make_artifact(  # noqa: PLR0913 - one parameter is one field of the document
    name: str,
    version: str,
    trees: Mapping[str, TreeRef],
    *,
    built_from: str = "",
    system: bool = False,
    evidence: Sequence[EvidenceRef] = (),
    shape: Shape | msgspec.UnsetType = msgspec.UNSET,
) -> Artifact:
    """An artifact. Raises BadUsage, with the accepted form, for a name or version that is none."""
    artifact_path(name, version)
    if not trees:
        raise BadUsage(f"artifact {name} has no platform", hint="add --platform linux/amd64=DIR")
    try:
        for platform in trees:
            Platform(platform)
    except ValueError as error:
        raise BadUsage(str(error)) from error
    marked = True if system else msgspec.UNSET
    known = tuple(evidence) or msgspec.UNSET
    trees = dict(sorted(trees.items()))
    return Artifact(name, version, trees, built_from, evidence=known, system=marked, shape=shape)


def target_of_document(document: bytes) -> str:
    """The target path of an artifact or release document. Raises BadUsage for others."""
    try:
        fields = msgspec.json.decode(document)
    except msgspec.DecodeError as error:
        raise BadUsage(f"not a document: {error}") from error
    if isinstance(fields, dict) and "version" in fields:
        path = artifact_target(str(fields.get("name")), str(fields["version"]))
    else:
        path = release_target(Digest.of(document).sha256)
    named_by_target(path, document)
    return path


def sign_builds(
    current: Builds,
    signer: CryptoSigner,
    documents: tuple[bytes, ...],
    now: datetime,
    *,
    keep: frozenset[str] = frozenset(),
    beside: tuple[bytes, ...] = (),
) -> BuildsUpload:
    """The successor of ``current`` with artifact and release ``documents`` added.

    ``beside`` are small documents that these name (parts, trees) and that go up with them;
    ``keep`` names releases that fleets run. Raises Forbidden when the key is not among
    those that the hub delegates to, Conflict when an artifact version exists with other
    content.
    """
    if trust.key_id(signer.public_key) not in current.keys:
        raise Forbidden(
            f"key {trust.key_id(signer.public_key)[:12]} may not sign builds",
            hint="add FILE.pub on the hub's machine: `edgewise key add FILE.pub` (docs/trust.md)",
        )
    before: Targets | None = None
    if current.metadata:
        before = trust.parse(current.metadata, Targets, what="builds.json").signed
    add = {target_of_document(document): document for document in documents}
    for path, document in add.items():
        known = before.targets.get(path) if before else None
        if known is not None and not trust.matches(known, document):
            raise Conflict(f"{path} is published with other content", hint="give it a new version")
    following = trust.successor_of_builds(before, now, add, keep)
    return BuildsUpload(trust.serialise(trust.signed(following, [signer])), (*documents, *beside))


def own_targets(current: Builds, keys: Sequence[Key]) -> dict[str, TargetFile]:
    """The targets of ``current``, which one of ``keys`` must have signed. Raises Untrusted.

    A builder signs the whole list again, so it may only take over a list of builders that
    it trusts: the hub that hands it out could have put its own programs into it.
    """
    if not current.metadata:
        return {}
    metadata = trust.parse(current.metadata, Targets, what="builds.json")
    for key in keys:
        signature = metadata.signatures.get(key.keyid)
        if signature is None:
            continue
        try:
            key.verify_signature(signature, metadata.signed_bytes)
        except UnverifiedSignatureError:
            continue
        return dict(metadata.signed.targets)
    raise Untrusted(
        f"none of the builders you trust signed version {metadata.signed.version} of builds",
        hint="name the other builders' keys with --also FILE.pub (docs/trust.md)",
    )
