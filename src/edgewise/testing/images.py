"""Container images made by hand: layers with everything that tar knows, layouts, archives."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zstandard

LAYER = "application/vnd.oci.image.layer.v1.tar"


def program(seed: int, size: int = 5000) -> bytes:
    """Bytes that look like a program: no two seeds share any."""
    return b"".join(hashlib.sha256(b"%d %d" % (seed, at)).digest() for at in range(size // 32))


def tar(files: Mapping[str, bytes | tarfile.TarInfo], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar archive; a TarInfo stands for itself, with zeros as content where it has a size."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, what in files.items():
            if isinstance(what, tarfile.TarInfo):
                archive.addfile(what, io.BytesIO(bytes(what.size)))
                continue
            about = tarfile.TarInfo(name)
            about.size, about.mode, about.mtime = len(what), 0o4755, 1_700_000_000
            about.uid, about.pax_headers = 70_000_000, {"SCHILY.xattr.security.x": "y"}
            archive.addfile(about, io.BytesIO(what))
    return out.getvalue()


def member(name: str, kind: bytes, **fields: Any) -> tarfile.TarInfo:
    about = tarfile.TarInfo(name)
    about.type = kind
    for field, value in fields.items():
        setattr(about, field, value)
    return about


def rich_layer(seed: int = 1, form: int = tarfile.PAX_FORMAT) -> bytes:
    """Links, whiteouts, devices, long and strange names, an empty and a large file."""
    long = "/".join(["a" * 90] * 4)
    return tar(
        {
            "bin": member("bin", tarfile.DIRTYPE, mode=0o755),
            "bin/till": program(seed),
            "bin/also": member("bin/also", tarfile.LNKTYPE, linkname="bin/till"),
            "bin/link": member("bin/link", tarfile.SYMTYPE, linkname="/etc/../../passwd"),
            "dev/null": member("dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3),
            "etc/.wh.gone": b"",
            "etc/.wh..wh..opq": b"",
            long: program(seed + 100, 700),
            "umläut/ \x01x": program(seed + 200, 900),
            "../../etc/cron.d/evil": program(seed + 300, 600),
            "large": program(7, 2_500_000),
            "same": program(seed),
        },
        form,
    )


def _packed(data: bytes, how: str) -> bytes:
    if how == "gzip":
        return gzip.compress(data, 6, mtime=0)
    return zstandard.ZstdCompressor().compress(data) if how == "zstd" else data


class Layout:
    """An OCI image layout in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "blobs" / "sha256").mkdir(parents=True)
        (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        self.manifests: list[dict[str, Any]] = []

    def blob(self, data: bytes, kind: str, **more: Any) -> dict[str, Any]:
        sha256 = hashlib.sha256(data).hexdigest()
        (self.directory / "blobs" / "sha256" / sha256).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{sha256}", "size": len(data), **more}

    def image(
        self, *layers: bytes, packed: str = "gzip", architecture: str = "amd64", **config: Any
    ) -> dict[str, Any]:
        """A manifest's descriptor, not yet in the index. ``config`` replaces its fields."""
        fields = {
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": ["/bin/till"]},
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(one).hexdigest()}" for one in layers],
            },
        } | config
        kind = LAYER + (f"+{packed}" if packed else "")
        form = "application/vnd.oci.image.manifest.v1+json"
        manifest = {
            "schemaVersion": 2,
            "mediaType": form,
            "config": self.blob(
                json.dumps(fields).encode(), "application/vnd.oci.image.config.v1+json"
            ),
            "layers": [self.blob(_packed(one, packed), kind) for one in layers],
        }
        return self.blob(
            json.dumps(manifest).encode(),
            form,
            platform={"os": "linux", "architecture": architecture},
        )

    def index(self, *manifests: dict[str, Any]) -> dict[str, Any]:
        kind = "application/vnd.oci.image.index.v1+json"
        document = {"schemaVersion": 2, "mediaType": kind, "manifests": list(manifests)}
        return self.blob(json.dumps(document).encode(), kind)

    def add(self, descriptor: dict[str, Any], tag: str = "1.0") -> None:
        """Name it in index.json."""
        named = descriptor | {"annotations": {"org.opencontainers.image.ref.name": tag}}
        self.manifests.append(named)
        index = {"schemaVersion": 2, "manifests": self.manifests}
        (self.directory / "index.json").write_text(json.dumps(index))

    def archive(self, file: Path) -> Path:
        """The layout as an OCI archive."""
        with tarfile.open(file, "w") as archive:
            archive.add(self.directory, ".")
        return file
