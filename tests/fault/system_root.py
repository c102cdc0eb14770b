"""A small root of an operating system with everything that a tree carries, and a strict look."""

import os
import stat
from pathlib import Path
from typing import Any

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
"""cap_net_bind_service=ep as the kernel stores it (VFS_CAP_REVISION_2)."""


def may_make_roots() -> bool:
    """Owners, devices and ``security.`` xattrs need root."""
    return os.geteuid() == 0


def make_root(top: Path) -> Path:
    """Everything at once, each with another owner and mode."""
    for folder in ("bin", "dev", "etc", "var/lib/locked", "var/tmp"):
        (top / folder).mkdir(parents=True)
    (top / "bin/run").write_bytes(b"#!/bin/sh\n" * 500)
    os.chown(top / "bin/run", 0, 0)
    os.chmod(top / "bin/run", 0o755)
    (top / "bin/su").write_bytes(b"su")
    os.chown(top / "bin/su", 0, 42)
    os.chmod(top / "bin/su", 0o6755)
    (top / "bin/ping").write_bytes(b"ping")
    os.chmod(top / "bin/ping", 0o755)
    os.setxattr(top / "bin/ping", "security.capability", CAPABILITY)
    os.setxattr(top / "bin/ping", "user.note", b"\0\xff bytes")
    os.link(top / "bin/ping", top / "bin/ping6")
    os.link(top / "bin/ping", top / "bin/a-first-name")
    (top / "bin/same-as-ping").write_bytes(b"ping")  # its own inode, its own rights
    (top / "etc/shadow").write_bytes(b"root:*")
    os.chown(top / "etc/shadow", 0, 4_000_000_000)
    os.chmod(top / "etc/shadow", 0o640)
    for name in ("empty", "empty-too"):
        (top / "etc" / name).write_bytes(b"")
    os.symlink("/run/systemd/resolve/stub-resolv.conf", top / "etc/resolv.conf")
    os.symlink("../../../..", top / "etc/up")
    os.chown(top / "etc/up", 7, 8, follow_symlinks=False)
    os.setxattr(top / "etc/up", "trusted.note", b"on a link", follow_symlinks=False)
    os.mknod(top / "dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.chmod(top / "dev/null", 0o666)
    os.mknod(top / "dev/sda", stat.S_IFBLK | 0o660, os.makedev(8, 1_000_000))
    os.chown(top / "dev/sda", 0, 6)
    os.mkfifo(top / "dev/pipe", 0o620)
    os.setxattr(top / "dev/pipe", "trusted.note", b"on a pipe")
    with open(top / "var/image", "wb") as file:
        file.write(b"first" + bytes(4091))
        file.seek(1 << 20)
        file.write(b"middle")
        file.truncate(3 << 20)
    with open(top / "var/only-a-hole", "wb") as file:
        file.truncate(1 << 16)
    (top / "var/zeros").write_bytes(bytes(1 << 16))  # the same content, but no hole
    (top / "var/lib/locked/state").write_bytes(b"x")
    os.chmod(top / "var/lib/locked", 0o500)
    os.chown(top / "var/lib/locked", 33, 33)
    os.chmod(top / "var/tmp", 0o1777)
    os.chmod(top / "var/lib", 0o2775)
    os.setxattr(top / "var/lib", "user.note", b"on a directory")
    (top / "etc/Főtanúsítvány.crt").write_bytes(b"name")
    os.chown(top, 0, 3)
    os.chmod(top, 0o711)
    os.setxattr(top, "user.note", b"on the top")
    return top


def looked_at(top: Path, *, links: bool = True) -> dict[str, Any]:
    """Path to everything that must be the same again; times are not carried.

    ``links``: also which names share an inode.
    """
    found: dict[str, Any] = {}
    inodes: dict[int, list[str]] = {}
    for path in [top, *sorted(top.rglob("*"))]:
        name = str(path.relative_to(top))
        about = path.lstat()
        xattrs = {
            one: os.getxattr(path, one, follow_symlinks=False)
            for one in os.listxattr(path, follow_symlinks=False)
        }
        seen = [about.st_mode, about.st_uid, about.st_gid, about.st_rdev, xattrs]
        if stat.S_ISREG(about.st_mode):
            inodes.setdefault(about.st_ino, []).append(name)
            seen += [path.read_bytes(), holes(path), about.st_nlink if links else 0]
        if stat.S_ISLNK(about.st_mode):
            seen.append(os.readlink(path))
        found[name] = seen
    if links:
        found["//names of one inode"] = sorted(names for names in inodes.values() if names[1:])
    return found


def holes(path: Path) -> list[tuple[int, int]]:
    """(start, end) of each stretch of data."""
    found = []
    with open(path, "rb") as file:
        size, end = os.fstat(file.fileno()).st_size, 0
        while end < size:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:  # ENXIO: none behind this
                break
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.append((start, end))
    return found
