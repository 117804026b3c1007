"""Sagas."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "registry_0005"
down_revision = "registry_0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sagas",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("caller", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("changed_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger, nullable=False),
        sa.Column("record", sa.Text, nullable=False),
    )
    op.create_index("ix_sagas_started_at", "sagas", ["started_at", "id"])
    op.create_index("ix_sagas_ended_at", "sagas", ["ended_at"])
    for column in ("state", "name", "caller"):
        op.create_index(f"ix_sagas_{column}", "sagas", [column, "started_at"])
    op.create_table(
        "saga_actions",
        sa.Column("saga", sa.String(64), primary_key=True),
        sa.Column("action", sa.String(64), primary_key=True),
    )
    op.execute("INSERT INTO cursors (name, value) VALUES ('sagas', 0)")


def downgrade() -> None:
    op.execute("DELETE FROM cursors WHERE name = 'sagas'")
    op.drop_table("saga_actions")
    op.drop_table("sagas")
