"""The record of each VM's boot.

Frozen. MySQL and MariaDB commit each statement that changes a table, so each step looks first whether it is done.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the table where it is not there."""
    if sa.inspect(op.get_bind()).has_table("boots"):
        return
    text = sa.Text().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
    op.create_table(
        "boots",
        sa.Column("vm_no", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=False),
        sa.Column("address", text, nullable=False),
        sa.Column("host_key", text, nullable=False),
        sa.Column("steps", text, nullable=False),
        sa.Column("visit", text),
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
    )
