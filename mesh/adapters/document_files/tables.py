"""CSV and TSV: a header, then one document a row."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mesh.adapters.document_files.items import (
    MAX_LINE_BYTES,
    Item,
    Mark,
    Source,
    refused,
    without_bom,
)
from mesh.adapters.document_files.text_lines import Line, TextFile, opened
from mesh.core.documents import CONTENT_FIELDS
from mesh.wire.messages import MAX_CONTENT_CHARS

_INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})")
_TOO_LONG = "x" * (MAX_LINE_BYTES + 1)
_DECIMAL = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d{1,3})?")

Row = list[str] | str
"""Its cells, or what is wrong with it."""


class _Layout(NamedTuple):
    """What the columns are; `id_at` and `content_at` are their places, None where there is none."""

    header: list[str]
    kinds: list[type]
    id_at: int | None
    content_at: int | None


def read_table(
    source: Source,
    *,
    suffix: str,
    id_column: str | None,
    content_column: str | None,
    after: Mark,
) -> Iterator[Item]:
    """Every row as a document; other columns than id and content become metadata. It takes two
    passes, since only a whole column tells whether its cells are numbers.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    with opened(source.path) as file:
        rows = _Rows(file, delimiter=_delimiter(source.path, suffix))
        layout = _layout(rows, source, id_column, content_column)
    with opened(source.path) as file:
        rows = _Rows(file, delimiter=rows.delimiter)
        if after.at:
            file.go_to(after)
        else:
            next(rows.every())
        for number, row in rows.every():
            fault = row if isinstance(row, str) else _fault(row, layout)
            at = (file.position, file.mark)
            if isinstance(row, str) or fault:
                yield source.bad(fault, number, *at, rows.raw, whole=rows.whole)
            elif row:
                document = _document(row, layout, new_id=f"{source.stem}-{number}")
                yield source.read(document, number, *at, rows.raw)


def _layout(
    rows: _Rows, source: Source, id_column: str | None, content_column: str | None
) -> _Layout:
    found = rows.every()
    header = _header(found)
    content_at = _place(header, "content_column", content_column, "content")
    if content_at is None and not set(CONTENT_FIELDS) & set(header):
        columns = ", ".join(("content", *CONTENT_FIELDS))
        raise refused(
            "content_column", f"{source.name} has no column {columns}: name the one with the text"
        )
    return _Layout(
        header=header,
        kinds=_kinds(found, len(header)),
        id_at=_place(header, "id_column", id_column, "id"),
        content_at=content_at,
    )


def _place(header: Sequence[str], field: str, name: str | None, default: str) -> int | None:
    if name is not None and name not in header:
        raise refused(field, f"no column {name!r}; there are {', '.join(header)}")
    wanted = name or default
    return header.index(wanted) if wanted in header else None


def _fault(row: Sequence[str], layout: _Layout) -> str:
    """Why a row is no document; empty if it is one, or is blank."""
    if not row:
        return ""
    if len(row) != len(layout.header):
        return f"{len(row)} cells under {len(layout.header)} headings"
    if any("\udc80" <= char <= "\udcff" for cell in row for char in cell):
        return "not UTF-8"
    text = "".join(
        cell
        for at, (name, cell) in enumerate(zip(layout.header, row, strict=True))
        if (name in CONTENT_FIELDS if layout.content_at is None else at == layout.content_at)
    )
    if not text.strip():
        return "no text"
    if len(text) > MAX_CONTENT_CHARS:
        return f"content is longer than {MAX_CONTENT_CHARS} characters"
    return ""


def _document(row: Sequence[str], layout: _Layout, *, new_id: str) -> dict[str, Any]:
    id_ = "" if layout.id_at is None else row[layout.id_at].strip()
    document: dict[str, Any] = {"id": id_ or new_id}
    metadata: dict[str, Any] = {}
    for at, (name, cell, kind) in enumerate(zip(layout.header, row, layout.kinds, strict=True)):
        if at == layout.content_at:
            document["content"] = cell
        elif at == layout.id_at or not cell:
            continue
        elif layout.content_at is None and name in CONTENT_FIELDS:
            document[name] = cell  # the node makes the content of these
        else:
            metadata[name] = _typed(cell, kind)
    return {**document, "metadata": metadata}


def _delimiter(path: Path, suffix: str) -> str:
    if suffix != ".csv":
        return "\t"
    with opened(path) as file:
        first = next(file.lines(), Line(b"", whole=True)).data.decode(errors="replace")
    return ";" if ";" in first and "," not in first else ","


class _Rows:
    """Rows of a file; `raw` is what the one that came last was read from, all of it if `whole`."""

    def __init__(self, file: TextFile, *, delimiter: str) -> None:
        self._file = file
        self.delimiter = delimiter
        self.whole = True
        self._lines: list[bytes] = []
        self._bytes = 0

    @property
    def raw(self) -> bytes:
        return b"".join(self._lines)

    def every(self) -> Iterator[tuple[int, Row]]:
        """Line number and cells of every row; text instead of cells says what is wrong with it."""
        reader = csv.reader(self._texts(), delimiter=self.delimiter, strict=True)
        while True:
            number = self._file.mark.line + 1
            self._lines, self._bytes, self.whole = [], 0, True
            try:
                yield number, next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, f"not a row: {error}"

    def _texts(self) -> Iterator[str]:
        """Lines as text; bytes that are none survive as lone surrogates, to be found in their row.
        What is too long for any document becomes a cell that csv refuses.
        """
        for line in self._file.lines():
            self._bytes += len(line.data)
            fits = line.whole and self._bytes <= 2 * MAX_LINE_BYTES
            self.whole = self.whole and fits
            if fits or not self._lines:
                self._lines.append(line.data)
            text = line.data.decode(errors="surrogateescape") if fits else _TOO_LONG
            yield without_bom(text, self._file.mark.line)


def _header(rows: Iterator[tuple[int, Row]]) -> list[str]:
    _, header = next(rows, (0, []))
    if isinstance(header, str):
        raise refused("path", f"the first row: {header}")
    names = [name.strip() for name in header]
    if not names or not all(names) or len(set(names)) != len(names):
        raise refused("path", "the first row must name every column, each differently")
    return names


def _kinds(rows: Iterator[tuple[int, Row]], columns: int) -> list[type]:
    """What all cells of each column are: bool, int, float, or else str; empty ones do not count."""
    every = {bool, int, float}
    possible = [set(every) for _ in range(columns)]
    for _, row in rows:
        if isinstance(row, str) or len(row) != columns:
            continue
        for at, cell in enumerate(row):
            if cell and possible[at]:
                possible[at] &= _fits(cell)
    return [
        str if left == every else next((kind for kind in (bool, int, float) if kind in left), str)
        for left in possible
    ]


def _fits(cell: str) -> set[type]:
    if cell.lower() in {"true", "false"}:
        return {bool}
    if _INTEGER.fullmatch(cell):
        return {int, float}
    return {float} if _DECIMAL.fullmatch(cell) else set()


def _typed(cell: str, kind: type) -> str | int | float | bool:
    if kind is bool:
        return cell.lower() == "true"
    value: str | int | float = kind(cell)
    return value
