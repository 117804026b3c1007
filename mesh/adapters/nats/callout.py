"""`mesh.ports.Doorman` by NATS auth callout: the broker asks, one of the masters answers.

However many come at once, so many are judged and so many wait, the newest first: under a flood,
those who are answered are answered in time, and who tries again gets in. The others get no answer,
and the broker turns them away after its 2 s.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

import structlog

from mesh.adapters.nats.bus import NatsBus, NatsSubscription
from mesh.adapters.nats.keys import MasterCredentials
from mesh.adapters.nats.login_jwt import (
    MAX_REQUEST_BYTES,
    LoginRequest,
    read_request,
    sign_grant,
    sign_refusal,
)
from mesh.adapters.nats.nkey import CurveKey, Signer
from mesh.core.seldom import Seldom
from mesh.errors import MeshError, StateError, UnauthorizedError
from mesh.ports import Clock, Judge

log = structlog.get_logger()

SUBJECT = "$SYS.REQ.USER.AUTH"
JUDGED_AT_ONCE = 8
"""They ask the database, whose connections are shared with everything else that a master does."""
MOST_WAITING = 4096
PATIENCE_S = 2.0
"""Of the broker (`authorization.timeout`); an answer after that is for nobody."""

_QUEUE_GROUP = "masters"
_SENDER = b"nats-server-xkey:"
_MOST_AGE_S = 1.25
"""Of a question that is begun: the answer is on its way for a while too."""


class _Question(NamedTuple):
    reply: str
    data: bytes
    sender: str
    came_at: float


class NatsDoorman:
    """Over a connection of its own, in the account AUTH."""

    def __init__(self, bus: NatsBus, keys: MasterCredentials, clock: Clock) -> None:
        """Args:
        bus: Logged in with `keys.auth_login()`; stays the caller's to close.
        keys: The masters'.
        clock: Whether requests are still good, and when answers were given.

        Raises:
            StateError: A key that is none.
        """
        try:
            self._issuer = Signer(keys.issuer_nkey)
            self._curve_key = CurveKey(keys.xkey)
        except ValueError as error:
            raise StateError(f"the masters' credentials are damaged: {error}") from None
        self._bus = bus
        self._clock = clock
        self._judge: Judge | None = None
        self._waiting: deque[_Question] = deque()
        """The oldest first."""
        self._workers: set[asyncio.Task[None]] = set()
        self._subscription: NatsSubscription | None = None
        self._dropped = 0
        self._seldom = Seldom()

    @property
    def dropped(self) -> int:
        return self._dropped

    async def start(self, judge: Judge) -> None:
        self._judge = judge
        self._subscription = await self._bus.subscribe_raw(SUBJECT, self._heard, queue=_QUEUE_GROUP)

    async def stop(self) -> None:
        if self._subscription is not None:
            await self._subscription.unsubscribe()
            self._subscription = None
        workers = list(self._workers)
        if workers:
            await asyncio.wait(workers, timeout=PATIENCE_S)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    def _heard(self, _subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        """In the read loop: only put aside."""
        if not reply or len(data) > MAX_REQUEST_BYTES:
            self._drop("not a question")
            return
        question = _Question(
            reply.decode("ascii", "replace"), data, _sender(headers), self._clock.monotonic()
        )
        if len(self._waiting) >= MOST_WAITING:
            self._waiting.popleft()
            self._drop("too many at once")
        self._waiting.append(question)
        if len(self._workers) < JUDGED_AT_ONCE:
            worker = asyncio.get_running_loop().create_task(self._work(), name="doorman")
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    async def _work(self) -> None:
        while self._waiting:
            try:
                await self._settle(self._waiting.pop())
            except Exception:
                log.exception("mesh.login.answer_failed")

    async def _settle(self, question: _Question) -> None:
        age_s = self._clock.monotonic() - question.came_at
        if age_s > _MOST_AGE_S:
            self._drop("waited too long")
            return
        try:
            request = read_request(
                question.data, question.sender, self._curve_key, at_s=self._now_s()
            )
        except ValueError as error:
            self._drop(str(error))
            return
        answer = await self._answer(request, PATIENCE_S - age_s)
        if answer is None:
            return
        sealed = self._curve_key.seal(answer, request.server_xkey)
        try:
            self._bus.publish(question.reply, sealed)
        except MeshError as error:  # the broker went away with its question
            log.debug("mesh.login.answer_lost", error=str(error))

    async def _answer(self, request: LoginRequest, left_s: float) -> bytes | None:
        """None: nobody can tell, so nobody is let in."""
        assert self._judge is not None, "start first"  # noqa: S101 (narrows the type)
        user = request.attempt.user[:64]
        try:
            async with asyncio.timeout(left_s):
                grant = await self._judge(request.attempt)
            return sign_grant(self._issuer, request, grant, at_s=self._now_s())
        except UnauthorizedError as error:
            return sign_refusal(self._issuer, request, str(error), at_s=self._now_s())
        except (MeshError, TimeoutError, ValueError) as error:
            if self._turn() is not None:
                why = str(error) or "took too long"
                log.warning("mesh.login.not_judged", user=user, error=why)
        except Exception:
            if self._turn() is not None:
                log.exception("mesh.login.not_judged", user=user)
        return None

    def _now_s(self) -> int:
        return self._clock.unix_ms() // 1000

    def _drop(self, why: str) -> None:
        self._dropped += 1
        if self._turn() is not None:
            log.warning("mesh.login.request_dropped", reason=why[:200], dropped=self._dropped)

    def _turn(self) -> int | None:
        return self._seldom.turn(self._clock.monotonic())


def _sender(headers: bytes | None) -> str:
    """The curve key of the server that asks; empty if it does not say."""
    for line in (headers or b"").split(b"\r\n"):
        if line[: len(_SENDER)].lower() == _SENDER:
            return line[len(_SENDER) :].strip().decode("ascii", "replace")
    return ""
