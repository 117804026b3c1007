"""Nodes that nobody announced wait here until an operator lets them in or turns them away."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from mesh.errors import ConflictError, MeshError, NotFoundError
from mesh.ports import Audit, Clock, LoginStore, Verb
from mesh.runtime.admission import Admission, new_record
from mesh.runtime.issued_tokens import distinct, who
from mesh.runtime.kicks import Kicks
from mesh.wire.messages import (
    NodeApprove,
    NodeRecord,
    NodeRegister,
    NodeReject,
    PendingList,
    PendingNode,
    Request,
)

log = structlog.get_logger()

_DAY_MS = 86_400_000
_FORGET_EVERY_S = 600.0


class Approvals:
    """The waiting room; `Logins` lets people into it."""

    def __init__(
        self,
        admission: Admission,
        kicks: Kicks,
        *,
        logins: LoginStore,
        audit: Audit,
        clock: Clock,
    ) -> None:
        self._admission = admission
        self._kicks = kicks
        self._logins = logins
        self._audit = audit
        self._clock = clock
        self.verbs: Mapping[str, tuple[type[Request], Verb]] = {
            "approve": (NodeApprove, self._approve),
            "pending": (Request, self._pending),
            "reject": (NodeReject, self._reject),
        }

    async def forget(self) -> None:
        """Whoever was turned away a day ago may ask again, and whoever has not asked for a day
        waits no longer. Then wait for the next time.
        """
        yesterday = self._clock.unix_ms() - _DAY_MS
        try:
            await self._logins.forget(rejected_before=yesterday, seen_before=yesterday)
        except MeshError as error:  # they stay, and are tried again
            log.warning("mesh.approvals.forget_failed", error=str(error))
        await self._clock.sleep(_FORGET_EVERY_S)

    async def _pending(self, _: Request, _caller: str) -> PendingList:
        return PendingList(nodes=await self._logins.pending())

    async def _approve(self, asked: NodeApprove, caller: str) -> NodeRecord:
        waiting = await self._find(asked.node)
        record = new_record(NodeRegister(name=waiting.name), self._clock.unix_ms())

        async def write() -> None:
            if not await self._logins.approve(waiting.id, record, scopes=distinct(asked.scopes)):
                raise _nobody(asked.node)

        entered = await self._admission.enter(record, write)
        by = who(asked, caller)
        self._audit.note(
            "node-approved",
            actor=by,
            subject=record.slug,
            origin=asked.origin,
            fingerprint=waiting.fingerprint,
            address=waiting.address,
            scopes=distinct(asked.scopes),
        )
        log.info("mesh.node.approved", node=record.slug, fingerprint=waiting.fingerprint, by=by)
        return entered

    async def _reject(self, asked: NodeReject, caller: str) -> PendingNode:
        waiting = await self._find(asked.node)
        gone = await self._logins.reject(waiting.id, at=self._clock.unix_ms())
        if gone is None:
            raise _nobody(asked.node)
        by = who(asked, caller)
        if await self._logins.find(gone.name) is None:  # else it is another's name by now
            self._kicks.kick(gone.name, by=by)
        self._audit.note(
            "node-rejected",
            actor=by,
            subject=gone.name,
            origin=asked.origin,
            fingerprint=gone.fingerprint,
            address=gone.address,
        )
        log.info("mesh.node.rejected", node=gone.name, fingerprint=gone.fingerprint, by=by)
        return gone

    async def _find(self, name: str) -> PendingNode:
        """By id, or by name where only one waits under it."""
        waiting = await self._logins.pending()
        found = [one for one in waiting if one.id == name]
        found = found or [one for one in waiting if one.name == name]
        if not found:
            raise _nobody(name)
        if len(found) > 1:
            raise ConflictError(
                f"{len(found)} nodes wait under the name {name!r}; choose one by its id, and by "
                "the fingerprint in its log: meshctl nodes pending"
            )
        return found[0]


def _nobody(name: str) -> NotFoundError:
    return NotFoundError(f"no node waits under {name[:80]!r}; see: meshctl nodes pending")
