"""Collections with judged queries: read, split among nodes, and what an answer is worth.

A collection is a folder:

`docs.jsonl`: an object a line. `id` (or `_id`, `doc_id`, `docid`, `docno`), `title` (may be
missing, also `name`), `text` (or `content`, `contents`, `body`, `abstract`, `description`). Other
fields can be split by.

`queries.jsonl`: `id` (or `_id`, `query_id`, `qid`) and `text` (or `query`, `question`, `title`).
Other fields are not searched for.

`qrels.tsv`: tab-separated, with a header `query_id doc_id relevance` (or `query-id corpus-id score`
and the like), or TREC's four columns without one. Relevance is a number, graded or not; 0 and less
are not relevant.

Sources: Järvelin & Kekäläinen, *Cumulated gain-based evaluation of IR techniques* (2002), with
linear gains as trec_eval has it; Dhillon & Modha, *Concept decompositions for large sparse text
data using clustering* (2001), for k-means over unit vectors.
"""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

IDS = ("id", "_id", "doc_id", "docid", "docno", "query_id", "qid")
TITLES = ("title", "name")
TEXTS = ("text", "content", "contents", "body", "abstract", "description")
QUERY_TEXTS = ("text", "query", "question", "title")

CUT = 10
_ROUNDS = 20


@dataclass
class Collection:
    """Documents, queries and judgments, by id."""

    documents: dict[str, dict] = field(default_factory=dict)
    """As they are imported: `id`, `title` where there is one, `text`, and scalar fields."""
    queries: dict[str, str] = field(default_factory=dict)
    judgments: dict[str, dict[str, float]] = field(default_factory=dict)
    """Relevant documents of each query, by relevance above 0."""
    notes: list[str] = field(default_factory=list)
    """What was left out."""


# -- reading ---------------------------------------------------------------------------------------


def read_collection(folder: Path) -> Collection:
    """Raises: ValueError: a line that is none, or nothing to evaluate with."""
    found = Collection()
    _read_documents(folder / "docs.jsonl", found)
    for place, raw in _lines(folder / "queries.jsonl"):
        if text := _said(raw, QUERY_TEXTS):
            found.queries[_named(raw, IDS, place)] = text[:4096]
    for query, graded in _judgments(folder / "qrels.tsv").items():
        relevant = {doc: grade for doc, grade in graded.items() if grade > 0}
        if relevant and query in found.queries:
            found.judgments[query] = relevant
    if not found.documents or not found.queries:
        raise ValueError(f"{folder}: no documents, or no queries")
    judged = [doc for relevant in found.judgments.values() for doc in relevant]
    if missing := sum(doc not in found.documents for doc in judged):
        found.notes.append(f"{missing} judgments are of documents that are not there: never found")
    if unjudged := len(found.queries) - len(found.judgments):
        found.notes.append(f"{unjudged} queries have no relevant document: only overlap counts")
    return found


def _read_documents(file: Path, found: Collection) -> None:
    empty = doubled = 0
    for place, raw in _lines(file):
        name = _named(raw, IDS, place)
        title, text = _said(raw, TITLES), _said(raw, TEXTS)
        if not title and not text:
            empty += 1
            continue
        doubled += name in found.documents
        fields = {
            key: value
            for key, value in raw.items()
            if isinstance(value, (str, int, float, bool)) and key not in (*IDS, *TITLES, *TEXTS)
        }
        titled = {"title": title} if title else {}
        found.documents[name] = {**fields, **titled, "id": name, "text": text or title}
    if empty:
        found.notes.append(f"{empty} documents without title and text are left out")
    if doubled:
        found.notes.append(f"{doubled} documents gave way to a later one of the same id")


def _lines(file: Path) -> Iterator[tuple[str, dict]]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                raw = json.loads(line)
                if not isinstance(raw, dict):
                    raise ValueError(f"{file.name}, line {number}: no object")
                yield f"{file.name}, line {number}", raw


def _named(raw: Mapping, names: Sequence[str], place: str) -> str:
    for name in names:
        if isinstance(raw.get(name), (str, int)) and str(raw[name]).strip():
            return str(raw[name]).strip()
    raise ValueError(f"{place}: none of the fields {', '.join(names)}")


