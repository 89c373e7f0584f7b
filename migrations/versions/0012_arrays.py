"""Arrays: one template and what of its elements is not made yet.

Frozen. MySQL and MariaDB commit each statement that changes a table, so the step looks first whether it is done.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Make the tables where they are missing."""
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    blob = sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
    text = sa.Text().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
    there = sa.inspect(op.get_bind()).get_table_names()
    if "arrays" not in there:
        op.create_table(
            "arrays",
            sa.Column("task_no", number, primary_key=True, autoincrement=False),
            sa.Column("run_no", number, nullable=False, index=True),
            sa.Column("first_no", number, nullable=False),
            sa.Column("indices", text, nullable=False),
            sa.Column("pending", text, nullable=False),
            sa.Column("pending_count", sa.Integer, nullable=False),
            sa.Column("pending_state", sa.String(10), nullable=False),
            sa.Column("states", text, nullable=False),
            sa.Column("each_of", text, nullable=False),
            mysql_engine="InnoDB",
            mysql_charset="utf8mb4",
        )
    if "array_entries" not in there:
        op.create_table(
            "array_entries",
            sa.Column("task_no", number, primary_key=True, autoincrement=False),
            sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("entries", blob, nullable=False),
            mysql_engine="InnoDB",
            mysql_charset="utf8mb4",
        )
