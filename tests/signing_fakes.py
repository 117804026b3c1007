"""A ring of keys in memory, and masters that share it at a pace that the test sets."""

from __future__ import annotations

import asyncio
from typing import Any

from fakes import MemoryBroker
from stepped_clock import SteppedClock

from mesh.adapters.jwt import Ed25519Mint
from mesh.adapters.sealing import SeedSealer
from mesh.errors import UnavailableError
from mesh.ports import FormerKey, SealedKey
from mesh.runtime.signing_keys import KeyRing

MESH = {"issuer": "nodemesh", "audience": "nodemesh"}
NOW_S = 1_800_000_000


class MemorySigningKeys:
    """`mesh.ports.SigningKeyStore`."""

    def __init__(self) -> None:
        self.keys: dict[str, SealedKey] = {}
        self.away = False

    def _check(self) -> None:
        if self.away:
            raise UnavailableError("the database is away")

    async def ring(self) -> list[SealedKey]:
        self._check()
        await asyncio.sleep(0)  # others get in between, as with a real database
        return sorted(self.keys.values(), key=lambda key: (-key.created_at, key.kid))

    async def add_first(self, key: SealedKey) -> bool:
        self._check()
        if any(other.retires_at is None for other in self.keys.values()):
            return False
        self.keys[key.kid] = key
        return True

    async def add(self, key: SealedKey) -> bool:
        self._check()
        return self.keys.setdefault(key.kid, key) is key

    async def rotate(self, key: SealedKey, *, retires_at: int) -> list[str]:
        self._check()
        longer = [
            other
            for other in self.keys.values()
            if other.retires_at is None or other.retires_at > retires_at
        ]
        for other in longer:
            self.keys[other.kid] = other._replace(retires_at=retires_at)
        self.keys[key.kid] = key
        return sorted(other.kid for other in longer)

    async def forget(self, *, retired_before: int) -> int:
        self._check()
        kept = {
            kid: key
            for kid, key in self.keys.items()
            if key.retires_at is None or key.retires_at >= retired_before
        }
        gone = len(self.keys) - len(kept)
        self.keys = kept
        return gone


class NotedAudit:
    """`mesh.ports.Audit` that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[dict[str, Any]] = []

    def note(self, kind: str, **said: Any) -> None:
        self.notes.append({"kind": kind, **said})

    def tally(self, kind: str, **said: Any) -> None:
        self.notes.append({"kind": kind, **said})


class FormerInMemory:
    """`mesh.ports.FormerKeys`."""

    def __init__(self, *keys: FormerKey) -> None:
        self.keys = list(keys)
        self.removed = 0

    def read(self) -> list[FormerKey]:
        return list(self.keys)

    def remove(self) -> None:
        self.keys.clear()
        self.removed += 1


class SharedRing:
    """A database, a broker and the time that several masters share."""

    def __init__(self) -> None:
        self.store: Any = MemorySigningKeys()
        self.broker = MemoryBroker()
        self.clock = SteppedClock(float(NOW_S))
        self.audit = NotedAudit()
        self.masters: list[KeyRing] = []

    async def master(self, *, seed: str = "seed", former: Any = None, store: Any = None) -> KeyRing:
        made = KeyRing(
            store or self.store,
            self.broker.bus("master"),
            self.clock,
            mint=Ed25519Mint(**MESH),
            sealer=SeedSealer(seed),
            audit=self.audit,
            former=former,
        )
        await made.start()
        self.masters.append(made)
        return made

    async def stop(self) -> None:
        for master in self.masters:
            await master.stop()
