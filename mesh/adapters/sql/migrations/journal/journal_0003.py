"""What a replica has applied, and how far a copy has come."""

from __future__ import annotations

revision = "journal_0003"
down_revision = "journal_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
