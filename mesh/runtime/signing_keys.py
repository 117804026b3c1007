"""The keys that sign access tokens: one ring for all masters, kept in SQL, sealed.

One key signs. Another one that takes its place signs at once; those before it go on verifying for
an overlap, and a retired one verifies nothing. Each master reads the ring every few seconds and
whenever another says that it changed; a master whose own answer has changed says so in its turn, so
that a gateway that was told too early by a slower master asks again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import structlog

from mesh.errors import ConflictError, MeshError, UnavailableError
from mesh.ports import (
    Audit,
    Bus,
    Clock,
    FormerKeys,
    Message,
    Mint,
    SealedKey,
    Sealer,
    SigningKeyStore,
    SigningPair,
    Subscription,
    TokenSigner,
    Verb,
)
from mesh.runtime.background import Background
from mesh.runtime.issued_tokens import who
from mesh.runtime.revocations import Revocations
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    Identity,
    PublicKey,
    Request,
    Revoked,
    SigningKey,
    SigningKeyList,
    SigningKeysRotate,
)

log = structlog.get_logger()

_READ_EVERY_S = 3.0
_FORGET_EVERY_S = 600.0
_KEEP_RETIRED_MS = 86_400_000
"""Retired keys can still be listed for a day."""
_LONGEST_TOKEN_MS = 366 * 86_400_000
_MOST_KEYS = 32
"""That verify at once: gateways fetch all of them again and again."""
_MOST_LISTED = 100
_RETRY_MS = 1000
_MASTER = "master"


class SigningKeys(TokenSigner, Protocol):
    """What a master needs of its keys."""

    @property
    def verbs(self) -> Mapping[str, tuple[type[Request], Verb]]:
        """`signing-keys` and `signing-keys-rotate`."""
        ...

    async def start(self) -> None:
        """Have a key that signs.

        Raises:
            UnavailableError: The database or the broker is away.
            StateError: The file of an earlier version is damaged, or cannot be removed.
        """
        ...

    async def stop(self) -> None:
        """Leave nothing running."""
        ...


class SharedSecret:
    """`SigningKeys` where `security.jwt_secret` signs: there is no ring, and nothing to rotate."""

    def __init__(self, signer: TokenSigner) -> None:
        self.sign = signer.sign
        self.public_keys = signer.public_keys
        self.verbs: Mapping[str, tuple[type[Request], Verb]] = {
            "signing-keys": (Request, self._list),
            "signing-keys-rotate": (SigningKeysRotate, self._rotate),
        }

    async def start(self) -> None:
        """Nothing is to be made."""

    async def stop(self) -> None:
        """Nothing runs."""

    async def _list(self, _asked: Request, _caller: str) -> SigningKeyList:
        return SigningKeyList(keys=[])

    async def _rotate(self, _asked: SigningKeysRotate, _caller: str) -> SigningKeyList:
        raise ConflictError(
            "security.jwt_secret signs tokens: give every master and gateway another one, "
            "or none, and start them again"
        )


class _Held(NamedTuple):
    """A key of the ring; without its pair if it was sealed with another mesh's seed."""

    key: SealedKey
    pair: SigningPair | None

    @property
    def signs(self) -> bool:
        return self.pair is not None and self.key.retires_at is None

    def verifies(self, now_ms: int) -> bool:
        retires_at = self.key.retires_at
        return self.pair is not None and (retires_at is None or now_ms < retires_at)


