"""The audit trail: who let whom in, and who changed what."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from mesh.wire.messages.base import Request, Wire


class AuditRecord(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """One entry; `mesh.v1.audit.<kind>`."""

    id: str
    """uuid7."""
    at: int
    """Unix ms."""
    kind: str
    """One token, for example `login-refused`, `node-joined`, `key-rotated`, `token-revoked`."""
    actor: str
    """Who did it: a login at the broker, or `gateway for <identity>`."""
    subject: str
    """To whom or what: a node, a user, the id of a token."""
    origin: str = ""
    """Network address it came from, where that is known."""
    details: dict[str, str | int | list[str]] = {}


class AuditQuery(Request, frozen=True, kw_only=True):
    """`master.audit`; empty fields match all."""

    kind: str = ""
    actor: str = ""
    subject: str = ""
    since: int = 0
    """Unix ms."""
    until: int = 0
    """Unix ms; 0: now."""
    after: str = ""
    """Id: entries that came later than that one, oldest first; empty: newest first."""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 50
    offset: Annotated[int, Meta(ge=0)] = 0


class AuditPage(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """A page, and how many entries match in all."""

    entries: list[AuditRecord]
    total: int
