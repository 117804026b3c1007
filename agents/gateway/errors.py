"""How a failure looks over HTTP: one form for all, and never a traceback."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any, NamedTuple

import msgspec
from litestar.exceptions import HTTPException, ValidationException
from msgspec import Meta

from mesh import bootstrap, messages
from mesh.errors import (
    BadRequestError,
    ForbiddenError,
    InternalError,
    InvalidError,
    MeshError,
    NotFoundError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
)

Header = tuple[bytes, bytes]

TITLES = {
    400: "Bad request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    408: "Request timeout",
    409: "Conflict",
    413: "Request too large",
    415: "Not JSON",
    422: "Validation failed",
    429: "Too many requests",
    431: "Headers too large",
    500: "Internal error",
    502: "Bad gateway",
    503: "Service unavailable",
    504: "Gateway timeout",
}

_TITLES_OF_KINDS = {
    "action_failed": "Action failed",
    "interrupted": "Action interrupted",
    "invalid_refresh_token": "Invalid refresh token",
}


class MethodNotAllowedError(MeshError):
    """The path is there, but not for this method; `allow` says for which."""

    code = 405
    kind = "method_not_allowed"

    def __init__(self, message: str = "", *, allow: str = "") -> None:
        super().__init__(message)
        self.allow = allow


class SlowRequestError(MeshError):
    """The request did not arrive whole in time."""

    code = 408
    kind = "request_timeout"


class NotJsonError(MeshError):
    """A body that calls itself something else than JSON."""

    code = 415
    kind = "not_json"


class RateLimitedError(MeshError):
    """More requests than the identity may make to this route."""

    code = 429
    kind = "rate_limited"
    retryable = True


class HeadersTooLargeError(MeshError):
    """The request's headers are beyond the limit."""

    code = 431
    kind = "headers_too_large"


class InvalidRefreshTokenError(UnauthorizedError):
    """Unknown, used, expired or revoked."""

    kind = "invalid_refresh_token"


_MADE = {
    cls.code: cls
    for cls in (
        BadRequestError,
        UnauthorizedError,
        ForbiddenError,
        NotFoundError,
        TooLargeError,
        NotJsonError,
    )
}


class Error(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why there is no answer."""

    success: Annotated[bool, Meta(description="`false`; given by the routes of actions.")] = True
    error: Annotated[str, Meta(description="Title, for a person.")]
    kind: Annotated[str, Meta(description="Machine word, for example `unauthorized`.")]
    message: Annotated[str, Meta(description="What went wrong and what to do next.")]
    reference: Annotated[
        str, Meta(description="Id of the request: the gateway's log has the rest under it.")
    ]
    errors: Annotated[
        dict[str, list[str]], Meta(description="Messages by field, where fields were refused.")
    ] = {}
    retry_after_s: Annotated[
        int, Meta(ge=0, description="Seconds until another try makes sense, as in `Retry-After`.")
    ] = 0
    shards: Annotated[
        messages.Shards | None,
        Meta(description="How each shard fared, where a search's `require` was not met."),
    ] = None


class Problem(NamedTuple):
    """A rendered failure."""

    status: int
    headers: list[Header]
    body: bytes


_encode = msgspec.json.Encoder().encode


def problem(
    error: Exception, reference: str, *, internal: str = TITLES[500], action: bool = False
) -> Problem:
    """Render a failure.

    Args:
        error: A MeshError, one of Litestar's, or a bug, of which nothing is told.
        reference: Id of the request.
        internal: Title of a 500 on this route.
        action: The route is one of actions: its failures say `"success": false`.
    """
    known = as_mesh_error(error)
    title = _TITLES_OF_KINDS.get(known.kind) or (
        internal if known.code == HTTPStatus.INTERNAL_SERVER_ERROR else TITLES[known.code]
    )
    body = Error(
        success=not action,
        error=title,
        kind=known.kind,
        message=str(known),
        reference=reference,
        errors={name: list(messages) for name, messages in known.fields.items()},
        retry_after_s=_retry_after_s(known),
        shards=known.shards if isinstance(known, UnavailableError) else None,
    )
    return Problem(known.code, _headers(known), _encode(body))


def _headers(known: MeshError) -> list[Header]:
    headers: list[Header] = []
    if seconds := _retry_after_s(known):
        headers.append((b"retry-after", b"%d" % seconds))
    if known.code == HTTPStatus.UNAUTHORIZED:
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(known, MethodNotAllowedError):
        headers.append((b"allow", known.allow.encode()))
    return headers


def _retry_after_s(known: MeshError) -> int:
    """Whole seconds, 1 at least; 0 where trying again is nothing to be told of."""
    if known.retry_after_ms is None and not isinstance(known, UnavailableError):
        return 0
    return max(1, math.ceil((known.retry_after_ms or 0) / 1000))


def as_mesh_error(error: Exception) -> MeshError:
    """The public form of any failure."""
    match error:
        case MeshError() if error.code in TITLES:
            return error
        case ValidationException():
            return _invalid(error.extra)
        case HTTPException() if error.status_code in _MADE:
            return _MADE[error.status_code](error.detail)
        case _:
            return InternalError("something went wrong here; the log has it under the reference")


def _invalid(extra: Any) -> InvalidError:
    """Of query and path parameters, which Litestar checks."""
    fields: dict[str, list[str]] = {}
    for entry in extra if isinstance(extra, list) else []:
        if isinstance(entry, Mapping):
            name = str(entry.get("key", "query")).rstrip("_")
            words = bootstrap.invalid(msgspec.ValidationError(str(entry.get("message"))))
            fields.setdefault(name, []).extend(words.fields["body"])
    text = "; ".join(f"{name}: {', '.join(messages)}" for name, messages in fields.items())
    return InvalidError(text or "a parameter cannot be read", fields=fields)
