"""Artifacts on a developer's machine or in CI: a folder that ``edgewise artifact`` fills.

It holds ``artifacts/NAME/VERSION.json``, ``trees/<sha256>`` (manifests), ``objects/<sha256>``
(file contents, each once), ``evidence/<sha256>`` (SBOMs and provenance) and, once signed,
``artifacts/NAME/VERSION.builds.json``. It can be carried: what was built on one machine can be
published from another.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from edgewise.backends.files.system_trees import read_system
from edgewise.backends.files.trees import scan
from edgewise.delivery.builder import artifact_path
from edgewise.delivery.skeleton import Readable
from edgewise.delivery.trees import reference
from edgewise.model.errors import BadUsage, NeedsPerson
from edgewise.protocol import limits
from edgewise.protocol.codec import decode, encode
from edgewise.protocol.content import Artifact, EvidenceRef, Tree, TreeRef

_LAST_LINES = 2000
_CHUNK = 1 << 20


class BuildFolder:
    """One such folder; made when something is put into it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def document(self, name: str, version: str) -> Path:
        """Where the artifact's document lies. Raises BadUsage for what cannot be its name."""
        return self.path / artifact_path(name, version)

    def signature(self, name: str, version: str) -> Path:
        """Where the builds that a builder signed for it lie."""
        return self.document(name, version).with_suffix(".builds.json")

    def add_tree(self, source: Path) -> TreeRef:
        """Copy a directory's contents by digest, and its manifest.

        Raises BadUsage for what cannot be delivered, or changed while it was read.
        """
        tree = scan(source)
        for entry in tree.entries:
            if entry.kind != "file" or (self.path / "objects" / entry.sha256).exists():
                continue
            with (source / entry.path).open("rb") as content:
                if self.keep(content)[0] != entry.sha256:
                    raise BadUsage(
                        f"{source / entry.path} changed while it was read",
                        hint="build again when it is still",
                    )
        return self.add_manifest(tree)

    def add_system(self, source: Path) -> TreeRef:
        """The same for the root of an operating system, a directory or a tar file.

        Raises as ``system_trees.read_system``.
        """
        return self.add_manifest(read_system(source, self.keep))

    def keep(self, content: Readable) -> tuple[str, int]:
        """Keep a content; returns its digest and bytes."""
        objects = self.path / "objects"
        objects.mkdir(parents=True, exist_ok=True)
        waiting = objects / f".{os.getpid()}.new"
        digest, size = hashlib.sha256(), 0
        try:
            with waiting.open("wb") as file:
                while chunk := content.read(_CHUNK):
                    digest.update(chunk)
                    size += file.write(chunk)
            waiting.rename(objects / digest.hexdigest())
        finally:
            waiting.unlink(missing_ok=True)
        return digest.hexdigest(), size

    def add_manifest(self, tree: Tree) -> TreeRef:
        """Keep the manifest of a tree whose contents are here."""
        manifests = self.path / "trees"
        manifests.mkdir(parents=True, exist_ok=True)
        ref, manifest = reference(tree)
        (manifests / ref.sha256).write_bytes(manifest)
        return ref

    def tree(self, sha256: str) -> Tree:
        """A tree that was added. Raises BadUsage when it is gone."""
        manifest = self.path / "trees" / sha256
        return decode(_bytes(manifest), Tree, what=str(manifest), at_most=limits.TREE)

    def content(self, sha256: str) -> Path:
        """Where a file's content lies."""
        return self.path / "objects" / sha256

    def add_evidence(
        self, kind: Literal["sbom", "provenance"], media_type: str, data: bytes, platform: str = ""
    ) -> EvidenceRef:
        """Keep an SBOM or provenance beside the contents."""
        sha256 = hashlib.sha256(data).hexdigest()
        (self.path / "evidence").mkdir(parents=True, exist_ok=True)
        (self.path / "evidence" / sha256).write_bytes(data)
        return EvidenceRef(kind, media_type, sha256, len(data), platform)

    def evidence(self, ref: EvidenceRef) -> bytes:
        """What was kept. Raises BadUsage when it is gone."""
        return _bytes(self.path / "evidence" / ref.sha256)

    def add(self, artifact: Artifact) -> bytes:
        """Keep an artifact's document, in place of one that was built before, and forget what
        was signed for that one; returns its canonical bytes."""
        document = self.document(artifact.name, artifact.version)
        document.parent.mkdir(parents=True, exist_ok=True)
        data = encode(artifact)
        document.write_bytes(data)
        self.signature(artifact.name, artifact.version).unlink(missing_ok=True)
        return data

    def read(self, name: str, version: str) -> tuple[bytes, Artifact]:
        """An artifact's document. Raises BadUsage when it was not built here."""
        document = self.document(name, version)
        data = _bytes(document)
        return data, decode(data, Artifact, what=str(document), at_most=limits.PART)

    def objects(self, artifact: Artifact) -> dict[str, Path]:
        """Every object below an artifact, its manifests included: what may need sending.

        Raises BadUsage when one of them is not here.
        """
        evidence = self.path / "evidence"
        found = {ref.sha256: evidence / ref.sha256 for ref in artifact.all_evidence}
        for sha256 in sorted({ref.sha256 for ref in artifact.trees.values()}):
            contents = {e.sha256 for e in self.tree(sha256).entries if e.kind == "file"}
            found |= {one: self.path / "objects" / one for one in sorted(contents)}
            found[sha256] = self.path / "trees" / sha256
        _check_there(found.values())
        return found


def _check_there(files: Iterable[Path]) -> None:
    for file in files:
        if not file.is_file():
            raise BadUsage(f"{file} is not there any more", hint="build the artifact again")


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadUsage(
            f"{file} cannot be read: {error.strerror}", hint="`edgewise artifact build` writes it"
        ) from error


async def run_script(script: Path, platform: str, version: str, output: Path) -> None:
    """Let ``script`` fill ``output`` for one platform.

    Raises NeedsPerson, with the end of what it printed, when it cannot be run, fails, or
    fills nothing.
    """
    system, architecture, *variant = platform.split("/")
    if not os.access(script, os.X_OK):
        raise NeedsPerson(f"{script} cannot be run", hint=f"chmod +x {script}")
    process = await asyncio.create_subprocess_exec(
        str(script.resolve()),
        cwd=script.resolve().parent,
        env={
            **os.environ,
            "TARGETPLATFORM": platform,
            "TARGETOS": system,
            "TARGETARCH": architecture,
            "TARGETVARIANT": variant[0] if variant else "",
            "VERSION": version,
            "OUTPUT": str(output),
        },
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    if process.returncode != 0:
        tail = said[-_LAST_LINES:].decode(errors="replace").strip()
        raise NeedsPerson(
            f"{script} failed for {platform} with exit code {process.returncode}: {tail}"
        )
    if not any(output.iterdir()):
        raise NeedsPerson(
            f"{script} put nothing into OUTPUT for {platform}", hint='copy what runs to "$OUTPUT"'
        )
