"""A region whose hub has images: what a node, podman or a stranger asks its relay for."""

from __future__ import annotations

import ssl
from pathlib import Path

from relay_region import SecureHub

from edgewise.backends.files.builds import BuildFolder
from edgewise.backends.files.image_import import Source, import_images
from edgewise.delivery.builder import make_artifact
from edgewise.protocol.api import BuildsUpload
from edgewise.protocol.channel import Channel
from edgewise.protocol.content import Artifact
from edgewise.runtime.credentials import CredentialFiles


def import_image(folder: Path, source: str, name: str, version: str) -> Artifact:
    """As ``edgewise artifact import``."""
    built = BuildFolder(folder)
    trees = import_images(built, Source.parse(source).images(), frozenset(), at_most=1 << 30)
    artifact = make_artifact(name, version, trees, shape="oci")
    built.add(artifact)
    return artifact


async def publish(hub: SecureHub, folder: Path, artifact: Artifact) -> None:
    """As ``edgewise artifact publish``."""
    built = BuildFolder(folder)
    data, _ = built.read(artifact.name, artifact.version)
    for sha256, file in built.objects(artifact).items():
        await hub.publisher.put_objects({sha256: file.read_bytes()})
    await hub.publisher.accept_builds(BuildsUpload(b"", (data,)))
    sequence = (hub.publisher.channel("shops") or Channel("shops", 0)).sequence
    await hub.announce(sequence + 1)  # relays hear of it at once


def shown(credentials: CredentialFiles | None, roots: Path) -> ssl.SSLContext:
    """What an ordinary TLS client does with a node's files: host names count."""
    context = ssl.create_default_context(cafile=str(roots))
    if credentials is not None:
        context.load_cert_chain(credentials.chain, credentials.key)
    return context
