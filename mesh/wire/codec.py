"""Bytes to messages and back. Decoders are built once per type; every decoding error becomes one of
ours here and nowhere else.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Hashable
from typing import Any, Generic, TypeVar, cast

import msgspec

from mesh.errors import (
    BadRequestError,
    InvalidError,
    MeshError,
    UnreadableReplyError,
    error_class,
)
from mesh.wire.messages import ErrorReply, OkReply
from mesh.wire.messages.base import Wire

T = TypeVar("T")

_MOST_MESSAGE_CHARS = 4096
_MOST_FIELDS = 50

_encoder = msgspec.json.Encoder()
_AT = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`$")
_MISSING = re.compile(r"missing required field `([^`]+)`")
_UNKNOWN = re.compile(r"unknown field `([^`]+)`")


@functools.cache
def _decoder(kind: Hashable) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(cast("type[Any]", kind))


def encode(message: Any) -> bytes:
    """JSON bytes of a message, or of anything made of built-in types."""
    return _encoder.encode(message)


def decode(payload: bytes | msgspec.Raw, kind: type[T]) -> T:
    """Read `payload` as a `kind`.

    Raises:
        BadRequestError: Not JSON.
        InvalidError: JSON, but not a `kind`; `fields` names what is wrong.
    """
    try:
        return cast("T", _decoder(cast("Hashable", kind)).decode(payload))
    except msgspec.ValidationError as error:
        raise invalid(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError(f"not valid JSON: {error}") from error


def convert(value: Any, kind: type[T], *, strict: bool = True) -> T:
    """Check built-in types (as from JSON) against a `kind`.

    Raises:
        InvalidError: `fields` names what is wrong.
    """
    try:
        return msgspec.convert(value, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise invalid(error) from error


def invalid(error: msgspec.ValidationError) -> InvalidError:
    """Our error for msgspec's, with the field it is about."""
    text = str(error)
    at = _AT.search(text)
    message = text[: at.start()] if at else text
    path = at.group(1) if at else ""
    for pattern in (_MISSING, _UNKNOWN):
        if found := pattern.search(message):
            path = f"{path}.{found.group(1)}" if path else found.group(1)
    field = path or "body"
    message = _in_words(message)
    return InvalidError(f"{field}: {message}", fields={field: [message]})


_WORDS = [
    (re.compile(r"Expected `str` of length >= 1$"), "must not be empty"),
    (re.compile(r"Expected `str` of length (>=|<=) (\d+)$"), "must have {0} {1} characters"),
    (re.compile(r"Expected `\w+` of length (>=|<=) (\d+)$"), "must have {0} {1} entries"),
    (re.compile(r"Expected `\w+` (>=|<=|>|<) (\S+)$"), "must be {0} {1}"),
    (
        re.compile(r"Expected `str` matching regex .*\|admin\).*$"),
        "must be search, search:COLLECTION, actions, actions:NAME or admin",
    ),
    (
        re.compile(r"Expected `str` matching regex .*A-Za-z0-9_.*$"),
        "must be a name: letters, digits, '_' and '-'",
    ),
    (re.compile(r"Object contains unknown field `.*`$"), "is not known here"),
    (re.compile(r"Object missing required field `.*`$"), "is missing"),
    (re.compile(r"Expected `(.*)`, got `(.*)`$"), "expected {0}, got {1}"),
    (re.compile(r"Invalid enum value (.*)$"), "cannot be {0}"),
]
_SIGNS = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}


def _in_words(message: str) -> str:
    """Msgspec's message as a person would put it."""
    for pattern, words in _WORDS:
        if found := pattern.search(message):
            return words.format(*(_SIGNS.get(part, part) for part in found.groups()))
    return message


def ok(result: Any) -> bytes:
    """A reply that carries `result`."""
    return encode(OkReply(result=msgspec.Raw(encode(result))))


def clean(text: str) -> str:
    """The text, with `?` for what is none: half a surrogate pair, as names of files can hold."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def error_reply(error: MeshError) -> ErrorReply:
    """What of an error crosses the bus."""
    fields = list(error.fields.items())[:_MOST_FIELDS]
    return ErrorReply(
        code=error.code,
        kind=error.kind,
        message=clean(str(error)[:_MOST_MESSAGE_CHARS]),
        retryable=error.retryable,
        retry_after_ms=error.retry_after_ms,
        fields={
            clean(name[:200]): [clean(text[:500]) for text in texts[:10]] for name, texts in fields
        },
        reference=error.reference,
    )


def as_error(reply: ErrorReply) -> MeshError:
    """The exception a peer's error reply stands for."""
    error = error_class(reply.kind, reply.code)(
        reply.message,
        retry_after_ms=reply.retry_after_ms,
        fields=reply.fields,
        reference=reply.reference,
    )
    error.retryable = reply.retryable
    error.attempt = reply.attempt
    return error


def result_of(payload: bytes, kind: type[T]) -> T:
    """The result inside a reply.

    Raises:
        MeshError: What the peer answered with, or UnreadableReplyError.
    """
    try:
        reply: _Answer[T] | ErrorReply = _answers(cast("Hashable", kind)).decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # What we cannot read of a peer is its fault, not the caller's.
        why: object = invalid(error) if isinstance(error, msgspec.ValidationError) else error
        raise UnreadableReplyError(f"the reply cannot be read: {why}") from error
    if isinstance(reply, ErrorReply):
        raise as_error(reply)
    return reply.result


class _Answer(Wire, Generic[T], frozen=True, kw_only=True, tag="ok"):
    """`OkReply`, with its result read at one go."""

    result: T


@functools.cache
def _answers(kind: Hashable) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(_Answer[kind] | ErrorReply)  # type: ignore[valid-type]
