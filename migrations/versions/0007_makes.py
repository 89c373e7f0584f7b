"""Whether a task has results, so that its dependents may be chained to it.

Frozen. Tasks stored before count as 2, "results that may exist already": they are never chained.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the column that is not there."""
    inspector = sa.inspect(op.get_bind())
    if "makes" not in {there["name"] for there in inspector.get_columns("tasks")}:
        op.add_column("tasks", sa.Column("makes", sa.SmallInteger(), nullable=False, server_default="2"))
