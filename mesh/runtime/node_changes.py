"""What an operator does to a node that is registered: change it, give it another key, remove it."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from mesh.errors import NotFoundError
from mesh.ports import Audit, LoginStore, Registry, Verb
from mesh.runtime.admission import CheckUrl
from mesh.runtime.exclusion import Exclusion
from mesh.runtime.issued_tokens import who
from mesh.runtime.key_rotation import KeyRotation
from mesh.runtime.logins import may_connect
from mesh.runtime.membership import Membership
from mesh.types import Status
from mesh.wire.messages import (
    NodeChange,
    NodeKey,
    NodeKeyRotate,
    NodeName,
    NodeRecord,
    NodeUpdate,
    Request,
)

log = structlog.get_logger()


class NodeChanges:
    """Changes of one master's; those who are in feel them at once."""

    def __init__(
        self,
        membership: Membership,
        exclusion: Exclusion,
        keys: KeyRotation,
        *,
        registry: Registry,
        logins: LoginStore,
        audit: Audit,
        check_url: CheckUrl,
    ) -> None:
        self._membership = membership
        self._exclusion = exclusion
        self._keys = keys
        self._registry = registry
        self._logins = logins
        self._audit = audit
        self._check_url = check_url
        self.verbs: Mapping[str, tuple[type[Request], Verb]] = {
            "remove": (NodeName, self._remove),
            "rotate-key": (NodeKeyRotate, self._rotate_key),
            "update": (NodeChange, self._update),
        }

    async def _update(self, asked: NodeChange, caller: str) -> NodeRecord:
        slug = (await self._membership.find(asked.node)).slug
        if asked.change.url is not None:
            await self._check_url(asked.change.url)
        record = await self._registry.update(slug, asked.change)
        changed = self._membership.change(record)
        by = who(asked, caller)
        self._audit.note(
            "node-updated",
            actor=by,
            subject=slug,
            origin=asked.origin,
            fields=_named(asked.change),
            status=record.status.value,
        )
        if asked.change.status is not None and record.status is not Status.ACTIVE:
            out = not may_connect(record.status)
            await self._exclusion.shut_out(slug, by=by, off_broker=out)
        else:  # the other masters look again as well
            self._exclusion.ask_again([slug])
        log.info("mesh.node.updated", node=slug, by=by)
        return changed

    async def _rotate_key(self, asked: NodeKeyRotate, caller: str) -> NodeKey:
        record = await self._membership.find(asked.node)
        rotated = await self._keys.rotate(record.slug, asked, caller, node=True)
        return NodeKey(node=record, api_key=rotated.api_key, previous_until=rotated.previous_until)

    async def _remove(self, asked: NodeName, caller: str) -> NodeRecord:
        record = await self._membership.find(asked.node)
        by = who(asked, caller)
        is_free = True
        try:
            await self._registry.remove(record.slug)
        except NotFoundError:  # by another master, or by a try that got only so far
            is_free = await self._logins.find(record.slug) is None
        self._audit.note("node-removed", actor=by, subject=record.slug, origin=asked.origin)
        if is_free:
            await self._exclusion.shut_out(record.slug, by=by)
        self._membership.remove(record)
        log.info("mesh.node.removed", node=record.slug, by=by)
        return record


def _named(change: NodeUpdate) -> list[str]:
    return [name for name in change.__struct_fields__ if getattr(change, name) is not None]
