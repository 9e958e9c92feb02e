"""Which donors of an order with new classes one model can read for, and what its note says."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest

from sarto.market import Samples
from sarto.pipeline.intakes import joint_problems
from sarto.pipeline.new_classes import NewClasses, read_together, some
from sarto.types import Learnware
from tests.unit.pipeline.test_intakes import image_donor, text_donor


def _brute(donors: list[Learnware], musts: set[str]) -> tuple[int, int]:
    """Must-be-used donors and donors of the best group, of all that there are."""
    return max(
        (sum(item.id in musts for item in group), len(group))
        for size in range(1, len(donors) + 1)
        for group in combinations(donors, size)
        if not joint_problems(group)
    )


@pytest.mark.parametrize("seed", range(20))
def test_the_largest_group_is_found(seed: int) -> None:
    rng = random.Random(seed)
    made = [
        image_donor(
            f"d{i}",
            (rng.choice((1, 3, 3, 4)), *rng.choice(((8, 8), (8, 8), (12, 12), (16, 9)))),
            resize=rng.choice(("bilinear", "refuse")),
        )
        for i in range(7)
    ]
    donors, intakes = [item for item, _ in made], {item.id: intake for item, intake in made}
    musts = {item.id for item in rng.sample(donors, rng.choice((0, 0, 1)))}
    found = read_together(donors, intakes, musts)
    assert joint_problems(found) == []
    assert (sum(item.id in musts for item in found), len(found)) == _brute(donors, musts)
    assert [item for item in donors if item in found] == list(found)


def test_donors_of_texts_that_part_them_alike_go_together() -> None:
    one, two = text_donor("one", ("a", "b"), 4), text_donor("two", ("a", "c", "d"), 6)
    other = text_donor("other", ("a", "b"), 4, side="start")
    donors = [other[0], one[0], two[0]]
    intakes = {item.id: intake for item, intake in (one, two, other)}
    assert read_together(donors, intakes, ()) == (one[0], two[0])
    assert read_together(donors, intakes, {other[0].id}) == (other[0],)


def test_a_note_names_new_classes_and_what_they_look_like() -> None:
    samples = Samples(np.zeros((4, 2, 2, 3), np.uint8), np.array([0, 0, 1, 1]), ("tulip", "roze"))
    donor, intake = image_donor("d", (3, 2, 2))
    new = NewClasses(("tulip", "roze"), samples, (donor,), (), {donor.id: intake}, {"roze": "rose"})
    assert new.note(samples) == (
        "tulip, roze (did you mean 'rose'?) are known to no stocked model: a new head is fitted on the 4 images given"
    )
    assert some([str(i) for i in range(15)], most=2) == "0, 1 and 13 more"
