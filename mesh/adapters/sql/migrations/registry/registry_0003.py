"""Users, pending nodes, keys with an overlap, signing keys, the audit trail; nodes no longer enrol
themselves by beating, so the removed ones need no memory.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "registry_0003"
down_revision = "registry_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("nodes", sa.Column("previous_key_hash", sa.String(64)))
    op.add_column(
        "nodes", sa.Column("previous_until", sa.BigInteger, nullable=False, server_default="0")
    )
    op.create_index("ix_nodes_previous_key_hash", "nodes", ["previous_key_hash"])
    op.create_table(
        "users",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("api_key_hash", sa.String(64), nullable=False),
        sa.Column("previous_key_hash", sa.String(64)),
        sa.Column("previous_until", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    for column in ("api_key_hash", "previous_key_hash"):
        op.create_index(f"ix_users_{column}", "users", [column])
    op.create_table(
        "pending_nodes",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("slug", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("first_seen", sa.BigInteger, nullable=False),
        sa.Column("last_seen", sa.BigInteger, nullable=False),
        sa.Column("rejected_at", sa.BigInteger),
    )
    op.create_index(
        "ix_pending_nodes_slug_digest", "pending_nodes", ["slug", "digest"], unique=True
    )
    op.create_table("sown_keys", sa.Column("digest", sa.String(64), primary_key=True))
    op.create_table(
        "signing_keys",
        sa.Column("kid", sa.String(64), primary_key=True),
        sa.Column("sealed", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("retires_at", sa.BigInteger),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("details", sa.Text, nullable=False),
        sa.Column("published", sa.Boolean, nullable=False),
    )
    op.create_index("ix_audit_at", "audit", ["at", "id"])
    for column in ("kind", "actor", "subject"):
        op.create_index(f"ix_audit_{column}", "audit", [column, "at"])
    op.create_index("ix_audit_published", "audit", ["published", "id"])
    op.drop_table("removed_nodes")


def downgrade() -> None:
    op.create_table(
        "removed_nodes",
        sa.Column("slug", sa.String(64), primary_key=True),
        sa.Column("incarnation", sa.BigInteger, nullable=False),
    )
    for table in ("audit", "signing_keys", "sown_keys", "pending_nodes", "users"):
        op.drop_table(table)
    op.drop_index("ix_nodes_previous_key_hash", "nodes")
    with op.batch_alter_table("nodes") as nodes:
        nodes.drop_column("previous_until")
        nodes.drop_column("previous_key_hash")
