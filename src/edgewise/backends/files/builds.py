"""Build artifacts on a developer's machine or in CI, from directories or by a script."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

from edgewise.backends.files.objects import FileObjects
from edgewise.backends.files.trees import read_file, store_tree
from edgewise.delivery.builder import make_artifact, platform_of_directory
from edgewise.delivery.contents import named_by_target, named_by_tree
from edgewise.model.errors import BadUsage, NeedsPerson
from edgewise.model.names import Digest, Platform
from edgewise.protocol import limits
from edgewise.protocol.codec import encode
from edgewise.protocol.content import Artifact, TreeRef

BATCH = 5000
"""Digests in one question to the hub; 5,000 are 335 kB of JSON, its bound is 1 MiB."""
_LAST_LINES = 2000


def platform_directories(directory: Path, platforms: tuple[str, ...]) -> dict[str, Path]:
    """Where each platform's tree lies.

    ``platforms`` are ``linux/amd64=DIR``, or ``linux/amd64`` for ``directory/linux-amd64``
    when that exists, else for ``directory`` itself (one tree for all). None given: every
    ``<os>-<arch>`` below ``directory``. Raises BadUsage.
    """
    if not platforms:
        found = sorted(item for item in directory.iterdir() if item.is_dir())
        return {platform_of_directory(item.name): item for item in found}
    chosen: dict[str, Path] = {}
    for text in platforms:
        platform, _, given = text.partition("=")
        try:
            Platform(platform)
        except ValueError as error:
            raise BadUsage(str(error)) from error
        own = directory / platform.replace("/", "-")
        chosen[platform] = Path(given) if given else own if own.is_dir() else directory
    return chosen


async def build_artifact(
    name: str,
    version: str,
    directories: Mapping[str, Path],
    store: FileObjects,
    *,
    built_from: str = "",
) -> Artifact:
    """Store a tree for each platform, and the artifact's document; returns the artifact."""
    trees: dict[str, TreeRef] = {}
    for platform, directory in sorted(directories.items()):
        trees[platform] = await store_tree(directory, store)
    return await _keep(make_artifact(name, version, trees, built_from=built_from), store)


async def run_build_script(
    name: str,
    version: str,
    script: Path,
    platforms: tuple[str, ...],
    store: FileObjects,
    *,
    built_from: str = "",
) -> Artifact:
    """Run ``script`` once a platform with TARGETPLATFORM, TARGETOS, TARGETARCH,
    TARGETVARIANT (as BuildKit sets them), VERSION and OUTPUT, an empty directory to fill.

    Raises NeedsPerson, with the end of its output, when the script fails or fills nothing.
    """
    trees: dict[str, TreeRef] = {}
    for platform in platforms:
        with tempfile.TemporaryDirectory(prefix="edgewise-build-") as output:
            await run_script(script, Platform(platform).value, version, Path(output))
            trees[platform] = await store_tree(Path(output), store)
    return await _keep(make_artifact(name, version, trees, built_from=built_from), store)


async def _keep(artifact: Artifact, store: FileObjects) -> Artifact:
    data = encode(artifact)
    await store.put(Digest.of(data).sha256, data)
    return artifact


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


async def objects_of(document: bytes, path: str, store: FileObjects) -> frozenset[str]:
    """Every object below an artifact, its tree manifests included: what may need uploading.

    ``path`` is its target path. Raises NotFound when the artifact was not built into ``store``.
    """
    found: set[str] = set()
    for tree in named_by_target(path, document).trees:
        found.add(tree)
        found |= named_by_tree(await store.get(tree, at_most=limits.TREE)).files
    return frozenset(found)


def batches(digests: frozenset[str]) -> Iterator[tuple[str, ...]]:
    """For POST /v1/objects/missing."""
    ordered = sorted(digests)
    for start in range(0, len(ordered), BATCH):
        yield tuple(ordered[start : start + BATCH])


async def packed(sha256: str, store: FileObjects) -> AsyncIterator[bytes]:
    """The stored bytes of an object, as PUT /v1/objects/{sha256} takes them."""
    async for chunk in read_file(store.path(sha256)):
        yield chunk
