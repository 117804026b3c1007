"""Documents out of files: JSON lines, CSV and TSV, Markdown. Read as a stream: what is in memory at
one time is a line, a row or a Markdown file, each bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mesh.adapters.document_files.items import (
    ACCEPTED,
    BadLine,
    Item,
    ReadDocument,
    Source,
    refused,
)
from mesh.adapters.document_files.json_lines import read_json_lines
from mesh.adapters.document_files.markdown import MARKDOWN, read_markdown
from mesh.adapters.document_files.tables import read_table

__all__ = ["BadLine", "Item", "ReadDocument", "read_documents"]

_JSON_LINES = frozenset({".jsonl", ".ndjson"})
_TABLES = frozenset({".csv", ".tsv", ".tab"})


def read_documents(
    path: Path, *, id_column: str | None = None, content_column: str | None = None
) -> Iterator[Item]:
    """Every document in `path`, in the order of the file; files of a folder by name.

    Args:
        path: A file, or a folder of Markdown files.
        id_column: What holds a document's id; default `id`. A document without one gets the
            file's stem and its line number.
        content_column: What holds its text; default `content`. Without it the node makes the text
            of title, name, description, text and body.

    Raises:
        InvalidError: Not a kind of file that can be read, or a column that is not there. It comes
            when the first document is asked for.
    """
    try:
        yield from _read(path, id_column, content_column)
    except OSError as error:
        raise refused("path", f"cannot read {path}: {error.strerror or error}") from error


def _read(path: Path, id_column: str | None, content_column: str | None) -> Iterator[Item]:
    suffix = path.suffix.lower()
    if path.is_dir() or suffix in MARKDOWN:
        if id_column or content_column:
            field = "id_column" if id_column else "content_column"
            raise refused(field, "Markdown has no columns")
        yield from read_markdown(path)
        return
    source = Source(path, path.name, 0, path.stat().st_size)
    if suffix in _JSON_LINES:
        yield from read_json_lines(source, id_column=id_column, content_column=content_column)
    elif suffix in _TABLES:
        yield from read_table(source, id_column=id_column, content_column=content_column)
    else:
        raise refused("path", f"{path.name} is none of: {ACCEPTED}")
