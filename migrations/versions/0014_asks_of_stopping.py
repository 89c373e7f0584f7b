"""What a stopping attempt occupies: its task may ask for something else by then, or be gone.

Frozen. An attempt that was stopping before this migration occupies what its task asks for.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Add the column where it is missing."""
    text = sa.Text().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
    if not any(column["name"] == "asks" for column in sa.inspect(op.get_bind()).get_columns("attempts")):
        op.add_column("attempts", sa.Column("asks", text))
