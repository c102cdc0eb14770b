"""Where an artifact comes from: an in-toto Statement with SLSA provenance. Pure.

Sources: in-toto Attestation Framework v1 (Statement, DSSE envelope 1.0), SLSA Provenance v1.
Laws: a statement speaks of trees by their digests, so it fits one artifact only; it has no
time and no number of a run, so that building the same thing again gives the same bytes; it
holds nothing that was not given on the command line, in git, or in a named variable of CI.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import CryptoSigner, Key

from edgewise.delivery import trust
from edgewise.model.errors import Untrusted
from edgewise.protocol import limits
from edgewise.protocol.codec import encode
from edgewise.protocol.content import Artifact

STATEMENT: Final = "https://in-toto.io/Statement/v1"
PREDICATE: Final = "https://slsa.dev/provenance/v1"
PAYLOAD: Final = "application/vnd.in-toto+json"
SIGNED: Final = "application/vnd.in-toto.provenance+dsse"
"""Media type of a statement in a signed envelope."""
UNSIGNED: Final = PAYLOAD
"""Media type of a statement by itself: only the list of builds speaks for it."""
BUILD_TYPE: Final = "https://edgewise.dev/provenance/artifact-build/v1"
LOCAL: Final = "https://edgewise.dev/provenance/builder/by-hand"
"""The builder where no CI says who it is."""
SIGNATURES: Final = 8
"""Signatures of one envelope that are looked at."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What is known of a build besides what came of it."""

    builder: str = LOCAL
    """A URI: the workflow that ran, where a CI says which."""
    commit: str = ""
    """Of the git repository that the sources lie in."""
    repository: str = ""
    """Its URL, without names and passwords."""
    ref: str = ""
    changed: bool = False
    """Whether files differed from the commit."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """As given on the command line."""


class Provenance(msgspec.Struct, frozen=True):
    """What a statement says, and who signed it."""

    builder: str
    build_type: str
    source: str
    """``git+https://host/repo@ref``; empty when it does not say."""
    commit: str
    changed: bool
    """Whether files differed from the commit."""
    signed_by: tuple[str, ...]
    """Keys that we know and whose signature is good, as ``edgewise key ls`` has them."""
    signatures: int
    """Signatures in all; 0 for a bare statement."""


def make_statement(artifact: Artifact, origin: Origin) -> bytes:
    """The statement about the artifact's trees, in canonical JSON."""
    name, version = artifact.name, artifact.version
    subjects = [
        {"name": f"{name}@{version}#{platform}", "digest": {"sha256": ref.sha256}}
        for platform, ref in sorted(artifact.trees.items())
    ]
    definition: dict[str, Any] = {
        "buildType": BUILD_TYPE,
        "externalParameters": {"name": name, "version": version, **origin.parameters},
    }
    if origin.commit:
        uri = f"git+{origin.repository}" if origin.repository else "git+file:"
        resolved: dict[str, Any] = {
            "uri": f"{uri}@{origin.ref}" if origin.ref else uri,
            "digest": {"gitCommit": origin.commit},
        }
        if origin.changed:
            resolved["annotations"] = {"changedSinceCommit": True}
        definition["resolvedDependencies"] = [resolved]
    statement = {
        "_type": STATEMENT,
        "subject": subjects,
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": definition,
            "runDetails": {"builder": {"id": origin.builder}},
        },
    }
    return encode(statement)


def sign_statement(statement: bytes, signer: CryptoSigner) -> bytes:
    """The DSSE envelope, in canonical JSON."""
    envelope = Envelope(statement, PAYLOAD, {})
    envelope.sign(signer)
    return encode(envelope.to_dict())


def read_provenance(data: bytes, artifact: Artifact, keys: Iterable[Key]) -> Provenance:
    """What it says, once its subjects are known to be the trees of ``artifact``.

    ``data`` is an envelope or a bare statement. Raises Untrusted for anything else, and for a
    statement about other trees: it was made for another artifact.
    """
    envelope, statement = _opened(data)
    subjects = {
        str(one.get("digest", {}).get("sha256"))
        for one in _list(statement.get("subject"))
        if isinstance(one.get("digest"), dict)
    }
    strangers = [platform for platform, ref in artifact.trees.items() if ref.sha256 not in subjects]
    if strangers:
        raise Untrusted(
            f"the provenance of {artifact.name} {artifact.version} does not speak of its tree"
            f" for {strangers[0]}"
        )
    if statement.get("_type") != STATEMENT or statement.get("predicateType") != PREDICATE:
        raise Untrusted(f"it is no SLSA provenance v1: {str(statement.get('predicateType'))[:80]}")
    return _summed(statement, _signers(envelope, keys), len(envelope.signatures) if envelope else 0)


def _opened(data: bytes) -> tuple[Envelope | None, dict[str, Any]]:
    document = _json(data)
    if "payloadType" not in document:
        return None, document
    try:
        listed = document["signatures"]
        if len(listed) > SIGNATURES:
            raise Untrusted(f"an envelope has {len(listed)} signatures, at most {SIGNATURES}")
        envelope = Envelope.from_dict(document)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise Untrusted(f"it is no DSSE envelope: {error}") from error
    if envelope.payload_type != PAYLOAD:
        raise Untrusted(f"an envelope of type {envelope.payload_type[:80]!r}")
    return envelope, _json(envelope.payload)


def _signers(envelope: Envelope | None, keys: Iterable[Key]) -> tuple[str, ...]:
    if envelope is None:
        return ()
    covered = envelope.pae()
    found = set()
    for key in keys:
        signature = envelope.signatures.get(key.keyid)
        if signature is None:
            continue
        try:
            key.verify_signature(signature, covered)
        except UnverifiedSignatureError:
            continue
        found.add(trust.key_id(key))
    return tuple(sorted(found))


def _summed(statement: dict[str, Any], signed_by: tuple[str, ...], signatures: int) -> Provenance:
    predicate = _dict(statement.get("predicate"))
    definition = _dict(predicate.get("buildDefinition"))
    builder = _dict(_dict(predicate.get("runDetails")).get("builder"))
    sources = [
        one
        for one in _list(definition.get("resolvedDependencies"))
        if "gitCommit" in _dict(one.get("digest"))
    ]
    source = sources[0] if sources else {}
    return Provenance(
        builder=str(builder.get("id", ""))[:500],
        build_type=str(definition.get("buildType", ""))[:500],
        source=str(source.get("uri", ""))[:500],
        commit=str(_dict(source.get("digest")).get("gitCommit", ""))[:80],
        changed=bool(_dict(source.get("annotations")).get("changedSinceCommit")),
        signed_by=signed_by,
        signatures=signatures,
    )


def _json(data: bytes) -> dict[str, Any]:
    if len(data) > limits.EVIDENCE:
        raise Untrusted(f"provenance has {len(data)} bytes, at most {limits.EVIDENCE}")
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Untrusted(f"provenance is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise Untrusted("provenance is not a JSON object")
    return document


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
