"""Whether a collection's vectors and terms are such as this node makes.

Vectors of different embedders do not compare, so meanwhile the text leg alone answers. Nothing is
written, since half of the vectors would be of no use to either embedder.
"""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa

from mesh.adapters.lance import schema
from mesh.adapters.lance.candidates import Query
from mesh.core import text


class Foreign(NamedTuple):
    """Why a collection is not such as this node would have made it."""

    embedder: str
    """Fingerprint of the vectors that are there."""
    vectors: bool
    """Whether these are another embedder's."""
    terms: bool
    """Whether the terms are another version's."""
    reason: str
    """What it is, and what to do; completes "collection … is"."""


def foreign(layout: pa.Schema, collection: str, *, embedder: str, node: str = "") -> Foreign | None:
    """What is wrong with a table's vectors or terms; None: nothing.

    Args:
        layout: The table's schema.
        collection: Its name.
        embedder: Fingerprint of this node's embedder.
        node: Who this is, for the advice.
    """
    made_by = schema.makers(layout)
    on = f" --node {node}" if node else ""
    mend = f"`meshctl collections reembed {collection}{on}`"
    vectors, terms = made_by.embedder != embedder, made_by.tokenizer != text.VERSION
    if vectors:
        reason = (
            f"embedded by {made_by.embedder!r}, and this node uses {embedder!r}: set "
            f"search.embedder back to what it was, or run {mend}"
        )
    elif terms:
        reason = f"indexed by another version of nodemesh: run {mend}"
    else:
        return None
    return Foreign(made_by.embedder, vectors, terms, reason)


def answerable(query: Query, where: Foreign | None) -> Query:
    """The query without its vector where that compares with nothing; and with a word of it where
    today's terms miss some of those that are there.
    """
    if where is not None and where.vectors and query.near:
        query = query._replace(vector=None, no_vectors=where.reason)
    if where is not None and where.terms and query.text:
        query = query._replace(old_words=where.reason)
    return query
