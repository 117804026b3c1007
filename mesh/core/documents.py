"""What a document is: from a JSON object to one that can be stored, and when two are equal.

`content` is what is searched; where it is missing it is made of the usual text fields. Every other
key is metadata.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from mesh.errors import InvalidError
from mesh.wire.messages import MAX_BATCH, MAX_CONTENT_CHARS, Document

MAX_ID_CHARS = 512
MAX_METADATA_BYTES = 16_384
"""Metadata travels with every search hit, so a reply of hundreds of candidates has to hold it."""
MAX_METADATA_DEPTH = 32

CONTENT_FIELDS = ("title", "name", "description", "text", "body")
"""What content is made of, in the order it is joined in."""
_LABELS = frozenset({"title", "name"})
"""Short ones worth showing next to a hit: they stay in the metadata too."""
_MAX_REPORTED = 20

Metadata = dict[str, Any]


def canonical(value: Any) -> bytes:
    """JSON with sorted keys: equal values have equal bytes."""
    return msgspec.json.encode(value, order="sorted")


def content_hash(content: str, metadata: Mapping[str, Any]) -> str:
    """Names what a document says, without its id: 32 hex digits."""
    return hashlib.sha256(canonical([content, metadata])).hexdigest()[:32]


def from_json(raw: Any, *, new_id: str, field: str = "document") -> Document:
    """One document from a JSON object.

    Args:
        raw: `id` (text or integer), `content`, `metadata` and any other keys; those become
            metadata, where `metadata` itself has the last word.
        new_id: The id, if `raw` has none.
        field: Where `raw` is from; error fields start with it.

    Raises:
        InvalidError: It cannot be stored; `fields` says why.
    """
    if not isinstance(raw, Mapping):
        raise _refused(field, f"expected an object, got {_type_name(raw)}")
    own = raw.get("metadata")
    if own is not None and not isinstance(own, Mapping):
        raise _refused(f"{field}.metadata", f"expected an object, got {_type_name(own)}")
    rest = {key: value for key, value in raw.items() if key not in {"id", "content", "metadata"}}
    content = raw.get("content")
    if content is None:
        content, used = _made_of(rest)
        if not used:
            fields = ", ".join(CONTENT_FIELDS)
            raise _refused(f"{field}.content", f"is missing, and so is all of {fields}")
        rest = {key: value for key, value in rest.items() if key in _LABELS or key not in used}
    document = Document(
        id=_id(raw.get("id"), new_id, f"{field}.id"),
        content=content,
        metadata=rest | dict(own or {}),
    )
    check(document, field=field)
    return document


def batch(raw: Any, *, new_id: Callable[[], str], field: str = "documents") -> tuple[Document, ...]:
    """A batch of documents, all or none; of several with one id the last one counts.

    Raises:
        InvalidError: `fields` names each of the first 20 that cannot be stored, for example
            `documents[3].content`.
    """
    if not isinstance(raw, list | tuple):
        raise _refused(field, f"expected a list of objects, got {_type_name(raw)}")
    if not 1 <= len(raw) <= MAX_BATCH:
        raise _refused(field, f"{len(raw)} documents; 1 to {MAX_BATCH} go into one batch")
    documents: list[Document] = []
    refused: dict[str, tuple[str, ...]] = {}
    for place, item in enumerate(raw):
        try:
            documents.append(from_json(item, new_id=new_id(), field=f"{field}[{place}]"))
        except InvalidError as error:
            refused |= error.fields
            if len(refused) >= _MAX_REPORTED:
                break
    if refused:
        first, messages = next(iter(refused.items()))
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise InvalidError(f"{first}: {messages[0]}{more}", fields=refused)
    return last_wins(documents)


def last_wins(documents: Iterable[Document]) -> tuple[Document, ...]:
    """One document per id, the last one, where the id first occurred."""
    return tuple({document.id: document for document in documents}.values())


def merged(document: Document, fields: Mapping[str, Any], *, field: str = "fields") -> Document:
    """The document with `fields` merged in.

    Args:
        document: As stored.
        fields: `content` replaces the text; other keys, and those of an object `metadata`, replace
            the metadata's, and null removes one.
        field: Error fields start with it.

    Raises:
        InvalidError: The result cannot be stored, or `fields` would change the id.
    """
    if not isinstance(fields, Mapping):
        raise _refused(field, f"expected an object, got {_type_name(fields)}")
    changes = dict(fields)
    if "id" in changes and _id(changes.pop("id"), "", f"{field}.id") != document.id:
        raise _refused(f"{field}.id", "an id cannot change; index the document under the new one")
    content = changes.pop("content", document.content)
    nested = changes.pop("metadata", None)
    if nested is not None and not isinstance(nested, Mapping):
        raise _refused(f"{field}.metadata", f"expected an object, got {_type_name(nested)}")
    metadata = {
        key: value
        for key, value in (document.metadata | changes | dict(nested or {})).items()
        if value is not None or (key not in changes and key not in (nested or {}))
    }
    result = Document(id=document.id, content=content, metadata=metadata)
    check(result, field=field)
    return result


def check(document: Document, *, field: str = "document") -> None:
    """Whether it can be stored.

    Raises:
        InvalidError: No id, no or too much text, metadata that is too big, too deep or no JSON.
    """
    refused: dict[str, list[str]] = {}
    for name, complaint in (
        ("id", _id_complaint(document.id)),
        ("content", _content_complaint(document.content)),
        ("metadata", _metadata_complaint(document.metadata)),
    ):
        if complaint:
            refused[f"{field}.{name}"] = [complaint]
    if refused:
        first, messages = next(iter(refused.items()))
        raise InvalidError(f"{first}: {messages[0]}", fields=refused)


def _made_of(rest: Mapping[str, Any]) -> tuple[str, set[str]]:
    """Content out of the usual text fields, and which of them went into it."""
    used: dict[str, str] = {}
    for key in CONTENT_FIELDS:
        value = rest.get(key)
        if isinstance(value, str) and value.strip():
            used[key] = value.strip()
    return "\n".join(dict.fromkeys(used.values())), set(used)


def _id(raw: Any, new_id: str, field: str) -> str:
    match raw:
        case None:
            return new_id
        case bool():
            pass
        case int() if abs(raw) < 10**MAX_ID_CHARS:
            return str(raw)
        case str():
            return raw
    raise _refused(field, f"expected text or an integer, got {_type_name(raw)}")


def _id_complaint(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        return "must not be empty"
    if len(value) > MAX_ID_CHARS:
        return f"{len(value)} characters; at most {MAX_ID_CHARS}"
    return "" if _is_unicode(value) else "half a surrogate pair is no text"


def _content_complaint(value: Any) -> str:
    if not isinstance(value, str):
        return f"expected text, got {_type_name(value)}"
    if not value.strip():
        return "must not be empty"
    if len(value) > MAX_CONTENT_CHARS:
        return f"{len(value)} characters; at most {MAX_CONTENT_CHARS}"
    return "" if _is_unicode(value) else "half a surrogate pair is no text"


def _metadata_complaint(metadata: Metadata) -> str:
    if not _is_plain(metadata, MAX_METADATA_DEPTH):
        return (
            f"only JSON values can be stored: text keys, finite numbers, at most "
            f"{MAX_METADATA_DEPTH} levels"
        )
    try:
        size = len(canonical(metadata))
    except (OverflowError, UnicodeEncodeError, ValueError):
        return "a number out of range, or text with half a surrogate pair"
    if size > MAX_METADATA_BYTES:
        return f"{size} bytes as JSON; at most {MAX_METADATA_BYTES}"
    return ""


def _is_plain(value: Any, depth: int) -> bool:
    if depth < 0:
        return False
    match value:
        case None | bool() | str() | int():
            return True
        case float():
            return math.isfinite(value)
        case dict():
            return all(isinstance(key, str) for key in value) and all(
                _is_plain(item, depth - 1) for item in value.values()
            )
        case list() | tuple():
            return all(_is_plain(item, depth - 1) for item in value)
        case _:
            return False


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _type_name(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list() | tuple():
            return "a list"
        case _:
            return "an object"


def _refused(field: str, message: str) -> InvalidError:
    return InvalidError(f"{field}: {message}", fields={field: [message]})