def _said(raw: Mapping, names: Sequence[str]) -> str:
    """The first of these fields that has a text."""
    texts = (raw.get(name) for name in names)
    return next((text.strip() for text in texts if isinstance(text, str) and text.strip()), "")


def _judgments(file: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = defaultdict(dict)
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            cells = line.rstrip("\n").split("\t")
            if len(cells) == 1:
                cells = line.split()
            if not line.strip():
                continue
            try:
                query, document, grade = cells[0], cells[-2], float(cells[-1])
            except (ValueError, IndexError):
                if number == 1:
                    continue  # the header
                raise ValueError(f"{file.name}, line {number}: {line[:80]!r}") from None
            found[query.strip()][document.strip()] = grade
    return found


# -- splitting -------------------------------------------------------------------------------------


def split_randomly(ids: Sequence[str], nodes: int, *, seed: int = 1) -> list[list[str]]:
    """Equal parts."""
    shuffled = sorted(ids)
    random.Random(seed).shuffle(shuffled)
    return [shuffled[node::nodes] for node in range(nodes)]


def split_by_field(documents: Mapping[str, dict], name: str, nodes: int) -> list[list[str]]:
    """Documents with the same value go to the same node; the largest groups first, each to the node
    with the fewest documents.

    Raises:
        ValueError: No document has such a field.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for doc, fields in documents.items():
        groups[str(fields.get(name, ""))].append(doc)
    if groups.keys() == {""}:
        raise ValueError(f"no document has a field {name!r}")
    parts: list[list[str]] = [[] for _ in range(nodes)]
    for _, group in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        min(parts, key=len).extend(group)
    return parts


def split_by_topic(
    ids: Sequence[str], vectors: np.ndarray, nodes: int, *, balanced: bool, seed: int = 1
) -> list[list[str]]:
    """k-means over unit vectors, one cluster a node; `balanced`: as many documents on each.

    Args:
        ids: n documents.
        vectors: `(n, dim)`.
        nodes: Clusters; none is left empty.
        balanced: Documents that are surer of their cluster choose first; who comes late takes the
            nearest one with room.
        seed: Of the first centres.
    """
    rng = np.random.default_rng(seed)
    centres = vectors[rng.choice(len(ids), nodes, replace=False)]
    labels = np.zeros(len(ids), dtype=int)
    for _ in range(_ROUNDS):
        near = vectors @ centres.T
        labels = _with_room(near) if balanced else near.argmax(axis=1)
        for node in range(nodes):
            if not (labels == node).any():
                labels[near.max(axis=1).argmin()] = node  # the one nobody wants
            total = vectors[labels == node].sum(axis=0)
            centres[node] = total / (np.linalg.norm(total) or 1.0)
    return [[ids[row] for row in np.flatnonzero(labels == node)] for node in range(nodes)]


def _with_room(near: np.ndarray) -> np.ndarray:
    rows, nodes = near.shape
    room = [rows // nodes + (node < rows % nodes) for node in range(nodes)]
    labels = np.full(rows, -1)
    ordered = np.sort(near, axis=1)
    surest = np.argsort(ordered[:, -2] - ordered[:, -1]) if nodes > 1 else np.arange(rows)
    for row in surest:
        for node in np.argsort(-near[row]):
            if room[node]:
                room[node] -= 1
                labels[row] = node
                break
    return labels


# -- what an answer is worth -----------------------------------------------------------------------


def ndcg(found: Sequence[str], relevant: Mapping[str, float], cut: int = CUT) -> float:
    """Of the first `cut`; 1 for the best order that there could be."""
    gains = [relevant.get(doc, 0.0) for doc in found[:cut]]
    ideal = sorted(relevant.values(), reverse=True)[:cut]
    return _discounted(gains) / _discounted(ideal)


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def recall(found: Sequence[str], relevant: Mapping[str, float], cut: int = CUT) -> float:
    """Share of all relevant documents that is in the first `cut`."""
    return len(set(found[:cut]) & relevant.keys()) / len(relevant)


def overlap(found: Sequence[str], whole: Sequence[str], cut: int = CUT) -> float | None:
    """Share of one index's first `cut` that is in the first `cut` here; None where one index finds
    nothing.
    """
    wanted = set(whole[:cut])
    return len(wanted & set(found[:cut])) / len(wanted) if wanted else None


def mean(values: Sequence[float]) -> float:
    """0 of none."""
    return sum(values) / len(values) if values else 0.0
