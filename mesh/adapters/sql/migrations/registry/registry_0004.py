"""The history index knows every attempt and the order of changes; what nodes offer, in full."""

from __future__ import annotations

revision = "registry_0004"
down_revision = "registry_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
