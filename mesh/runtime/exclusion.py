"""Who is out is out everywhere: off the broker, and refused at every gateway, within a second."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from mesh.errors import MeshError
from mesh.ports import Clock, KeyHolder, LoginStore, TokenStore
from mesh.runtime.kicks import Kicks
from mesh.runtime.revocations import Revocations

log = structlog.get_logger()

_LOOK_EVERY_S = 1.0
_SELF = "master"


class Exclusion:
    """Carries out what a change in SQL means for those who are in."""

    def __init__(
        self,
        tokens: TokenStore,
        logins: LoginStore,
        revocations: Revocations,
        kicks: Kicks,
        clock: Clock,
    ) -> None:
        self._tokens = tokens
        self._logins = logins
        self._revocations = revocations
        self._kicks = kicks
        self._clock = clock

    async def shut_out(self, name: str, *, by: str, off_broker: bool = True) -> None:
        """Tokens and API key of a node or user open nothing any more, as SQL has it already.

        Args:
            name: Its slug or name.
            by: Who wants it, for the log and the audit trail.
            off_broker: Its connections end as well.
        """
        if off_broker:
            self._kicks.kick(name, by=by)
        # Gateways ask again from now on, also where the database leaves us at the next step.
        self.ask_again([name])
        revoked, ids = await self._tokens.revoke_subject(name, at=self._clock.unix_ms())
        if ids:
            self._revocations.tell(tokens=ids)
        log.info("mesh.access.shut_out", name=name, tokens=revoked, by=by)

    async def unused_key_replaced(self, node: str, *, by: str) -> None:
        """Nobody has used the old key: the node comes with the new one in a moment, and is not to
        be thrown out again.
        """
        try:
            await self._kicks.cut([node], by=by)
        except MeshError as error:
            log.warning("mesh.kick.delayed", names=1, error=str(error))
            self._kicks.kick(node, by=by, once=True)
        await self.shut_out(node, by=by, off_broker=False)

    def ask_again(self, names: Sequence[str]) -> None:
        """Whoever remembers API keys of these asks for them again."""
        self._revocations.tell(names=names)

    async def key_replaced(self, before: KeyHolder, *, previous_until: int, by: str) -> None:
        """Whoever had the old key alone is out now, or at `previous_until` (unix ms; 0: now). What
        it gave goes as well: a key is rotated because somebody may have it.
        """
        if not previous_until:
            await self.shut_out(before.name, by=by)
            return
        self.ask_again([before.name])
        if before.previous_digest is not None:  # whoever came with it is forgotten from here on
            self._kicks.kick(before.name, by=by)

    async def end_overlaps(self) -> None:
        """Cut those who logged in with a key whose overlap has ended, before it began: the broker
        ends by itself only what began within it. Then wait for the next time.
        """
        now_ms = self._clock.unix_ms()
        try:
            if ended := [one.name for one in await self._logins.ended_overlaps(at=now_ms)]:
                await self._kicks.cut(ended, by=_SELF)
                self.ask_again(ended)
            for name in ended:
                await self._logins.forget_previous(name, at=now_ms)
                log.info("mesh.key.overlap_ended", name=name)
        except MeshError as error:  # the old keys open nothing; connections are cut a little later
            log.warning("mesh.key.overlaps_unknown", error=str(error))
        await self._clock.sleep(_LOOK_EVERY_S)
