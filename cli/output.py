"""What a command shows: tables for people, aligned text for pipes, JSON for programs.

rich is imported where a terminal wants it, so that a command in a pipe does not pay for it.
"""

from __future__ import annotations

import datetime as dt
import enum
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NOTHING = "-"
_MINUTE_S = 60
_HOUR_S = 3600
_DAY_S = 86_400

HEALTH_STYLES = {
    "healthy": "green",
    "suspect": "yellow",
    "stalled": "yellow",
    "overloaded": "yellow",
    "draining": "cyan",
    "unreachable": "red",
}
STATUS_STYLES = {
    "active": "green",
    "inactive": "dim",
    "maintenance": "yellow",
    "pending": "cyan",
    "error": "red",
}
STATE_STYLES = {
    "queued": "cyan",
    "accepted": "cyan",
    "running": "cyan",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
    "expired": "yellow",
    "interrupted": "red",
}
BREAKER_STYLES = {"closed": "green", "open": "red", "half open": "yellow"}


@dataclass(frozen=True)
class Column:
    """One column: its heading, where its cells stand, and rich styles by cell text."""

    title: str
    align: Literal["left", "right"] = "left"
    styles: Mapping[str, str] | None = None


Rows = Sequence[Sequence[str]]
Show = Callable[[Sequence[Column], Rows, Sequence[str]], None]
"""Present a table with lines below it; called again, it takes the old one's place on a terminal."""


def printable(text: str) -> str:
    """`text` as one harmless line: a document must not be able to steer a terminal."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def counted(count: int, noun: str) -> str:
    """`1 node`, `2 nodes`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def plain(value: Any) -> Any:
    """Messages as built-in types with every field present, so that JSON keeps its shape."""
    import msgspec

    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def now_ms() -> int:
    """Unix milliseconds."""
    return int(dt.datetime.now(tz=dt.UTC).timestamp() * 1000)


def iso(unix_ms: int) -> str:
    """UTC to the second, e.g. `2026-01-02T03:04:05Z`."""
    moment = dt.datetime.fromtimestamp(unix_ms / 1000, tz=dt.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def ago(unix_ms: int, now: int) -> str:
    """How long before `now` (both unix ms), in the largest whole unit."""
    seconds = (now - unix_ms) // 1000
    if seconds < 1:
        return "now"
    if seconds < _MINUTE_S:
        return f"{seconds} s ago"
    if seconds < _HOUR_S:
        return f"{seconds // _MINUTE_S} min ago"
    if seconds < _DAY_S:
        return f"{seconds // _HOUR_S} h ago"
    return f"{seconds // _DAY_S} d ago"


def number(value: float | None, digits: int = 1) -> str:
    """A figure with fixed decimals, so that a column of them lines up."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def aligned(columns: Sequence[Column], rows: Rows) -> list[str]:
    """Lines of a plain table: full values, two spaces between columns."""
    cells = [[column.title.upper() for column in columns]]
    cells += [[printable(cell) or NOTHING for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    return [
        "  ".join(
            cell.rjust(width) if column.align == "right" else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ).rstrip()
        for row in cells
    ]


class Output:
    """Where a command's answer goes, and in which of the three forms."""

    def __init__(self, *, as_json: bool, stdout: TextIO | None = None) -> None:
        """`stdout` is the process's own unless a test says otherwise."""
        self.as_json = as_json
        self.stdout = stdout or sys.stdout
        self.terminal = self.stdout.isatty() and not as_json

    def line(self, text: str = "") -> None:
        """One line of the answer."""
        self.stdout.write(text + "\n")

    def note(self, text: str) -> None:
        """For the person, apart from the answer: stderr."""
        sys.stderr.write(text + "\n")

    def warn(self, text: str) -> None:
        """A note that must not be missed."""
        self.note(f"warning: {text}")

    def warn_if_blind(self, *, blind: bool) -> None:
        """Say so where health is only what it was."""
        if blind:
            self.warn("the master cannot see the broker right now: health is what it last was")

    def hint(self, text: str) -> None:
        """What could be typed next, for a person at a terminal: programs get it in the JSON."""
        if self.terminal:
            self.console().print(printable(text), style="dim")

    def json(self, value: Any) -> None:
        """The whole answer as JSON: one line in a pipe, indented on a terminal."""
        import msgspec

        encoded = msgspec.json.encode(plain(value))
        if self.stdout.isatty():
            encoded = msgspec.json.format(encoded, indent=2)
        self.line(encoded.decode())
        self.stdout.flush()

    def json_value(self, value: Any) -> None:
        """A value inside an answer for people: JSON over several lines."""
        import msgspec

        self.line(msgspec.json.format(msgspec.json.encode(plain(value)), indent=2).decode())

    def when(self, unix_ms: int | None) -> str:
        """A moment: relative on a terminal, ISO in a pipe."""
        if not unix_ms:
            return NOTHING
        return ago(unix_ms, now_ms()) if self.terminal else iso(unix_ms)

    def fields(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Names and values, one a line."""
        width = max(len(name) for name, _ in pairs)
        for name, value in pairs:
            self.line(f"{name.ljust(width)}  {printable(value) or NOTHING}")

    def table(self, columns: Sequence[Column], rows: Rows) -> None:
        """Rows under headings."""
        if self.terminal:
            self.console().print(_rich_table(columns, rows))
        else:
            for line in aligned(columns, rows):
                self.line(line)

    def console(self) -> Console:
        """A rich console on the answer's stream (it honours NO_COLOR itself)."""
        from rich.console import Console

        return Console(file=self.stdout, highlight=False, markup=False, emoji=False)

    @contextmanager
    def live(self) -> Iterator[Show]:
        """A table that is shown again and again: in place on a terminal, one after the other in a
        pipe.
        """
        if not self.terminal:
            yield self._print_round
            return
        from rich.console import Group
        from rich.live import Live
        from rich.text import Text

        with Live(console=self.console(), auto_refresh=False) as live:

            def show(columns: Sequence[Column], rows: Rows, lines: Sequence[str]) -> None:
                below = [Text(printable(line)) for line in lines]
                live.update(Group(_rich_table(columns, rows), *below), refresh=True)

            yield show

    @contextmanager
    def progress(self) -> Iterator[Callable[[str], None]]:
        """A line on stderr about what is waited for: in place on a terminal, else one each time
        that it changes; none beside JSON.
        """
        if self.as_json:
            yield lambda _text: None
        elif not sys.stderr.isatty():
            yield _each_change(self.note)
        else:
            try:
                yield lambda text: _in_place(printable(text))
            finally:
                _in_place("")

    def _print_round(self, columns: Sequence[Column], rows: Rows, lines: Sequence[str]) -> None:
        if rows:
            self.table(columns, rows)
        for line in lines:
            self.line(printable(line))
        self.stdout.flush()


def _each_change(say: Callable[[str], None]) -> Callable[[str], None]:
    last = ""

    def show(text: str) -> None:
        nonlocal last
        if text != last:
            say(text)
            last = text

    return show


def _in_place(text: str) -> None:
    sys.stderr.write(f"\r\x1b[2K{text}")
    sys.stderr.flush()


def _rich_table(columns: Sequence[Column], rows: Rows) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column.title, justify=column.align, overflow="fold")
    for row in rows:
        table.add_row(
            *(
                Text(printable(cell) or NOTHING, style=(column.styles or {}).get(cell, ""))
                for cell, column in zip(row, columns, strict=True)
            )
        )
    return table
