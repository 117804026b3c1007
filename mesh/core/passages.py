"""From search hits to numbered passages that fit a token budget, ready for a prompt.

Long texts are split at paragraphs and sentences. A passage is worth its hit's score, less where
other parts of the same document match the query better. What repeats an earlier passage is left
out; of what is left the best go in, in order, until the budget is used; the last one is cut at a
sentence. The budget holds for the whole prompt: passages, numbers, titles and sources.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mesh.core import bm25
from mesh.core.near_duplicates import DistinctTexts, repeats
from mesh.core.splitting import sentences, split, words
from mesh.core.text import query_terms, terms
from mesh.core.tokens import UNITS, cost, whole
from mesh.wire.messages import Hit, Passage, Source

_UNMATCHED = 0.5
"""Share of the hit's score that a part without any word of the query keeps."""
_TITLES = ("title", "name")
_URLS = ("url", "link")
_SHOWN_CHARS = 120
_SHOWN_URL_CHARS = 300
_READ_CHARS = 512 * 1024
"""Of all hits, so many are looked at: a third of a second's work. More where more may go in."""
_READ_CHARS_A_TOKEN = 16
_LONG_WORD = 100
_SPARE = 5
"""Passages more than wanted, for those that do not fit."""
_HEADING = "Sources:"
_JOINT = "\n\n"


class Packed(NamedTuple):
    """What went in."""

    passages: list[Passage]
    prompt: str
    """Empty where nothing went in."""
    tokens: int
    """Of the prompt; never more than the budget."""
    truncated: bool
    """There was more than the budget, or the number of passages, let in, or than was looked at."""


def pack(query: str, hits: Sequence[Hit], *, budget: int, most: int) -> Packed:
    """The best passages of `hits` that fit.

    Args:
        query: What was searched for; its words choose among the parts of a document.
        hits: Best first.
        budget: Tokens of the whole prompt, by `mesh.core.tokens`.
        most: Passages.
    """
    most_chars = _most_chars(hits, max(_READ_CHARS, _READ_CHARS_A_TOKEN * budget))
    unread = any(len(hit.content) > most_chars for hit in hits)
    parts = _parts(query, hits, most_chars)
    distinct, truncated = _distinct(parts, budget * UNITS, most + _SPARE)
    truncated |= unread
    left = budget * UNITS - cost(_JOINT + _HEADING)
    passages: list[Passage] = []
    blocks: list[str] = []
    lines: list[str] = []
    for part in distinct:
        number = len(passages) + 1
        if number > most:
            truncated = True
            break
        source = _source(part)
        head, line = _head(number, source), _line(number, source)
        around = cost(f"{head}{_JOINT}\n{line}")
        end = part.end
        if around + cost(part.text) > left:
            truncated = True
            end = _cut(part, left - around, in_words=not passages)
            if end <= part.start or _said_before(part, end, passages):
                continue
        text = part.hit.content[part.start : end]
        left -= around + cost(text)
        passages.append(
            Passage(
                number=number,
                text=text,
                tokens=whole(cost(text)),
                score=round(part.score, 6),
                source=_source(part, end),
            )
        )
        blocks.append(head + text)
        lines.append(line)
        if end < part.end:
            break
    if not passages:
        return Packed([], "", 0, truncated)
    prompt = _JOINT.join([*blocks, "\n".join([_HEADING, *lines])])
    return Packed(passages, prompt, whole(cost(prompt)), truncated)


# -- choosing --------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Part:
    """A passage before it is chosen."""

    hit: Hit
    start: int
    end: int
    number: int
    """Of the document's parts, from 1."""
    of: int
    score: float
    words: list[str]

    @property
    def text(self) -> str:
        return self.hit.content[self.start : self.end]


def _most_chars(hits: Sequence[Hit], left: int) -> int:
    """So many characters of each hit make `left` of all: what short ones do not need goes to the
    long ones.
    """
    share = left
    for number, chars in enumerate(sorted(len(hit.content) for hit in hits)):
        share = left // (len(hits) - number)
        left -= min(chars, share)
    return share


def _parts(query: str, hits: Sequence[Hit], most_chars: int) -> list[_Part]:
    """All passages in the first `most_chars` characters of each hit, best first."""
    wanted = query_terms(query)
    parts: list[_Part] = []
    for hit in hits:
        text = hit.content
        if len(text) > most_chars:
            blank = text.rfind(" ", most_chars - _LONG_WORD, most_chars)
            text = text[: blank if blank > 0 else most_chars]
        places = split(text, _after_title(hit)) or split(text)
        parts += [
            _Part(hit, *place, number, len(places), hit.score, terms(hit.content[slice(*place)]))
            for number, place in enumerate(places, start=1)
        ]
    _weigh(parts, wanted)
    return sorted((part for part in parts if part.words), key=lambda part: -part.score)


