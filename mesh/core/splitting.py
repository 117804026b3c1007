"""Where a text can be parted: paragraphs, sentences, words. Stretches are (start, end) in
characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from mesh.core.tokens import UNITS, cost

PASSAGE_TOKENS = 180
"""A passage has about so many at most: a long paragraph."""

Stretch = tuple[int, int]

_PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n\s*")
# A full stop before a small letter is that of an abbreviation. Chinese and Japanese stops need no
# blank after them. The items of a list are sentences. No match is tried from within a run of stops
# or blanks, and none gives a part of one back: that would take a step for each pair of them.
_SENTENCE_END = re.compile(
    r"(?<![.!?\u2026])[.!?\u2026]++[\"'\u201d\u2019)\]]*+\s++(?=[^a-z])"
    r"|[\u3002\uff01\uff1f]\s*+"
    r"|(?<!\s)[^\S\n]*+\n\s*+(?=[-*\u2022#>|]|\d++[.)]\s)"
)
_WORD = re.compile(r"\S+\s*")
_MOST_WORD_CHARS = 200
"""A longer run without a blank is parted anywhere."""


def split(text: str, start: int = 0) -> list[Stretch]:
    """The passages of a text, from `start` on: whole sentences, of one paragraph where they fill
    half a passage, about `PASSAGE_TOKENS` each.
    """
    most = PASSAGE_TOKENS * UNITS
    found: list[Stretch] = []
    begin, end, used = start, start, 0
    for paragraph in _parted(_PARAGRAPH_END, text, start, len(text)):
        full = most // 2  # at a paragraph half a passage is enough
        for piece in _pieces(text, *paragraph):
            units = cost(text[slice(*piece)])
            if used > full or (used and used + units > most):
                found.append((begin, end))
                used = 0
            full = most
            begin = begin if used else piece[0]
            end = piece[1]
            used += units
    if used:
        found.append((begin, end))
    places = [_stripped(text, *stretch) for stretch in found]
    return [(left, right) for left, right in places if left < right]  # a long run of blanks


def sentences(text: str, start: int, end: int) -> Iterator[Stretch]:
    """The sentences of a stretch, each with the blanks after it."""
    return _parted(_SENTENCE_END, text, start, end)


def words(text: str, start: int, end: int) -> Iterator[Stretch]:
    """The words of a stretch, each with the blanks after it."""
    for found in _WORD.finditer(text, start, end):
        for left in range(found.start(), found.end(), _MOST_WORD_CHARS):
            yield left, min(left + _MOST_WORD_CHARS, found.end())


def _pieces(text: str, start: int, end: int) -> Iterator[Stretch]:
    """Sentences; one that is longer than a passage comes in runs of words."""
    for sentence in sentences(text, start, end):
        if cost(text[slice(*sentence)]) <= PASSAGE_TOKENS * UNITS:
            yield sentence
        else:
            yield from _runs_of_words(text, *sentence)


def _runs_of_words(text: str, start: int, end: int) -> Iterator[Stretch]:
    most = PASSAGE_TOKENS * UNITS // 2
    begin, used = start, 0
    for left, right in words(text, start, end):
        units = cost(text[left:right])
        if used and used + units > most:
            yield begin, left
            begin, used = left, 0
        used += units
    yield begin, end


def _parted(bound: re.Pattern[str], text: str, start: int, end: int) -> Iterator[Stretch]:
    """Stretches that end with `bound`, or with the text; none is blank."""
    left = start
    for found in bound.finditer(text, start, end):
        if text[left : found.end()].strip():
            yield left, found.end()
            left = found.end()
    if text[left:end].strip():
        yield left, end


def _stripped(text: str, start: int, end: int) -> Stretch:
    found = text[start:end]
    return start + len(found) - len(found.lstrip()), start + len(found.rstrip())
