"""Values of Python calls, as they were pickled.

Frozen. MySQL and MariaDB commit each statement that changes a table, so the step looks first whether it is done.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add the column where it is missing."""
    blob = sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
    if not any(column["name"] == "value" for column in sa.inspect(op.get_bind()).get_columns("attempts")):
        op.add_column("attempts", sa.Column("value", blob))
