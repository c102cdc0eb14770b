"""A pack that a hub serves for a checkout: used where it is right, and never believed."""

from io import BytesIO
from pathlib import Path

import pytest

from edgewise.cli.artifact_pack import ENDING, unpack_into
from edgewise.delivery.delta import contents, parse_tree
from edgewise.model.errors import Untrusted
from edgewise.model.names import Digest
from edgewise.protocol import limits
from edgewise.protocol.content import Tree
from edgewise.protocol.delta import DeltaRef, delta_path
from edgewise.testing.clock import ManualClock
from edgewise.testing.content import Content
from edgewise.testing.delta_world import ONE, TWO, DeltaWorld

Packed = tuple[DeltaRef, bytes, Tree]


@pytest.fixture
async def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packed:
    monkeypatch.setattr(limits, "PART_OUTPUT", 32 << 10)  # so that contents span parts
    clock = ManualClock()
    world = DeltaWorld(await Content.open(clock), clock, tmp_path / "node")
    await world.version("one", ONE)
    await world.version("two", TWO)
    ref = await world.delta("", "two")
    await world.delta("one", "two")
    manifest = await world.content.objects.get(ref.tree, at_most=limits.TREE)
    return ref, world.content.files[delta_path(ref.sha256)], parse_tree(manifest)


def test_a_pack_brings_every_content_of_its_tree(packed: Packed, tmp_path: Path) -> None:
    ref, data, tree = packed
    found = unpack_into(tmp_path, BytesIO(data), ref, tree)
    assert found == contents(tree).keys()
    for sha256 in found:
        assert Digest.of((tmp_path / f"{sha256}{ENDING}").read_bytes()).sha256 == sha256


def test_any_wrong_byte_of_a_pack_is_noticed(packed: Packed, tmp_path: Path) -> None:
    ref, data, tree = packed
    outside = range(ref.head, ref.lead)  # the manifest is here already, and is not read
    for at in [n for n in range(0, len(data), len(data) // 40) if n not in outside]:
        wrong = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
        with pytest.raises(Untrusted):
            unpack_into(tmp_path, BytesIO(wrong), ref, tree)
        with pytest.raises(Untrusted):
            unpack_into(tmp_path, BytesIO(data[:at]), ref, tree)


def test_a_pack_of_another_tree_is_refused(packed: Packed, tmp_path: Path) -> None:
    ref, data, tree = packed
    other = DeltaRef(ref.sha256, ref.head, ref.lead, ref.size, "ab" * 32)
    with pytest.raises(Untrusted, match="not what the list says"):
        unpack_into(tmp_path, BytesIO(data), other, tree)
