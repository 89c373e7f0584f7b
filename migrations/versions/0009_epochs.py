"""Where each leadership ended: by that a boss tells whether a peer knows of work that a restored database lacks.

Frozen. MySQL and MariaDB commit each statement that changes a table, so the step looks first whether it is done.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Make the table where it is missing."""
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    if not sa.inspect(op.get_bind()).has_table("epochs"):
        op.create_table(
            "epochs",
            sa.Column("epoch", number, primary_key=True, autoincrement=False),
            sa.Column("batch", number, nullable=False),
            mysql_engine="InnoDB",
            mysql_charset="utf8mb4",
        )
