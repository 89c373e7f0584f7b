"""When a push was answered: its row outlives its run.

Frozen. MySQL and MariaDB commit each statement that changes a table, so the step looks first whether it is done.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the column where it is missing."""
    there = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("pushes")}
    if "answered_at" not in there:
        op.add_column("pushes", sa.Column("answered_at", sa.Double()))
