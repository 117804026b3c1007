"""The node's journal of actions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "journal_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "entries",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("caller", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("accepted_at", sa.BigInteger, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("settled_at", sa.BigInteger),
        sa.Column("outcome", sa.Text),
        sa.Column("recorded", sa.Boolean, nullable=False),
    )
    op.create_index("ix_entries_open", "entries", ["recorded", "accepted_at"])
    op.create_index("ix_entries_settled_at", "entries", ["settled_at"])


def downgrade() -> None:
    op.drop_table("entries")
