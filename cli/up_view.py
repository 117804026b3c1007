"""What `mesh-agent up` shows: a spinner on a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape


class UpView:
    """Progress and notices on stderr; `mesh ready` and how to go on, on stdout."""

    def __init__(self, *, meshctl: str) -> None:
        """Args:
        meshctl: Command with which the mesh can be asked, ready to paste.
        """
        self._meshctl = meshctl
        self._errors = Console(stderr=True, highlight=False)
        self._spinner = self._errors.status("", spinner="dots")
        self._said = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._spinner.stop()

    def progress(self, text: str, detail: str = "") -> None:
        if self._errors.is_terminal:
            self._spinner.update(escape(f"{text} ({detail})" if detail else text))
            self._spinner.start()
        elif text != self._said:
            self._said = text
            self._line(text)

    def notice(self, text: str) -> None:
        self._line(text)

    def ready(self, nats_url: str, nodes: Sequence[str]) -> None:
        self._spinner.stop()
        lines = [
            f"mesh ready  {nats_url}",
            f"  nodes     {', '.join(nodes) or 'none'}",
            "  try",
            f"    {self._meshctl} nodes stats",
            f'    {self._meshctl} search "parse a date from a string"',
            "  Ctrl-C ends it",
        ]
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()

    def _line(self, text: str) -> None:
        self._errors.print(text, markup=False, soft_wrap=True)
