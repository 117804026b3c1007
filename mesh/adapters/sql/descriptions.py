"""`mesh.ports.DescriptionStore` beside the registry: same database, same engine."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from mesh.adapters.sql import models
from mesh.adapters.sql.database import translated
from mesh.ports import KnownAction

_descriptions = models.descriptions


class SqlDescriptions:
    """What nodes offer; `SqlRegistry.descriptions`."""

    def __init__(self, engine: AsyncEngine) -> None:
        """Args:
        engine: The registry's, with the schema up to date.
        """
        self._engine = engine
        self._writer = engine.execution_options(writes=True)

    async def described(self, node: str) -> dict[str, KnownAction]:
        query = sa.select(_descriptions).where(_descriptions.c.node == node)
        with translated():
            async with self._engine.connect() as connection:
                rows = (await connection.execute(query)).mappings().all()
        return {row["action"]: KnownAction(row["digest"], row["description"]) for row in rows}

    async def describe(self, node: str, actions: Mapping[str, KnownAction]) -> None:
        rows = [
            {"node": node, "action": name, "digest": known.digest, "description": known.description}
            for name, known in actions.items()
        ]
        with translated():
            async with self._writer.begin() as connection:
                await connection.execute(
                    sa.delete(_descriptions).where(_descriptions.c.node == node)
                )
                if rows:
                    await connection.execute(sa.insert(_descriptions), rows)
