"""Another API key, for a node or a user."""

from __future__ import annotations

from typing import NamedTuple

import structlog

from mesh.ports import Audit, Clock, KeyHolder, LoginStore
from mesh.runtime.access_api import digest_of
from mesh.runtime.admission import API_KEY
from mesh.runtime.exclusion import Exclusion
from mesh.runtime.issued_tokens import secret, who
from mesh.wire.messages import NodeKeyRotate, UserKeyRotate

log = structlog.get_logger()


class Rotated(NamedTuple):
    """The new key, and who had the old one."""

    before: KeyHolder
    api_key: str
    previous_until: int
    """Unix ms until which the old key is good; 0: no longer."""


class KeyRotation:
    """Changes keys in SQL, and carries out what that means for those who are in."""

    def __init__(
        self, exclusion: Exclusion, *, logins: LoginStore, audit: Audit, clock: Clock
    ) -> None:
        self._exclusion = exclusion
        self._logins = logins
        self._audit = audit
        self._clock = clock

    async def rotate(
        self, name: str, asked: NodeKeyRotate | UserKeyRotate, caller: str, *, node: bool
    ) -> Rotated:
        """Give another key.

        Args:
            name: Slug of a node, or name of a user.
            asked: How long the old key goes on, and on whose behalf.
            caller: Who asks.
            node: Which of both it is.

        Raises:
            NotFoundError
        """
        overlap_s = asked.overlap_s
        until = self._clock.unix_ms() + overlap_s * 1000 if overlap_s else 0
        api_key = secret(API_KEY)
        before = await self._logins.rotate(
            name, digest_of(api_key), node=node, previous_until=until
        )
        by = who(asked, caller)
        self._audit.note(
            "key-rotated", actor=by, subject=name, origin=asked.origin, overlap_s=overlap_s
        )
        await self._exclusion.key_replaced(before, previous_until=until, by=by)
        log.info("mesh.key.rotated", name=name, is_node=node, overlap_s=overlap_s, by=by)
        return Rotated(before, api_key, until if before.digest else 0)
