"""Logs: for people on a terminal, JSON lines elsewhere; libraries' lines come the same way, and
secrets do not come at all.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import structlog
from structlog.types import Processor

from mesh.core.redaction import HIDDEN, hide_secrets, names_secret

_QUIET = ("aiosqlite", "alembic", "asyncio", "nats", "sqlalchemy")
"""Libraries whose informative lines inform nobody here."""

_MAX_DEPTH = 8
_OF_THE_FORMATTER = frozenset({"_record", "_from_structlog"})
"""What structlog's formatter takes out again; never shown."""


def configure_logs(
    *,
    ids: Mapping[str, str] | None = None,
    debug: bool = False,
    stream: TextIO | None = None,
) -> None:
    """Set up structlog and the standard library's logging for this process.

    Args:
        ids: On every line, for example `{"process": "node-crm"}`.
        debug: Debug lines as well.
        stream: Default: stderr. Colours only on a terminal, and not with `NO_COLOR`.
    """
    out = stream or sys.stderr
    level = logging.DEBUG if debug else logging.INFO
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _always(dict(ids or {})),
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _renderer(out),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.INFO if debug else logging.WARNING)
    logging.captureWarnings(capture=True)


def _renderer(out: TextIO) -> Processor:
    if not out.isatty():
        return structlog.processors.JSONRenderer()
    return structlog.dev.ConsoleRenderer(
        colors=not os.environ.get("NO_COLOR"),
        # The pretty one shows local variables, and with them passwords.
        exception_formatter=structlog.dev.plain_traceback,
    )


def _always(ids: Mapping[str, str]) -> Processor:
    """Ids on every line, also from threads, where context variables do not reach."""

    def add(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
        return {**ids, **event}

    return add


def redact(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Hide what stands under a key named like a secret (`password`, `api_key`, …), and what looks
    like a secret wherever it stands, in exceptions and objects too.
    """
    return {
        key: value if key in _OF_THE_FORMATTER else _clean(key, value, 0)
        for key, value in event.items()
    }


def _clean(key: Any, value: Any, depth: int) -> Any:
    match value:
        case None | bool() | int() | float():  # a count of tokens is no secret
            return value
        case _ if depth > _MAX_DEPTH or (isinstance(key, str) and names_secret(key)):
            return HIDDEN
        case str():
            return hide_secrets(value)
        case Mapping():
            return {
                hide_secrets(name if isinstance(name, str) else _shown(name)): _clean(
                    name, inner, depth + 1
                )
                for name, inner in value.items()
            }
        case list() | tuple() | set() | frozenset():
            return [_clean(None, inner, depth + 1) for inner in value]
        case _:
            return hide_secrets(_shown(value))


def _shown(value: Any) -> str:
    """As the renderers would show it."""
    try:
        return repr(value)
    except Exception as error:  # noqa: BLE001 (a log line must not end the work it is about)
        return f"<{type(value).__name__}: its repr failed with {type(error).__name__}>"
