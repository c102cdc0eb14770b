"""What points elsewhere in a rebuilt program is told once, not at every place."""

import lzma
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_programs import Function, arm64_program, functions, x86_program
from test_delta_roundtrip import applied, noise, side

from edgewise.backends.files.copies import Copy, search
from edgewise.backends.files.delta_maker import MakeTerms, make_delta
from edgewise.backends.files.program_alignment import aligned, slice_of
from edgewise.backends.files.program_references import (
    Program,
    found_references,
    moved,
    program,
)
from edgewise.delivery import delta, references
from edgewise.delivery.delta_numbers import NumberReader
from edgewise.delivery.delta_table import varints
from edgewise.delivery.references import (
    ABSOLUTE,
    ARM64,
    FRAMES,
    RELATIVE,
    TABLES,
    X86,
    Copies,
    Group,
    References,
    Steps,
)
from edgewise.model.errors import Untrusted
from edgewise.protocol import limits

MOVED = Steps(np.array([0, 0x100], np.int64), np.array([0, 0x20], np.int64), 0x10000)
"""From 0x100 on, all is 0x20 further."""


def whole(length: int, target: int = 0) -> Copies:
    return references.copies([(0, length)], [0], target)


def put_right(old: bytes, group: Group, *, steps: Steps = MOVED, target: int = 0) -> bytes:
    return references.predicted(
        old, whole(len(old), target), References(steps, (group,)), lambda at, n: old[at : at + n]
    )


# Each kind of field


def test_a_call_over_the_place_that_grew_reaches_its_target_again():
    code = b"\xe8" + struct.pack("<i", 0x200) + b"\x90\x90\x90"
    # The call stands at 0 and goes on from 5: its target was 0x205 and is 0x225 now.
    assert put_right(code, Group(X86, (0, 8, 0, 0)))[1:5] == struct.pack("<i", 0x220)


def test_a_call_that_moved_with_its_target_stays_as_it_is():
    code = b"\x90\xe9" + struct.pack("<i", 0x40) + b"\x90"
    found = put_right(code, Group(X86, (0, 7, 0x100, 0x120)))
    assert found == code


@pytest.mark.parametrize("opcode", [b"\x0f\x84", b"\x8d\x05", b"\x8b\x0d", b"\xff\x15"])
def test_branches_and_operands_relative_to_the_instruction_are_found(opcode: bytes):
    code = opcode + struct.pack("<i", 0x200) + b"\x90"
    assert put_right(code, Group(X86, (0, 7, 0, 0)))[2:6] == struct.pack("<i", 0x220)


def test_a_candidate_within_another_operand_is_left_alone():
    code = b"\xe8" + struct.pack("<i", 0x2E8) + struct.pack("<i", 0x200)
    # The operand has an E8 itself, whose operand would begin in it.
    found = put_right(code, Group(X86, (0, 9, 0, 0)))
    assert found == b"\xe8" + struct.pack("<i", 0x308) + struct.pack("<i", 0x200)


def test_code_outside_of_the_range_is_left_alone():
    code = b"\xe8" + struct.pack("<i", 0x200) + b"\xe8" + struct.pack("<i", 0x200)
    found = put_right(code, Group(X86, (5, 5, 0, 0)))
    assert found[:5] == code[:5]
    assert found[5:] != code[5:]


def test_an_arm64_branch_and_an_address_by_page_reach_their_target_again():
    far = Steps(np.array([0, 0x8000], np.int64), np.array([0, 0x1FF8], np.int64), 1 << 20)
    branch = struct.pack("<I", 0x94000000 | 0x8000 >> 2)
    page = struct.pack("<I", 0x90000003 | (9 & 3) << 29 | (9 >> 2) << 5)  # x3, nine pages on
    rest = struct.pack("<I", 0xF9400063 | (0x10 >> 3) << 10)  # ldr x3, [x3, 0x10]
    found = put_right(branch + page + rest, Group(ARM64, (0, 12, 0, 0)), steps=far)
    assert found[:4] == struct.pack("<I", 0x94000000 | (0x8000 + 0x1FF8) >> 2)
    # 0x9010 is 0xb008 now: eleven pages, and 8 behind.
    assert found[4:8] == struct.pack("<I", 0x90000003 | (11 & 3) << 29 | (11 >> 2) << 5)
    assert found[8:] == struct.pack("<I", 0xF9400063 | (8 >> 3) << 10)


