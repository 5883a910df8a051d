"""The split is by a hash of the text: this one, for ever, or what was held out yesterday is trained on today."""

import pytest

from lockstep.environments.held_out import is_held_out


@pytest.mark.parametrize("one_in", [5, 8, 16])
def test_one_in_so_many_is_held_out(one_in):
    found = sum(is_held_out(f"task {i}", one_in=one_in) for i in range(20_000)) / 20_000
    assert found == pytest.approx(1 / one_in, rel=0.1)


def test_the_split_stays_what_it_was():
    assert [i for i in range(40) if is_held_out(f"task {i}", one_in=8)] == [23, 29, 30, 32, 34]


def test_text_that_no_file_can_hold_has_its_place_too():
    assert is_held_out("\ud800", one_in=1)
