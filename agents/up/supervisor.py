"""Keeps programs running: what dies is started again after a while that grows, and in the end all
are stopped, highest stage first.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import structlog

from agents.up.child import Program
from mesh.bootstrap import Backoff
from mesh.errors import MeshError, StateError

log = structlog.get_logger()

MAX_DEATHS = 3
"""As often as this a program may die before the mesh is ready; then the start has failed."""

_TAIL_LINES = 15


class Running(Protocol):
    """A started program; `agents.up.child.Child` is the real one."""

    @property
    def pid(self) -> int:
        """Of the process."""
        ...

    async def wait(self) -> int:
        """The exit code, once it has ended."""
        ...

    async def stop(self, grace_s: float) -> None:
        """End it, politely first."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


class Supervisor:
    """`async with`: whatever it keeps is stopped at the end of the block."""

    def __init__(
        self,
        *,
        start: Callable[[Program], Awaitable[Running]],
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        on_start: Callable[[str, int], None],
        on_death: Callable[[str, str], None],
    ) -> None:
        """Args:
        start: Starts a program.
        now, sleep: The clock; seconds.
        on_start: Called with the name and pid of each process started; a MeshError ends the
            start of the mesh, later it is logged.
        on_death: Called with a name and words for people: how it ended, what happens next.
        """
        self._start = start
        self._now = now
        self._sleep = sleep
        self._on_start = on_start
        self._on_death = on_death
        self._kept: list[tuple[Program, asyncio.Task[None]]] = []
        self._running: dict[str, Running] = {}
        self._stopping = False
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Ends, with an error, when a program cannot be kept running."""
        self.given_up: set[str] = set()
        """Programs that are not vital and died as often as a program may; they are tried again."""
        self.settled = False
        """Set it once all has been seen at work: from then on a program may die as often as it
        likes and is always started again."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    def keep(self, program: Program) -> None:
        """Start `program`, and again whenever it has died."""
        task = asyncio.create_task(self._keep(program), name=program.name)
        task.add_done_callback(self._ended)
        self._kept.append((program, task))

    def pid(self, name: str) -> int | None:
        """Of a program's process; None while it does not run."""
        running = self._running.get(name)
        return running.pid if running else None

    async def once(self, program: Program) -> None:
        """Run `program` to its end.

        Raises:
            StateError: It failed; with the end of its log.
        """
        child = await self._start(program)
        async with self._registered(program, child):
            code = await child.wait()
        if code:
            raise StateError(f"{program.name} failed ({_how(code)}){_tail(program.log)}")

    async def stop(self) -> None:
        """End everything, stage after stage; nothing is started again from here on."""
        self._stopping = True
        stages = itertools.groupby(
            sorted(self._kept, key=_stage_of, reverse=True),
            key=_stage_of,
        )
        for _, members in stages:
            tasks = [task for _, task in members]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if self.failed.done():
            self.failed.exception()  # seen, or asyncio complains
        self._kept.clear()

    def kill(self) -> None:
        """End everything at once, also what `stop` is waiting for."""
        self._stopping = True
        for running in list(self._running.values()):
            running.kill()

    async def _keep(self, program: Program) -> None:
        backoff = Backoff()
        while True:
            born = self._now()
            ended = await self._live(program)
            if self._stopping:
                return
            delay_s = backoff.died(self._now() - born)
            if not self.settled and backoff.deaths >= MAX_DEATHS:
                if program.vital:
                    raise StateError(
                        f"{program.name} died {MAX_DEATHS} times before the mesh was ready "
                        f"({ended}){_tail(program.log)}"
                    )
                self.given_up.add(program.name)
                ended = f"{ended}, {program.log} says why"
            log.warning(
                "mesh.child.died",
                child=program.name,
                how=ended,
                restart_in_s=delay_s,
                deaths=backoff.deaths,
            )
            self._on_death(program.name, f"{ended}; starts again in {delay_s:g} s")
            await self._sleep(delay_s)

    async def _live(self, program: Program) -> str:
        """One life of a program; returns how it ended."""
        try:
            child = await self._start(program)
        except (MeshError, OSError) as error:
            if not self.settled:
                raise
            return f"cannot start: {error}"
        log.info("mesh.child.started", child=program.name, pid=child.pid)
        async with self._registered(program, child):
            self._announce(program.name, child.pid)
            code = await child.wait()
        return _how(code)

    def _announce(self, name: str, pid: int) -> None:
        try:
            self._on_start(name, pid)
        except MeshError as error:
            if not self.settled:
                raise
            # A full disk must not end a mesh that works.
            log.warning("mesh.child.not_announced", child=name, pid=pid, error=str(error))

    @asynccontextmanager
    async def _registered(self, program: Program, child: Running) -> AsyncIterator[None]:
        """The child is known while the block runs; a block left by an error stops it first."""
        self._running[program.name] = child
        try:
            yield
        except BaseException:
            await child.stop(program.grace_s)
            log.info("mesh.child.stopped", child=program.name, pid=child.pid)
            raise
        finally:
            del self._running[program.name]

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error and not self.failed.done():
            self.failed.set_exception(error)


def _stage_of(kept: tuple[Program, asyncio.Task[None]]) -> int:
    return kept[0].stage


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _tail(path: Path) -> str:
    """The end of a log, for an error message."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join([f"; the end of {path}:", *(f"  {line}" for line in lines[-_TAIL_LINES:])])
