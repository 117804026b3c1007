"""What one commit will do to a collection: whose wishes it grants, and whose it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mesh.adapters.lance import schema
from mesh.adapters.lance.reader import Known
from mesh.adapters.lance.statistics import Statistics
from mesh.core import documents as rules
from mesh.core import text
from mesh.core.filters import Kind
from mesh.errors import MeshError, NotFoundError
from mesh.ports import Written
from mesh.wire.messages import Document


class Upsert(NamedTuple):
    """Documents with distinct ids."""

    documents: Sequence[Document]
    places: Sequence[str] | None
    """What errors call each; None: a value of another kind than its column's is no error."""


class Update(NamedTuple):
    """Fields to merge into one document."""

    id: str
    fields: Mapping[str, Any]


class Other(NamedTuple):
    """Whatever has a commit of its own."""

    write: Callable[[], Awaitable[Written]]


Work = Upsert | Update | Other


class Wish:
    """What one caller waits for."""

    __slots__ = ("changed", "error", "future", "work")

    def __init__(self, work: Work, future: asyncio.Future[Written]) -> None:
        self.work = work
        self.future = future
        self.changed: list[str] = []
        self.error: Exception | None = None

    @property
    def documents(self) -> int:
        return len(self.work.documents) if isinstance(self.work, Upsert) else 1

    @property
    def chars(self) -> int:
        match self.work:
            case Upsert(documents):
                return sum(len(document.content) for document in documents)
            case Update(_, fields):
                return len(str(fields.get("content", "")))
            case _:
                return 0

    def settle(self, data_version: int) -> None:
        """Tell the caller, if he is still there."""
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(Written(tuple(self.changed), data_version))
        else:
            self.future.set_exception(self.error)


class Plan:
    """What a commit will write, of which caller's wishes, and who is refused."""

    def __init__(
        self,
        columns: Mapping[str, Kind],
        known: Mapping[str, Known],
        stored: dict[str, Document],
        collection: str,
    ) -> None:
        self.rows: dict[str, schema.Row] = {}
        """By id; the last version of each."""
        self.added: dict[str, Kind] = {}
        self.change = Statistics()
        """What the commit does to the statistics."""
        self._columns = dict(columns)
        self._known = known
        self._documents = stored
        """As they are now, those that are to be updated."""
        self._collection = collection

    def chars(self, wishes: Sequence[Wish]) -> int:
        """What `judge` may have to take apart: new texts, and old ones to count them out."""
        new = sum(wish.chars for wish in wishes)
        merged = sum(len(document.content) for document in self._documents.values())
        return new + merged + sum(known.chars for known in self._known.values())

    def judge(self, wishes: Sequence[Wish]) -> None:
        """In their order, each by what the others before it leave."""
        for wish in wishes:
            try:
                self._judge(wish)
            except MeshError as error:
                wish.error = error
        for name, row in self.rows.items():
            self.change.add(row.words)
            if name in self._known:
                self.change.remove(self._known[name].words())

    def _judge(self, wish: Wish) -> None:
        """Raises:
        InvalidError, NotFoundError
        """
        match wish.work:
            case Upsert(documents, places):
                self._put(wish, documents, places)
            case Update(name, fields):
                row = self.rows.get(name)
                old = row.document if row else self._documents.get(name)
                if old is None:
                    raise not_found(self._collection, name)
                self._put(wish, [rules.merged(old, fields)], ["fields"])

    def _put(self, wish: Wish, documents: Sequence[Document], places: Sequence[str] | None) -> None:
        added = schema.new_columns(documents, self._columns, places=places)
        rows: list[schema.Row] = []
        for document in documents:
            digest = rules.content_hash(document.content, document.metadata)
            if digest != self._hash(document.id):
                metadata = rules.canonical(document.metadata).decode()
                rows.append(schema.Row(document, text.terms(document.content), digest, metadata))
        if not rows:
            return
        self.added |= added
        self._columns |= added
        self.rows |= {row.document.id: row for row in rows}
        wish.changed = [row.document.id for row in rows]

    def _hash(self, name: str) -> str:
        if row := self.rows.get(name):
            return row.hash
        return self._known[name].hash if name in self._known else ""


def not_found(collection: str, name: str) -> NotFoundError:
    """There is no such document."""
    return NotFoundError(f"collection {collection!r} has no document {name[:80]!r}")
