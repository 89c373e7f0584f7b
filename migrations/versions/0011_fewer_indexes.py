"""One index by state on tasks and one on attempts instead of two, and states of one length: cheaper moves of tasks.

Frozen. MySQL and MariaDB commit each statement that changes a table, so the step looks first what is done.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Make the new indexes, then drop the old ones."""
    connection = op.get_bind()
    inspector = sa.inspect(connection)
    if connection.dialect.name != "sqlite":
        kind = mysql.CHAR(10, charset="ascii")
        for table in ("tasks", "attempts"):
            op.alter_column(table, "state", type_=kind, existing_type=sa.String(10), nullable=False)
    for table, new, columns, old in (
        ("tasks", "tasks_in_state", ["state", "run_no", "init"], ("tasks_by_state", "tasks_unfinished")),
        ("attempts", "attempts_in_state", ["state", "ended_at"], ("attempts_by_state", "attempts_by_end")),
    ):
        present = {index["name"] for index in inspector.get_indexes(table)}
        if new not in present:
            op.create_index(new, table, columns)
        for name in old:
            if name in present:
                op.drop_index(name, table_name=table)
