"""A judged collection that every machine has: what Python's documentation says of each name, and
its first sentences as questions. Whoever asks with the first sentence wants what it is the first
sentence of, which is not in the text: only the rest is searched.
"""

from __future__ import annotations

import re

from evaluation_rules import Collection

from agents.samples.stdlib import stdlib_documents

QUERIES = 150
_LEAST_WORDS = 5


def stdlib_collection() -> Collection:
    """Some 2,800 documents with their `module`, and 150 questions."""
    found = Collection()
    questions: dict[str, str] = {}
    for raw in stdlib_documents():
        if entry := _parted(raw):
            document, first = entry
            found.documents[document["id"]] = document
            questions.setdefault(first, document["id"])
    kept = sorted((name, first) for first, name in questions.items())
    found.queries = dict(kept[:: max(1, len(kept) // QUERIES)][:QUERIES])
    found.judgments = {name: {name: 1.0} for name in found.queries}
    return found


def _parted(raw: dict) -> tuple[dict, str] | None:
    """The document without its first sentence, and that; None where little is left of either."""
    _, _, said = raw["content"].partition("\n\n")
    first, _, rest = re.sub(r"\s+", " ", said).partition(". ")
    if len(first.split()) < _LEAST_WORDS or len(rest.split()) < _LEAST_WORDS:
        return None
    kept = {"id": raw["id"], "title": raw["title"], "text": rest, "module": raw["module"]}
    return kept, first
