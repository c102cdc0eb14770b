"""A tar archive taken apart and put together: the same bytes, whatever it was."""

from __future__ import annotations

import hashlib
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.delivery import skeleton
from edgewise.delivery.skeleton import Content, Readable
from edgewise.model.errors import BadUsage, Untrusted
from edgewise.testing.images import program, rich_layer, tar

AT_MOST = 64 << 20


class Kept:
    """Contents by digest."""

    def __init__(self) -> None:
        self.found: dict[str, bytes] = {}

    def keep(self, content: Readable) -> tuple[str, int]:
        data = b""
        while chunk := content.read(1000):
            data += chunk
        sha256 = hashlib.sha256(data).hexdigest()
        self.found[sha256] = data
        return sha256, len(data)

    def read(self, sha256: str, size: int) -> list[bytes]:
        return [self.found[sha256]]


def apart(archive: bytes, at_most: int = AT_MOST) -> tuple[bytes, list[Content], Kept]:
    kept, out = Kept(), io.BytesIO()
    whole, contents = skeleton.take_apart(io.BytesIO(archive), kept.keep, out, at_most=at_most)
    assert whole.sha256 == hashlib.sha256(archive).hexdigest()
    return out.getvalue(), contents, kept


def together(made: bytes, kept: Kept, archive: bytes) -> bytes:
    sha256 = hashlib.sha256(archive).hexdigest()
    return b"".join(skeleton.assembled(io.BytesIO(made), kept.read, sha256))


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_layer_comes_back_bit_for_bit(form: int) -> None:
    archive = rich_layer(form=form)
    made, contents, kept = apart(archive)
    assert together(made, kept, archive) == archive
    named = {one.hint: kept.found[one.sha256] for one in contents}
    assert named["bin/till"] == program(1)
    assert named["/".join(["a" * 90] * 4)] == program(101, 700)
    assert named["umläut/ \x01x"] == program(201, 900)
    assert len(made) < 30_000
    assert len(kept.found) == len(contents) - 1, "equal files are one content"


@given(st.binary(max_size=5000), st.integers(0, 30_000), st.integers(0, 30_000))
def test_any_bytes_come_back(noise: bytes, at: int, cut: int) -> None:
    layer = tar({"a": program(1, 9000), "b": b"small", "c": program(2, 700)})
    archive = (layer[:at] + noise + layer[at:])[: len(layer) + len(noise) - cut]
    made, _, kept = apart(archive)
    assert together(made, kept, archive) == archive


def test_the_noise_is_sometimes_no_tar_at_all() -> None:
    made, contents, kept = apart(b"x" * 3_000_000)
    assert [one.size for one in contents] == [1 << 20, 1 << 20, 3_000_000 - (2 << 20)]
    assert together(made, kept, b"x" * 3_000_000) == b"x" * 3_000_000


def test_a_file_shared_by_two_layers_is_the_same_content() -> None:
    _, first, _ = apart(tar({"x": program(5), "a": program(6)}))
    _, second, _ = apart(tar({"b": program(7), "deep/er/x": program(5)}))
    assert {one.sha256 for one in first} & {one.sha256 for one in second}


def test_a_header_that_claims_more_than_there_is_loses_nothing() -> None:
    about = tarfile.TarInfo("big")
    about.size = 1 << 40
    archive = about.tobuf(tarfile.GNU_FORMAT) + program(1, 4000)
    made, contents, kept = apart(archive)
    assert together(made, kept, archive) == archive
    assert [one.size for one in contents] == [4000]


def test_an_archive_beyond_its_bound_is_refused() -> None:
    with pytest.raises(BadUsage, match="unpacks to more than"):
        apart(tar({"a": bytes(3_000_000)}), at_most=1 << 20)


def test_headers_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skeleton, "LITERALS", 1 << 20)
    with pytest.raises(BadUsage, match="besides its files"):
        apart(bytes(2 << 20))
    monkeypatch.setattr(skeleton, "CONTENTS", 1)
    with pytest.raises(BadUsage, match="more than 1 files"):
        apart(tar({"a": program(1), "b": program(2)}))


@given(st.integers(0, 3000), st.integers(0, 255))
def test_a_changed_skeleton_is_untrusted_or_harmless(at: int, value: int) -> None:
    archive = tar({"a": program(1, 900), "b": program(2, 900)})
    made, _, kept = apart(archive)
    changed = bytearray(made)
    changed[at % len(made)] = value
    try:
        got = together(bytes(changed), kept, archive)
    except (Untrusted, KeyError):
        return
    assert got == archive


def test_a_truncated_skeleton_is_untrusted() -> None:
    archive = tar({"a": program(1, 900)})
    made, _, kept = apart(archive)
    for end in range(len(made)):
        with pytest.raises(Untrusted):
            together(made[:end], kept, archive)
    with pytest.raises(Untrusted, match="goes on"):
        together(made + b"x", kept, archive)
