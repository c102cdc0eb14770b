"""Record what a program does to a directory, and make what a power cut could leave of it.

The record is strace's: it sees every system call, also those of libraries. The model of the disk
is harsher than any file system that we know: between two syncs each change may have reached the
disk or not, independently of all others, and a write may have reached it in part, or its size
without its data. Only these
make earlier changes certain: ``fsync`` of a file its data and attributes, ``fsync`` of a
directory its names, ``syncfs`` everything. A rename is one step (all journals promise that).
"""

from __future__ import annotations

import copy
import os
import random
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

_CALL = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+|0x[0-9a-f]+|\?)(.*)")
_UNFINISHED = re.compile(r"(\d+) +(.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>(.*)$")
_OF_DESCRIPTOR = re.compile(r"/proc/self/fd/(\d+)(?:/([^/]+))?")
_WORD = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?|([^,"]+)')
CALLS = (
    "open,openat,creat,close,dup,dup2,dup3,fcntl,lseek,write,pwrite64,writev,pwritev,pwritev2,"
    "sendfile,copy_file_range,fallocate,truncate,ftruncate,rename,renameat,renameat2,link,linkat,"
    "unlink,unlinkat,rmdir,symlink,symlinkat,mkdir,mkdirat,mknod,mknodat,chmod,fchmod,fchmodat,"
    "chown,fchown,lchown,fchownat,setxattr,fsetxattr,lsetxattr,removexattr,fremovexattr,utimensat,"
    "fsync,fdatasync,syncfs,sync,io_uring_setup"
)


@dataclass
class Inode:
    """A file, directory, symlink, device or pipe."""

    mode: int
    data: bytearray = field(default_factory=bytearray)
    names: dict[str, int] = field(default_factory=dict)
    target: str = ""
    owner: tuple[int, int] = field(default_factory=lambda: (os.geteuid(), os.getegid()))
    device: int = 0
    xattrs: dict[str, bytes] = field(default_factory=dict)
    mtime: int = 0
    """Nanoseconds. Whatever is written sets it to 0: only what a program sets by itself counts."""

    def seen(self) -> object:
        """All but where its names lead."""
        return (self.mode, bytes(self.data), self.target, self.owner, self.device, self.xattrs)


Disk = dict[int, Inode]
"""By number; 0 is the directory that is watched."""


@dataclass(frozen=True)
class Name:
    """A name of a directory now means another inode, or nothing."""

    folder: int
    name: str
    inode: int | None
    only_if: int | None = None
    """The removed half of a rename or unlink: only if the name still means this."""


@dataclass(frozen=True)
class Write:
    inode: int
    at: int
    data: bytes


@dataclass(frozen=True)
class Size:
    inode: int
    size: int


@dataclass(frozen=True)
class Mode:
    inode: int
    mode: int


@dataclass(frozen=True)
class Owner:
    inode: int
    owner: tuple[int, int]


@dataclass(frozen=True)
class Xattr:
    inode: int
    name: str
    value: bytes


@dataclass(frozen=True)
class Time:
    inode: int
    mtime: int


@dataclass(frozen=True)
class Sync:
    """Of one inode, or of everything."""

    inode: int | None


Change = tuple[Name, ...] | Write | Size | Mode | Owner | Xattr | Time | Sync


@dataclass(frozen=True)
class Story:
    """The disk before, and every change in order."""

    before: Disk
    changes: tuple[Change, ...]
    new: dict[int, Inode]
    """Inodes made meanwhile, as they are born: empty."""

    def after(self, cut: int, lost: Callable[[Change], float] = lambda change: 1.0) -> Disk:
        """The disk after a power cut before change ``cut``. ``lost`` says how much of a change
        that no sync made certain is there: 0 to 1, for a write a part of it; -1 to 0: that
        part, and zeros for the rest, because the size reached the disk and the data did not."""
        disk = copy.deepcopy(self.before) | copy.deepcopy(self.new)
        certain = self._certain(cut)
        for index, change in enumerate(self.changes[:cut]):
            share = 1.0 if index in certain else lost(change)
            if share:
                _apply(disk, change, share)
        return disk

    def _certain(self, cut: int) -> set[int]:
        done: set[int] = set()
        for at, sync in enumerate(self.changes[:cut]):
            if isinstance(sync, Sync):
                covered = (
                    index
                    for index, change in enumerate(self.changes[:at])
                    if sync.inode is None or sync.inode in _touched(change)
                )
                done.update(covered)
        return done


def _touched(change: Change) -> set[int]:
    match change:
        case tuple():
            return {name.folder for name in change}
        case Write() | Size() | Mode() | Owner() | Xattr() | Time():
            return {change.inode}
        case _:
            return set()


def _apply(disk: Disk, change: Change, share: float = 1.0) -> None:
    match change:
        case tuple():
            for name in change:
                names = disk[name.folder].names
                if name.inode is not None:
                    names[name.name] = name.inode
                elif names.get(name.name) == name.only_if:
                    names.pop(name.name, None)
        case Write(number, at, data):
            part = data[: round(len(data) * abs(share))]
            part += bytes(len(data) - len(part)) if share < 0 else b""
            held = disk[number].data
            held.extend(bytes(max(0, at + len(part) - len(held))))
            held[at : at + len(part)] = part
            disk[number].mtime = 0
        case Size(number, size):
            held = disk[number].data
            del held[size:]
            held.extend(bytes(size - len(held)))
            disk[number].mtime = 0
        case Mode(number, mode):
            made = disk[number]
            made.mode = stat.S_IFMT(made.mode) | mode
        case Owner(number, owner):
            disk[number].owner = owner
        case Xattr(number, name, value):
            disk[number].xattrs[name] = value
        case Time(number, mtime):
            disk[number].mtime = mtime


def some_lost(seed: int) -> Callable[[Change], float]:
    """A power cut's choice: about half of what was not certain is there, some writes in part."""
    chance = random.Random(seed)
    return lambda change: chance.choice((0.0, 0.0, 1.0, 1.0, chance.random(), -chance.random()))


def write_out(disk: Disk, to: Path) -> None:
    """Make the directory that ``disk`` describes."""
    made: dict[int, Path] = {}

    def one(number: int, path: Path) -> None:
        inode = disk[number]
        if stat.S_ISDIR(inode.mode):
            path.mkdir()
            for name, below in inode.names.items():
                one(below, path / name)
        elif number in made:
            os.link(made[number], path, follow_symlinks=False)
            return
        elif stat.S_ISLNK(inode.mode):
            path.symlink_to(inode.target)
        elif stat.S_ISREG(inode.mode):
            path.write_bytes(inode.data)
        else:
            os.mknod(path, inode.mode, inode.device)
        made[number] = path
        _give(path, inode)

    one(0, to)


def _give(path: Path, inode: Inode) -> None:
    """In the order in which the kernel takes nothing away again."""
    if inode.owner != (os.geteuid(), os.getegid()):
        os.chown(path, *inode.owner, follow_symlinks=False)
    if not stat.S_ISLNK(inode.mode):
        path.chmod(stat.S_IMODE(inode.mode))
    for name, value in inode.xattrs.items():
        os.setxattr(path, name, value, follow_symlinks=False)
    if stat.S_ISREG(inode.mode):
        os.utime(path, ns=(inode.mtime, inode.mtime))


def read_in(top: Path) -> Disk:
    """What a directory holds now."""
    disk: Disk = {}
    seen: dict[int, int] = {}

    def one(path: Path) -> int:
        about = path.lstat()
        if about.st_ino in seen:
            return seen[about.st_ino]
        number = seen[about.st_ino] = len(disk)
        inode = disk[number] = Inode(
            about.st_mode,
            owner=(about.st_uid, about.st_gid),
            device=about.st_rdev,
            mtime=about.st_mtime_ns,
            xattrs={
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in os.listxattr(path, follow_symlinks=False)
            },
        )
        if stat.S_ISDIR(about.st_mode):
            for name in sorted(os.listdir(path)):
                inode.names[name] = one(path / name)
        elif stat.S_ISLNK(about.st_mode):
            inode.target = os.readlink(path)
        elif stat.S_ISREG(about.st_mode):
            inode.data = bytearray(path.read_bytes())
        return number

    one(top)
    return disk


def same(one: Disk, other: Disk) -> list[str]:
    """Paths at which two disks differ; inode numbers do not count."""

    def listed(disk: Disk, number: int, path: str) -> Iterator[tuple[str, object]]:
        inode = disk[number]
        yield path, inode.seen()
        for name, below in inode.names.items():
            yield from listed(disk, below, f"{path}/{name}")

    left, right = dict(listed(one, 0, "")), dict(listed(other, 0, ""))
    return sorted(p for p in left.keys() | right.keys() if left.get(p) != right.get(p))


def can_record() -> str:
    """Empty, or why not."""
    if shutil.which("strace") is None:
        return "strace is not installed (make tools)"
    tried = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False)
    return "" if tried.returncode == 0 else "strace may not trace here (ptrace is forbidden)"


def record(command: list[str], top: Path, trace: Path) -> Story:
    """Run ``command`` and note every change of ``top``, which must be synced before."""
    before = read_in(top)
    subprocess.run(
        ["strace", "-f", "-xx", "-s", str(64 << 20), "-e", f"trace={CALLS}", "-o", trace, *command],
        check=True,
    )
    with trace.open() as lines:
        return _Recorder(top, before).run(_calls(lines))


def _calls(lines: Iterable[str]) -> Iterator[tuple[str, list[str], int]]:
    """Name, arguments and result of each call that succeeded, in the order of its end."""
    waiting: dict[str, str] = {}
    for line in lines:
        text = line.rstrip("\n")
        if match := _UNFINISHED.match(text):
            waiting[match[1]] = text.removesuffix(" <unfinished ...>")
            continue
        if match := _RESUMED.match(text):
            text = waiting.pop(match[1]) + match[2]
        match = _CALL.match(text)
        if match is None or match[4] in ("-1", "?"):
            continue
        words = []
        for quoted, cut, bare in _WORD.findall(match[3]):
            if cut:
                raise AssertionError(f"strace left something out: {text[:200]}")
            words.append(
                bytes.fromhex(quoted.replace("\\x", "")).decode("latin-1")
                if not bare
                else bare.strip()
            )
        yield match[2], [word for word in words if word], int(match[4], 0)


def _special(words: list[str]) -> Inode:
    """As mknod(2) was told: ``S_IFCHR|0600, makedev(0x1, 0x3)``."""
    kind, _, mode = words[0].partition("|")
    major, minor = (
        (int(n, 16) for n in re.findall(r"0x[0-9a-f]+", " ".join(words[1:3])))
        if (words[1:])
        else (0, 0)
    )
    return Inode(getattr(stat, kind) | int(mode, 8), device=os.makedev(major, minor))


def _nanoseconds(words: list[str]) -> int:
    """Of ``{tv_sec=1 /* what that is */`` and ``tv_nsec=2}``."""
    seconds, rest = (int(re.sub(r"\D.*", "", word.partition("=")[2])) for word in words)
    return seconds * 1_000_000_000 + rest


@dataclass
class _Open:
    inode: int
    at: int
    appends: bool


class _Recorder:
    """Follows descriptors and names from call to call."""

    def __init__(self, top: Path, before: Disk) -> None:
        self._top = str(top)
        self._before = copy.deepcopy(before)
        self._disk = before
        self._new: dict[int, Inode] = {}
        self._changes: list[Change] = []
        self._open: dict[int, _Open] = {}

    def run(self, calls: Iterable[tuple[str, list[str], int]]) -> Story:
        for name, words, result in calls:
            self._one(name, words, result)
        return Story(self._before, tuple(self._changes), self._new)

    def _do(self, *changes: Change) -> None:
        for change in changes:
            _apply(self._disk, change)
            self._changes.append(change)

    def _one(self, name: str, words: list[str], result: int) -> None:
        if name in ("openat", "open", "creat"):
            self._opened(words if name == "openat" else ["AT_FDCWD", *words], result)
        elif name in ("close", "lseek", "dup", "dup2", "dup3", "fcntl"):
            self._descriptor(name, words, result)
        elif name in ("chmod", "fchmodat"):
            number = self._meant(words if name == "fchmodat" else ["AT_FDCWD", *words])
            if number is not None:
                self._do(Mode(number, int(words[-1 if name == "chmod" else 2], 8)))
        elif name.endswith(("chown", "chownat")):
            self._owned(name, words)
        elif name == "utimensat" or name.endswith("setxattr"):
            self._noted(name, words)
        elif name in ("syncfs", "sync"):
            self._do(Sync(None))
        elif name in ("write", "pwrite64", "ftruncate", "fsync", "fdatasync", "fchmod"):
            if file := self._open.get(int(words[0])):
                self._content(name, words, result, file)
        else:
            self._names(name, words)

    def _noted(self, name: str, words: list[str]) -> None:
        if name == "utimensat":
            number = self._meant(words[: 1 if words[1] == "NULL" else 2])
            if number is not None:
                self._do(Time(number, _nanoseconds(words[4:6])))
        else:
            number = self._meant(words[:1] if name == "fsetxattr" else ["AT_FDCWD", words[0]])
            if number is not None:
                self._do(Xattr(number, words[1], words[2].encode("latin-1")))

    def _descriptor(self, name: str, words: list[str], result: int) -> None:
        fd = int(words[0])
        if fd not in self._open:
            if name.startswith("dup"):
                self._open.pop(result, None)  # what dup2 replaced
        elif name == "close":
            del self._open[fd]
        elif name == "lseek":
            self._open[fd].at = result
        elif name != "fcntl" or words[1].startswith("F_DUPFD"):
            self._open[result] = self._open[fd]

    def _content(self, name: str, words: list[str], result: int, file: _Open) -> None:
        match name:
            case "ftruncate":
                self._do(Size(file.inode, int(words[1])))
            case "fchmod":
                self._do(Mode(file.inode, int(words[1], 8)))
            case "write" | "pwrite64" if result:
                end = len(self._disk[file.inode].data)
                at = int(words[-1]) if name == "pwrite64" else end if file.appends else file.at
                if name == "write":
                    file.at = at + result
                self._do(Write(file.inode, at, words[1].encode("latin-1")[:result]))
            case "fsync" | "fdatasync":
                self._do(Sync(file.inode))

    def _owned(self, name: str, words: list[str]) -> None:
        """chown(2) takes setuid bits and capabilities away; here whoever calls it gives the
        mode and the xattrs afterwards, as the kernel wants it."""
        if name == "fchown":
            number, owner = self._meant(words[:1]), words[1:3]
        elif name == "fchownat":
            number, owner = self._meant(words), words[2:4]
        else:
            number, owner = self._meant(["AT_FDCWD", words[0]]), words[1:3]
        if number is not None:
            assert not self._disk[number].xattrs, "an owner is given before xattrs"
            self._do(Owner(number, (int(owner[0]), int(owner[1]))))

    def _meant(self, words: list[str]) -> int | None:
        """The inode of a descriptor, or of (directory, name); None for one outside."""
        if len(words) == 1:
            file = self._open.get(int(words[0]))
            return file.inode if file else None
        if match := _OF_DESCRIPTOR.fullmatch(words[1]):
            file = self._open.get(int(match[1]))
            if file is None or match[2] is None:
                return file.inode if file else None
            return self._disk[file.inode].names[match[2].encode("latin-1").decode()]
        place = self._place(words[:2])
        return self._disk[place[0]].names.get(place[1]) if place else None

    def _names(self, name: str, words: list[str]) -> None:  # noqa: C901 - one case is one call
        if not name.endswith(("at", "at2")):
            two = name in ("rename", "link")
            target = [words.pop(0)] if name == "symlink" else []
            words = [*target, "AT_FDCWD", words[0]] + (["AT_FDCWD", words[1]] if two else words[1:])
        match name.removesuffix("2").removesuffix("at"):
            case "rename":
                self._renamed(words)
            case "link":
                source, to = self._place(words[:2]), self._place(words[2:4])
                if to:
                    assert source, f"linked from outside: {words}"
                    self._do((Name(*to, self._disk[source[0]].names[source[1]]),))
            case "symlink":
                if to := self._place(words[1:3]):
                    target = words[0].encode("latin-1").decode()
                    self._do((Name(*to, self._born(Inode(stat.S_IFLNK | 0o777, target=target))),))
            case "mkdir":
                if to := self._place(words[:2]):
                    mode = int(words[2], 8) & ~0o022
                    self._do((Name(*to, self._born(Inode(stat.S_IFDIR | mode))),))
            case "mknod":
                if to := self._place(words[:2]):
                    self._do((Name(*to, self._born(_special(words[2:]))),))
            case "unlink" | "rmdir":
                if to := self._place(words[:2]):
                    self._do((Name(*to, None, self._disk[to[0]].names[to[1]]),))
            case other:
                self._refuse(other, words)

    def _refuse(self, name: str, words: list[str]) -> None:
        fds = {int(word) for word in words if word.isdigit()} & self._open.keys()
        touched = any(word.startswith(self._top) for word in words)
        assert not touched, f"{name} is not in the model"
        assert not fds, f"{name} is not in the model"

    def _renamed(self, words: list[str]) -> None:
        source, to = self._place(words[:2]), self._place(words[2:4])
        if source is None and to is None:
            return
        assert source, f"renamed over the border: {words}"
        assert to, f"renamed over the border: {words}"
        number = self._disk[source[0]].names[source[1]]
        if "RENAME_EXCHANGE" in words[-1]:
            other = self._disk[to[0]].names[to[1]]
            self._do((Name(*to, number), Name(*source, other)))
        else:
            self._do((Name(*to, number), Name(*source, None, number)))

    def _born(self, inode: Inode) -> int:
        number = max(*self._disk, *self._new, 0) + 1
        self._new[number] = copy.deepcopy(inode)
        self._disk[number] = inode
        return number

    def _opened(self, words: list[str], fd: int) -> None:
        self._open.pop(fd, None)
        if self._path(words[:2]) == []:
            self._open[fd] = _Open(0, 0, appends=False)
            return
        place = self._place(words[:2])
        if place is None:
            return
        number = self._disk[place[0]].names.get(place[1])
        if number is None:
            mode = int(words[3], 8) & ~0o022
            number = self._born(Inode(stat.S_IFREG | mode))
            self._do((Name(*place, number),))
        elif "O_TRUNC" in words[2]:
            self._do(Size(number, 0))
        self._open[fd] = _Open(number, 0, "O_APPEND" in words[2])

    def _path(self, words: list[str]) -> list[str | int] | None:
        """Number of the directory to start from, and names; None for outside."""
        folder, path = words[0], words[1].encode("latin-1").decode()
        if path.startswith("/"):
            if path != self._top and not path.startswith(self._top + "/"):
                return None
            return [name for name in path[len(self._top) :].split("/") if name]
        if folder == "AT_FDCWD" or int(folder) not in self._open:
            return None
        return [self._open[int(folder)].inode, *(n for n in path.split("/") if n not in ("", "."))]

    def _place(self, words: list[str]) -> tuple[int, str] | None:
        """(directory, name); links on the way are followed as the kernel does."""
        path = self._path(words)
        if not path:
            return None
        at = path.pop(0) if isinstance(path[0], int) else 0
        assert isinstance(at, int)
        if not path:
            return None
        for name in path[:-1]:
            number = self._disk[at].names[str(name)]
            while stat.S_ISLNK(self._disk[number].mode):
                steps = self._disk[number].target.split("/")
                for step in steps:
                    at = number = self._disk[at].names[step]
            at = number
        return at, str(path[-1])
