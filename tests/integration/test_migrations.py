"""Databases grow with the program, and never shrink with an old one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from mesh.adapters.sql import database, models
from mesh.adapters.sql.database import tune_sqlite, upgrade
from mesh.adapters.sql.journal import SqlJournal
from mesh.adapters.sql.registry import SqlRegistry
from mesh.errors import StateError
from mesh.wire.messages import NodeRecord

BRANCHES = {"registry": models.registry, "journal": models.journal}


async def made(branch: str, folder: Path) -> sa.Engine:
    """A database as the product makes it."""
    path = folder / f"{branch} 100%.db"  # a path may hold anything
    if branch == "registry":
        await (await SqlRegistry.open(f"sqlite+aiosqlite:///{path}")).close()
    else:
        await (await SqlJournal.open(path)).close()
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)))
    tune_sqlite(engine)
    return engine


@pytest.mark.parametrize("branch", BRANCHES)
async def test_the_migrations_end_at_what_the_code_expects(branch, tmp_path):
    engine = await made(branch, tmp_path)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, BRANCHES[branch]) == []
    engine.dispose()


@pytest.mark.parametrize("branch", BRANCHES)
async def test_a_second_start_changes_nothing(branch, tmp_path):
    for _ in range(2):
        engine = await made(branch, tmp_path)
        with engine.connect() as connection:
            context = MigrationContext.configure(connection)
            assert len(context.get_current_heads()) == 1
        engine.dispose()


@pytest.mark.parametrize("branch", BRANCHES)
async def test_a_database_of_a_newer_version_is_refused_and_left_alone(branch, tmp_path):
    engine = await made(branch, tmp_path)
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'registry_9999'")
    with pytest.raises(StateError, match=r"newer version.*registry_9999.*install"):
        await made(branch, tmp_path)
    with engine.connect() as connection:
        heads = MigrationContext.configure(connection).get_current_heads()
        assert heads == ("registry_9999",)
    engine.dispose()


@pytest.mark.parametrize("branch", BRANCHES)
async def test_a_migration_that_fails_changes_nothing(branch, tmp_path, monkeypatch):
    """Schema changes are part of the transaction: a killed upgrade starts again from the start."""
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(tmp_path / "half.db")))
    tune_sqlite(engine)
    broken = tmp_path / "migrations"
    (broken / branch).mkdir(parents=True)
    (broken / "env.py").write_text((database._MIGRATIONS / "env.py").read_text())
    (broken / branch / "first.py").write_text(
        "from alembic import op\nimport sqlalchemy as sa\n"
        "revision = 'first'\ndown_revision = None\n"
        "def upgrade():\n"
        "    op.create_table('half', sa.Column('id', sa.Integer))\n"
        "    raise RuntimeError('power')\n"
    )
    monkeypatch.setattr(database, "_MIGRATIONS", broken)
    with (
        pytest.raises(RuntimeError, match="power"),
        engine.connect().execution_options(writes=True) as connection,
        connection.begin(),
    ):
        upgrade(connection, branch, BRANCHES[branch])
    with engine.connect() as connection:
        assert sa.inspect(connection).get_table_names() == []
    engine.dispose()


@pytest.mark.parametrize("branch", BRANCHES)
async def test_every_migration_can_be_undone(branch, tmp_path):
    engine = await made(branch, tmp_path)
    config = Config(attributes={"metadata": BRANCHES[branch]})
    config.set_main_option("script_location", str(database._MIGRATIONS))
    config.set_main_option("version_locations", str(database._MIGRATIONS / branch))
    config.set_main_option("path_separator", "newline")
    script = ScriptDirectory.from_config(config)
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    with engine.connect() as connection:
        assert sa.inspect(connection).get_table_names() == ["alembic_version"]
    assert len(script.get_heads()) == 1, "one line of migrations"
    engine.dispose()


async def test_two_masters_may_start_at_once(tmp_path):
    url = f"sqlite+aiosqlite:///{tmp_path}/mesh.db"
    registries = await asyncio.gather(*(SqlRegistry.open(url) for _ in range(4)))
    for number, registry in enumerate(registries):
        record = NodeRecord(id=f"{number}", slug=f"n{number}", name="n")
        await registry.register(record, api_key_hash=f"key-{number}")
    assert len(await registries[0].nodes()) == 4
    for registry in registries:
        await registry.close()
