"""What each worker moves, and when it told so; which inputs a task shares with others.

Frozen. MySQL and MariaDB commit each statement that changes a table, so each step looks first whether it is done.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the columns that are not there."""
    text = sa.Text().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
    columns: list[tuple[str, sa.Column[Any]]] = [
        ("workers", sa.Column("moving", text)),
        ("workers", sa.Column("moving_at", sa.Double())),
        ("tasks", sa.Column("inputs", text)),
    ]
    inspector = sa.inspect(op.get_bind())
    for table, column in columns:
        if column.name not in {there["name"] for there in inspector.get_columns(table)}:
            op.add_column(table, column)