class KeyRing:
    """`SigningKeys` that all masters of one database share."""

    def __init__(
        self,
        store: SigningKeyStore,
        bus: Bus,
        clock: Clock,
        *,
        mint: Mint,
        sealer: Sealer,
        audit: Audit,
        former: FormerKeys | None = None,
    ) -> None:
        """Args:
        store: The ring, beside the registry.
        bus: Speaks as `master`; the caller's to close.
        clock: Time.
        mint: Makes and loads keys.
        sealer: The same for all masters.
        audit: Where rotations are entered.
        former: Keys of an earlier version, which are taken over once.
        """
        self._store = store
        self._bus = bus
        self._clock = clock
        self._mint = mint
        self._sealer = sealer
        self._audit = audit
        self._former = former
        self._background = Background(clock)
        self._revocations = Revocations(bus, clock, self._background)
        self._subscription: Subscription | None = None
        self._ring: list[_Held] = []
        self._published: list[str] = []
        self._reading = asyncio.Lock()
        self._reread_asked = False
        self._forgot_at = float("-inf")
        self.verbs: Mapping[str, tuple[type[Request], Verb]] = {
            "signing-keys": (Request, self._list),
            "signing-keys-rotate": (SigningKeysRotate, self._rotate),
        }

    # -- signing -----------------------------------------------------------------------------------

    def sign(self, identity: Identity, *, issued_at: int, expires_at: int) -> str:
        pair = self._signing()
        if pair is None:
            raise UnavailableError("no key signs tokens now", retry_after_ms=_RETRY_MS)
        return pair.sign(identity, issued_at=issued_at, expires_at=expires_at)

    def public_keys(self) -> list[PublicKey]:
        now_ms = self._clock.unix_ms()
        return [
            held.pair.public
            for held in self._ring
            if held.pair is not None and held.verifies(now_ms)
        ]

    def _signing(self) -> SigningPair | None:
        return next((held.pair for held in self._ring if held.signs), None)

    # -- life --------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Raises: as `SigningKeys.start`."""
        self._subscription = await self._bus.subscribe(subjects.REVOKED, self._on_revoked)
        self._revocations.start()
        await self._take_over()
        await self._read()
        self._published = self._kids()
        if self._signing() is None:
            await self._make_first()
            await self._read()
            self._tell_if_changed()
        self._background.repeat("read-signing-keys", self._round)

    async def stop(self) -> None:
        if self._subscription is not None:
            await self._subscription.unsubscribe()
        await self._background.stop()

    async def rotate(
        self, overlap_s: int, *, by: str, origin: str = "", why: str = "asked for"
    ) -> None:
        """A new key signs from now on; the others verify for `overlap_s` more seconds.

        Raises:
            ConflictError: Too many of them do already.
            UnavailableError: The database is away.
        """
        now_ms = self._clock.unix_ms()
        if overlap_s and len(self._kids()) >= _MOST_KEYS:
            raise ConflictError(
                f"{_MOST_KEYS} keys verify tokens already: wait until some are retired, "
                "or retire all of them at once with an overlap of 0"
            )
        key = self._new_key(now_ms)
        retired = await self._store.rotate(key, retires_at=now_ms + overlap_s * 1000)
        self._audit.note(
            "signing-key-rotated",
            actor=by,
            subject=key.kid,
            origin=origin,
            overlap_s=overlap_s,
            retired=retired,
            why=why,
        )
        log.info("mesh.signing_key.rotated", kid=key.kid, retired=retired, by=by, why=why)
        await self._read()
        self._tell_if_changed()

    async def _make_first(self) -> None:
        if not any(held.key.retires_at is None for held in self._ring):
            key = self._new_key(self._clock.unix_ms())
            if await self._store.add_first(key):  # else another master was quicker
                log.info("mesh.signing_key.made", kid=key.kid)
            return
        # Whoever made new credentials for the masters did so because of who has the old ones.
        await self.rotate(0, by=_MASTER, why="sealed with another issuer's seed")

    def _new_key(self, now_ms: int) -> SealedKey:
        newest = max((held.key.created_at for held in self._ring), default=0)
        secret = self._mint.make()
        return self._sealed(secret, created_at=max(now_ms, newest + 1))

    def _sealed(
        self, secret: bytes, *, created_at: int, retires_at: int | None = None
    ) -> SealedKey:
        kid = self._mint.load(secret).public.kid
        return SealedKey(kid, self._sealer.seal(secret), created_at, retires_at)

    async def _take_over(self) -> None:
        """What the file's keys have signed stays good, whoever started before us."""
        former = self._former.read() if self._former is not None else []
        if self._former is None or not former:
            return
        newest, *older = sorted(former, key=lambda key: key.created_at, reverse=True)
        until = self._clock.unix_ms() + _LONGEST_TOKEN_MS
        first = self._sealed(newest.secret, created_at=newest.created_at)
        if not await self._store.add_first(first):
            await self._store.add(first._replace(retires_at=until))
        for key in older:
            await self._store.add(
                self._sealed(key.secret, created_at=key.created_at, retires_at=until)
            )
        self._former.remove()
        log.info("mesh.signing_key.taken_over", keys=len(former))

    # -- the ring as SQL has it --------------------------------------------------------------------

    async def _round(self) -> None:
        await self._clock.sleep(self._pause_s())
        await self._refresh()
        now = self._clock.monotonic()
        if now - self._forgot_at >= _FORGET_EVERY_S:
            self._forgot_at = now
            before = self._clock.unix_ms() - _KEEP_RETIRED_MS
            await self._store.forget(retired_before=before)

    def _pause_s(self) -> float:
        """Not longer than until the next one retires."""
        now_ms = self._clock.unix_ms()
        left_ms = (
            held.key.retires_at - now_ms
            for held in self._ring
            if held.key.retires_at is not None and held.verifies(now_ms)
        )
        return min(_READ_EVERY_S, min(left_ms, default=_LONGEST_TOKEN_MS) / 1000)

    def _on_revoked(self, message: Message) -> None:
        if codec.decode(message.data, Revoked).keys and not self._reread_asked:
            self._reread_asked = True
            self._background.spawn("reread-signing-keys", self._refresh())

    async def _refresh(self) -> None:
        try:
            await self._read()
        except MeshError as error:  # what we have goes on
            log.warning("mesh.signing_key.unread", error=str(error))
        self._tell_if_changed()

    async def _read(self) -> None:
        """One after the other: an older answer must not replace a newer one."""
        async with self._reading:
            self._reread_asked = False  # what is said from here on may be too late for this answer
            ring = await self._store.ring()
            known = {held.key.sealed: held.pair for held in self._ring}
            self._ring = [
                _Held(key, known[key.sealed] if key.sealed in known else self._opened(key))
                for key in ring
            ]

    def _opened(self, key: SealedKey) -> SigningPair | None:
        try:
            pair = self._mint.load(self._sealer.unseal(key.sealed))
            if pair.public.kid == key.kid:
                return pair
            reason = "it is another key"
        except ValueError as error:
            reason = str(error)
        log.error("mesh.signing_key.unreadable", kid=key.kid, reason=reason)
        return None

    def _kids(self) -> list[str]:
        return [key.kid for key in self.public_keys()]

    def _tell_if_changed(self) -> None:
        """Gateways ask for the keys."""
        kids = self._kids()
        if kids != self._published:
            self._published = kids
            self._revocations.tell(keys=True)

    # -- verbs -------------------------------------------------------------------------------------

    async def _list(self, _asked: Request, _caller: str) -> SigningKeyList:
        await self._read()
        return self._listed()

    async def _rotate(self, asked: SigningKeysRotate, caller: str) -> SigningKeyList:
        await self.rotate(asked.overlap_s, by=who(asked, caller), origin=asked.origin)
        return self._listed()

    def _listed(self) -> SigningKeyList:
        keys = [
            SigningKey(
                kid=held.key.kid,
                created_at=held.key.created_at,
                retires_at=held.key.retires_at,
            )
            for held in self._ring[:_MOST_LISTED]
        ]
        return SigningKeyList(keys=keys)
