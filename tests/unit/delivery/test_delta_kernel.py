"""A kernel image travels unpacked, and comes back bit for bit or not at all."""

import io
import random
import struct
import tempfile
from pathlib import Path

import lz4.block
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_delta_roundtrip import applied, noise, side

from edgewise.backends.files import recompress
from edgewise.backends.files.delta_maker import MakeTerms, make_delta
from edgewise.delivery.delta import Expansion
from edgewise.model.errors import Untrusted

BLOCK = 8 << 20
BEFORE = 4 * 512 + 512 + 64


def kernel(payload: bytes, *, level: int = 9, behind: bytes = b"a signature") -> bytes:
    """An image as Linux' build makes it: header, loader, payload, size, and the rest."""
    blocks = [bytes.fromhex("02214c18")]
    for at in range(0, len(payload), BLOCK):
        packed = lz4.block.compress(
            payload[at : at + BLOCK], mode="high_compression", compression=level, store_size=False
        )
        blocks += [struct.pack("<I", len(packed)), packed]
    body = b"".join(blocks) + struct.pack("<I", len(payload))
    start = bytearray(noise(BEFORE, 3))
    start[:2] = b"MZ"
    start[0x1F1] = 4
    start[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", start, 0x206, 0x20F)
    struct.pack_into("<II", start, 0x248, 64, len(body))
    return bytes(start) + body + behind


def words(size: int, seed: int) -> bytes:
    chance = random.Random(seed)
    known = [chance.randbytes(chance.randrange(3, 12)) for _ in range(4000)]
    found = bytearray()
    while len(found) < size:
        found += chance.choice(known)
    return bytes(found[:size])


SMALL = words(300_000, 1)


def expansion(image: bytes) -> tuple[Expansion | None, bytes]:
    with tempfile.TemporaryFile() as scratch:
        found = recompress.expansion_of(io.BytesIO(image), scratch, at_most=1 << 30)
        scratch.seek(0)
        return found, scratch.read()


def packed_again(found: Expansion, form: bytes) -> bytes:
    out: list[bytes] = []
    with tempfile.TemporaryFile() as file:
        file.write(form)
        file.flush()
        recompress.recompress(found, file, out.append)
    return b"".join(out)


@pytest.mark.parametrize("size", [1, 300_000, BLOCK, BLOCK + 1])
def test_a_kernel_image_comes_back_bit_for_bit(size: int):
    payload = (SMALL * (size // len(SMALL) + 1))[:size]
    image = kernel(payload)
    found, form = expansion(image)
    assert found is not None
    assert found.kind == recompress.KERNEL_LZ4
    assert found.size == len(form)
    assert payload in form
    assert packed_again(found, form) == image


def test_an_image_of_another_level_travels_as_it_is():
    assert expansion(kernel(SMALL, level=4))[0] is None


def test_this_machine_packs_kernels_as_others_do():
    assert recompress.can_recompress(recompress.KERNEL_LZ4)


@pytest.mark.parametrize("cut", [3, 0x24F, BEFORE + 2, BEFORE + 6, 20_000])
def test_an_image_that_is_cut_off_travels_as_it_is(cut: int):
    assert expansion(kernel(SMALL)[:cut])[0] is None


@given(st.integers(0, BEFORE + 400), st.binary(min_size=1, max_size=8))
@settings(max_examples=300, deadline=None)
def test_a_damaged_image_comes_back_or_travels_as_it_is(at: int, changed: bytes):
    image = bytearray(kernel(SMALL[:4000]))
    at %= len(image)
    image[at : at + len(changed)] = changed
    found, form = expansion(bytes(image))
    if found is not None:
        assert packed_again(found, form) == bytes(image)


@given(st.binary(max_size=40), st.integers(0, 5000))
@settings(max_examples=200, deadline=None)
def test_an_expansion_of_any_detail_gives_bytes_or_is_untrusted(detail: bytes, size: int):
    try:
        packed_again(Expansion(recompress.KERNEL_LZ4, size, detail), SMALL[:size])
    except Untrusted:
        return
    assert len(detail) == 17


def test_a_node_gets_a_new_kernel_from_its_old_one(tmp_path: Path):
    old = words(400_000, 2)
    new = old[:100_000] + b"what is new" + old[100_000:]
    # An LZ4 stream differs from the first new byte on, all through a window of 64 KiB.
    before = side(tmp_path / "old", {"boot/vmlinuz-6.1.0-1-amd64": kernel(old)})
    after = side(tmp_path / "new", {"boot/vmlinuz-6.1.0-2-amd64": kernel(new)})
    out = tmp_path / "x.ewd"
    made = make_delta(before, after, out, MakeTerms(jobs=1))
    assert made.recompressed == 1
    ((content),) = applied(made, out, before).values()
    assert content == kernel(new)
    plain = make_delta(before, after, tmp_path / "y.ewd", MakeTerms(jobs=1, recompress=False))
    assert made.ref.size * 3 < plain.ref.size
