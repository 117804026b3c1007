"""How an import is getting on, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cli.meshctl.importing import Progress

_EVERY_S = 10.0
_MB = 1_000_000


@contextmanager
def progress() -> Iterator[Progress]:
    """Told bytes read, bytes in all (0: unknown), documents indexed."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[documents]} documents, {task.fields[per_s]:.0f} a second"),
        TimeRemainingColumn(),
    )
    speed = _Speed()
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("import", total=None, documents=0, per_s=0.0)
        yield lambda position, total, documents: bar.update(
            task,
            completed=position,
            total=total or None,
            documents=documents,
            per_s=speed.after(documents),
        )


class _Speed:
    """Documents a second of this run; what earlier ones did does not count."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._first: int | None = None

    def after(self, documents: int) -> float:
        if self._first is None:
            self._began, self._first = time.perf_counter(), documents
        seconds = time.perf_counter() - self._began
        return (documents - self._first) / seconds if seconds else 0.0


class _Lines:
    """For a pipe or a log."""

    def __init__(self) -> None:
        self._told = time.perf_counter()
        self._speed = _Speed()

    def __call__(self, position: int, total: int, documents: int) -> None:
        per_s = self._speed.after(documents)
        if time.perf_counter() - self._told < _EVERY_S:
            return
        self._told = time.perf_counter()
        of = f" of {total / _MB:.1f}" if total else ""
        sys.stderr.write(
            f"{documents} documents, {position / _MB:.1f}{of} MB, {per_s:.0f} a second\n"
        )
        sys.stderr.flush()
