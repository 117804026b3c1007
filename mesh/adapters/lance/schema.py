"""The columns of a collection's table, and documents as rows of it.

Fixed columns, then one nullable column per scalar metadata key, so that filters run inside LanceDB.
`words` holds the document's terms joined by blanks and carries the full-text index: what the index
sees is then exactly what `mesh.core.text` counts, in every script.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mesh.core import text
from mesh.core.filters import ID, Kind, Value
from mesh.errors import InvalidError
from mesh.wire.messages import Document

MAX_COLUMNS = 64
"""Scalar metadata keys beyond these are kept, but cannot be filtered by."""

_EMBEDDER = b"nodemesh.embedder"
_BORN = b"nodemesh.born"
_TOKENIZER = b"nodemesh.tokenizer"
_PREFIX = "m_"
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_PRIMARY_KEY = {b"lance-schema:unenforced-primary-key:position": b"1"}
_TYPES: dict[Kind, pa.DataType] = {
    "text": pa.utf8(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
}


class Row(NamedTuple):
    """A document ready to be written."""

    document: Document
    words: list[str]
    hash: str
    metadata: str
    """Canonical JSON."""


def table_schema(dim: int, *, embedder: str, born: int) -> pa.Schema:
    """An empty collection's schema.

    Args:
        dim: Length of a vector.
        embedder: Fingerprint of what makes the vectors.
        born: Added to the table's version this gives the data version.
    """
    return pa.schema(
        [
            # Without the primary key concurrent upserts of one new id each insert a row.
            pa.field("id", pa.utf8(), nullable=False, metadata=_PRIMARY_KEY),
            pa.field("content", pa.utf8(), nullable=False),
            pa.field("words", pa.utf8(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), dim)),
            pa.field("length", pa.int32(), nullable=False),
            pa.field("hash", pa.utf8(), nullable=False),
            pa.field("metadata", pa.utf8(), nullable=False),
            pa.field("keys", pa.utf8(), nullable=False),
            pa.field("updated_at", pa.int64(), nullable=False),
        ],
        metadata={
            _EMBEDDER: embedder.encode(),
            _BORN: str(born).encode(),
            _TOKENIZER: text.VERSION.encode(),
        },
    )


class Makers(NamedTuple):
    """What made the vectors and the terms of a table."""

    embedder: str
    """Fingerprint."""
    tokenizer: str
    """`mesh.core.text.VERSION`."""


def makers(schema: pa.Schema) -> Makers:
    """As the table tells."""
    return Makers(_metadata(schema, _EMBEDDER), _metadata(schema, _TOKENIZER))


def made_anew(schema: pa.Schema, dim: int, *, embedder: str) -> pa.Schema:
    """The schema of the same documents with vectors and terms of this node: same columns, in the
    same order.
    """
    place = schema.get_field_index("vector")
    metadata = {
        **(schema.metadata or {}),
        _EMBEDDER: embedder.encode(),
        _TOKENIZER: text.VERSION.encode(),
    }
    return schema.set(place, pa.field("vector", pa.list_(pa.float32(), dim))).with_metadata(
        metadata
    )


def born(schema: pa.Schema) -> int:
    """What the table's version is added to."""
    return int(_metadata(schema, _BORN))


def column_name(key: str) -> str:
    """The column of a metadata key."""
    return _PREFIX + key


def listed_key(key: str) -> str:
    """A key as the column `keys` lists it."""
    return f",{key},"


def columns_of(schema: pa.Schema) -> dict[str, Kind]:
    """The filterable metadata keys of a table and their kinds."""
    kinds = {arrow: kind for kind, arrow in _TYPES.items()}
    return {
        field.name.removeprefix(_PREFIX): kinds[field.type]
        for field in schema
        if field.name.startswith(_PREFIX)
    }


def column_fields(columns: Mapping[str, Kind]) -> list[pa.Field[Any]]:
    """Arrow fields of metadata columns."""
    return [pa.field(column_name(key), _TYPES[kind]) for key, kind in columns.items()]