def test_pointers_distances_and_tables_are_put_right():
    pointers = struct.pack("<QQ", 0x80, 0x180)
    assert put_right(pointers, Group(ABSOLUTE, (0, 8, 2, 8, 0, 0))) == struct.pack(
        "<QQ", 0x80, 0x1A0
    )
    distances = struct.pack("<ii", 0x200, 0x40)
    assert put_right(distances, Group(RELATIVE, (0, 4, 2, 4, 0, 0)), target=0) == struct.pack(
        "<ii", 0x220, 0x40
    )
    # Distances from a place that was at 0x10 and is at 0x18.
    assert put_right(distances, Group(ABSOLUTE, (0, 4, 2, 4, 0x10, 0x18))) == struct.pack(
        "<ii", 0x218, 0x38
    )
    # Two tables: one counts from 0, the other from its own start at 0x204, which moved too.
    tables = struct.pack("<ii", 0x200, -0x180)
    group = Group(TABLES, (0, 0, 1, 4, 1))
    assert put_right(tables, group) == struct.pack("<ii", 0x220, -0x180)


def test_a_frame_is_found_by_the_table_that_points_to_it():
    table = struct.pack("<ii", 0x500, 16)
    frame = struct.pack("<IIiIB", 20, 4, 0x200, 40, 4) + struct.pack("<i", 0x300)
    old = table + bytes(8) + frame
    found = put_right(old, Group(FRAMES, (0, 1, 0, 0, 0)))
    assert struct.unpack_from("<i", found, 24) == (0x220,)
    assert struct.unpack_from("<i", found, 33) == (0x320,)
    assert found[:24] == old[:24]


def test_an_address_that_the_steps_do_not_speak_of_stays():
    code = struct.pack("<QQ", 0x20000, (1 << 64) - 5)
    assert put_right(code, Group(ABSOLUTE, (0, 8, 2, 8, 0, 0))) == code


def test_a_field_that_is_cut_by_the_end_of_a_copy_stays():
    old = struct.pack("<QQ", 0x180, 0x180)
    copies = references.copies([(0, 12)], [0], 0)
    said = References(MOVED, (Group(ABSOLUTE, (0, 8, 2, 8, 0, 0)),))
    found = references.predicted(old[:12], copies, said, lambda at, n: old[at : at + n])
    assert found == struct.pack("<Q", 0x1A0) + old[8:12]


# What is written is what is read


def test_what_is_said_comes_back_as_it_was():
    groups = (
        Group(X86, (64, 1000, -5, 7)),
        Group(TABLES, (-3, 8, 4, 40, 2)),
        Group(FRAMES, (12, 3, 0, -1, 1)),
        Group(ABSOLUTE, (0, 24, 7, 8, 0, 0)),
    )
    steps = Steps(np.array([-(1 << 31), 5], np.int64), np.array([-7, 9], np.int64), 1 << 40)
    reader = NumberReader(varints(references.written(References(steps, groups))))
    found = references.parse(reader)
    reader.end()
    assert found.groups == groups
    assert found.steps.at.tolist() == steps.at.tolist()
    assert found.steps.shift.tolist() == steps.shift.tolist()
    assert found.steps.end == steps.end


numbers = st.one_of(st.integers(0, 40), st.integers(0, (1 << 63) - 1))
old_bytes = noise(3000, 5)


@given(st.lists(numbers, max_size=40), st.lists(st.integers(0, 2900), min_size=1, max_size=5))
@settings(max_examples=500, deadline=None)
def test_any_numbers_give_as_many_bytes_or_are_untrusted(said: list[int], starts: list[int]):
    _as_many_or_untrusted(said, starts)


def _as_many_or_untrusted(said: list[int], starts: list[int]) -> None:
    try:
        found = references.parse(NumberReader(varints(said)))
    except Untrusted:
        return
    old = b"".join(old_bytes[start : start + 100] for start in starts)
    copies = references.copies([(s, s + 100) for s in starts], [0] * len(starts), 0)
    assert len(references.predicted(old, copies, found, _read)) == len(old)


def _read(offset: int, length: int) -> bytes:
    return old_bytes[offset : offset + length]


