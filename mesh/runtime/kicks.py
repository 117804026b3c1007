"""Connections that must end: cut now, and again until no login that was on its way can be left."""

from __future__ import annotations

import asyncio

import structlog

from mesh.errors import MeshError
from mesh.ports import Audit, Bouncer, Clock
from mesh.runtime.background import Background

log = structlog.get_logger()

_AFTER_S = (0.0, 0.25, 0.75, 2.5)
"""A login that was judged before the change in SQL is connected by one of these times: the broker
waits 2 s for its judgement.
"""
_STEP_S = 0.1
"""Whoever waits for the next time looks that often whether there is an earlier one by now."""
_RETRY_FIRST_S = 0.25
_RETRY_MOST_S = 5.0
_MOST_AT_ONCE = 8


class _Plan:
    """What is left to do about one name."""

    def __init__(self, by: str) -> None:
        self.by = by
        self.due: list[float] = []
        self.failures = 0


class Kicks:
    """One plan per name, however often it is asked for; names are those of nodes and users, so
    there are no more plans than of these were changed within seconds.
    """

    def __init__(
        self, bouncer: Bouncer, audit: Audit, clock: Clock, background: Background
    ) -> None:
        self._bouncer = bouncer
        self._audit = audit
        self._clock = clock
        self._background = background
        self._plans: dict[str, _Plan] = {}
        self._slots = asyncio.Semaphore(_MOST_AT_ONCE)

    def kick(self, name: str, *, by: str, once: bool = False) -> None:
        """Cut every connection of that name; returns at once.

        Args:
            name: Of a node or user.
            by: Who has it done, for the audit trail.
            once: Only now: no login that is on its way can do harm.
        """
        now = self._clock.monotonic()
        plan = self._plans.get(name)
        if plan is None:
            plan = self._plans[name] = _Plan(by)
            self._background.spawn(f"kick-{name}", self._carry_out(name, plan))
        plan.by = by
        plan.due = [now, *plan.due] if once else [now + after for after in _AFTER_S]

    async def cut(self, name: str, *, by: str) -> None:
        """Cut every connection of that name, once, before this returns: whoever logs in after it
        stays. Where the broker does not answer it is done as `kick` does it.
        """
        try:
            ended = await self._bouncer.kick(name)
        except MeshError as error:
            log.warning("mesh.kick.delayed", name=name, error=str(error))
            self.kick(name, by=by, once=True)
            return
        self._tell(name, ended, by)

    async def _carry_out(self, name: str, plan: _Plan) -> None:
        try:
            while plan.due:
                now = self._clock.monotonic()
                if plan.due[0] > now:
                    await self._clock.sleep(min(plan.due[0] - now, _STEP_S))
                    continue
                plan.due = [at for at in plan.due if at > now]
                async with self._slots:
                    await self._try(name, plan)
        finally:
            self._plans.pop(name, None)

    async def _try(self, name: str, plan: _Plan) -> None:
        try:
            ended = await self._bouncer.kick(name)
        except MeshError as error:
            wait_s = min(_RETRY_FIRST_S * 2**plan.failures, _RETRY_MOST_S)
            plan.failures += 1
            plan.due = sorted([self._clock.monotonic() + wait_s, *plan.due])
            log.warning("mesh.kick.delayed", name=name, retry_s=wait_s, error=str(error))
            return
        plan.failures = 0
        self._tell(name, ended, plan.by)

    def _tell(self, name: str, ended: int, by: str) -> None:
        if ended:
            self._audit.note("connections-kicked", actor=by, subject=name, connections=ended)
            log.info("mesh.connections.kicked", name=name, connections=ended, by=by)
