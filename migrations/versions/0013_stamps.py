"""What the requirements of an attempt were: a stamp for each, so that a later push can tell what is stale.

Frozen. MySQL and MariaDB commit each statement that changes a table, so the step looks first whether it is done.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Add the column where it is missing."""
    blob = sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
    if not any(column["name"] == "stamps" for column in sa.inspect(op.get_bind()).get_columns("attempts")):
        op.add_column("attempts", sa.Column("stamps", blob))
