"""What a fetch cost, and what was refused: sums that never grow."""

from edgewise.protocol import limits
from edgewise.protocol.report import Refused, Traffic, dearest, sum_of


def test_the_same_refusal_of_many_nodes_is_one_line_with_their_number():
    one = Traffic({}, {"whole": 5}, 1, (Refused("a" * 64, "torn", 5),))
    other = Traffic({}, {"whole": 7}, 2, (Refused("a" * 64, "torn", 7), Refused("b" * 64, "gone")))
    assert sum_of([one, other]).refused == (
        Refused("a" * 64, "torn", 12, 2),
        Refused("b" * 64, "gone"),
    )


def test_a_report_carries_only_the_dearest_refusals_and_short_reasons():
    many = [Refused(f"{n:064x}", "w" * 5000, n) for n in range(100)]
    kept = dearest(many)
    assert [one.bytes for one in kept] == list(range(99, 99 - limits.REFUSED, -1))
    assert all(len(one.why) == limits.REFUSED_WHY for one in kept)


def test_a_node_that_reports_more_than_it_may_does_not_make_the_sum_grow():
    flood = Traffic(refused=tuple(Refused(f"{n:064x}", "w" * 5000, n) for n in range(1000)))
    assert len(sum_of([flood] * 50).refused) == limits.REFUSED
