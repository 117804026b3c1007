from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.stemming import stem


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        # Porter's own examples of steps 1 and 5a, one after the other.
        ("caresses", "caress"),
        ("ponies", "poni"),
        ("ties", "ti"),
        ("caress", "caress"),
        ("cats", "cat"),
        ("feed", "feed"),
        ("agreed", "agre"),
        ("plastered", "plaster"),
        ("bled", "bled"),
        ("motoring", "motor"),
        ("sing", "sing"),
        ("conflated", "conflat"),
        ("troubled", "troubl"),
        ("sized", "size"),
        ("hopping", "hop"),
        ("tanned", "tan"),
        ("falling", "fall"),
        ("hissing", "hiss"),
        ("fizzed", "fizz"),
        ("failing", "fail"),
        ("filing", "file"),
        ("happy", "happi"),
        ("sky", "sky"),
        ("probate", "probat"),
        ("rate", "rate"),
        ("cease", "ceas"),
        # What is no English word, or hardly one.
        ("", ""),
        ("as", "as"),
        ("7s", "7s"),
        ("x86s", "x86s"),
        ("\u043d\u043e\u0433\u0438s", "\u043d\u043e\u0433\u0438s"),
        ("ing", "ing"),
        ("sss", "sss"),
        ("eed", "eed"),
        ("bed", "bed"),
    ],
)
def test_stems(word, expected):
    assert stem(word) == expected


@pytest.mark.parametrize(
    "words",
    [
        ("invoice", "invoices", "invoiced", "invoicing"),
        ("query", "queries", "queried"),
        ("use", "uses", "used", "using"),
        ("file", "files", "filed", "filing"),
        ("index", "indexed", "indexing"),
        ("search", "searched", "searching"),
        ("library", "libraries"),
        ("stop", "stops", "stopped", "stopping"),
    ],
)
def test_inflections_of_a_word_are_one_term(words):
    assert len({stem(word) for word in words}) == 1


@pytest.mark.parametrize(
    ("one", "other"), [("university", "universe"), ("general", "generate"), ("new", "newer")]
)
def test_other_words_stay_apart(one, other):
    assert stem(one) != stem(other)


@given(st.text(alphabet=string.ascii_lowercase, max_size=30))
def test_a_stem_is_never_empty_and_hardly_longer(word):
    found = stem(word)
    assert bool(found) == bool(word)
    assert len(found) <= len(word)
    assert not word or found[0] == word[0]
