"""What is open is few of many: an index of nothing else, and none of what is asked once an hour."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "journal_0002"
down_revision = "journal_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("ix_entries_open", "entries")
    op.drop_index("ix_entries_settled_at", "entries")
    op.create_index(
        "ix_entries_open", "entries", ["accepted_at"], sqlite_where=sa.text("recorded = 0")
    )


def downgrade() -> None:
    op.drop_index("ix_entries_open", "entries")
    op.create_index("ix_entries_open", "entries", ["recorded", "accepted_at"])
    op.create_index("ix_entries_settled_at", "entries", ["settled_at"])
