"""JSON lines: one object a line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from mesh.adapters.document_files.items import (
    MAX_LINE_BYTES,
    STANDARD_INPUT,
    Item,
    Mark,
    Source,
    without_bom,
)
from mesh.adapters.document_files.text_lines import Line, opened
from mesh.core.documents import CONTENT_FIELDS
from mesh.wire.messages import MAX_CONTENT_CHARS

_DIGEST_DIGITS = 16


def read_json_lines(
    source: Source, *, id_column: str | None, content_column: str | None, after: Mark
) -> Iterator[Item]:
    """Every line as a document; other keys than id and content go along as they are."""
    with opened(source.path) as file:
        file.go_to(after)
        for line in file.lines():
            number = file.mark.line
            at, raw = (file.position, file.mark), line.data
            if not line.whole:
                reason = f"longer than {MAX_LINE_BYTES} bytes"
                yield source.bad(reason, number, *at, raw, whole=False)
                continue
            try:
                text = without_bom(raw.decode(), number).strip()
                if not text:
                    continue
                document = _document(
                    _decoded(text),
                    id_column or "id",
                    content_column,
                    new_id=_new_id(source, number, line),
                )
            except UnicodeDecodeError:
                yield source.bad("not UTF-8", number, *at, raw)
            except (msgspec.DecodeError, RecursionError) as error:
                yield source.bad(f"not JSON: {error}", number, *at, raw)
            except ValueError as error:
                yield source.bad(str(error), number, *at, raw)
            else:
                yield source.read(document, number, *at, raw)


def _decoded(text: str) -> Any:
    """Raises: ValueError: A key occurs twice in one object: which value is meant nobody knows."""
    value = msgspec.json.decode(text)
    json.loads(text, object_pairs_hook=_without_doubles)
    return value


def _without_doubles(pairs: Sequence[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice[:80]!r} occurs twice")


def _new_id(source: Source, number: int, line: Line) -> str:
    """Of a document without one: the same whenever the same file is read, and no other file's.
    What comes through standard input has no name, so its text has to tell it apart.
    """
    if source.path != STANDARD_INPUT:
        return f"{source.stem}-{number}"
    digest = hashlib.sha256(line.data.strip()).hexdigest()[:_DIGEST_DIGITS]
    return f"{source.stem}-{number}-{digest}"


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
