"""Reading what was typed: options that may stand anywhere, and values with a small syntax."""

from __future__ import annotations

import datetime as dt
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from mesh import messages

FLAGS = frozenset({"--json", "--debug"})
VALUED = frozenset({"--url", "--state-dir", "--creds"})
_OWN_URL = ("nodes", "update")
"""The one command with a `--url` of its own: the node's. The mesh's stands before it."""

_INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})")
_DECIMAL = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_FILTER = re.compile(r"(?P<column>[^<>=]+)(?P<operator>>=|<=|=|>|<)(?P<value>.*)", re.DOTALL)
_BOUNDS = {">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}
_ITEM = re.compile(r'\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^,"]*))\s*(?:,|$)')
_AGE = re.compile(r"(\d+)\s*([smhdw])")
_LIFETIME = re.compile(r"([0-9]{1,12})\s*([smhdw]?)")
_AGE_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def hoist(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split what was typed into the options every command has and the rest, so that those may
    stand before or after the command. `--` ends the search.
    """
    common: list[str] = []
    rest: list[str] = []
    words: list[str] = []
    remaining = iter(argv)
    for argument in remaining:
        name, equals, _ = argument.partition("=")
        if argument == "--":
            rest += [argument, *remaining]
        elif argument in FLAGS or (
            equals and name in VALUED and not (name == "--url" and _owns_url(words))
        ):
            common.append(argument)
        elif argument in VALUED and not (argument == "--url" and _owns_url(words)):
            common.append(argument)
            value = next(remaining, None)
            if value is None:
                return common, []  # so that the complaint is about the missing value
            common.append(value)
        else:
            rest.append(argument)
            if not argument.startswith("-"):
                words.append(argument)
    return common, rest


def _owns_url(words: Sequence[str]) -> bool:
    return tuple(words[:2]) == _OWN_URL


def json_object(text: str, option: str) -> dict[str, Any]:
    """A JSON object given as an option's value.

    Raises:
        typer.BadParameter
    """
    import msgspec

    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint=option) from error
    if not isinstance(value, dict):
        raise typer.BadParameter('must be a JSON object: {"name": value, …}', param_hint=option)
    return value


def parameters(text: str) -> dict[str, Any]:
    """An action's parameters: JSON, `@FILE` or `@-` (standard input).

    Raises:
        typer.BadParameter
    """
    if text.startswith("@"):
        try:
            text = sys.stdin.read() if text == "@-" else Path(text[1:]).read_text(encoding="utf-8")
        except OSError as error:
            reason = f"cannot read {text[1:]!r}: {error.strerror}"
            raise typer.BadParameter(reason, param_hint="--params") from error
        except UnicodeDecodeError as error:
            raise typer.BadParameter("not UTF-8", param_hint="--params") from error
    return json_object(text, "--params")


def scalar(text: str) -> messages.Scalar:
    """A number or boolean where it looks like one, else the text itself."""
    if text in {"true", "false"}:
        return text == "true"
    if _INTEGER.fullmatch(text):
        return int(text)
    if _DECIMAL.fullmatch(text):
        return float(text)
    return text


def _items(text: str, written: str) -> list[messages.Scalar]:
    values: list[messages.Scalar] = []
    at = 0
    while at < len(text) or not values or text[at - 1] == ",":
        found = _ITEM.match(text, at)
        if found is None:
            raise typer.BadParameter(f"{written!r}: a quote is not closed", param_hint="--filter")
        quoted = found["quoted"]
        values.append(
            scalar(found["bare"].strip()) if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        )
        at = found.end()
        if at == len(text) and not found[0].endswith(","):
            break
    return values


def filters(written: Sequence[str]) -> dict[str, messages.Filter]:
    """`column=value`, `column=a,b,c` and `column>=value`; bounds of one column are joined, and
    quotes make text of what looks like a number.

    Raises:
        typer.BadParameter
    """
    from mesh import messages

    exact: dict[str, messages.Filter] = {}
    bounds: dict[str, dict[str, Any]] = {}
    for text in written:
        found = _FILTER.fullmatch(text)
        if found is None:
            raise typer.BadParameter(
                f"{text!r} is none of column=value, column=a,b,c, column>=value",
                param_hint="--filter",
            )
        column, operator = found["column"].strip(), found["operator"]
        values = _items(found["value"].strip(), text)
        bound = _BOUNDS.get(operator)
        taken = bounds.get(column, {})
        if column in exact or (taken and (bound is None or bound in taken)):
            raise typer.BadParameter(
                f"{column!r} is filtered twice; write several values as {column}=a,b,c",
                param_hint="--filter",
            )
        if bound is None:
            exact[column] = values[0] if len(values) == 1 else values
        elif len(values) == 1 and not isinstance(values[0], bool):
            bounds.setdefault(column, {})[bound] = values[0]
        else:
            raise typer.BadParameter(
                f"{text!r}: a bound is one number or text", param_hint="--filter"
            )
    ranges = {column: messages.Range(**given) for column, given in bounds.items()}
    return {**exact, **ranges}


def since(text: str, now: int, option: str = "--since") -> int:
    """Unix ms of an age (`90s 5m 1h 2d 1w`) before `now` (unix ms), or of an ISO date or time
    (UTC unless it says otherwise).

    Raises:
        typer.BadParameter
    """
    if age := _AGE.fullmatch(text.strip()):
        return max(now - int(age[1]) * _AGE_S[age[2]] * 1000, 0)
    try:
        moment = dt.datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is neither an age like 90s, 5m, 1h, 2d nor a date like 2026-01-02T15:04",
            param_hint=option,
        ) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return max(int(moment.timestamp() * 1000), 0)


def lifetime(text: str, option: str = "--ttl") -> int:
    """Seconds of `3600`, `90s`, `15m`, `12h`, `30d` or `2w`.

    Raises:
        typer.BadParameter
    """
    found = _LIFETIME.fullmatch(text.strip())
    if found is None:
        raise typer.BadParameter(
            f"{text!r} is neither seconds nor a time like 15m, 12h, 30d", param_hint=option
        )
    return int(found[1]) * _AGE_S[found[2] or "s"]


def words(written: Sequence[str] | None) -> list[str]:
    """Words of an option that is repeated, separated by commas, or both; each once, in order."""
    parts = (word.strip() for text in written or () for word in text.split(","))
    return list(dict.fromkeys(filter(None, parts)))


def given(**values: Any) -> Mapping[str, Any]:
    """Only what was given: not None and not an empty list."""
    return {name: value for name, value in values.items() if value is not None and value != []}
