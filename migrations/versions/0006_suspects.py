"""Tasks that ran on workers when those were lost.

Frozen. MySQL and MariaDB commit each statement that changes a table, so each step looks first whether it is done.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make the table where it is not there."""
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    table = sa.Table(
        "suspects", sa.MetaData(),
        sa.Column("task_no", number, primary_key=True, autoincrement=False),
        sa.Column("run_no", number, nullable=False),
        sa.Column("lost", sa.Integer, nullable=False),
        sa.Column("failed", sa.SmallInteger, nullable=False),
        sa.Column("reason", sa.Text().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb"), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        mysql_engine="InnoDB", mysql_charset="utf8mb4",
    )  # fmt: skip
    table.create(op.get_bind(), checkfirst=True)
