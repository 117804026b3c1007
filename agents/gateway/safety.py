"""Headers that tell browsers what not to do with an answer, and which pages may read it.

Source: OWASP REST Security Cheat Sheet (security headers), Fetch Standard (CORS protocol).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from agents.gateway.errors import Header
from mesh.config import GatewayConfig
from mesh.errors import ConfigError

_SAFE: list[Header] = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
]
_HTTPS_ONLY: Header = (b"strict-transport-security", b"max-age=31536000")

_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?")
_VARY: Header = (b"vary", b"origin")
_READABLE = (
    b"retry-after, x-ratelimit-limit, x-ratelimit-remaining, x-ratelimit-reset, x-request-id"
)
_SENDABLE = b"authorization, content-type, x-request-id"
_ASK_AGAIN_S = b"600"


def safe_headers(config: GatewayConfig) -> list[Header]:
    """Of every answer; a route that says something else of the same name is let."""
    return [*_SAFE, _HTTPS_ONLY] if config.tls_cert else list(_SAFE)


class Origins:
    """Pages of other origins that may read answers: exactly those that are configured, and never
    with cookies, of which the gateway has none.
    """

    def __init__(self, origins: Sequence[str]) -> None:
        """Args:
        origins: `gateway.cors_origins`.

        Raises:
            ConfigError: One is no origin as browsers write it.
        """
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"gateway.cors_origins: {origin!r} is no origin: scheme, host in lower case, "
                    "port unless it is the usual one; for example https://app.example.com"
                )
        self._allowed = frozenset(origin.encode() for origin in origins)

    def __bool__(self) -> bool:
        return bool(self._allowed)

    def headers(self, origin: bytes | None) -> list[Header]:
        """Of an answer to a page of this origin; None: to no page."""
        if not self._allowed:
            return []
        if origin not in self._allowed:
            return [_VARY]
        return [
            _VARY,
            (b"access-control-allow-origin", origin or b""),
            (b"access-control-expose-headers", _READABLE),
        ]

    def preflight(self, origin: bytes | None, methods: str) -> list[Header] | None:
        """Of the answer to a browser that asks whether a page may send a request.

        Args:
            origin: Of the page.
            methods: What the path takes.

        Returns:
            None: It may not.
        """
        if origin not in self._allowed:
            return None
        return [
            (b"access-control-allow-methods", methods.encode()),
            (b"access-control-allow-headers", _SENDABLE),
            (b"access-control-max-age", _ASK_AGAIN_S),
        ]
