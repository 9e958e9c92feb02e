from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from sarto.pipeline.page.labels import Box, place
from sarto.pipeline.page.wording import amount, compact, listed, number, percent, points

FRAME = Box(0, 0, 700, 400)


@given(st.lists(st.tuples(st.floats(60, 640), st.floats(40, 360)), min_size=1, max_size=8))
def test_labels_stay_in_the_frame_and_off_each_other(spots: list[tuple[float, float]]) -> None:
    found = place(spots, [(50.0, 12.0)] * len(spots), [], FRAME)
    assert all(spot.box.outside(FRAME) < 1e-6 for spot in found)
    assert all(one.box.overlap(two.box) < 1e-6 for one, two in combinations(found, 2))


def test_a_label_gives_way_to_an_obstacle() -> None:
    (free,) = place([(300, 200)], [(50, 12)], [], FRAME)
    (moved,) = place([(300, 200)], [(50, 12)], [free.box], FRAME)
    assert free.side == "left" and moved.box.overlap(free.box) == 0


def test_numbers_are_written_for_people() -> None:
    assert [compact(n) for n in (None, 0, 999, 1000, 681_204, 999_999, 48_201_112)] == [
        "\N{EN DASH}",
        "0",
        "999",
        "1 k",
        "681 k",
        "1 M",
        "48.2 M",
    ]
    assert [percent(None), percent(0.9166)] == ["\N{EN DASH}", "91.7%"]
    assert [points(0.034), points(-0.1)] == ["+3.4", "\N{MINUS SIGN}10.0"]
    assert [amount("latency_ms", 2.128), amount("size_bytes", 12), amount("params", 7e5)] == [
        "2.13 ms",
        "12 B",
        "700,000",
    ]
    assert [number(None), number(681_204), number(3.1e-7)] == ["", "681,204", "3.1e-07"]
    assert listed(("a",)) == "a" and listed(("a", "b", "c")) == "a, b and c"
    assert listed(tuple("abcdefghij"), most=3) == "a, b, c and 7 more"
