"""Access, refresh and join tokens; what a node may do."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "registry_0002"
down_revision = "registry_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "nodes",
        sa.Column("scopes", sa.Text, nullable=False, server_default='["search","actions"]'),
    )
    op.create_index("ix_nodes_api_key_hash", "nodes", ["api_key_hash"])
    op.create_table(
        "access_tokens",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("subject", sa.String(64), nullable=False),
        sa.Column("node", sa.Boolean, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("family", sa.String(64), nullable=False),
        sa.Column("issued_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("revoked_at", sa.BigInteger),
    )
    op.create_table(
        "refresh_tokens",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("subject", sa.String(64), nullable=False),
        sa.Column("node", sa.Boolean, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("family", sa.String(64), nullable=False),
        sa.Column("issued_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("used_at", sa.BigInteger),
        sa.Column("revoked_at", sa.BigInteger),
    )
    op.create_table(
        "join_tokens",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("issued_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("revoked_at", sa.BigInteger),
        sa.Column("uses_left", sa.Integer),
    )
    for table in ("access_tokens", "refresh_tokens"):
        for column in ("family", "subject", "expires_at", "issued_at"):
            op.create_index(f"ix_{table}_{column}", table, [column])
    op.create_index("ix_access_tokens_revoked_at", "access_tokens", ["revoked_at"])


def downgrade() -> None:
    for table in ("join_tokens", "refresh_tokens", "access_tokens"):
        op.drop_table(table)
    op.drop_index("ix_nodes_api_key_hash", "nodes")
    with op.batch_alter_table("nodes") as nodes:
        nodes.drop_column("scopes")
