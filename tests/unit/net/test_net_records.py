"""Record sequences never go back, and unchanged records are not made again."""

from __future__ import annotations

import msgspec

from edgewise.net.api.records import Records, Wanted
from edgewise.protocol.channel import NodeRecord, Signed
from edgewise.testing.hub import MemoryHub


async def sign(payload: bytes) -> Signed:
    return Signed("node-record/1", payload, "k", b"s")


def read(payload: bytes) -> NodeRecord:
    return msgspec.json.decode(payload, type=NodeRecord)


def sequence(records: Records, name: str) -> int:
    found = records.get(name)
    return found[0].sequence if found else 0


async def test_only_a_changed_record_gets_a_new_sequence() -> None:
    records = Records(MemoryHub(), sign)
    assert await records.put({"kiosk": Wanted("eu", "shops", 1)}) == ("kiosk",)
    assert await records.put({"kiosk": Wanted("eu", "shops", 1)}) == ()
    assert await records.put({"kiosk": Wanted("eu", "shops", 2)}) == ("kiosk",)
    assert sequence(records, "kiosk") == 2


async def test_a_name_that_joins_again_continues_its_numbers_even_after_a_restart() -> None:
    store = MemoryHub()
    records = Records(store, sign)
    await records.put({"kiosk": Wanted("eu", "shops", 1)})
    await records.forget("kiosk")
    await records.forget("kiosk")
    restarted = Records(store, sign)
    await restarted.load(read)
    assert restarted.get("kiosk") is None
    await restarted.put({"kiosk": Wanted("eu", "shops", 1)})
    assert sequence(restarted, "kiosk") == 2


async def test_a_new_channels_key_signs_every_record_again_with_higher_numbers() -> None:
    records = Records(MemoryHub(), sign)
    await records.put({"a": Wanted("eu", "shops", 1), "b": Wanted("eu", "shops", 2)})
    await records.sign_again()
    assert (sequence(records, "a"), sequence(records, "b")) == (2, 2)


async def test_a_relay_catches_up_in_batches_and_misses_nothing() -> None:
    records = Records(MemoryHub(), sign)
    await records.put({f"n{i:04}": Wanted("eu", "shops", i) for i in range(4500)})
    await records.put({f"u{i:04}": Wanted("us", "shops", i) for i in range(10)})
    cursor, seen = 0, set[str]()
    for expected in (2000, 2000, 500, 0):
        batch, gone, cursor = records.since("eu", cursor)
        assert len(batch) == expected
        seen |= set(batch)
        assert gone == ()
    assert len(seen) == 4500


async def test_a_cursor_from_before_a_restored_backup_starts_again() -> None:
    records = Records(MemoryHub(), sign)
    await records.put({"a": Wanted("eu")})
    assert set(records.since("eu", 99)[0]) == {"a"}
