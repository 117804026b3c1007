"""The history index knows every attempt and the order of changes; what nodes offer, in full."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "registry_0004"
down_revision = "registry_0003"
branch_labels = None
depends_on = None

_NEW = ("final", "mode", "begun_at", "sequence", "size")


def upgrade() -> None:
    for column in (
        sa.Column("final", sa.Boolean, nullable=False, server_default=sa.true()),
        sa.Column("mode", sa.String(16), nullable=False, server_default="sync"),
        sa.Column("begun_at", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("sequence", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("size", sa.Integer, nullable=False, server_default="0"),
    ):
        op.add_column("actions", column)
    op.execute(
        "UPDATE actions SET begun_at = accepted_at, size = 200 + LENGTH(COALESCE(params, '')) "
        "+ LENGTH(COALESCE(result, '')) + LENGTH(COALESCE(error, ''))"
    )
    op.create_index("ix_actions_sequence", "actions", ["sequence", "size"])
    op.create_index("ix_actions_at", "actions", ["at"])
    op.create_table(
        "attempts",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("node", sa.String(64), primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("begun_at", sa.BigInteger, nullable=False),
        sa.Column("duration_ms", sa.Float),
        sa.Column("result", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("final", sa.Boolean, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.ForeignKeyConstraint(["id", "node"], ["actions.id", "actions.node"], ondelete="CASCADE"),
    )
    op.create_index("ix_attempts_size", "attempts", ["size"])
    op.create_table(
        "descriptions",
        sa.Column("node", sa.String(64), primary_key=True),
        sa.Column("action", sa.String(64), primary_key=True),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
    )
    op.execute("INSERT INTO cursors (name, value) VALUES ('history-base', 0)")


def downgrade() -> None:
    op.execute("DELETE FROM cursors WHERE name = 'history-base'")
    op.drop_table("descriptions")
    op.drop_table("attempts")
    op.drop_index("ix_actions_at", "actions")
    op.drop_index("ix_actions_sequence", "actions")
    with op.batch_alter_table("actions") as actions:
        for column in _NEW:
            actions.drop_column(column)
