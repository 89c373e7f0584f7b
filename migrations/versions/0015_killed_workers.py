"""When a worker was ordered to stop at once: a boss that starts before the worker obeyed repeats the order.

Frozen. A worker that was ordered to stop before this migration only drains.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Add the column where it is missing."""
    if not any(column["name"] == "killed_at" for column in sa.inspect(op.get_bind()).get_columns("workers")):
        op.add_column("workers", sa.Column("killed_at", sa.Double()))
