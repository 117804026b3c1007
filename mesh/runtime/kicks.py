"""Connections that must end: cut now, and again until no login that was on its way can be left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog

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


class _Plan:
    """What is left to do about one name."""

    def __init__(self, by: str) -> None:
        self.by = by
        self.due: list[float] = []


class Kicks:
    """One plan per name, however often it is asked for, and one look at the broker for all that are
    due; names are those of nodes and users, so there are no more plans than of these were changed
    within seconds.
    """

    def __init__(
        self, bouncer: Bouncer, audit: Audit, clock: Clock, background: Background
    ) -> None:
        self._bouncer = bouncer
        self._audit = audit
        self._clock = clock
        self._background = background
        self._plans: dict[str, _Plan] = {}
        self._failures = 0
        self._running = False

    def kick(self, name: str, *, by: str, once: bool = False) -> None:
        """Cut every connection of that name; returns at once.

        Args:
            name: Of a node or user.
            by: Who has it done, for the audit trail.
            once: Only now: no login that is on its way can do harm.
        """
        now = self._clock.monotonic()
        plan = self._plans.setdefault(name, _Plan(by))
        plan.by = by
        plan.due = [now, *plan.due] if once else [now + after for after in _AFTER_S]
        if not self._running:
            self._running = True
            self._background.spawn("kick", self._carry_out())

    async def cut(self, names: Sequence[str], *, by: str) -> None:
        """Cut every connection of these names, once, before this returns: whoever logs in after it
        stays.

        Raises:
            UnavailableError, DeadlineExceededError: The broker does not answer.
        """
        ended = await self._bouncer.kick(names)
        for name in names:
            self._tell(name, ended[name], by)

    async def _carry_out(self) -> None:
        try:
            while self._plans:
                now = self._clock.monotonic()
                due = {name: plan for name, plan in self._plans.items() if plan.due[0] <= now}
                if due:
                    await self._try(due, now)
                else:
                    soonest = min(plan.due[0] for plan in self._plans.values())
                    await self._clock.sleep(min(soonest - now, _STEP_S))
        finally:
            self._running = False

    async def _try(self, plans: Mapping[str, _Plan], now: float) -> None:
        for plan in plans.values():  # whoever is asked for meanwhile is due again
            plan.due = [at for at in plan.due if at > now]
        try:
            ended = await self._bouncer.kick(list(plans))
        except Exception as error:  # noqa: BLE001 (whatever it is, they must go)
            wait_s = min(_RETRY_FIRST_S * 2**self._failures, _RETRY_MOST_S)
            self._failures += 1
            for plan in plans.values():
                plan.due = sorted([self._clock.monotonic() + wait_s, *plan.due])
            log.warning("mesh.kick.delayed", names=len(plans), retry_s=wait_s, error=str(error))
            return
        self._failures = 0
        for name, plan in plans.items():
            self._tell(name, ended[name], plan.by)
            if not plan.due:
                del self._plans[name]

    def _tell(self, name: str, ended: int, by: str) -> None:
        if ended:
            self._audit.note("connections-kicked", actor=by, subject=name, connections=ended)
            log.info("mesh.connections.kicked", name=name, connections=ended, by=by)
