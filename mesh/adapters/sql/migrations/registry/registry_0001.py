"""Nodes, removed nodes, the index of actions, cursors."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "registry_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "nodes",
        sa.Column("slug", sa.String(64), primary_key=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("url", sa.Text),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("capabilities", sa.Text, nullable=False),
        sa.Column("domains", sa.Text, nullable=False),
        sa.Column("keywords", sa.Text, nullable=False),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("weight", sa.Float, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("incarnation", sa.BigInteger, nullable=False),
        sa.Column("response_time_ms", sa.Float),
        sa.Column("last_ping_at", sa.BigInteger),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("collections", sa.Text, nullable=False),
        sa.Column("actions", sa.Text, nullable=False),
        sa.Column("api_key_hash", sa.String(64)),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "removed_nodes",
        sa.Column("slug", sa.String(64), primary_key=True),
        sa.Column("incarnation", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "actions",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("node", sa.String(64), primary_key=True),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("caller", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("duration_ms", sa.Float),
        sa.Column("params", sa.Text),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("result", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("accepted_at", sa.BigInteger, nullable=False),
        sa.Column("trace", sa.Text, nullable=False),
    )
    op.create_index("ix_actions_accepted_at", "actions", ["accepted_at", "id"])
    for column in ("node", "action", "caller", "state"):
        op.create_index(f"ix_actions_{column}", "actions", [column, "accepted_at"])
    cursors = op.create_table(
        "cursors",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(cursors, [{"name": "history", "value": 0}, {"name": "epoch", "value": 0}])


def downgrade() -> None:
    for table in ("cursors", "actions", "removed_nodes", "nodes"):
        op.drop_table(table)
