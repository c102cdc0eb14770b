"""ELF files small enough to be made by a test, whose parts refer to each other as real ones do."""

import random
import struct
from collections.abc import Sequence
from typing import NamedTuple

X86_64, AARCH64 = 62, 183
_ALLOC, _EXEC = 2, 4


class Function(NamedTuple):
    """Its own bytes, and which functions it calls and reads a word of."""

    body: bytes
    calls: tuple[int, ...]


def functions(count: int, seed: int = 1) -> list[Function]:
    chance = random.Random(seed)
    return [
        Function(
            # No bytes that could be taken for a call or an operand.
            bytes(chance.randrange(0x40, 0x7F) for _ in range(chance.randrange(40, 200))),
            tuple(chance.randrange(count) for _ in range(chance.randrange(1, 6))),
        )
        for _ in range(count)
    ]


def x86_program(code: Sequence[Function]) -> bytes:
    """Calls, pointers with relocations, a jump table, and a table of frames."""
    text_at, data_at, ro_at = 0x1000, 0x2000000, 0x1000000
    starts, at = [], text_at
    for function in code:
        starts.append(at)
        at += len(function.body) + 12 * len(function.calls)
    text = bytearray()
    for number, function in enumerate(code):
        text += function.body
        for called in function.calls:
            here = text_at + len(text)
            text += b"\xe8" + struct.pack("<i", starts[called] - (here + 5))
            table = ro_at + 16 * (number % 4)
            text += b"\x48\x8d\x05" + struct.pack("<i", table - (here + 12))
    tables = b"".join(
        struct.pack("<i", starts[(5 * run + n) % len(starts)] - (ro_at + 16 * run))
        for run in range(4)
        for n in range(4)
    )
    data = b"".join(struct.pack("<Q", start) for start in starts)
    relocations = b"".join(
        struct.pack("<QQq", data_at + 8 * n, 8, start) for n, start in enumerate(starts)
    )
    frames = bytearray()
    frames_at, header_at = ro_at + 0x80000, ro_at + 0x40000
    places = []
    for start in starts:
        places.append(frames_at + len(frames))
        here = frames_at + len(frames) + 8
        frames += struct.pack("<IIiIB7x", 20, len(frames) + 4, start - here, 40, 0)
    header = struct.pack("<4siI", b"\x01\x1b\x03\x3b", frames_at - header_at - 4, len(starts))
    for start, place in zip(starts, places, strict=True):
        header += struct.pack("<ii", start - header_at, place - header_at)
    return _elf(
        X86_64,
        [
            (".text", 1, _ALLOC | _EXEC, text_at, bytes(text)),
            (".rodata", 1, _ALLOC, ro_at, tables),
            (".eh_frame_hdr", 1, _ALLOC, header_at, header),
            (".eh_frame", 1, _ALLOC, frames_at, bytes(frames)),
            (".rela.dyn", 4, _ALLOC, ro_at + 0x100000, relocations),
            (".data", 1, _ALLOC | 1, data_at, data),
        ],
    )


def arm64_program(code: Sequence[Function]) -> bytes:
    """Branches with a link, and addresses of words by page and rest."""
    text_at, data_at = 0x10000, 0x800000
    bodies = [function.body[: len(function.body) // 4 * 4] for function in code]
    starts, at = [], text_at
    for body, function in zip(bodies, code, strict=True):
        starts.append(at)
        at += len(body) + 12 * len(function.calls)
    text = bytearray()
    for body, function in zip(bodies, code, strict=True):
        # Words that are neither branches nor page addresses.
        text += bytes(byte & 0x0F if n % 4 == 3 else byte for n, byte in enumerate(body))
        for called in function.calls:
            here = text_at + len(text)
            text += struct.pack("<I", 0x94000000 | ((starts[called] - here) >> 2) & 0x3FFFFFF)
            pages = (starts[called] >> 12) - ((here + 4) >> 12)
            text += struct.pack(
                "<II",
                0x90000000 | (pages & 3) << 29 | ((pages >> 2) & 0x7FFFF) << 5,
                0x91000000 | (starts[called] & 0xFFF) << 10,
            )
    data = b"".join(struct.pack("<Q", start) for start in starts)
    return _elf(
        AARCH64,
        [
            (".text", 1, _ALLOC | _EXEC, text_at, bytes(text)),
            (".data", 1, _ALLOC | 1, data_at, data),
        ],
    )


def _elf(machine: int, sections: list[tuple[str, int, int, int, bytes]]) -> bytes:
    names = bytearray(b"\0")
    body = bytearray(64)
    lines = [bytes(64)]
    for name, kind, flags, address, content in [*sections, (".shstrtab", 3, 0, 0, b"")]:
        place = len(names)
        names += name.encode() + b"\0"
        held = bytes(names) if name == ".shstrtab" else content
        body += bytes(-len(body) % 16)
        size = (kind, flags, address, len(body), len(held))
        lines.append(struct.pack("<IIQQQQIIQQ", place, *size, 0, 0, 16, 0))
        body += held
    body += bytes(-len(body) % 16)
    head = struct.pack(
        "<4sBBB9xHHIQQQIHHHHHH",
        *(b"\x7fELF", 2, 1, 1, 3, machine, 1, 0, 0, len(body), 0, 64, 56, 0, 64),
        *(len(lines), len(lines) - 1),
    )
    body[:64] = head
    return bytes(body) + b"".join(lines)
