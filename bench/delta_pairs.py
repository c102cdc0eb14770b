"""Pairs of trees from Debian packages, for ``bench/delta.py``: what a fleet had, what it gets.

``python bench/delta_pairs.py DIRECTORY [PAIR...]`` builds them (root, mmdebstrap, a Debian
mirror); one that stands is kept. A pair's ``old`` comes from the last point release, ``new``
from that and its updates (security, backports): both change with the archive, and
``packages.json`` beside the trees says what was unpacked, with the digest of each package.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
MIRROR = "http://deb.debian.org/debian"
SERVER = "openssh-server python3 curl ca-certificates systemd-sysv nftables iproute2 openssl"
# What differs from build to build with the same packages, and is no content.
NOT_CONTENT = (
    "dev var/log var/cache var/lib/apt/lists tmp proc sys run etc/machine-id etc/resolv.conf "
    "var/lib/dbus/machine-id etc/ssh/ssh_host_* var/lib/systemd/catalog/database etc/hostname"
).split()


@dataclass(frozen=True)
class Pair:
    """``install``: with the packages' scripts, as an image builder does; else only unpacked."""

    title: str
    suite: str
    packages: str
    install: bool = False
    architecture: str = "amd64"
    later: tuple[str, ...] = ("updates", "security")
    kernels: tuple[str, str] = ("", "")
    """Packages of the old and the new side."""


PAIRS = {
    "years": Pair(
        "a root with kernel and initrd, two years of updates (Debian 11)",
        "bullseye",
        f"{SERVER} podman mosquitto chrony less sudo vim-tiny rsync gnupg",
        install=True,
        kernels=("linux-image-5.10.0-32-cloud-amd64", "linux-image-5.10.0-46-cloud-amd64"),
    ),
    "full": Pair(
        "a root with kernel and initrd, weeks of updates (Debian 13)",
        "trixie",
        f"linux-image-cloud-amd64 {SERVER} nginx-light haproxy chrony dbus wireguard-tools zstd",
        install=True,
    ),
    "security": Pair(
        "a root without kernel, security updates only (Debian 12)",
        "bookworm",
        f"{SERVER} bind9 php8.2-cli strongswan cups redis-server perl vlc-bin libavcodec59",
        install=True,
        later=("security",),
    ),
    "app": Pair(
        "four applications and their libraries (Debian 13)",
        "trixie",
        "php8.4-cli php8.4-intl haproxy nginx-light caddy",
        later=("updates", "security", "backports:caddy"),
    ),
    "arm64": Pair(
        "an arm64 root with kernel, unpacked (Debian 12)",
        "bookworm",
        "linux-image-cloud-arm64 bash coreutils apt libnss3 haproxy mosquitto busybox perl "
        f"{SERVER}",
        architecture="arm64",
    ),
}


def sources(suite: str, later: tuple[str, ...]) -> list[str]:
    """Lines of sources.list."""
    where = {"security": f"{MIRROR}-security"}
    names = [one.partition(":")[0] for one in later]
    lines = [f"deb [signed-by={KEYS}] {MIRROR} {suite} main"]
    for name in names:
        lines.append(f"deb [signed-by={KEYS}] {where.get(name, MIRROR)} {suite}-{name} main")
    return lines


def build(pair: Pair, later: tuple[str, ...], root: Path) -> list[str]:
    """Unpack one side; returns ``name_version_arch.deb sha256`` of each package."""
    packages = [*pair.packages.split(), *pair.kernels[bool(later)].split()]
    for one in later:
        suite, _, name = one.partition(":")
        packages = [f"{p}/{pair.suite}-{suite}" if p == name else p for p in packages]
    debs = root.parent / f"{root.name}.debs"
    command = [
        "mmdebstrap",
        "--mode=root",
        f"--variant={'minbase' if pair.install else 'extract'}",
        f"--architectures={pair.architecture}",
        f"--include={','.join(packages)}",
        "--skip=download/empty,cleanup/apt/cache,check/qemu",
        "--aptopt=APT::Install-Recommends false",
        "--aptopt=Acquire::Languages none",
        "--dpkgopt=force-unsafe-io",
        "--quiet",
    ]
    # The essential packages are removed before the others come: look twice.
    for hook in ("extract", "customize"):
        command.append(
            f'--{hook}-hook=mkdir -p "{debs}"; cp "$1"/var/cache/apt/archives/*.deb "{debs}"'
        )
    if not pair.install:
        command.append("--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr")
    subprocess.run([*command, pair.suite, str(root), *sources(pair.suite, later)], check=True)
    for pattern in NOT_CONTENT:
        for path in root.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    unpacked = []
    for deb in sorted(debs.iterdir()):
        with deb.open("rb") as file:
            unpacked.append(f"{deb.name} {hashlib.file_digest(file, 'sha256').hexdigest()}")
    shutil.rmtree(debs)
    return unpacked


def prepare(name: str, pair: Pair, directory: Path) -> tuple[Path, Path]:
    """(old, new) of a pair below ``directory``; built where it is missing."""
    home = directory / name
    if not (home / "packages.json").exists():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        said = {
            "title": pair.title,
            "old": build(pair, (), home / "old"),
            "new": build(pair, pair.later, home / "new"),
        }
        (home / "packages.json").write_text(json.dumps(said, indent=1))
    return home / "old", home / "new"


def main() -> None:
    """Build the named pairs, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("pairs", nargs="*", default=list(PAIRS), metavar="PAIR")
    given = parser.parse_args()
    for name in given.pairs:
        if name not in PAIRS:
            sys.exit(f"no pair {name!r}; there are {', '.join(PAIRS)}")
        print(f"{name}: {' '.join(map(str, prepare(name, PAIRS[name], given.directory)))}")


if __name__ == "__main__":
    main()
