"""`mesh.ports.SigningKeyStore` beside the registry: same database, same engine."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from mesh.adapters.sql import models
from mesh.adapters.sql.database import translated
from mesh.ports import SealedKey

_keys = models.signing_keys
_COLUMNS = [_keys.c[field] for field in SealedKey._fields]
_NEWEST_FIRST = (_keys.c.created_at.desc(), _keys.c.kid)


class SqlSigningKeys:
    """The masters' ring."""

    def __init__(self, engine: AsyncEngine) -> None:
        """Args:
        engine: The registry's, with the schema up to date.
        """
        self._engine = engine
        self._writer = engine.execution_options(writes=True)

    async def ring(self) -> list[SealedKey]:
        query = sa.select(*_COLUMNS).order_by(*_NEWEST_FIRST)
        with translated():
            async with self._engine.connect() as connection:
                return [SealedKey(*row) for row in await connection.execute(query)]

    async def add_first(self, key: SealedKey) -> bool:
        return await self._add(key, unless=_keys.c.retires_at.is_(None))

    async def add(self, key: SealedKey) -> bool:
        return await self._add(key, unless=_keys.c.kid == key.kid)

    async def _add(self, key: SealedKey, *, unless: sa.ColumnElement[bool]) -> bool:
        there = sa.select(sa.func.count()).select_from(_keys).where(unless)
        with translated():
            async with self._writer.begin() as connection:
                if (await connection.execute(there)).scalar_one():
                    return False
                await connection.execute(sa.insert(_keys).values(key._asdict()))
        return True

    async def rotate(self, key: SealedKey, *, retires_at: int) -> list[str]:
        longer = sa.or_(_keys.c.retires_at.is_(None), _keys.c.retires_at > retires_at)
        # Whoever rotates at the same time waits here, and then sees the other's new key too.
        lock = sa.select(_keys.c.kid).order_by(_keys.c.kid).with_for_update()
        retire = sa.update(_keys).where(longer).values(retires_at=retires_at).returning(_keys.c.kid)
        with translated():
            async with self._writer.begin() as connection:
                await connection.execute(lock)
                retired = list((await connection.execute(retire)).scalars())
                await connection.execute(sa.insert(_keys).values(key._asdict()))
        return sorted(retired)

    async def forget(self, *, retired_before: int) -> int:
        old = sa.delete(_keys).where(_keys.c.retires_at < retired_before)
        with translated():
            async with self._writer.begin() as connection:
                return (await connection.execute(old)).rowcount
