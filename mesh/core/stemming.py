"""A word without its inflection: invoices, invoiced and invoicing are one term.

Only plurals, -ed, -ing, a final y and a silent e go, as English has them; endings that make other
words (-ation, -ness, -er) stay. Words of other languages lose an s or an e now and then, in
documents and queries alike.

Source: Porter, *An algorithm for suffix stripping* (1980), steps 1 and 5a.
"""

from __future__ import annotations

import functools
import re

_LEAST_CHARS = 3
_ENDS = frozenset("sdgye")
_MEASURE = re.compile("v+c+")
_VOWELS = frozenset("aeiou")


def stem(word: str) -> str:
    """The stem of a lower-case word; one with anything but the letters a to z stays as it is."""
    if len(word) < _LEAST_CHARS or word[-1] not in _ENDS:
        return word
    return _stem(word)


@functools.lru_cache(maxsize=65_536)
def _stem(word: str) -> str:
    if not (word.isascii() and word.isalpha()):
        return word
    word = _without_past(_singular(word))
    if word.endswith("y") and "v" in _shape(word[:-1]):
        word = word[:-1] + "i"
    if word.endswith("e"):
        rest = word[:-1]
        measure = _measure(rest)
        if measure > 1 or (measure == 1 and not _ends_short(rest)):
            word = rest
    return word


def _singular(word: str) -> str:
    """Step 1a."""
    if word.endswith(("sses", "ies")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _without_past(word: str) -> str:
    """Step 1b: -eed, -ed and -ing, and what they did to the word before them."""
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    for ending in ("ed", "ing"):
        rest = word.removesuffix(ending)
        if rest != word and "v" in _shape(rest):
            break
    else:
        return word
    if rest.endswith(("at", "bl", "iz")):
        return rest + "e"
    if rest[-1] == rest[-2:-1] and _shape(rest)[-1] == "c" and rest[-1] not in "lsz":
        return rest[:-1]
    return rest + "e" if _measure(rest) == 1 and _ends_short(rest) else rest


def _shape(word: str) -> str:
    """`v` for each vowel and `c` for each consonant; y is a vowel after a consonant."""
    shape = ""
    for char in word:
        vowel = char in _VOWELS or (char == "y" and shape.endswith("c"))
        shape += "v" if vowel else "c"
    return shape


def _measure(word: str) -> int:
    """How many times vowels are followed by consonants."""
    return len(_MEASURE.findall(_shape(word)))


def _ends_short(word: str) -> bool:
    """Whether it ends in consonant, vowel, consonant, the last of them not w, x or y."""
    return _shape(word)[-3:] == "cvc" and word[-1] not in "wxy"
