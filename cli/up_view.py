"""What `mesh-agent up` shows: a spinner on a terminal, plain lines in a pipe."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from agents.up.run import Ready

_QUERY = "parse a date from a string"


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

    def ready(self, ready: Ready) -> None:
        self._spinner.stop()
        lines = [
            f"mesh ready  {ready.http_url}{ready.prefix}",
            f"  docs      {ready.http_url}{ready.prefix}/docs",
            f"  broker    {ready.nats_url}",
            f"  nodes     {', '.join(ready.nodes) or 'none'}",
            "  try",
            f"    {self._meshctl} nodes stats",
            f"    {self._meshctl} search {shlex.quote(_QUERY)}",
            *self._over_http(ready),
            "  Ctrl-C ends it",
        ]
        # No console of rich's: it would break long lines, and they are there to be pasted.
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()

    def _over_http(self, ready: Ready) -> Sequence[str]:
        another = f"{self._meshctl} tokens issue --scope search,actions --ttl 1d"
        if ready.token is None:
            return [f"  over HTTP, with a token of  {another}"]
        return [
            "  over HTTP, with a token that is good for a day",
            _curl(ready, ready.token),
            "  another token",
            f"    {another}",
        ]

    def _line(self, text: str) -> None:
        self._errors.print(text, markup=False, soft_wrap=True)


def _curl(ready: Ready, token: str) -> str:
    """One line without indentation, so that it is pasted whole from any terminal."""
    asked: dict[str, Any] = {"query": _QUERY, "limit": 3}
    if ready.collection:
        asked["options"] = {"collections": [ready.collection]}
    return shlex.join(
        [
            "curl",
            "-sS",
            *(["--cacert", ready.certificate] if ready.certificate else []),
            f"{ready.http_url}{ready.prefix}/search",
            "-H",
            f"Authorization: Bearer {token}",
            "-H",
            "Content-Type: application/json",
            "-d",
            json.dumps(asked),
        ]
    )