def _weigh(parts: Sequence[_Part], wanted: Sequence[str]) -> None:
    """Within a document its best part is worth the hit's score. BM25 tells the best, over all
    passages at hand.
    """
    counts = [Counter(part.words) for part in parts]
    df = [sum(word in count for count in counts) for word in wanted]
    weights = [bm25.idf(len(parts), held) for held in df]
    mean = sum(len(part.words) for part in parts) / len(parts) if parts else 0.0
    matches = [
        bm25.score([count[word] for word in wanted], weights, len(part.words), mean)
        for part, count in zip(parts, counts, strict=True)
    ]
    best: dict[int, float] = {}
    for part, match in zip(parts, matches, strict=True):
        best[id(part.hit)] = max(match, best.get(id(part.hit), 0.0))
    for part, match in zip(parts, matches, strict=True):
        top = best[id(part.hit)]
        share = match / top if top > 0 else float(part.number == 1)
        part.score = part.hit.score * (_UNMATCHED + (1 - _UNMATCHED) * share)


def _distinct(parts: Sequence[_Part], units: int, most: int) -> tuple[list[_Part], bool]:
    """The best parts that do not repeat each other, about as many as fit, and whether there are
    more. One that holds an earlier one and more takes its place.
    """
    kept: dict[int, _Part] = {}
    texts = DistinctTexts()
    used = 0
    for place, part in enumerate(parts):
        if used > units or len(kept) > most:
            return list(kept.values())[:most], True
        if texts.holds(part.words):
            continue
        slot = place
        if held := texts.held_by(part.words):
            slot = held[0]
            part.score = kept[slot].score
            for other in held:
                texts.remove(other)
                used -= cost(kept[other].text)
                if other != slot:
                    del kept[other]
        kept[slot] = part
        texts.add(slot, part.words)
        used += cost(part.text)
    return list(kept.values())[:most], len(kept) > most


# -- the budget ------------------------------------------------------------------------------------


def _cut(part: _Part, units: int, *, in_words: bool) -> int:
    """Where to end a part so that it costs at most `units`: after a sentence, or after a word where
    there would be nothing else; its start if nothing fits.
    """
    text, best = part.hit.content, part.start
    bounds = list(sentences(text, part.start, part.end))
    if in_words and cost(text[slice(*bounds[0])].rstrip()) > units:
        bounds = list(words(text, part.start, part.end))
    for _, right in bounds:
        end = part.start + len(text[part.start : right].rstrip())
        if cost(text[part.start : end]) > units:
            break
        best = end
    return best


def _said_before(part: _Part, end: int, passages: Sequence[Passage]) -> bool:
    """Whether what is left of a part after a cut is in an earlier passage."""
    left = terms(part.hit.content[part.start : end])
    return not left or any(repeats(left, terms(passage.text)) for passage in passages)


# -- sources ---------------------------------------------------------------------------------------


def _after_title(hit: Hit) -> int:
    """Where the text goes on after a title that the metadata has too: it is shown anyway."""
    title = _first(hit.metadata, _TITLES)
    if title and hit.content.startswith(title + "\n"):
        return len(title) + 1
    return 0


def _source(part: _Part, end: int | None = None) -> Source:
    hit = part.hit
    return Source(
        node=hit.node,
        collection=hit.collection,
        shard=hit.shard,
        id=hit.id,
        title=_first(hit.metadata, _TITLES),
        url=_first(hit.metadata, _URLS),
        part=part.number,
        parts=part.of,
        start=part.start,
        end=part.end if end is None else end,
    )


def _first(metadata: Mapping[str, Any], names: Sequence[str]) -> str | None:
    for name in names:
        value = metadata.get(name)
        if isinstance(value, str) and value.strip():
            return value.strip()
    return None


def _head(number: int, source: Source) -> str:
    title = _shown(source.title or "", _SHOWN_CHARS)
    return f"[{number}] {title}\n" if title else f"[{number}] "


def _line(number: int, source: Source) -> str:
    where = f"{source.node}/{source.collection}/{_shown(source.id, _SHOWN_CHARS)}"
    part = f", part {source.part} of {source.parts}" if source.parts > 1 else ""
    url = _shown(source.url or "", _SHOWN_URL_CHARS)
    return f"[{number}] {where}{part}{', ' if url else ''}{url}"


def _shown(text: str, chars: int) -> str:
    """On one line, cut."""
    line = " ".join(text[: 4 * chars].split())
    return line if len(line) <= chars else line[: chars - 1].rstrip() + "…"
