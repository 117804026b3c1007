"""What a replica has applied, and how far a copy has come."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "journal_0003"
down_revision = "journal_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "positions",
        sa.Column("shard", sa.String(64), primary_key=True),
        sa.Column("logged", sa.Boolean, nullable=False),
        sa.Column("log", sa.Text, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("place", sa.Text),
    )
    op.create_table(
        "applied",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("result", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_applied_at", "applied", ["at"])


def downgrade() -> None:
    op.drop_table("applied")
    op.drop_table("positions")
