"""What a client may ask the masters about sagas."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from uuid_utils import uuid7

from mesh.core.saga_record import ENDED
from mesh.errors import DeadlineExceededError, UnavailableError
from mesh.ports import Clock
from mesh.runtime.caller import Caller
from mesh.types import SagaState
from mesh.wire import codec
from mesh.wire.messages import (
    Request,
    Saga,
    SagaAbort,
    SagaDefinition,
    SagaList,
    SagaName,
    SagaRun,
    SagaShow,
    SagasQuery,
)

T = TypeVar("T")

_TIMEOUT_S = 10.0
_WAIT_MS = 1000
_FIRST_PAUSE_S, _MOST_PAUSE_S = 0.01, 1.0
_RESTS = ENDED | {SagaState.PAUSED}


class SagasApi:
    """Sagas: begun, watched, resumed, aborted. `on_behalf`: whom a gateway or bridge speaks for;
    `allowed`: the actions that whoever it is may run, None: all.
    """

    def __init__(self, caller: Caller, clock: Clock) -> None:
        self._caller = caller
        self._clock = clock

    async def run(
        self,
        definition: SagaDefinition | Mapping[str, Any],
        *,
        wait: bool = True,
        timeout_s: float | None = None,
        on_behalf: str = "",
        allowed: Sequence[str] | None = None,
        on_change: Callable[[Saga], object] | None = None,
    ) -> Saga:
        """Begin a saga and, unless told otherwise, wait until it has ended or waits for a person.

        Args:
            definition: `{id?, name?, timeout_s?, steps: [{name, action, node?, params?,
                compensate?: {action, node?, params?}, final?, timeout_s?}]}`. Under an id that was
                used before it joins the saga of then.
            wait: For its end; the masters run it whether or not anybody waits.
            timeout_s: How long to wait; None: until the saga's own time is over. What it is then
                is answered.
            on_behalf: Whom a gateway or bridge speaks for.
            allowed: Actions that whoever it is may run; None: all.
            on_change: Called with every state of it that is seen.

        Raises:
            InvalidError: It makes no sense; `fields` names what is wrong: `steps[2].params.cents`.
            BadRequestError: Unknown action; NotFoundError: unknown node.
            ConflictError: The id was used for another saga.
            UnavailableError, DeadlineExceededError: It may or may not have begun; ask again with
                the same id.
        """
        body = definition if isinstance(definition, SagaDefinition) else {**definition}
        checked = codec.convert(_plain(body), SagaDefinition)
        if not checked.id:
            checked = msgspec.structs.replace(checked, id=str(uuid7()))
        limit_s = _TIMEOUT_S if timeout_s is None else timeout_s
        request = SagaRun(
            saga=checked,
            on_behalf=on_behalf,
            allowed=None if allowed is None else list(allowed),
            # Who watches wants to see how it begins.
            wait_ms=min(_WAIT_MS, round(limit_s * 1000)) if wait and on_change is None else 0,
        )
        began = self._clock.monotonic()
        # Its id makes it safe to send it again where the answer was lost.
        saga = await self._patiently(
            lambda: self._ask("saga-run", request, Saga), began + max(limit_s, _TIMEOUT_S)
        )
        if on_change is not None:
            on_change(saga)
        if not wait or saga.state in _RESTS:
            return saga
        until = None if timeout_s is None else began + timeout_s
        return await self._followed(saga, until, on_change)

    async def start(
        self,
        definition: SagaDefinition | Mapping[str, Any],
        *,
        on_behalf: str = "",
        allowed: Sequence[str] | None = None,
    ) -> Saga:
        """Begin a saga and do not wait. Raises as `run`."""
        return await self.run(definition, wait=False, on_behalf=on_behalf, allowed=allowed)

    async def list(
        self,
        *,
        state: SagaState | None = None,
        name: str = "",
        caller: str = "",
        since: int = 0,
        allowed: Sequence[str] | None = None,
        limit: int = 50,
        offset: int = 0,
    ) -> SagaList:
        """Sagas, newest first; empty arguments match all, `since` is unix ms."""
        query = {
            "state": state,
            "name": name,
            "caller": caller,
            "since": since,
            "allowed": None if allowed is None else [*allowed],
            "limit": limit,
            "offset": offset,
        }
        return await self._ask("sagas", codec.convert(query, SagasQuery), SagaList)

    async def show(self, saga_id: str, *, allowed: Sequence[str] | None = None) -> Saga:
        """A saga, with every step.

        Raises:
            NotFoundError
        """
        return await self._ask("saga-show", _named(saga_id, SagaShow, allowed=allowed), Saga)

    async def follow(
        self,
        saga_id: str,
        *,
        timeout_s: float | None = None,
        on_change: Callable[[Saga], object] | None = None,
    ) -> Saga:
        """Wait until a saga has ended or waits for a person; what it is then, or after
        `timeout_s`.

        Raises:
            NotFoundError
        """
        saga = await self.show(saga_id)
        if on_change is not None:
            on_change(saga)
        until = None if timeout_s is None else self._clock.monotonic() + timeout_s
        return await self._followed(saga, until, on_change)

    async def resume(
        self, saga_id: str, *, on_behalf: str = "", allowed: Sequence[str] | None = None
    ) -> Saga:
        """Do what was interrupted once more: somebody found that this is right.

        Raises:
            NotFoundError
            ConflictError: It does not wait for anybody.
        """
        request = _named(saga_id, SagaName, allowed=allowed, on_behalf=on_behalf)
        return await self._ask("saga-resume", request, Saga)

    async def abort(
        self,
        saga_id: str,
        *,
        give_up: str = "",
        on_behalf: str = "",
        allowed: Sequence[str] | None = None,
    ) -> Saga:
        """Undo what was done. It is not undone yet when this returns: `follow` it.

        Args:
            saga_id: Which.
            give_up: A step of a saga that is being undone: its compensation is not waited for any
                more, the step stays as it is and the saga ends `failed` when the others are undone.
            on_behalf: Whom a gateway or bridge speaks for.
            allowed: Actions that whoever it is may run; None: all.

        Raises:
            NotFoundError
            ConflictError: It has ended, is being undone already, or a final step has begun; with
                `give_up`: no compensation of this step is under way.
        """
        request = _named(saga_id, SagaAbort, allowed=allowed, on_behalf=on_behalf, give_up=give_up)
        return await self._ask("saga-abort", request, Saga)

    async def _followed(
        self, saga: Saga, until: float | None, on_change: Callable[[Saga], object] | None
    ) -> Saga:
        pause_s = _FIRST_PAUSE_S
        while saga.state not in _RESTS:
            now = self._clock.monotonic()
            left_s = _WAIT_MS / 1000 if until is None else until - now
            if left_s <= 0:
                break
            wait_ms = min(_WAIT_MS, round(left_s * 1000))
            question = SagaShow(saga=saga.id, after=saga.version, wait_ms=wait_ms)
            try:
                known = await self._ask("saga-show", question, Saga)
            except (UnavailableError, DeadlineExceededError):
                known = saga  # it goes on without us, and we without a master for a while
            if known.version > saga.version:
                saga, pause_s = known, _FIRST_PAUSE_S
                if on_change is not None:
                    on_change(saga)
            elif self._clock.monotonic() - now < wait_ms / 2000:  # no master had a place for us
                await self._clock.sleep(min(pause_s, left_s))
                pause_s = min(pause_s * 2, _MOST_PAUSE_S)
        return saga

    async def _patiently(self, ask: Callable[[], Awaitable[T]], until: float) -> T:
        pause_s = 0.1
        while True:
            try:
                return await ask()
            except (UnavailableError, DeadlineExceededError):
                if self._clock.monotonic() + pause_s >= until:
                    raise
            await self._clock.sleep(pause_s)
            pause_s = min(pause_s * 2, _MOST_PAUSE_S)

    async def _ask(self, verb: str, request: Request, kind: type[T]) -> T:
        return await self._caller.master(verb, request, kind, _TIMEOUT_S)


N = TypeVar("N", bound=Request)


def _named(saga_id: str, kind: type[N], *, allowed: Sequence[str] | None, **more: str) -> N:
    """Raises: InvalidError: That is no id."""
    mine = None if allowed is None else [*allowed]
    return codec.convert({"saga": saga_id, "allowed": mine} | more, kind)


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value)
