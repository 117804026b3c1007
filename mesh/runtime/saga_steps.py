"""What a saga's steps ask of nodes: again and again under one id, until it is known how it ended.

Nodes remember ids, so asking again does no harm; what is not known is never guessed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Self, cast

import msgspec
import structlog

from mesh.core.saga import Ask
from mesh.core.saga_events import Failed, Interrupted, NeverSent, Outcome
from mesh.errors import (
    InterruptedActionError,
    MeshError,
    NoRespondersError,
    NotFoundError,
    OverloadedError,
    TooLargeError,
)
from mesh.ports import Bus, Clock
from mesh.runtime.membership import Membership
from mesh.runtime.saga_outcomes import outcome_in, outcome_of
from mesh.types import ActionState, Health
from mesh.wire import codec, subjects
from mesh.wire.messages import ActionRequest, ErrorReply, HistoryRecord, Reply

log = structlog.get_logger()

Known = Callable[[str, str], Awaitable[HistoryRecord | None]]
"""What the history has of an action, by its id, on a node: all that is stored counts. Raises
MeshError where that cannot be told.
"""

_LOOK_EVERY_S = 1.0
"""At the node, while its answer is waited for."""
_ASK_S = 120.0
_LONGEST_ASK_S = 3600.0
"""How long one answer is waited for: each further request takes a place of the node's as long as
the action runs, so there are few.
"""
_STOP_S = 2.0
"""How long a step that is to be stopped may take to say how it ended, before it is told again."""
_HISTORY_AFTER = 3
"""Answers that told nothing, before the history is looked into."""
_NODES_REMEMBER_MS = 6 * 3600 * 1000
"""Nodes answer an id for a day at least (`node.outcome_days`); what is older than this is looked up
before it is asked again, and not asked while that cannot be done.
"""
_UNKNOWN_ID = frozenset({"not_found", "conflict"})
"""Answers to who wants to stop what never began, or has ended."""


class Backoff(NamedTuple):
    """Seconds; doubles each time."""

    first_s: float
    most_s: float

    def after(self, failures: int) -> float:
        """How long to wait after so many."""
        return min(self.first_s * 2.0 ** min(failures - 1, 32), self.most_s) if failures else 0.0


class Steps:
    """Asks on behalf of all sagas of a master."""

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        membership: Membership,
        *,
        known: Known,
        backoff: Backoff,
        parallel: int,
    ) -> None:
        """Args:
        bus: Speaks as `master`.
        clock: Time.
        membership: Who is there.
        known: The history.
        backoff: Between two requests for one step, and two attempts at a compensation.
        parallel: Requests under way at a time, of those that are answered at once.
        """
        self._bus = bus
        self._clock = clock
        self._membership = membership
        self._known = known
        self._backoff = backoff
        self._places = asyncio.Semaphore(parallel)
        """Of requests; one whose answer takes long gives its place back."""

    async def learn(self, ask: Ask, *, caller: str, begun_at: int, sent: Sent) -> Outcome:
        """Have it done, or stopped, and return how it ended, however long that takes.

        Args:
            ask: What.
            caller: For whom.
            begun_at: Unix ms since when it may have been asked for.
            sent: Whether it may ever have reached its node; is kept up to date.
        """
        await self._pause(ask.call.node, self._backoff.after(ask.failures))
        vain = 0
        while True:
            if ask.stop and not sent.ever:
                return NeverSent()
            old = sent.ever and self._clock.unix_ms() - begun_at > _NODES_REMEMBER_MS
            try:
                if outcome := await self._without_asking(ask, sent, vain, old=old):
                    return outcome
            except MeshError as error:
                log.info("mesh.saga.history_unknown", id=ask.id, error=str(error))
                may_ask = not old  # who has forgotten the id would do it once more
            else:
                may_ask = True
            if may_ask:
                async with _Place(self._places) as place:
                    outcome = await self._ask(ask, caller, vain, sent, place)
                if outcome is not None:
                    return outcome
            vain += 1
            await self._pause(ask.call.node, self._backoff.after(vain))

    async def _without_asking(
        self, ask: Ask, sent: Sent, vain: int, *, old: bool
    ) -> Outcome | None:
        """How it ended, where its node need not, or must not, be asked.

        Raises:
            MeshError: The history, or the registry, is away.
        """
        if old or vain >= _HISTORY_AFTER:
            remembered = await self._remembered(ask, old=old)
            if remembered is not None:
                return remembered
        return await self._unless_gone(ask, sent)

    async def _ask(
        self, ask: Ask, caller: str, vain: int, sent: Sent, place: _Place
    ) -> Outcome | None:
        """None: it is not known."""
        before = sent.ever or ask.retry > 0
        request = ActionRequest(
            id=ask.id,
            action=ask.call.action,
            params=ask.call.params,
            retry=ask.retry,
            on_behalf=caller,
            cancel=ask.stop,
        )
        wait_s = min(_ASK_S * 2.0 ** min(vain, 8), _LONGEST_ASK_S)
        reply = await self._request(ask, request, wait_s, sent, place)
        if (
            ask.stop
            and isinstance(reply, ErrorReply)
            and not reply.attempt
            and reply.kind in _UNKNOWN_ID
        ):
            # It has ended, or never came there; what may yet come must find its id known.
            # So it is asked for after all, and stopped when it runs.
            plain = msgspec.structs.replace(request, cancel=False)
            reply = await self._request(ask, plain, _STOP_S, sent, place)
        if reply is None:
            return None
        outcome = outcome_of(reply)
        if before and isinstance(outcome, Failed) and not outcome.attempt:
            return await self._refused(ask, outcome)
        return outcome

    async def _refused(self, ask: Ask, refused: Failed) -> Outcome | None:
        """How it ended, if its node refuses what it may have been asked for before: it may have
        done it then, and have forgotten that, or offer the action no more.
        """
        if refused.error.kind == "conflict" and not ask.retry:
            return refused  # the id stands for something else there, so this was never done
        try:
            record = await self._known(ask.id, ask.call.node)
        except MeshError as error:
            log.info("mesh.saga.history_unknown", id=ask.id, error=str(error))
            return None
        if record is not None and record.attempt > ask.retry:
            return outcome_in(record) if record.final else None
        if ask.undo:  # is asked for again, and named if that does not help
            return refused
        lost = InterruptedActionError(
            f"node {ask.call.node!r} refuses {ask.id!r}; whether it did it before that is not"
            f" known: {refused.error.message}"
        )
        return Interrupted(codec.error_reply(lost), ask.retry)

    async def _request(
        self, ask: Ask, request: ActionRequest, wait_s: float, sent: Sent, place: _Place
    ) -> Reply | None:
        node = ask.call.node
        subject = subjects.act(node, ask.call.action, self._bus.identity)
        before = sent.ever
        sent.ever = True  # also if whoever waits here is not interested any more
        try:
            payload = await self._answer(subject, codec.encode(request), node, wait_s, place)
            reply: Reply = codec.decode(payload, cast("type[Any]", Reply))
        except (NoRespondersError, OverloadedError) as error:
            sent.ever = before
            log.debug("mesh.saga.step_waits", id=ask.id, error=str(error))
            return None
        except TooLargeError as error:
            sent.ever = before
            return codec.error_reply(error)
        except MeshError as error:
            log.info("mesh.saga.step_unknown", id=ask.id, node=node, error=str(error))
            return None
        if isinstance(reply, ErrorReply) and not reply.attempt and outcome_of(reply) is None:
            log.info("mesh.saga.step_unknown", id=ask.id, node=node, error=reply.message)
        return reply

    async def _answer(
        self, subject: str, payload: bytes, node: str, wait_s: float, place: _Place
    ) -> bytes:
        """Until the node has another life, or none any more: then no answer comes.

        Raises:
            MeshError
        """
        if not self._bus.connected:
            wait_s = await self._bus.until_connected(wait_s)
        life = self._life(node)
        pending = self._bus.ask(subject, payload, responder=node, timeout_s=wait_s)
        try:
            while not pending.future.done():
                await asyncio.wait({pending.future}, timeout=_LOOK_EVERY_S)
                place.leave()
                if not pending.future.done() and self._gone(node, life):
                    raise InterruptedActionError(f"node {node!r} went away")
            return pending.future.result()
        finally:
            pending.forget()

    def _life(self, node: str) -> int:
        record = self._membership.view.get(node)
        return record.incarnation if record is not None else 0

    def _gone(self, node: str, life: int) -> bool:
        record = self._membership.view.get(node)
        if record is None or (life and record.incarnation != life):
            return True
        return record.health is Health.UNREACHABLE and not self._membership.blind

    async def _pause(self, node: str, delay_s: float) -> None:
        """Shorter where the node comes back meanwhile."""
        life = self._life(node)
        while delay_s > 0:
            part_s = min(delay_s, _LOOK_EVERY_S)
            await self._clock.sleep(part_s)
            delay_s -= part_s
            if self._life(node) != life:
                return

    async def _remembered(self, ask: Ask, *, old: bool) -> Outcome | None:
        """How it ended, if the history can tell.

        Raises:
            MeshError: It cannot be asked.
        """
        record = await self._known(ask.id, ask.call.node)
        if record is None or not record.final or record.attempt <= ask.retry:
            return None
        if record.action != ask.call.action:
            return None  # somebody else took the id: its node will say so
        # The history keeps no long results: of what is not old, the node has all.
        if record.state is ActionState.SUCCEEDED and record.result is None and not old:
            return None
        return outcome_in(record)

    async def _unless_gone(self, ask: Ask, sent: Sent) -> Outcome | None:
        """How it ended, as far as anybody will ever know, if its node is registered no more.

        Raises:
            MeshError: That cannot be told.
        """
        node = ask.call.node
        if self._membership.view.get(node) is not None:
            return None
        try:
            await self._membership.find(node)
        except NotFoundError as error:
            if remembered := await self._remembered(ask, old=True):
                return remembered
            if not sent.ever:
                return Failed(codec.error_reply(error))
            lost = InterruptedActionError(
                f"node {node!r} is registered no more; whether {ask.id!r} was done is not known"
            )
            return Interrupted(codec.error_reply(lost), ask.retry)
        return None


class _Place:
    """Of one request. Who waits for long gives it back: others, and what is to be stopped or
    undone, must not wait for him.
    """

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places = places
        self._held = False

    async def __aenter__(self) -> Self:
        await self._places.acquire()
        self._held = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        if self._held:
            self._held = False
            self._places.release()


class Sent:
    """Whether a step may have reached its node."""

    __slots__ = ("ever",)

    def __init__(self, *, ever: bool) -> None:
        self.ever = ever
