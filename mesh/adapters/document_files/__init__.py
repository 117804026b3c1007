"""Documents out of files: JSON lines, CSV and TSV, Parquet, Markdown. Read as a stream: what is in
memory at one time is a line, a row, a few megabytes of Parquet or a Markdown file, each bounded.
"""

from __future__ import annotations

import itertools
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mesh.adapters.document_files.items import (
    ACCEPTED,
    COMPRESSIONS,
    STANDARD_INPUT,
    START,
    BadLine,
    Item,
    Mark,
    ReadDocument,
    Source,
    refused,
)
from mesh.adapters.document_files.json_lines import read_json_lines
from mesh.adapters.document_files.markdown import MARKDOWN, read_markdown
from mesh.adapters.document_files.tables import read_table

__all__ = ["STANDARD_INPUT", "BadLine", "Item", "Mark", "ReadDocument", "read_documents"]

_JSON_LINES = frozenset({".jsonl", ".ndjson"})
_TABLES = frozenset({".csv", ".tsv", ".tab"})
_PARQUET = frozenset({".parquet", ".pq"})


def read_documents(
    path: Path,
    *,
    id_column: str | None = None,
    content_column: str | None = None,
    form: str | None = None,
    after: tuple[int, int] = START,
) -> Iterator[Item]:
    """Every document in `path`, in the order of the file; files of a folder by name.

    Args:
        path: A file, a folder of Markdown files, or `-` for standard input.
        id_column: What holds a document's id; default `id`. A document without one gets the
            file's stem and its line number.
        content_column: What holds its text; default `content`. Without it the node makes the text
            of title, name, description, text and body.
        form: `jsonl`, `csv`, `tsv`, `parquet` or `md`; default: what the file's name says, and
            JSON lines for standard input.
        after: Where an earlier reading ended: the `mark` of its last item. The file must be the
            same.

    Raises:
        InvalidError: Not a kind of file that can be read, or a column that is not there. It comes
            when the first document is asked for. Later: the rest of it cannot be read.
    """
    try:
        yield from _read(path, id_column, content_column, form, Mark(*after))
    except OSError as error:
        raise refused("path", f"cannot read {path}: {error.strerror or error}") from error


def _read(
    path: Path, id_column: str | None, content_column: str | None, form: str | None, after: Mark
) -> Iterator[Item]:
    suffix = _suffix(path, form)
    if path.is_dir() or suffix in MARKDOWN:
        if id_column or content_column:
            field = "id_column" if id_column else "content_column"
            raise refused(field, "Markdown has no columns")
        # Its mark counts passages: small files are quicker read again than sought in.
        items = enumerate(read_markdown(path), start=1)
        for number, item in itertools.islice(items, after.at, None):
            yield item._replace(mark=Mark(number))
        return
    if path == STANDARD_INPUT and suffix in _JSON_LINES:
        source = Source(path, "stdin", 0, 0)
        yield from read_json_lines(
            source, id_column=id_column, content_column=content_column, after=after
        )
    elif path == STANDARD_INPUT:
        with _spooled() as copy:
            source = Source(copy, "stdin", 0, copy.stat().st_size)
            yield from _columns(source, suffix, id_column, content_column, after)
    else:
        source = Source(path, path.name, 0, path.stat().st_size)
        yield from _columns(source, suffix, id_column, content_column, after)


def _columns(
    source: Source,
    suffix: str,
    id_column: str | None,
    content_column: str | None,
    after: Mark,
) -> Iterator[Item]:
    if suffix in _JSON_LINES:
        return read_json_lines(
            source, id_column=id_column, content_column=content_column, after=after
        )
    if suffix in _TABLES:
        return read_table(
            source, suffix=suffix, id_column=id_column, content_column=content_column, after=after
        )
    if suffix in _PARQUET:
        from mesh.adapters.document_files.parquet import read_parquet  # noqa: PLC0415 - 50 MB

        return read_parquet(source, id_column=id_column, content_column=content_column, after=after)
    raise refused("path", f"{source.path.name} is none of: {ACCEPTED}")


def _suffix(path: Path, form: str | None) -> str:
    """Of the format: without the one of a compression."""
    if form is not None:
        return f".{form.lower()}"
    if path == STANDARD_INPUT:
        return ".jsonl"
    suffix = path.suffix.lower()
    inner = path.with_suffix("").suffix.lower()
    return inner if suffix in COMPRESSIONS and inner in _JSON_LINES | _TABLES else suffix


@contextmanager
def _spooled() -> Iterator[Path]:
    """Standard input as a file: tables are read twice, Parquet from its end."""
    with tempfile.NamedTemporaryFile(prefix="mesh-import-") as copy:
        shutil.copyfileobj(sys.stdin.buffer, copy)
        copy.flush()
        yield Path(copy.name)
