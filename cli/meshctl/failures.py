"""From an error to an exit code and words: the one place where that is decided."""

from __future__ import annotations

import enum
import math
import sys
import traceback
from collections.abc import Callable

import typer

from cli.output import Output, printable
from mesh.errors import MeshError


class ExitCode(enum.IntEnum):
    """What scripts may rely on."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_REACHABLE = 3
    DENIED = 4
    INTERRUPTED = 130


_NOT_REACHABLE = frozenset({"disconnected", "not_reachable", "no_master"})
_DENIED = frozenset({401, 403})
_REFUSED = frozenset({400, 404, 409, 413, 422})
_NO_MISUSE = frozenset({"action_failed", "cancelled", "not_traced"})
"""What has the code of a refusal, though nothing was wrong with what was typed."""

_HINTS = {
    ExitCode.NOT_REACHABLE: (
        "`mesh-agent up` starts a mesh on this machine; --state-dir (MESH_STATE_DIR) names its"
        " folder, --url (MESH_URL) a broker elsewhere"
    ),
    ExitCode.DENIED: "--creds or MESH_CREDS names the credentials file to log in with",
}
_HINT_FORBIDDEN = (
    "this login lacks the scope: `search` is for searching, `actions` for actions, `admin` for the"
    " rest; an operator gives it (`meshctl users create NAME --scope SCOPE`)"
)
_FORBIDDEN = 403


def exit_code(error: MeshError) -> ExitCode:
    """An action that ran and failed is a failure; input that was refused is wrong usage."""
    if error.kind in _NOT_REACHABLE:
        return ExitCode.NOT_REACHABLE
    if error.code in _DENIED:
        return ExitCode.DENIED
    if error.code in _REFUSED and error.kind not in _NO_MISUSE:
        return ExitCode.USAGE
    return ExitCode.FAILED


def guard(command: Callable[[], object], *, as_json: bool, debug: bool) -> int:
    """Run `command` and give the exit code; every error becomes words here, none a traceback."""
    out = Output(as_json=as_json)
    try:
        code = command()
    except MeshError as error:
        return _refuse(error, out, debug=debug)
    except typer.TyperException as error:
        return _misused(error, out)
    except typer.Abort:
        out.note("aborted")
        return ExitCode.INTERRUPTED
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last net: what comes here is a bug of ours
        return _bug(error, out, debug=debug)
    return code if isinstance(code, int) else ExitCode.OK


def _refuse(error: MeshError, out: Output, *, debug: bool) -> int:
    if debug:
        traceback.print_exc(file=sys.stderr)
    code = exit_code(error)
    message = str(error)
    if out.as_json:
        answer = {"error": _title(error.kind), "kind": error.kind, "message": message}
        fields = {"fields": error.fields} if error.fields else {}
        reference = {"reference": error.reference} if error.reference else {}
        wait = {"retry_after_ms": error.retry_after_ms} if error.retry_after_ms is not None else {}
        out.json({**answer, **fields, **reference, **wait})
        return code
    out.note(f"error: {printable(message)}")
    for name, complaints in error.fields.items():
        for complaint in complaints:
            if complaint not in message:
                out.note(f"  {name}: {printable(complaint)}")
    if error.kind == "circuit_open" and error.retry_after_ms is not None:
        out.note(f"  tried again in {math.ceil(error.retry_after_ms / 1000)} s")
    if error.reference:
        out.note(f"  reference in the log: {printable(error.reference)}")
    hint = None if error.kind == "untrusted" else _HINTS.get(code)
    if error.code == _FORBIDDEN:
        hint = _HINT_FORBIDDEN
    if hint and "mesh-agent up" not in message:
        out.note(hint)
    return code


def _misused(error: typer.TyperException, out: Output) -> int:
    if out.as_json:
        out.json({"error": "Usage", "kind": "usage", "message": error.format_message()})
        return error.exit_code
    context = getattr(error, "ctx", None)
    if context is not None:
        out.note(context.get_usage())
        out.note(f"Try '{context.command_path} --help' for help.")
    out.note(f"error: {error.format_message()}")
    return error.exit_code


def _bug(error: Exception, out: Output, *, debug: bool) -> int:
    message = printable(f"this is a bug: {type(error).__name__}: {error}")
    if out.as_json:
        out.json({"error": "Internal", "kind": "internal", "message": message})
    elif debug:
        traceback.print_exc(file=sys.stderr)
    else:
        out.note(f"error: {message} (--debug or MESH_DEBUG=1 shows where)")
    return ExitCode.FAILED


def _title(kind: str) -> str:
    return kind.replace("_", " ").capitalize()
