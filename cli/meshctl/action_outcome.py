"""How an action ended, for people and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.output import Output, number, plain, printable
from mesh.types import ActionState

if TYPE_CHECKING:
    from mesh import messages

_UNDER_WAY = frozenset({ActionState.QUEUED, ActionState.ACCEPTED, ActionState.RUNNING})


def is_under_way(record: messages.HistoryRecord) -> bool:
    """Whether this attempt has not ended."""
    return record.state in _UNDER_WAY


def goes_on(record: messages.HistoryRecord) -> bool:
    """Whether more is to come by itself."""
    return is_under_way(record) or not record.final


def show_result(out: Output, answer: messages.ActionResult) -> bool:
    """Whether it succeeded."""
    if out.as_json:
        out.json(answer)
    else:
        _fields(out, answer.state.value, answer.id, answer.node, answer.duration_ms)
        out.json_value(answer.result)
    return answer.state is ActionState.SUCCEEDED


def show_record(out: Output, record: messages.HistoryRecord) -> bool:
    """The same from the history: of an action that somebody else waited for."""
    succeeded = record.state is ActionState.SUCCEEDED
    if out.as_json:
        names = ("id", "node", "action", "state", "result", "duration_ms", "attempt", "error")
        out.json({name: getattr(record, name) for name in names})
        return succeeded
    _fields(out, record.state.value, record.id, record.node, record.duration_ms)
    if succeeded:
        out.json_value(record.result)
    elif record.error is not None:
        out.note(f"error: {error_text(record.error)}")
    return succeeded


def error_text(error: messages.ErrorReply | None) -> str:
    """Kind and words, in one line; empty where there is none."""
    return "" if error is None else f"{error.kind}: {printable(error.message)}"


def compact(value: object) -> str:
    """JSON in one line."""
    import msgspec

    return msgspec.json.encode(plain(value)).decode()


def _fields(out: Output, state: str, id_: str, node: str, duration_ms: float | None) -> None:
    out.fields(
        [("state", state), ("id", id_), ("node", node), ("duration ms", number(duration_ms))]
    )
