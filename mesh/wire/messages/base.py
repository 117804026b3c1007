"""What every message shares: limits, names, the request and its replies."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

MAX_QUERY_CHARS = 4096
MAX_LIMIT = 100
MAX_BATCH = 1000
MAX_CONTENT_CHARS = 1_000_000

# A pattern is searched for, and `$` matches before a last newline as well: `(?!\n)` forbids that,
# in words that JSON Schema knows too.
Token = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}(?!\n)$")]
"""One subject token."""

CollectionName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}(?!\n)$")]
"""A collection's full name; its last dotted segment is its type."""

DocumentId = Annotated[str, Meta(min_length=1, max_length=512)]
Scalar = str | int | float | bool | None


class Range(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A filter's bounds; text compares by code point."""

    gt: str | int | float | None = None
    gte: str | int | float | None = None
    lt: str | int | float | None = None
    lte: str | int | float | None = None


Filter = Scalar | list[Scalar] | Range
"""A column equals a value, is one of a list, or lies in a range."""


class Wire(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of what is written and read back by mesh processes."""


class Request(Wire, frozen=True, kw_only=True):
    """What every request may carry."""

    id: str = ""
    """uuid7 of the request."""
    deadline: int = 0
    """Unix ms after which nobody waits for the answer; 0: none."""
    trace: Annotated[str, Meta(max_length=256)] = ""
    """W3C traceparent."""
    on_behalf: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{0,64}(?!\n)$")] = ""
    """Whom a gateway, master or bridge speaks for."""
    origin: Annotated[str, Meta(max_length=64)] = ""
    """Network address of whoever a gateway or bridge speaks for."""


_SECRETS = frozenset({"api_key", "join_token", "access_token", "refresh_token", "token"})


class ShownOnce(Wire, frozen=True, kw_only=True):
    """Base of messages that hold secrets: whoever logs or prints one shows none of them."""

    def __repr__(self) -> str:
        shown = (
            f"{name}=…" if name in _SECRETS and value else f"{name}={value!r}"
            for name, value in msgspec.structs.asdict(self).items()
        )
        return f"{type(self).__name__}({', '.join(shown)})"


class OkReply(Wire, frozen=True, kw_only=True, tag="ok"):
    """The answer."""

    result: msgspec.Raw = msgspec.Raw(b"null")


class ErrorReply(Wire, frozen=True, kw_only=True, tag="error"):
    """A refusal or failure; see `mesh.errors`."""

    code: int
    kind: str
    message: str
    retryable: bool = False
    retry_after_ms: int | None = None
    fields: dict[str, list[str]] = {}
    reference: str | None = None
    attempt: int = 0
    """Of an action that ended so: which attempt; 0: it is no outcome of one."""


Reply = OkReply | ErrorReply


class PingRequest(Request, frozen=True, kw_only=True):
    """Are you there?"""


class PingResult(Wire, frozen=True, kw_only=True):
    """Yes, and this is who answers."""

    node: str
    incarnation: int
    version: str = ""
    at: int = 0


class Document(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a node stores."""

    id: DocumentId
    content: Annotated[str, Meta(max_length=MAX_CONTENT_CHARS)]
    metadata: dict[str, Any] = {}
