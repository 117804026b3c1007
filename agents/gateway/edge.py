"""The edge: what every request goes through before, and every answer after, Litestar.

Request id, limits, route, login, rate limit, errors and the access log, as plain ASGI: done in
Litestar's own layers they would cost more than a search. For the same reason a search does not go
through Litestar at all, where `shortcut` says so: its body goes to the function that Litestar's
handler calls. Both answer alike (tests/unit/test_gateway_shortcut.py).
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from agents.gateway.access_log import AccessLog
from agents.gateway.errors import (
    Header,
    HeadersTooLargeError,
    NotJsonError,
    Problem,
    RateLimitedError,
    as_mesh_error,
    problem,
)
from agents.gateway.exchange import Exchange, bearer_of
from agents.gateway.protocol import CLOSE, LimitedProtocol, answer_at_once, written
from agents.gateway.route import ACTIONS, ANYBODY, KNOWN_OR_NOT, NOBODY, SEARCH, Route, Routes
from agents.gateway.safety import Origins, safe_headers
from mesh import bootstrap, messages
from mesh.config import MeshConfig
from mesh.errors import (
    BadRequestError,
    DeadlineExceededError,
    ForbiddenError,
    InternalError,
    MeshError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
)

log = structlog.get_logger()

Shortcut = Callable[[bytes, messages.Identity, str], Awaitable[bytes]]
"""Answers the body of a search, of somebody, under an id."""

_DIGITS = re.compile(rb"\d{1,18}").fullmatch
_NOT_JSON = re.compile(rb"\s*(multipart/|image/|audio/|video/)")
"""What surely is none. Not x-www-form-urlencoded: curl says so of whatever it is given."""
_JSON = (b"content-type", b"application/json")
_NO_BODY = (b"", b"{}")
"""What may come where nothing is read."""
_NO_CONTENT = 204


class ClientGoneError(Exception):
    """Nobody is there to be answered."""


class Edge:
    """The ASGI app that uvicorn runs."""

    def __init__(
        self,
        app: ASGIApp,
        routes: Routes,
        gatekeeper: bootstrap.Gatekeeper,
        config: MeshConfig,
        *,
        shortcut: Shortcut | None = None,
        access_log: AccessLog | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Args:
        app: Litestar.
        routes: What it serves.
        gatekeeper: Says who comes.
        config: `gateway` and `rate_limit` count.
        shortcut: Answers searches; None: Litestar does.
        access_log: None: nothing is logged.
        clock: Seconds, for the rate limit.

        Raises:
            ConfigError: `gateway.cors_origins` holds what is no origin.
        """
        self._app = app
        self._routes = routes
        self._gatekeeper = gatekeeper
        self._max_body = config.gateway.max_body_bytes
        self._safe = safe_headers(config.gateway)
        self._safe_written = written(self._safe)
        self._origins = Origins(config.gateway.cors_origins)
        self._shortcut = shortcut
        self.access_log = access_log
        self._clock = clock
        limits = config.rate_limit
        self._limiter = (
            bootstrap.RateLimiter(limits.max_attempts, limits.period_s) if limits.enabled else None
        )
        self._limit = (b"x-ratelimit-limit", str(limits.max_attempts).encode())
        self.state: dict[str, Any] = {}
        """What handlers find in the state of a request, besides its exchange."""
        self.draining = False
        """Every answer closes its connection."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope)
        try:
            await self._serve(exchange, receive, send)
        except ClientGoneError:
            exchange.status = exchange.status or exchange.lost
        except asyncio.CancelledError:
            await self._stopped(exchange, send)
        except Exception as error:  # noqa: BLE001 (a bug becomes a 500 with a reference)
            await self._fail(exchange, error, send)
        if self.access_log is not None:
            self.access_log.write(
                method=exchange.method,
                path=exchange.scope["raw_path"].decode("latin-1"),
                status=exchange.status,
                duration_s=time.perf_counter() - exchange.began,
                size=exchange.size,
                identity=exchange.identity.subject if exchange.identity else "",
                client=exchange.client,
                reference=exchange.reference.decode(),
            )

    async def refuse_head(self, scope: Any, _receive: Any, send: Any) -> None:
        """ASGI app for a request whose headers are too large to be looked at."""
        exchange = Exchange(scope)
        exchange.extra.append(CLOSE)
        await self._fail(exchange, HeadersTooLargeError("the headers are too large"), send)

    # -- the way in --------------------------------------------------------------------------------

    async def _serve(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        if exchange.method == "OPTIONS" and await self._preflight(exchange, send):
            return
        route = exchange.route = self._routes.find(exchange.method, exchange.path)
        if exchange.twice:
            raise BadRequestError("the request has more than one Authorization header")
        bootstrap.request_origin.set(exchange.client)
        stranger = route.access == KNOWN_OR_NOT and exchange.authorization is None
        if route.access == NOBODY or stranger:
            if route.limited:
                self._count(exchange, exchange.client)
        else:
            await self._admit(exchange, route)
        body = await self._body(exchange, receive) if route.body or exchange.has_body else b""
        if route.body and not body:
            raise BadRequestError("the request has no body; it takes JSON")
        if not route.body and body.strip() not in _NO_BODY:
            raise BadRequestError("this takes no body; what it can be told stands in the query")
        if not route.search:
            await self._through_litestar(exchange, body, receive, send)
            return
        connection = exchange.connection
        if connection is None:
            await self._search(exchange, route, body, receive, send)
        else:
            await self._watched(connection, self._search(exchange, route, body, receive, send))

    async def _admit(self, exchange: Exchange, route: Route) -> None:
        """Who is it, how often has it come, may it?

        Failed logins are limited by address, good ones never refused for them: others behind the
        same address may be guessing. How much guessing costs the masters, the gatekeeper bounds.

        Raises:
            UnauthorizedError, RateLimitedError, ForbiddenError, UnavailableError
        """
        try:
            bearer = bearer_of(exchange.authorization)
            identity = self._gatekeeper.known(bearer)
            if identity is None:
                identity = await self._gatekeeper.identify(bearer)
        except UnauthorizedError:
            self._count(exchange, exchange.client)
            raise
        exchange.identity = identity
        if route.limited:
            self._count(exchange, identity.subject)
        if route.access in {ANYBODY, KNOWN_OR_NOT} or route.access in identity.scopes:
            return
        if route.access == ACTIONS:
            if not bootstrap.allows_some_action(identity.scopes):
                raise ForbiddenError("this takes the scope 'actions', or 'actions:<name>'")
        elif route.access == SEARCH:
            if not bootstrap.allows_some_search(identity.scopes):
                raise ForbiddenError("this takes the scope 'search', or 'search:<collection>'")
        elif not bootstrap.allows(identity.scopes, route.access):
            raise ForbiddenError(f"this takes the scope {route.access!r}")

    async def _preflight(self, exchange: Exchange, send: Send) -> bool:
        """Whether a browser asked if a page may send a request, and was told that it may.

        Raises:
            NotFoundError: No such path.
        """
        headers = self._origins.preflight(exchange.origin, self._routes.methods(exchange.path))
        if headers is None:
            return False
        await self._answer(exchange, _NO_CONTENT, headers, b"", send)
        return True

    def _count(self, exchange: Exchange, who: str) -> None:
        if self._limiter is None or exchange.route is None:
            return
        key = (who, exchange.route.method, exchange.route.template)
        self._limited(exchange, self._limiter.check(key, self._clock()))

    def _limited(self, exchange: Exchange, verdict: Any) -> None:
        exchange.extra = [
            self._limit,
            (b"x-ratelimit-remaining", b"%d" % verdict.remaining),
            (b"x-ratelimit-reset", b"%d" % math.ceil(verdict.reset_s)),
        ]
        if not verdict.allowed:
            raise RateLimitedError(
                f"more than {verdict.limit} requests to this route",
                retry_after_ms=math.ceil(verdict.retry_after_s * 1000),
            )

    async def _body(self, exchange: Exchange, receive: Receive) -> bytes:
        """The whole body.

        Raises:
            TooLargeError: By what it says of itself at once, else by what comes.
            NotJsonError, ClientGoneError
        """
        length = exchange.content_length
        if length is not None and (not _DIGITS(length) or int(length) > self._max_body):
            raise self._too_large()
        if exchange.content_type and _NOT_JSON.match(exchange.content_type.lower()):
            kind = exchange.content_type.decode("latin-1")
            raise NotJsonError(f"the body is to be application/json, not {kind}")
        message = cast("Any", await receive())
        body: bytes = message.get("body", b"")
        if (
            message.get("more_body")
            or message["type"] != "http.request"
            or (len(body) > self._max_body)
        ):
            parts = [body]
            size = len(body)
            while True:
                if message["type"] != "http.request":
                    raise ClientGoneError
                if size > self._max_body:
                    raise self._too_large()
                if not message.get("more_body"):
                    return b"".join(parts)
                message = cast("Any", await receive())
                parts.append(message.get("body", b""))
                size += len(parts[-1])
        return body

    def _too_large(self) -> TooLargeError:
        return TooLargeError(f"the body is over {self._max_body} bytes")

    # -- the way through ---------------------------------------------------------------------------

    async def _search(
        self, exchange: Exchange, route: Route, body: bytes, receive: Receive, send: Send
    ) -> None:
        if self._shortcut is None or not route.shortcut or exchange.identity is None:
            await self._through_litestar(exchange, body, receive, send)
        else:
            answer = await self._shortcut(body, exchange.identity, exchange.search_id)
            await self._answer(exchange, 200, [_JSON], answer, send)

    async def _watched(self, connection: LimitedProtocol, answering: Awaitable[None]) -> None:
        """Stop when the client goes.

        Raises:
            ClientGoneError
        """
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        connection.waiting = task
        try:
            await answering
        except asyncio.CancelledError:
            if not connection.transport.is_closing():
                raise
            task.uncancel()
            raise ClientGoneError from None
        finally:
            connection.waiting = None

    async def _through_litestar(
        self, exchange: Exchange, body: bytes, receive: Receive, send: Send
    ) -> None:
        unread = [body]

        async def replay() -> Any:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            return await receive()

        async def pass_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                headers = [*message["headers"], *self._common(exchange)]
                said = {name.lower() for name, _ in headers}
                headers += [header for header in self._safe if header[0] not in said]
                await send(cast("Message", {**message, "headers": headers}))
            else:
                exchange.size += len(cast("Any", message).get("body", b""))
                await send(message)

        scope: Any = exchange.scope
        scope.setdefault("state", {}).update(self.state, exchange=exchange)
        if exchange.method == "HEAD":
            scope = {**scope, "method": "GET"}  # uvicorn knows better, and leaves the body out
        await self._app(scope, replay, pass_on)

    # -- the way out -------------------------------------------------------------------------------

    def render(self, exchange: Exchange, error: Exception) -> Problem:
        """The answer to a failure; what only the log should know goes there."""
        route = exchange.route
        shown = problem(
            error,
            exchange.reference.decode(),
            internal=route.internal if route else "Internal error",
            action=route is not None and route.action,
        )
        known = as_mesh_error(error)
        if known is not error and isinstance(known, InternalError):
            log.error(
                "mesh.gateway.failed",
                reference=exchange.reference.decode(),
                path=exchange.path,
                exc_info=error,
            )
        elif isinstance(known, InternalError):
            log.error(
                "mesh.gateway.peer_failed",
                reference=exchange.reference.decode(),
                peer_reference=known.reference,
                path=exchange.path,
                error=str(known),
            )
        return shown

    async def _fail(self, exchange: Exchange, error: Exception, send: Send) -> None:
        if exchange.status:
            raise error  # the answer has begun: uvicorn cuts it off
        shown = self.render(exchange, error)
        await self._answer(exchange, shown.status, [_JSON, *shown.headers], shown.body, send)

    async def _stopped(self, exchange: Exchange, send: Send) -> None:
        """It ran for longer than a stopping gateway waits."""
        if exchange.status:
            raise asyncio.CancelledError
        route = exchange.route
        error: MeshError = UnavailableError("the gateway stops", retry_after_ms=1000)
        if route is not None and route.action and route.method == "POST":
            error = DeadlineExceededError(
                "the gateway stops and the outcome is not known: ask again with the same "
                "idempotency_key, or look in the history"
            )
        await self._fail(exchange, error, send)

    async def _answer(
        self, exchange: Exchange, status: int, headers: list[Header], body: bytes, send: Send
    ) -> None:
        exchange.status = status
        exchange.size = len(body)
        headers += self._common(exchange)
        if status != _NO_CONTENT:
            headers.append((b"content-length", b"%d" % len(body)))
        if answer_at_once(send, status, self._safe_written, headers, body):
            return
        headers = [*self._safe, *headers]
        start: Any = {"type": "http.response.start", "status": status, "headers": headers}
        await send(start)
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def _common(self, exchange: Exchange) -> list[Header]:
        common = [(b"x-request-id", exchange.reference), *exchange.extra]
        if self._origins:
            common += self._origins.headers(exchange.origin)
        if self.draining:
            common.append(CLOSE)
        return common
