"""Passages for a prompt: the best parts of what a search found, within a token budget."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from mesh.wire.messages.base import MAX_LIMIT, MAX_QUERY_CHARS, Request, Wire
from mesh.wire.messages.search import SearchOptions, Shards

MIN_BUDGET = 100
MAX_BUDGET = 100_000


class RagRequest(Request, frozen=True, kw_only=True):
    """A search whose answer is to be read by a language model."""

    query: Annotated[str, Meta(min_length=1, max_length=MAX_QUERY_CHARS)]
    budget: Annotated[int, Meta(ge=MIN_BUDGET, le=MAX_BUDGET)] = 1500
    """Tokens of the whole prompt."""
    passages: Annotated[int, Meta(ge=1, le=MAX_LIMIT)] = 20
    """At most."""
    limit: Annotated[int, Meta(ge=1, le=MAX_LIMIT)] = 20
    """Documents to take them from."""
    options: SearchOptions = SearchOptions()


class Source(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """Where a passage is from."""

    node: str
    collection: str
    shard: str
    id: str
    """Of the document."""
    title: str | None
    """`title` or `name` of its metadata."""
    url: str | None
    """`url` or `link` of its metadata."""
    part: int
    """Which of the document's passages, from 1."""
    parts: int
    start: int
    """In characters of the document's content."""
    end: int


class Passage(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """A part of a document, word for word."""

    number: int
    """From 1, as in the prompt."""
    text: str
    tokens: int
    """Of the text alone, estimated."""
    score: float
    """The hit's, or less where another part of the document matches better."""
    source: Source


class RagResult(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """Numbered passages and the text to put before a model."""

    passages: list[Passage]
    count: int
    prompt: str
    """The passages with their numbers and titles, and the list of sources; empty where nothing was
    found."""
    tokens: int
    """Of the prompt, estimated; never more than `budget`."""
    budget: int
    truncated: bool
    """There was more than the budget, or the number of passages, let in, or than was looked at."""
    documents: int
    """That the search found."""
    duration_ms: float
    nodes_searched: int
    partial: bool
    shards: Shards
    id: str = ""
    """Of the search: what `meshctl explain` takes."""
    cached: bool = False
    """What the search found was asked for before, and nothing has been written since."""
