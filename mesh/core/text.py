"""Text to terms: the one tokenizer that documents, queries and term statistics share.

Case, accents and compatibility forms are folded, and inflections of English go (see
`mesh.core.stemming`); there is no stop list. Scripts written without blanks stay whole runs.

Source: Unicode UAX 15 (NFKD) and UAX 44 (categories); the fold of Latin letters without a
decomposition follows Lucene's ASCIIFoldingFilter.
"""

from __future__ import annotations

import functools
import re
import unicodedata

from mesh.core.stemming import stem

MAX_TERM_BYTES = 40
"""Longer runs are no words anybody searches for: base64, hashes, binary."""

MAX_QUERY_TERMS = 256
"""Distinct terms of a query that count; each costs every candidate a number on the wire."""

VERSION = "2"
"""Changes whenever `terms` gives another answer: what is stored is then out of date."""

_RUN = re.compile("[0-9A-Za-z\u0080-\U0010ffff]+")
_LATIN = str.maketrans(
    {
        "æ": "ae",
        "œ": "oe",
        "ø": "o",
        "đ": "d",
        "ð": "d",
        "ħ": "h",
        "\N{LATIN SMALL LETTER DOTLESS I}": "i",
        "ĸ": "k",
        "ł": "l",
        "ŋ": "n",
        "ŧ": "t",
        "þ": "th",
    }
)
# Canonical combining classes, UAX 44 table 15.
_OVERLAY = 1
_POINTS = range(10, 37)
_ACCENTS = 200
_VARIATION_SELECTORS = range(0xFE00, 0xFE10)


def terms(text: str) -> list[str]:
    """The terms of `text` in order, with repetitions; runs of letters and digits of any script."""
    found: list[str] = []
    for run in _RUN.findall(text):
        if run.isascii():
            if len(run) <= MAX_TERM_BYTES:
                found.append(stem(run.lower()))
        else:
            found.extend(_fold(run))
    return found


def query_terms(query: str) -> list[str]:
    """The distinct terms of `query` in order of first occurrence, at most `MAX_QUERY_TERMS`."""
    return list(dict.fromkeys(terms(query)))[:MAX_QUERY_TERMS]


@functools.lru_cache(maxsize=16_384)
def _fold(run: str) -> tuple[str, ...]:
    """Terms of a run that is not plain ASCII."""
    decomposed = unicodedata.normalize("NFKD", run)
    # Folding case can bring marks back, so accents go after it.
    folded = unicodedata.normalize("NFKD", decomposed.casefold())
    bare = "".join(char for char in folded if not _is_accent(char)).translate(_LATIN)
    words: list[str] = []
    word = ""
    for char in bare:
        if char.isalnum() or (word and unicodedata.category(char) in {"Mn", "Mc"}):
            word += char
        else:
            words.append(word)
            word = ""
    words.append(word)
    composed = (unicodedata.normalize("NFC", word) for word in words if word)
    return tuple(stem(word) for word in composed if len(word.encode()) <= MAX_TERM_BYTES)


def _is_accent(char: str) -> bool:
    """Whether a word is the same without this character: accents, Hebrew and Arabic points.
    Vowel signs and the voicing of kana are not: they make another word.
    """
    combining = unicodedata.combining(char)
    return (
        combining == _OVERLAY
        or combining in _POINTS
        or combining >= _ACCENTS
        or ord(char) in _VARIATION_SELECTORS
    )
