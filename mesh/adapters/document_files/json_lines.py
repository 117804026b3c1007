"""JSON lines: one object a line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from mesh.adapters.document_files.items import (
    MAX_LINE_BYTES,
    Item,
    Source,
    bounded_lines,
    without_bom,
)
from mesh.core.documents import CONTENT_FIELDS
from mesh.wire.messages import MAX_CONTENT_CHARS


def read_json_lines(
    source: Source, *, id_column: str | None, content_column: str | None
) -> Iterator[Item]:
    """Every line as a document; other keys than id and content go along as they are."""
    with source.path.open("rb") as stream:
        for number, line in enumerate(bounded_lines(stream), start=1):
            at = stream.tell()
            if line is None:
                yield source.bad(f"longer than {MAX_LINE_BYTES} bytes", number, at)
                continue
            try:
                text = without_bom(line.decode(), number).strip()
                if not text:
                    continue
                document = _document(
                    msgspec.json.decode(text),
                    id_column or "id",
                    content_column,
                    new_id=f"{source.path.stem}-{number}",
                )
            except UnicodeDecodeError:
                yield source.bad("not UTF-8", number, at)
            except (msgspec.DecodeError, RecursionError) as error:
                yield source.bad(f"not JSON: {error}", number, at)
            except ValueError as error:
                yield source.bad(str(error), number, at)
            else:
                yield source.read(document, number, at)


def _document(
    value: Any, id_column: str, content_column: str | None, *, new_id: str
) -> dict[str, Any]:
    """Raises: ValueError: The object is no document."""
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - a bad line, not a bug
    id_ = value.pop(id_column, None)
    if isinstance(id_, bool) or not isinstance(id_, str | int | None):
        raise ValueError(f"{id_column} is neither text nor a whole number")  # noqa: TRY004
    if content_column is not None:
        if content_column not in value:
            raise ValueError(f"no {content_column}")
        value["content"] = value.pop(content_column)
    content = value.get("content")
    if content is None and not any(value.get(name) for name in CONTENT_FIELDS):
        raise ValueError(f"no content, and none of {', '.join(CONTENT_FIELDS)}")
    if not isinstance(content, str | None):
        raise ValueError("content is not text")  # noqa: TRY004
    if content is not None and len(content) > MAX_CONTENT_CHARS:
        raise ValueError(f"content is longer than {MAX_CONTENT_CHARS} characters")
    return {**value, "id": new_id if id_ is None or id_ == "" else str(id_)}
