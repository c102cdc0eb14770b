"""What the person who pushes reads, and where it is put into git's answer."""

from hypothesis import example, given
from hypothesis import strategies as st

from edgewise.model.errors import Untrusted
from edgewise.model.rules import RolloutRules
from edgewise.net.git_http import Tail
from edgewise.protocol.api import SourceProblem
from edgewise.sync.ports import Compiled, CompiledFleet, Member
from edgewise.sync.remarks import accepted, distrusted, mistaken

REVISION = "main@sha1:" + "ab" * 20


def fleet(name: str, nodes: int) -> CompiledFleet:
    members = {f"n{n}": Member(f"n{n}", {}, "s") for n in range(nodes)}
    return CompiledFleet(name, "r", {}, members, RolloutRules(), {})


def test_a_good_push_reads_what_it_reaches() -> None:
    compiled = Compiled(REVISION, {"pos": fleet("pos", 2), "kiosk": fleet("kiosk", 1)})
    assert accepted(compiled) == ("accepted main@sha1:abababababab, 2 fleets, 3 nodes",)


def test_a_held_push_reads_why_and_how_to_let_it_go() -> None:
    lines = accepted(Compiled(REVISION, {}, unplaced=("x",), held="would remove 40 of 50 nodes"))
    assert lines[1] == "1 node in no fleet: x"
    assert "would remove 40" in lines[2]
    assert "approve" in lines[3]


def test_mistakes_read_with_file_and_line_and_are_bounded() -> None:
    problems = tuple(SourceProblem("f.yaml", n, 3, "no such app", "hello?") for n in range(25))
    lines = mistaken(REVISION, problems)
    assert lines[0] == "main@sha1:abababababab has 25 mistakes:"
    assert lines[1] == "  f.yaml:0:3: no such app (hello?)"
    assert "and 5 more" in lines[-2]
    assert "stay as they are" in lines[-1]


def test_an_untrusted_push_reads_the_reason_and_the_next_move() -> None:
    lines = distrusted(REVISION, Untrusted("commit abc is not signed", hint="sign it"))
    assert "is not acted on: commit abc is not signed" in lines[0]
    assert lines[1] == "sign it"


def packet(data: bytes) -> bytes:
    return b"%04x" % (len(data) + 4) + data


BANDED = packet(b"\1000eunpack ok\n0000") + packet(b"\2note\n") + b"0000"
PLAIN = packet(b"unpack ok\n") + packet(b"ok refs/heads/main\n") + b"0000"


def through(stream: bytes, cuts: list[int], lines: tuple[str, ...]) -> bytes:
    tail, out, at = Tail(), b"", 0
    for cut in [*sorted(cuts), len(stream)]:
        out += tail.feed(stream[at:cut])
        at = max(at, cut)
    return out + tail.finish(lines)


@given(st.lists(st.integers(0, len(BANDED)), max_size=8))
def test_remarks_come_just_before_the_last_flush_however_the_stream_is_cut(cuts: list[int]) -> None:
    out = through(BANDED, cuts, ("accepted",))
    assert out == BANDED[:-4] + packet(b"\2edgewise: accepted\n") + b"0000"


@given(st.lists(st.integers(0, len(PLAIN)), max_size=8))
def test_a_client_without_sideband_gets_gits_answer_untouched(cuts: list[int]) -> None:
    assert through(PLAIN, cuts, ("accepted",)) == PLAIN


@example(b"\t\t\t0", [])
@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_whatever_git_says_nothing_of_it_is_lost(stream: bytes, cuts: list[int]) -> None:
    assert through(stream, [min(cut, len(stream)) for cut in cuts], ()) == stream


def test_remarks_beyond_one_packet_are_split() -> None:
    out = through(BANDED, [], tuple("x" * 1000 for _ in range(200)))
    assert out.count(b"x") == 200_000
    assert out.endswith(b"0000")
