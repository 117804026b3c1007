"""`mesh.ports.trail.AuditStream` on JetStream."""

from __future__ import annotations

from mesh.adapters.nats.bus import NatsBus
from mesh.adapters.nats.streams import DAY_NS, AppendOnlyStream
from mesh.wire import codec, subjects
from mesh.wire.messages import AuditRecord

_MAX_BYTES = 512 * 1024**2


class JetStreamAudit:
    """The stream `MESH_AUDIT`, in the account that only masters enter."""

    def __init__(self, bus: NatsBus, *, days: float) -> None:
        """Args:
        bus: Logged in with `MasterCredentials.auth_login()`.
        days: How long an entry is kept.
        """
        self._stream = AppendOnlyStream(
            bus,
            subjects.AUDIT_STREAM,
            subjects.AUDIT_SUBJECTS,
            about="the audit trail",
            max_age_ns=round(days * DAY_NS),
            max_bytes=_MAX_BYTES,
        )

    async def prepare(self) -> None:
        await self._stream.prepare()

    async def append(self, record: AuditRecord, *, timeout_s: float) -> int:
        return await self._stream.append(
            subjects.audit(record.kind),
            codec.encode(record),
            message_id=record.id,
            timeout_s=timeout_s,
        )