@given(
    st.sampled_from([ABSOLUTE, RELATIVE, FRAMES, X86, ARM64]),
    st.lists(st.integers(-300, 3000), min_size=6, max_size=6),
    st.lists(st.integers(0, 1 << 20), min_size=1, max_size=5),
)
@settings(max_examples=500, deadline=None)
def test_groups_of_any_form_give_as_many_bytes_or_are_untrusted(
    kind: int, form: list[int], shifts: list[int]
):
    size = {ABSOLUTE: 6, RELATIVE: 6, FRAMES: 5, X86: 4, ARM64: 4}[kind]
    at = np.arange(len(shifts), dtype=np.int64) * 100
    said = References(
        Steps(at, np.array(shifts, np.int64), 5000), (Group(kind, tuple(form[:size])),)
    )
    _as_many_or_untrusted(references.written(said), [0, 50, 2900])


def test_the_forms_of_the_tests_before_do_change_bytes():
    said = References(
        Steps(np.array([-(1 << 40)], np.int64), np.array([1], np.int64), 1 << 40),
        (Group(ABSOLUTE, (0, 4, 100, 4, 0, 0)),),
    )
    read = references.parse(NumberReader(varints(references.written(said))))
    assert references.predicted(old_bytes[:100], whole(100), read, _read) != old_bytes[:100]


@pytest.mark.parametrize(
    "said",
    [
        [limits.PART_STEPS + 1],
        [0, 0, 0, limits.PART_GROUPS + 1],
        [0, 0, 0, 1, 6],  # a kind that is not known
        [0, 0, 0, 1, ABSOLUTE, 0, 2 * 4, 2 * 9, 2 * 3, 0, 0],  # words of three bytes
        [0, 0, 0, 1, ABSOLUTE, 0, 2 * 3, 2 * 9, 2 * 4, 0, 0],  # words that overlap
        [0, 0, 0, 1, ABSOLUTE, 2 << 40, 2 * 4, 2 * 9, 2 * 4, 0, 0],
        [0, 0, 0, 1, ABSOLUTE, 0, 2 * 4, 2 << 40, 2 * 4, 0, 0],
        [0, 0, 0, 1, FRAMES, 0, 2 * limits.PART_BASE, 0, 0, 0],
        [0, 0, 0, 1, X86, 1, 0, 0, 0],  # before the file
        [0, 0, 0, 1, TABLES, 0, 1, 0, limits.PART_FIELDS + 1],
        [0, 0, 0, 1, TABLES, 0, 1 << 40],
    ],
)
def test_forms_that_cannot_be_are_refused(said: list[int]):
    with pytest.raises(Untrusted):
        references.parse(NumberReader(varints(said)))


# Programs