def new_columns(
    documents: Sequence[Document],
    existing: Mapping[str, Kind],
    *,
    places: Sequence[str] | None,
) -> dict[str, Kind]:
    """The columns that these documents need besides the existing ones.

    Args:
        documents: What is to be written.
        existing: Columns there are.
        places: What to call each document in an error, e.g. `documents[3]`; None: a value of
            another kind is no error, it only cannot be filtered by.

    Raises:
        InvalidError: A value whose kind is not the column's.
    """
    known = dict(existing)
    for number, document in enumerate(documents):
        for key, value in document.metadata.items():
            kind = _kind(key, value)
            if kind is None:
                continue
            if key in known:
                if known[key] != kind and places is not None:
                    place = places[number]
                    field = f"{place}.metadata.{key}"
                    message = (
                        f"is {_named(kind)} in document {document.id[:80]!r}, "
                        f"but {_named(known[key])} in the others of this collection"
                    )
                    raise InvalidError(f"{field} {message}", fields={field: [message]})
            elif len(known) < MAX_COLUMNS:
                known[key] = kind
    return {key: kind for key, kind in known.items() if key not in existing}


def as_table(
    rows: Sequence[Row],
    vectors: npt.NDArray[np.float32],
    *,
    schema: pa.Schema,
    updated_at: int,
) -> pa.Table:
    """Rows as Arrow.

    Args:
        rows: Documents, in order.
        vectors: `(n, dim)` float32; a zero row becomes null: that document has no direction.
        schema: The table's, all columns there.
        updated_at: Unix ms.
    """
    columns = columns_of(schema)
    scalars = [_scalars(row.document, columns) for row in rows]
    values: dict[str, Any] = {
        "id": [row.document.id for row in rows],
        "content": [row.document.content for row in rows],
        "words": [" ".join(row.words) for row in rows],
        "vector": vector_array(vectors, schema),
        "length": [len(row.words) for row in rows],
        "hash": [row.hash for row in rows],
        "metadata": [row.metadata for row in rows],
        "keys": ["".join(listed_key(key) for key in scalar) for scalar in scalars],
        "updated_at": [updated_at] * len(rows),
    }
    for key in columns:
        values[column_name(key)] = [scalar.get(key) for scalar in scalars]
    arrays = [
        value if isinstance(value, pa.Array) else pa.array(value, type=schema.field(name).type)
        for name, value in ((name, values[name]) for name in schema.names)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def vector_array(vectors: npt.NDArray[np.float32], schema: pa.Schema) -> Any:
    """`(n, dim)` float32 as the column `vector`; a zero row becomes null."""
    empty: npt.NDArray[np.bool_] = ~np.any(vectors, axis=1)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(vectors.ravel()),
        type=schema.field("vector").type,
        mask=pa.array(empty.tolist()),
    )


def vectors_of(table: pa.Table, dim: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """`(n, dim)` float32, zero where there is no vector, and `(n,)` whether there is one."""
    vectors = np.zeros((table.num_rows, dim), dtype=np.float32)
    column: Any = table.column("vector").combine_chunks()
    present = column.is_valid().to_numpy(zero_copy_only=False).astype(bool)
    vectors[present] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    return vectors, present


def strings(table: pa.Table, column: str) -> list[str]:
    """A column of text that is never null."""
    return [value or "" for value in table.column(column).to_pylist()]


def split(words: str) -> list[str]:
    """The terms of a `words` value; the inverse of how it is stored."""
    return words.split(" ") if words else []


def _metadata(schema: pa.Schema, key: bytes) -> str:
    return (schema.metadata or {}).get(key, b"0").decode()


def _scalars(document: Document, columns: Mapping[str, Kind]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for key, expected in columns.items():
        value: Any = document.metadata.get(key)
        kind = _kind(key, value)
        if kind == expected:
            found[key] = float(value) if kind == "number" else value
    return found


def _kind(key: str, value: Any) -> Kind | None:
    """What column a metadata value would go into; None: it cannot be filtered by."""
    if key == ID or not _KEY.fullmatch(key):
        return None
    match value:
        case bool():
            return "boolean"
        case str():
            return "text"
        case float():
            return "number"
        case int() if abs(value) < 10**300:
            return "number"
        case _:
            return None


def _named(kind: Kind) -> str:
    return {"text": "text", "number": "a number", "boolean": "true or false"}[kind]
