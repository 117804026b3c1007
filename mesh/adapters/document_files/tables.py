"""CSV and TSV: a header, then one document a row."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mesh.adapters.document_files.items import (
    MAX_LINE_BYTES,
    Item,
    Source,
    bounded_lines,
    refused,
    without_bom,
)
from mesh.core.documents import CONTENT_FIELDS
from mesh.wire.messages import MAX_CONTENT_CHARS

_INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})")
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
    source: Source, *, id_column: str | None, content_column: str | None
) -> Iterator[Item]:
    """Every row as a document; other columns than id and content become metadata. It takes two
    passes, since only a whole column tells whether its cells are numbers.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    with source.path.open("rb") as stream:
        layout = _layout(stream, source, id_column, content_column)
        stream.seek(0)
        rows = _rows(stream, source.path)
        next(rows)
        for number, row in rows:
            at = stream.tell()
            fault = row if isinstance(row, str) else _fault(row, layout)
            if isinstance(row, str) or fault:
                yield source.bad(fault, number, at)
            elif row:
                document = _document(row, layout, new_id=f"{source.path.stem}-{number}")
                yield source.read(document, number, at)


def _layout(
    stream: BinaryIO, source: Source, id_column: str | None, content_column: str | None
) -> _Layout:
    header = _header(_rows(stream, source.path))
    content_at = _place(header, "content_column", content_column, "content")
    if content_at is None and not set(CONTENT_FIELDS) & set(header):
        columns = ", ".join(("content", *CONTENT_FIELDS))
        raise refused(
            "content_column", f"{source.name} has no column {columns}: name the one with the text"
        )
    stream.seek(0)
    return _Layout(
        header=header,
        kinds=_kinds(_rows(stream, source.path), len(header)),
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


def _rows(stream: BinaryIO, path: Path) -> Iterator[tuple[int, Row]]:
    """Line number and cells of every row; text instead of cells says what is wrong with it."""
    first = stream.readline(MAX_LINE_BYTES).decode(errors="replace")
    stream.seek(0)
    delimiter = "," if path.suffix.lower() == ".csv" else "\t"
    if delimiter == "," and ";" in first and "," not in first:
        delimiter = ";"
    reader = csv.reader(_texts(stream), delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            yield number, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, f"not a row: {error}"


def _texts(stream: BinaryIO) -> Iterator[str]:
    """Lines as text; bytes that are none survive as lone surrogates, to be found in their row. A
    line that is too long for any document becomes one that csv refuses.
    """
    for number, line in enumerate(bounded_lines(stream), start=1):
        text = "x" * (MAX_LINE_BYTES + 1) if line is None else line.decode(errors="surrogateescape")
        yield without_bom(text, number)


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
    next(rows)
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
