"""Everything `mesh` raises on purpose, and the only errors that cross the bus.

Each class carries an HTTP-like `code`, a machine word `kind` and whether trying again can help.
Source of the codes: RFC 9110; of codes in service replies: NATS ADR-32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class MeshError(Exception):
    """Base class. `str(error)` is the public message: no secrets, no tracebacks."""

    code: ClassVar[int] = 500
    kind: ClassVar[str] = "internal"
    retryable: bool = False

    def __init__(
        self,
        message: str = "",
        *,
        retry_after_ms: int | None = None,
        fields: Mapping[str, Sequence[str]] | None = None,
        reference: str | None = None,
    ) -> None:
        """Args:
        message: What went wrong and what to do next, for a person.
        retry_after_ms: When trying again makes sense.
        fields: Messages by field name, for input that was refused.
        reference: Id under which the log of the process that failed has the details.
        """
        super().__init__(message or type(self).kind.replace("_", " "))
        self.retry_after_ms = retry_after_ms
        self.fields = {name: tuple(messages) for name, messages in (fields or {}).items()}
        self.reference = reference
        self.attempt = 0
        """Which attempt of an action ended so, as a node told; 0: none did."""


class BadRequestError(MeshError):
    """Malformed: not JSON, unknown action, no or several targets."""

    code = 400
    kind = "bad_request"


class UnauthorizedError(MeshError):
    """Who is it? No or bad credentials."""

    code = 401
    kind = "unauthorized"


class UntrustedError(UnauthorizedError):
    """We do not believe the other side, or it does not believe us: TLS did not come about."""

    kind = "untrusted"


class ForbiddenError(MeshError):
    """Known, but not allowed."""

    code = 403
    kind = "forbidden"


class NotFoundError(MeshError):
    """No such node, action id or document."""

    code = 404
    kind = "not_found"


class ConflictError(MeshError):
    """The name is taken, or the id was used with other parameters."""

    code = 409
    kind = "conflict"


class TooLargeError(MeshError):
    """A message, body or reply beyond its limit."""

    code = 413
    kind = "too_large"


class InvalidError(MeshError):
    """Well-formed, but a field has a value that cannot be; see `fields`."""

    code = 422
    kind = "invalid"


class ActionFailedError(MeshError):
    """The action ran and ended in an error that its author raised."""

    code = 400
    kind = "action_failed"


class InternalError(MeshError):
    """A bug; `reference` finds it in the log of the process that had it."""

    code = 500
    kind = "internal"


class UnreadableReplyError(InternalError):
    """A peer answered with what cannot be read."""

    code = 502
    kind = "unreadable_reply"


class UnavailableError(MeshError):
    """What is needed for the answer is away right now."""

    code = 503
    kind = "unavailable"
    retryable = True
    shards: Any = None
    """`mesh.messages.Shards`: how each shard of a search fared that too few of them answered."""


class NoRespondersError(UnavailableError):
    """Nobody listens on the subject: the node is gone."""

    kind = "no_responders"


class DisconnectedError(UnavailableError):
    """The broker is away; the request was not sent, or its reply may be lost."""

    kind = "disconnected"


class NoMasterError(DisconnectedError):
    """The broker is there, but no master answers on it: nobody can be let in."""

    kind = "no_master"


class OverloadedError(UnavailableError):
    """Push-back: the node has as much work as it takes."""

    kind = "overloaded"


class DrainingError(OverloadedError):
    """Push-back: the node takes no new work; nothing of the request was done."""

    kind = "draining"


class CircuitOpenError(UnavailableError):
    """Not sent: calls like this one have failed there too often; `retry_after_ms` says when one
    will be tried again.
    """

    kind = "circuit_open"


class NodeGoneError(UnavailableError):
    """The node went away while its answer was awaited: it may or may not have done the work."""

    kind = "node_gone"


class DeadlineExceededError(MeshError):
    """No answer in time, or the work had expired before it began."""

    code = 504
    kind = "deadline_exceeded"
    retryable = True


class InterruptedActionError(MeshError):
    """The node stopped while the action ran; whether it took effect is not known."""

    code = 500
    kind = "interrupted"


class CancelledActionError(MeshError):
    """The action was stopped at somebody's word; what it had done until then is done."""

    code = 409
    kind = "cancelled"


class ConfigError(MeshError):
    """A setting that cannot be; names the key and where it came from."""

    code = 422
    kind = "config"


class StateError(MeshError):
    """The state folder, a port or a process is not as needed; the message says what to do."""

    code = 500
    kind = "state"


_BY_KIND: dict[str, type[MeshError]] = {
    cls.kind: cls
    for cls in (
        BadRequestError,
        UnauthorizedError,
        ForbiddenError,
        NotFoundError,
        ConflictError,
        TooLargeError,
        InvalidError,
        ActionFailedError,
        InternalError,
        UnreadableReplyError,
        UnavailableError,
        NoRespondersError,
        DisconnectedError,
        OverloadedError,
        DrainingError,
        CircuitOpenError,
        NodeGoneError,
        DeadlineExceededError,
        InterruptedActionError,
        CancelledActionError,
    )
}


def error_class(kind: str, code: int) -> type[MeshError]:
    """The class for a wire error; an unknown kind of a newer peer falls back on its code."""
    known = _BY_KIND.get(kind)
    if known is not None:
        return known
    return next((cls for cls in _BY_KIND.values() if cls.code == code), InternalError)