def grown(code: list[Function], seed: int = 9) -> list[Function]:
    """One function more in front, and one in the middle that is longer."""
    other = list(code)
    middle = other[len(other) // 2]
    other[len(other) // 2] = middle._replace(body=middle.body + bytes(range(64, 104)))
    more = functions(3, seed)[0]
    shifted = [one._replace(calls=tuple(called + 1 for called in one.calls)) for one in other]
    return [more._replace(calls=(1, 2)), *shifted]


@pytest.fixture(scope="module", params=[x86_program, arm64_program], ids=["x86-64", "arm64"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("programs")
    code = functions(2000)
    old, new = folder / "old", folder / "new"
    old.write_bytes(request.param(code))
    new.write_bytes(request.param(grown(code)))
    return old, new


def packed(differences: bytes) -> int:
    return len(lzma.compress(differences, format=lzma.FORMAT_RAW, filters=[{"id": 33}]))


def test_hardly_a_reference_of_a_program_that_grew_is_told_by_itself(pair: tuple[Path, Path]):
    before, after = program(pair[0]), program(pair[1])
    assert before is not None
    assert after is not None
    copies = aligned(before, after, list(search(pair[1].read_bytes(), pair[0].read_bytes())))
    part = slice_of(before, after, copies, 0)
    steps = moved(before, after, part)
    found = found_references(before, after, part, steps)
    assert found is not None
    right = references.predicted(part.old, part.copies, found, before.read)
    wrong = np.frombuffer(right, np.uint8) != np.frombuffer(part.new, np.uint8)
    was = np.frombuffer(part.old, np.uint8) != np.frombuffer(part.new, np.uint8)
    assert wrong.sum() * 20 < was.sum()


def test_lines_of_tables_come_from_their_own_old_lines(tmp_path: Path):
    code = functions(2000)
    old, new = x86_program(code), x86_program(grown(code))
    before, after = written_to(tmp_path / "old", old), written_to(tmp_path / "new", new)
    found = list(search(new, old))
    laid = aligned(before, after, found)
    assert rebuilt(old, laid) == new
    for table in (".rela.dyn", ".eh_frame", ".eh_frame_hdr", ".data"):
        assert wrong_in(table, before, after, laid) < 60, table
    assert wrong_in(".rela.dyn", before, after, found) > 2000, "or this shows nothing"


def written_to(file: Path, content: bytes) -> Program:
    file.write_bytes(content)
    found = program(file)
    assert found is not None
    return found


def wrong_in(table: str, before: Program, after: Program, copies: list[Copy]) -> int:
    """Bytes of a section that come from an old one and are still wrong when it was put right."""
    part = slice_of(before, after, copies, 0)
    found = found_references(before, after, part, moved(before, after, part))
    assert found is not None
    right = references.predicted(part.old, part.copies, found, before.read)
    wrong = np.frombuffer(right, np.uint8) != np.frombuffer(part.new, np.uint8)
    section = after.named()[table]
    place = np.concatenate(
        [
            np.arange(at, at + n)
            for at, n in zip(part.copies.target, part.copies.length, strict=True)
        ]
    )
    inside = (place >= section.offset) & (place < section.offset + section.size)
    return int((wrong & inside).sum())


def rebuilt(old: bytes, copies: list[Copy]) -> bytes:
    return b"".join(
        delta.add(old[c.start : c.start + len(c.difference)], c.difference) + c.insert
        for c in copies
    )


def test_an_update_of_a_program_that_grew_costs_little_and_comes_out_right(
    tmp_path: Path, pair: tuple[Path, Path]
):
    old, new = (one.read_bytes() for one in pair)
    before = side(tmp_path / "old", {"bin/tool": old})
    after = side(tmp_path / "new", {"bin/tool": new, "bin/other": old[:3000]})
    out = tmp_path / "x.ewd"
    made = make_delta(before, after, out, MakeTerms(jobs=1))
    contents = applied(made, out, before)
    assert set(contents.values()) == {new, old[:3000]}
    copies = list(search(new, old))
    plain = packed(b"".join(copy.difference for copy in copies))
    assert made.ref.size * 3 < plain


def test_files_that_are_no_programs_of_a_known_machine_are_left_alone(tmp_path: Path):
    code = functions(200)
    sound = x86_program(code)
    for changed in (
        noise(4000),
        b"\x7fELF" + noise(4000),
        sound[:18] + b"\x08\x00" + sound[20:],  # another machine
        sound[:4] + b"\x01" + sound[5:],  # 32 bits
        sound[:40] + struct.pack("<Q", 1 << 62) + sound[48:],  # a section table far away
        sound[:-700],
    ):
        file = tmp_path / "some"
        file.write_bytes(changed)
        assert program(file) is None


@given(st.integers(0, 100_000), st.binary(min_size=1, max_size=40))
@settings(max_examples=150, deadline=None)
def test_a_damaged_program_never_stops_the_producer(at: int, changed: bytes):
    whole_file = bytearray(SOUND)
    at %= len(whole_file)
    if at % 2:  # half of them in the section table, where it hurts
        at = len(whole_file) - 1 - at % 640
    whole_file[at : at + len(changed)] = changed
    with_folder(bytes(whole_file))


SOUND = x86_program(functions(300))


def with_folder(changed: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        old, new = Path(folder) / "old", Path(folder) / "new"
        old.write_bytes(changed)
        new.write_bytes(SOUND)
        for one, other in ((old, new), (new, old)):
            _survives(program(one), program(other), one.read_bytes(), other.read_bytes())


def _survives(before: Program | None, after: Program | None, old: bytes, new: bytes) -> None:
    if before is None or after is None:
        return
    copies = aligned(before, after, list(search(new, old)))
    assert rebuilt(old, copies) == new
    part = slice_of(before, after, copies, 0)
    found = found_references(before, after, part, moved(before, after, part))
    if found is not None:
        assert references.parse(NumberReader(varints(references.written(found)))).groups
        right = references.predicted(part.old, part.copies, found, before.read)
        assert len(right) == len(part.old)
