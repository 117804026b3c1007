"""Who is at the gateway's door: judges bearer tokens here, API keys by asking a master.

Access tokens need nobody: the masters' public keys and the list of revoked tokens are fetched again
and again, and each revocation is heard at once. With every master away it goes on with what it has,
API keys that were good among it.
Bearers are remembered by their SHA-256, a bounded number of them, so that a known one costs a hash
and two look-ups.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

import structlog

from mesh.errors import MeshError, TooLargeError, UnauthorizedError, UnavailableError
from mesh.ports import Bus, Clock, Message, Subscription, TokenVerifier, UnknownKeyError
from mesh.runtime.access_api import AccessApi
from mesh.runtime.background import Background
from mesh.wire import codec, subjects
from mesh.wire.messages import Identity, PublicKey, Revoked

log = structlog.get_logger()

V = TypeVar("V")

_API_KEY = re.compile(r"nmk_[A-Za-z0-9_-]{43}")
_KEY_PREFIX = "nmk_"
_MAX_BEARER_CHARS = 8192
_REMEMBERED = 10_000
_KEY_GOOD_S = 30.0
_KEY_BAD_S = 5.0
_KEY_KEPT_S = 1.0
"""How often a master that is away is asked about a key that was good."""
_ASK_AT_ONCE = 16
_MOST_ASKED = 256
"""Open questions about keys that were never good: anybody may make keys up."""
_ASK_WITHIN_S = 5.0
_TRUST_EVERY_S = 10.0
_TRUST_SOON_S = 1.0
"""As long as no master has told its keys."""
_UNKNOWN_KEY_EVERY_S = 3.0
_START_WAIT_S = 2.0
_HEARD_LATELY_S = 60.0
"""A list of revoked tokens may have been written before a revocation that was heard, not longer."""
_RETRY_MS = 1000


class Gatekeeper:
    """`identify` says who a bearer is; `known` says it without waiting, for one seen lately."""

    def __init__(self, bus: Bus, access: AccessApi, verifier: TokenVerifier, clock: Clock) -> None:
        """Args:
        bus: Where revocations are heard; the caller's to close.
        access: Asks the masters.
        verifier: Judges tokens; trusts nobody yet.
        clock: Time.
        """
        self._bus = bus
        self._access = access
        self._verifier = verifier
        self._clock = clock
        self._background = Background(clock)
        self._subscription: Subscription | None = None
        self._ready = False
        self._stopped = False
        self._tokens: _Memory[Identity] = _Memory(_REMEMBERED)
        self._keys: _Memory[Identity] = _Memory(_REMEMBERED)
        self._last_good: _Memory[Identity] = _Memory(_REMEMBERED)
        """What a master said of a key last, for when none answers; without an end."""
        self._away = False
        """No master answered the last question."""
        self._bad_keys: _Memory[str] = _Memory(_REMEMBERED)
        """With the refusal in words."""
        self._asked: dict[bytes, _Question] = {}
        self._asking = asyncio.Semaphore(_ASK_AT_ONCE)
        self._revoked: frozenset[str] = frozenset()
        self._heard: dict[str, float] = {}
        """Tokens whose revocation was heard lately, and when (monotonic s)."""
        self._trusting: asyncio.Future[None] | None = None
        self._trust_overtaken = False
        """The keys changed since a master was asked for them."""
        self._trust_asked_at = float("-inf")
        self._keys_told: list[PublicKey] = []

    @property
    def ready(self) -> bool:
        """Whether a master has told the keys, so that tokens can be judged."""
        return self._ready

    @property
    def public_keys(self) -> list[PublicKey]:
        """What verifies access tokens, newest first; none until it is `ready`, and none where a
        shared secret does.
        """
        return self._keys_told

    async def start(self) -> None:
        """Hear revocations, and fetch the keys; returns after 2 s at most, ready or not.

        Raises:
            DisconnectedError: The connection was closed.
        """
        self._subscription = await self._bus.subscribe(subjects.REVOKED, self._on_revoked)
        self._bus.on_connection(self._connection_changed)
        first = self._trust_again()
        self._background.repeat("trust", self._trust_round)
        await asyncio.wait({first}, timeout=_START_WAIT_S)

    async def stop(self) -> None:
        """Judge nothing any more; whoever waits for a judgement is refused."""
        self._stopped = True
        if self._subscription is not None:
            await self._subscription.unsubscribe()
        await self._background.stop()
        for question in self._asked.values():  # that were not even begun
            question.answer.set_result(_no_master())
        self._asked.clear()

    # -- judging -----------------------------------------------------------------------------------

    def known(self, bearer: str) -> Identity | None:
        """Who this is, if it is remembered and still good; None: ask `identify`."""
        if bearer.startswith(_KEY_PREFIX):
            return self._keys.get(_fingerprint(bearer), self._clock.monotonic())
        found = self._tokens.get(_fingerprint(bearer), self._clock.unix_ms() / 1000)
        return None if found is None or self._is_revoked(found.token_id) else found

    async def identify(self, bearer: str) -> Identity:
        """Who this is.

        Args:
            bearer: An access token or an API key; may be anything.

        Raises:
            UnauthorizedError: Neither, or no longer good.
            UnavailableError: Only a master could tell, and none answers or too many are waiting;
                with `retry_after_ms`.
        """
        if (known := self.known(bearer)) is not None:
            return known
        if len(bearer) <= _MAX_BEARER_CHARS and bearer.isascii():
            if _API_KEY.fullmatch(bearer):
                return await self._by_key(bearer)
            if bearer.count(".") == 2:  # noqa: PLR2004 (header, claims and signature)
                return await self._by_token(bearer)
        raise UnauthorizedError("neither an access token nor an API key")

    async def _by_token(self, bearer: str) -> Identity:
        if not self._ready:
            raise UnavailableError(
                "no master has told yet which tokens are good", retry_after_ms=_RETRY_MS
            )
        try:
            identity, until = self._verify(bearer)
        except UnknownKeyError:
            if not await self._learnt_keys():
                raise
            identity, until = self._verify(bearer)
        if self._is_revoked(identity.token_id):
            raise UnauthorizedError("the token was revoked")
        self._tokens.put(_fingerprint(bearer), identity, until)
        return identity

    def _verify(self, bearer: str) -> tuple[Identity, float]:
        return self._verifier.verify(bearer, self._clock.unix_ms() / 1000)

    async def _learnt_keys(self) -> bool:
        """Ask for the keys because of a token; whoever shows many such tokens makes us ask once."""
        now = self._clock.monotonic()
        if self._trusting is None and now - self._trust_asked_at < _UNKNOWN_KEY_EVERY_S:
            return False
        await asyncio.wait({self._trust_again()}, timeout=_ASK_WITHIN_S)
        return True

    def _is_revoked(self, token_id: str) -> bool:
        return token_id in self._revoked or token_id in self._heard

    async def _by_key(self, bearer: str) -> Identity:
        key = _fingerprint(bearer)
        if (refusal := self._bad_keys.get(key, self._clock.monotonic())) is not None:
            raise UnauthorizedError(refusal)
        if self._stopped:
            raise _no_master()
        last = self._last_good.get(key, 0.0)
        question = self._asked.get(key)
        if question is None:
            if last is None and len(self._asked) >= _MOST_ASKED:
                raise UnavailableError(
                    "too many unknown API keys are being asked about", retry_after_ms=_RETRY_MS
                )
            question = self._asked[key] = _Question()
            self._background.spawn("authenticate", self._authenticate(bearer, key, question))
        if last is not None and self._away:
            return last  # its question is on its way: as soon as a master answers, that counts
        # A client that goes leaves the others waiting.
        judged = await asyncio.shield(question.answer)
        if isinstance(judged, MeshError):
            raise type(judged)(str(judged), retry_after_ms=judged.retry_after_ms)
        return judged

    async def _authenticate(self, bearer: str, key: bytes, question: _Question) -> None:
        judged: Identity | MeshError = _no_master()
        try:
            judged = await self._ask(bearer, key, question)
        finally:  # also when it is stopped, or fails in a way nobody thought of
            self._asked.pop(key, None)
            question.answer.set_result(judged)

    async def _ask(self, bearer: str, key: bytes, question: _Question) -> Identity | MeshError:
        try:
            async with asyncio.timeout(_ASK_WITHIN_S), self._asking:
                while True:
                    question.overtaken = False
                    identity = await self._access.authenticate(bearer)
                    if not question.overtaken:
                        break
        except UnauthorizedError as error:
            self._answered()
            self._keys.forget(key)
            self._last_good.forget(key)
            self._bad_keys.put(key, str(error), self._clock.monotonic() + _KEY_BAD_S)
            return error
        except (MeshError, TimeoutError) as error:
            log.warning("mesh.gatekeeper.master_away", error=str(error))
            return self._without_master(key)
        self._answered()
        self._last_good.put(key, identity, float("inf"))
        self._keys.put(key, identity, self._clock.monotonic() + _KEY_GOOD_S)
        return identity

    def _without_master(self, key: bytes) -> Identity | MeshError:
        self._away = True
        last = self._last_good.get(key, 0.0)
        if last is None:
            return _no_master()
        self._keys.put(key, last, self._clock.monotonic() + _KEY_KEPT_S)
        return last

    def _answered(self) -> None:
        """A master is back: what was kept without one is asked for again."""
        if self._away:
            self._away = False
            self._keys.clear()

    # -- what masters say --------------------------------------------------------------------------

    async def _trust_round(self) -> None:
        await self._clock.sleep(_TRUST_EVERY_S if self._ready else _TRUST_SOON_S)
        await self._trust_again()

    def _trust_again(self) -> asyncio.Future[None]:
        """Fetch keys and revocations, once however many want it; done when that has ended."""
        if self._trusting is None:
            self._trusting = asyncio.get_running_loop().create_future()
            if self._stopped:
                self._trusting.set_result(None)
            else:
                self._background.spawn("fetch-trust", self._fetch_trust(self._trusting))
        return self._trusting

    async def _fetch_trust(self, done: asyncio.Future[None]) -> None:
        self._trust_asked_at = self._clock.monotonic()
        try:
            while True:
                self._trust_overtaken = False
                trust = await self._access.trust()
                if not self._trust_overtaken:
                    break
        except TooLargeError as error:  # it will not get smaller by waiting
            log.error(  # noqa: TRY400 (where it happened here tells nothing)
                "mesh.gatekeeper.trust_too_large", ready=self._ready, error=str(error)
            )
        except MeshError as error:  # what was told before is good until a master is back
            log.info("mesh.gatekeeper.trust_kept", ready=self._ready, error=str(error))
        else:
            self._answered()
            self._keys_told = trust.keys
            if self._verifier.trust(trust.keys):
                self._tokens.clear()
                log.info("mesh.gatekeeper.keys_learnt", kids=[key.kid for key in trust.keys])
            self._revoked = frozenset(trust.revoked)
            lately = self._clock.monotonic() - _HEARD_LATELY_S
            self._heard = {token: at for token, at in self._heard.items() if at > lately}
            self._ready = True
        finally:
            self._trusting = None
            if not done.done():
                done.set_result(None)

    def _on_revoked(self, message: Message) -> None:
        told = codec.decode(message.data, Revoked)
        now = self._clock.monotonic()
        self._heard.update(dict.fromkeys(told.tokens, now))
        if told.subjects:
            gone = set(told.subjects)
            for memory in (self._keys, self._last_good):
                memory.drop(lambda identity: identity.subject in gone)
            self._ask_again()
        if told.keys:
            self._trust_overtaken = True
            self._trust_again()
        log.info(
            "mesh.gatekeeper.revoked",
            tokens=len(told.tokens),
            subjects=told.subjects,
            keys=told.keys,
        )

    def _connection_changed(self, connected: bool) -> None:
        """What was said while the broker was away was not heard: every key is asked for again, and
        counts as before only if no master answers.
        """
        if connected:
            self._keys.clear()
            self._ask_again()
            self._trust_again()

    def _ask_again(self) -> None:
        """Answers that are on their way may be of before."""
        for question in self._asked.values():
            question.overtaken = True


class _Question:
    """Whose key is this? Asked once for all who show it."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[Identity | MeshError] = (
            asyncio.get_running_loop().create_future()
        )
        self.overtaken = False
        """Something was revoked since a master was asked: what it says may be no longer true."""


class _Memory(Generic[V]):
    """Values with an end, of which the least recently used go first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: OrderedDict[bytes, tuple[V, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, now: float) -> V | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, until = entry
        if now >= until:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return value

    def put(self, key: bytes, value: V, until: float) -> None:
        self._entries[key] = (value, until)
        self._entries.move_to_end(key)
        if len(self._entries) > self._most:
            self._entries.popitem(last=False)

    def forget(self, key: bytes) -> None:
        self._entries.pop(key, None)

    def drop(self, unwanted: Callable[[V], bool]) -> None:
        for key in [key for key, (value, _) in self._entries.items() if unwanted(value)]:
            del self._entries[key]

    def clear(self) -> None:
        self._entries.clear()


def _fingerprint(bearer: str) -> bytes:
    return hashlib.sha256(bearer.encode("utf-8", "surrogatepass")).digest()


def _no_master() -> UnavailableError:
    return UnavailableError(
        "no master answers, and only a master knows API keys", retry_after_ms=_RETRY_MS
    )
