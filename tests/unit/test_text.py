import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.core.text import MAX_QUERY_TERMS, MAX_TERM_BYTES, query_terms, terms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  \n\t", []),
        (
            "Parse a date-time, from_a string!",
            ["pars", "a", "date", "time", "from", "a", "string"],
        ),
        ("don't stop", ["don", "t", "stop"]),
        ("HTTP/2 3.14 v1", ["http", "2", "3", "14", "v1"]),
        ("Héllo WÖRLD", ["hello", "world"]),
        ("cafe\N{COMBINING ACUTE ACCENT}", ["cafe"]),
        ("Straße STRASSE", ["strass", "strass"]),
        ("Łódź Ærø İstanbul", ["lodz", "aero", "istanbul"]),
        ("“smart” — quotes…", ["smart", "quot"]),
        ("\N{FULLWIDTH LATIN CAPITAL LETTER A}\N{LATIN SMALL LIGATURE FI}", ["afi"]),
        ("Москва ΑΘΉΝΑ", ["москва", "αθηνα"]),
        ("日本 ガ カ", ["日本", "ガ", "カ"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("שָׁלוֹם", ["שלום"]),
        ("❤️ x", ["x"]),
    ],
)
def test_terms(text, expected):
    assert terms(text) == expected


def test_composed_and_decomposed_text_are_the_same():
    for text in ("naïve Ångström", "हिन्दी", "ガギグ", "Việt Nam"):
        decomposed = unicodedata.normalize("NFD", text)
        assert terms(text) == terms(decomposed) == terms(unicodedata.normalize("NFC", text))


def test_runs_too_long_to_be_words_are_left_out():
    longest = "x" * MAX_TERM_BYTES
    assert terms(f"{longest} {longest}x short") == [longest, "short"]
    # Twenty letters of two bytes are forty bytes.
    assert terms("ж" * 20 + " " + "ж" * 21) == ["ж" * 20]


def test_query_terms_are_distinct_and_in_order():
    assert query_terms("b A b a C") == ["b", "a", "c"]


def test_query_terms_are_bounded():
    query = " ".join(f"t{number}" for number in range(MAX_QUERY_TERMS + 50))
    assert query_terms(query) == [f"t{number}" for number in range(MAX_QUERY_TERMS)]


@settings(deadline=None)
@given(st.text())
def test_terms_come_apart_at_blanks(text):
    """So an index over the joined terms sees exactly the terms."""
    found = terms(text)
    assert " ".join(found).split() == found
    assert not any(set(term) & set(" \t\n\r\v\f\x00") for term in found)
    assert all(0 < len(term.encode()) <= MAX_TERM_BYTES for term in found)


@settings(deadline=None)
@given(st.text(), st.text())
def test_a_blank_separates(left, right):
    assert terms(f"{left} {right}") == terms(left) + terms(right)
