"""One request to the gateway and its answer, as the edge sees it."""

from __future__ import annotations

import re
import time
from typing import Any, cast

from litestar.types import HTTPScope
from uuid_utils import uuid7

from agents.gateway.errors import Header, SlowRequestError
from agents.gateway.protocol import CONNECTION, LimitedProtocol
from agents.gateway.route import Route
from mesh import messages
from mesh.errors import UnauthorizedError

_REFERENCE = re.compile(rb"[A-Za-z0-9_.\-]{1,64}").fullmatch
_GONE = 499
"""Status in the access log where the client did not wait."""
_NO_EXTENSIONS: dict[str, Any] = {}


class Exchange:
    """One request and its answer."""

    __slots__ = (
        "authorization",
        "began",
        "chunked",
        "content_length",
        "content_type",
        "extra",
        "identity",
        "method",
        "origin",
        "own_reference",
        "path",
        "reference",
        "route",
        "scope",
        "size",
        "status",
        "twice",
    )

    def __init__(self, scope: HTTPScope) -> None:
        self.began = time.perf_counter()
        self.scope = scope
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.reference = b""
        """Id of the request, in `X-Request-Id`."""
        self.own_reference = False
        """The client sent it: whether others send the same, nobody knows."""
        self.authorization: bytes | None = None
        self.content_length: bytes | None = None
        self.chunked = False
        self.content_type = b""
        self.origin: bytes | None = None
        """Of the page that sent it."""
        self.twice = False
        """More than one `Authorization`: nobody can say which counts."""
        for name, value in scope["headers"]:
            if name == b"authorization":
                self.twice = self.authorization is not None
                self.authorization = value
            elif name == b"content-length":
                self.content_length = value
            elif name == b"content-type":
                self.content_type = value
            elif name == b"origin":
                self.origin = value
            elif name == b"transfer-encoding":
                self.chunked = True
            elif name == b"x-request-id" and _REFERENCE(value):
                self.reference = value
        if self.reference:
            self.own_reference = True
        else:
            self.reference = str(uuid7()).encode()
        self.route: Route | None = None
        self.identity: messages.Identity | None = None
        self.extra: list[Header] = []
        """Of the rate limit."""
        self.status = 0
        self.size = 0

    @property
    def has_body(self) -> bool:
        """Whether one comes with it, as far as it says."""
        return self.chunked or self.content_length not in {None, b"0"}

    @property
    def client(self) -> str:
        """The address it came from."""
        client = self.scope["client"]
        return client[0] if client else "?"

    @property
    def connection(self) -> LimitedProtocol | None:
        """Its socket; None where another server than ours runs the app."""
        extensions = cast("dict[str, Any]", self.scope.get("extensions") or _NO_EXTENSIONS)
        return extensions.get(CONNECTION)

    @property
    def search_id(self) -> str:
        """The id of the search that this request is; empty: the mesh makes one. Never one of the
        client's: two searches of one id at once would be cancelled together.
        """
        return "" if self.own_reference else self.reference.decode()

    @property
    def lost(self) -> int:
        """Status for the log where there was nobody to be answered."""
        connection = self.connection
        slow = connection is not None and connection.timed_out
        return SlowRequestError.code if slow else _GONE


def bearer_of(authorization: bytes | None) -> str:
    """The token in the header.

    Raises:
        UnauthorizedError: There is none.
    """
    if authorization is None:
        raise UnauthorizedError("send `Authorization: Bearer <access token or API key>`")
    scheme, _, token = authorization.partition(b" ")
    token = token.strip()
    if scheme.lower() != b"bearer" or not token or not token.isascii():
        raise UnauthorizedError("`Authorization` is to be `Bearer <access token or API key>`")
    return token.decode("ascii")
