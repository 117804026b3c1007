"""Parquet: rows of a file of any size, a few megabytes at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from mesh.adapters.document_files.items import Item, Mark, Source, refused
from mesh.adapters.document_files.parquet_values import (
    Kind,
    Plain,
    UnsupportedError,
    plain,
    plain_id,
    plain_text,
    readable,
)
from mesh.core.documents import CONTENT_FIELDS
from mesh.wire.messages import MAX_CONTENT_CHARS

_BATCH_BYTES = 4 * 1024 * 1024
_MOST_ROWS = 1024
_NAMES = frozenset({"id", "content"})
"""A column called so that is something else goes into the metadata."""
_PAGE_BUFFER_BYTES = 1024 * 1024


def read_parquet(
    source: Source, *, id_column: str | None, content_column: str | None, after: Mark
) -> Iterator[Item]:
    """Every row as a document; other columns than id and content go along under their names."""
    with source.path.open("rb") as stream:
        try:
            # Without pre-buffering and with a small buffer a row group is read page by page.
            file = pq.ParquetFile(stream, pre_buffer=False, buffer_size=_PAGE_BUFFER_BYTES)
        except (pa.ArrowException, OSError) as error:
            raise refused(
                "path", f"{source.name} is no Parquet file: {_first_line(error)}"
            ) from error
        layout = _Layout(file.schema_arrow, source, id_column, content_column)
        yield from _Rows(file, source, layout).after(after.at)


class _Layout:
    """Which columns there are, and how their values become JSON."""

    def __init__(
        self,
        schema: pa.Schema,
        source: Source,
        id_column: str | None,
        content_column: str | None,
    ) -> None:
        names = schema.names
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise refused("path", f"{source.name} has several columns {doubled[0]!r}")
        self.id = _named(names, "id_column", id_column, "id")
        self.content = _named(names, "content_column", content_column, "content")
        if self.content is None and not set(CONTENT_FIELDS) & set(names):
            columns = ", ".join(("content", *CONTENT_FIELDS))
            raise refused(
                "content_column",
                f"{source.name} has no column {columns}: name the one with the text",
            )
        try:
            kinds = {field.name: readable(field.type, field.name) for field in schema}
            self.plain = {name: self._plain(name, kind) for name, kind in kinds.items()}
        except UnsupportedError as error:
            raise refused("path", f"{source.name}: {error}") from None
        self.schema = pa.schema(list(kinds.items()))

    def _plain(self, name: str, kind: Kind) -> Plain:
        if name == self.id:
            return plain_id(kind, name)
        if name == self.content or (self.content is None and name in CONTENT_FIELDS):
            return plain_text(kind, name)
        if name == "metadata" and not (pa.types.is_struct(kind) or pa.types.is_map(kind)):
            raise UnsupportedError(f"column 'metadata' is {kind}, and has to be a struct or map")
        return plain(kind)

    def document(self, row: dict[str, Any], *, new_id: str) -> dict[str, Any]:
        """Raises: ValueError: The row is no document."""
        document: dict[str, Any] = {"id": new_id}
        shadowed = {}
        for name, value in row.items():
            if value is None:
                continue
            if name == self.id:
                document["id"] = value or new_id
            elif name == self.content:
                document["content"] = value
            elif name in _NAMES:
                shadowed[name] = value
            else:
                document[name] = value
        if shadowed:
            document["metadata"] = shadowed | document.get("metadata", {})
        text = "".join(
            document.get(name, "") for name in ({"content"} if self.content else CONTENT_FIELDS)
        )
        if not text.strip():
            raise ValueError("no text")
        if len(text) > MAX_CONTENT_CHARS:
            raise ValueError(f"content is longer than {MAX_CONTENT_CHARS} characters")
        return document


class _Rows:
    """Reads row groups batch by batch."""

    def __init__(self, file: pq.ParquetFile, source: Source, layout: _Layout) -> None:
        self._file = file
        self._source = source
        self._layout = layout
        self._rows = file.metadata.num_rows

    def after(self, done: int) -> Iterator[Item]:
        """Every row but the first `done`."""
        first = 0
        for group in range(self._file.num_row_groups):
            rows = self._file.metadata.row_group(group).num_rows
            if first + rows > done:
                yield from self._group(group, first, max(0, done - first))
            first += rows

    def _group(self, group: int, first: int, done: int) -> Iterator[Item]:
        about = self._file.metadata.row_group(group)
        row_bytes = max(1, about.total_byte_size // max(1, about.num_rows))
        size = max(1, min(_MOST_ROWS, _BATCH_BYTES // row_bytes))
        at = 0
        for batch in self._batches(group, size):
            if at + batch.num_rows > done:
                skipped = max(0, done - at)
                yield from self._batch(batch.slice(skipped), first + at + skipped)
            at += batch.num_rows

    def _batches(self, group: int, size: int) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self._file.iter_batches(
                batch_size=size, row_groups=[group], use_threads=False
            ):
                # Not safe: that would refuse times finer than a microsecond.
                yield batch.cast(self._layout.schema, safe=False)
        except (pa.ArrowException, OSError) as error:
            raise refused(
                "path",
                f"{self._source.name}: row group {group} cannot be read: {_first_line(error)}",
            ) from error

    def _batch(self, batch: pa.RecordBatch, first: int) -> Iterator[Item]:
        for at in range(batch.num_rows):
            number = first + at + 1
            position = self._source.total * number // self._rows
            where = (number, position, Mark(number, number))
            row: dict[str, Any] = {}
            fault = ""
            for name, values in zip(batch.schema.names, batch.columns, strict=True):
                try:
                    value = values[at].as_py()
                    row[name] = None if value is None else self._layout.plain[name](value)
                except UnicodeDecodeError:
                    fault = fault or f"column {name!r}: not UTF-8"
                except (ValueError, OverflowError, pa.ArrowException) as error:
                    fault = fault or f"column {name!r}: {_first_line(error)}"
            if not fault:
                try:
                    document = self._layout.document(row, new_id=f"{self._source.stem}-{number}")
                except ValueError as error:
                    fault = str(error)
            if fault:
                yield self._source.bad(fault, *where, msgspec.json.encode(row))
            else:
                yield self._source.read(document, *where)


def _named(names: list[str], field: str, name: str | None, default: str) -> str | None:
    if name is not None and name not in names:
        raise refused(field, f"no column {name!r}; there are {', '.join(names)}")
    wanted = name or default
    return wanted if wanted in names else None


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:300] or type(error).__name__
