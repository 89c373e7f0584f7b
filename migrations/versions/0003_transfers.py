"""How much an attempt fetched, and who moves files now.

Frozen. MySQL and MariaDB commit each statement that changes a table, so each step looks first whether it is done.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns that are not there."""
    columns: list[tuple[str, sa.Column[Any]]] = [
        ("attempts", sa.Column("fetch_bytes", sa.BigInteger())),
        ("attempts", sa.Column("cached_bytes", sa.BigInteger())),
        ("workers", sa.Column("lane_since", sa.Double())),
        ("workers", sa.Column("lane_wanted_since", sa.Double())),
    ]
    inspector = sa.inspect(op.get_bind())
    for table, column in columns:
        if column.name not in {there["name"] for there in inspector.get_columns(table)}:
            op.add_column(table, column)
