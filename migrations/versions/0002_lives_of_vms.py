"""The life of each VM in times, the last lines of its log, and how pools fare.

Frozen. MySQL and MariaDB commit each statement that changes a table, so each step looks first whether it is done.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeEngine

revision = "0002"
down_revision = "0001"

_LONG_TEXT = sa.Text().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
_NAME = sa.Text().with_variant(mysql.VARBINARY(4 * 64), "mysql", "mariadb")
_TIME: TypeEngine[float] = sa.Double()


def upgrade() -> None:
    """Add the columns and the table that are not there."""
    connection = op.get_bind()
    there = {column["name"] for column in sa.inspect(connection).get_columns("vms")}
    columns: list[sa.Column[Any]] = [
        sa.Column("started_at", _TIME),
        sa.Column("first_task_at", _TIME),
        sa.Column("ending_at", _TIME),
        sa.Column("end_asked", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("cause", sa.String(16), nullable=False, server_default=""),
        sa.Column("said", _LONG_TEXT),
    ]
    for column in columns:
        if column.name not in there:
            op.add_column("vms", column)
    # It is unknown when the cloud made the VMs of older rows: their lives count from the request.
    op.execute("UPDATE vms SET started_at = intended_at WHERE started_at IS NULL AND cloud_id <> ''")
    pools = sa.Table(
        "pools", sa.MetaData(),
        sa.Column("pool", _NAME, primary_key=True), sa.Column("closed", _LONG_TEXT, nullable=False),
        sa.Column("since", _TIME), sa.Column("until", _TIME), sa.Column("boots", sa.Integer(), nullable=False),
        sa.Column("boot_s_p50", _TIME, nullable=False), sa.Column("boot_s_p95", _TIME, nullable=False),
        mysql_engine="InnoDB", mysql_charset="utf8mb4",
    )  # fmt: skip
    pools.create(connection, checkfirst=True)
