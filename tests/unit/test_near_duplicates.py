from __future__ import annotations

import pytest

from mesh.core.near_duplicates import DistinctTexts, repeats

LONG = [f"word{number}" for number in range(12)]


@pytest.mark.parametrize(
    ("words", "others", "expected"),
    [
        (LONG, LONG, True),
        (LONG[2:8], LONG, True),
        (LONG, LONG[2:8], False),
        ([*LONG[:10], "else"], LONG, True),
        ([*LONG[:10], "quite", "something", "else"], LONG, False),
        (LONG[::-1], LONG, False),
        (LONG[1:3], LONG, True),
        (LONG[2:0:-1], LONG, False),
        (["ord1"], LONG, False),
        (LONG[:3], LONG[:2], False),
    ],
)
def test_what_repeats_what(words, others, expected):
    assert repeats(words, others) is expected
    texts = DistinctTexts()
    texts.add(7, others)
    assert texts.holds(words) is expected
    texts = DistinctTexts()
    texts.add(7, words)
    assert (texts.held_by(others) == [7]) is expected


@pytest.mark.parametrize("words", [LONG, LONG[:2]])
def test_one_that_is_taken_out_counts_no_more(words):
    texts = DistinctTexts()
    texts.add(1, words)
    texts.add(2, ["another", "text", "of", "five", "words"])
    texts.remove(1)
    assert not texts.holds(words)
    assert texts.held_by(words) == []
    texts.add(1, words)
    assert texts.held_by([*words, "more"]) == [1]
