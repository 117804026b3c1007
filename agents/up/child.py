"""One child process: it logs to a file, hears no Ctrl-C of ours and does not outlive us."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_LOG_BYTES = 10 * 1024 * 1024
"""A longer log makes room for a new one when its process starts; one old one is kept."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC: Any = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True, kw_only=True)
class Program:
    """What to run."""

    name: str
    argv: Sequence[str]
    log: Path
    stage: int = 0
    """Higher stages stop first."""
    grace_s: float = 10.0
    """Between SIGTERM and SIGKILL."""
    prepare: Callable[[], None] = field(default=lambda: None)
    """Called in a thread before every start; a MeshError says why it cannot start."""
    vital: bool = True
    """False: the others are ready also where this one cannot be kept running."""
    environment: Callable[[], Mapping[str, str]] = field(default=dict)
    """Variables on top of ours, asked for before every start."""


class Child:
    """A running program."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, program: Program) -> Child:
        """Start `program`.

        Raises:
            MeshError: Its preparation says why it cannot start.
            OSError: It cannot be executed, or its log not be written.
        """
        await asyncio.to_thread(program.prepare)
        with _opened_log(program.log) as log:
            process = await asyncio.create_subprocess_exec(
                *program.argv,
                env=os.environ | program.environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,  # the terminal's Ctrl-C is ours: we stop the children in order
                preexec_fn=_die_with(os.getpid()) if _LIBC else None,
            )
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        """The exit code, negative for a signal, once it has ended."""
        return await self._process.wait()

    async def stop(self, grace_s: float) -> None:
        """End it: politely, then after `grace_s` seconds for sure."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)  # a paused process hears SIGTERM only then
        try:
            async with asyncio.timeout(grace_s):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)


@contextlib.contextmanager
def _opened_log(path: Path) -> Iterator[int]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > MAX_LOG_BYTES:
            path.replace(path.with_name(f"{path.name}.1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _die_with(parent: int) -> Callable[[], None]:
    """A start hook: the kernel kills the child when its parent is gone, however that ended.

    Linux only; elsewhere the children of a supervisor killed with -9 go on until they are stopped.
    """

    def hook() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the kernel knew
            os._exit(1)

    return hook
