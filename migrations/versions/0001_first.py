"""The first schema, frozen: what this file makes never changes again, whatever `ecloud.db.schema` becomes.

MySQL and MariaDB commit each statement that makes a table or an index, so a migration may be cut off half-way. Each
step looks first whether it is done.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeEngine

revision = "0001"
down_revision = None

_LONG_TEXT = sa.Text().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
_BYTES = sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
_TIME: TypeEngine[float] = sa.Double()
_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables and indexes that are not there."""
    tables = sa.MetaData()
    _tables_of_the_cluster(tables)
    _tables_of_tasks(tables)
    _tables_of_machines(tables)
    connection = op.get_bind()
    for table in tables.tables.values():
        table.create(connection, checkfirst=True)
        for index in table.indexes:
            index.create(connection, checkfirst=True)


def _text(chars: int) -> TypeEngine[str]:
    """A text that compares by byte; a character may take four."""
    return sa.Text().with_variant(mysql.VARBINARY(4 * chars), "mysql", "mariadb")


def _table(tables: sa.MetaData, name: str, *parts: Any) -> None:
    sa.Table(name, tables, *parts, mysql_engine="InnoDB", mysql_charset="utf8mb4")


def _key(name: str, kind: TypeEngine[Any] = _NUMBER) -> sa.Column[Any]:
    return sa.Column(name, kind, primary_key=True, autoincrement=False)


def _column(name: str, kind: TypeEngine[Any]) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=False)


def _tables_of_the_cluster(tables: sa.MetaData) -> None:
    _table(tables, "context", _key("name", _text(100)), _column("value", _LONG_TEXT))
    _table(
        tables, "leader",
        _key("id", sa.Integer()), _column("epoch", _NUMBER), _column("batch", _NUMBER), _column("holder", _text(255)),
        _column("since", _TIME), _column("renewed_at", _TIME), _column("next_task_no", _NUMBER),
        _column("next_run_no", _NUMBER), _column("next_vm_no", _NUMBER),
    )  # fmt: skip
    _table(tables, "revoked_keys", _key("name", _text(64)))
    _table(
        tables, "archived_runs",
        _key("run_no"), _column("name", _text(255)), _column("created_at", _TIME), sa.Column("ended_at", _TIME),
        _column("states", _LONG_TEXT),
    )  # fmt: skip


def _tables_of_tasks(tables: sa.MetaData) -> None:
    _table(
        tables, "runs",
        _key("run_no"), sa.Column("name", _text(255), nullable=False, unique=True), _column("created_at", _TIME),
        _column("held", _LONG_TEXT), sa.Column("ended_at", _TIME),
    )  # fmt: skip
    _table(
        tables, "pushes",
        _key("push_id", _text(64)), sa.Column("run_no", _NUMBER, nullable=False, index=True),
        _column("states", _LONG_TEXT), _column("decisions", _LONG_TEXT),
    )  # fmt: skip
    _table(
        tables, "tasks",
        _key("task_no"), _column("run_no", _NUMBER), _column("id", _text(255)), _column("state", sa.String(10)),
        _column("reason", _LONG_TEXT), _column("attempts", sa.Integer()), _column("retries_used", sa.Integer()),
        _column("not_before", _TIME), _column("changed_at", _TIME), _column("init", sa.SmallInteger()),
        _column("priority", sa.Integer()), _column("asks", _LONG_TEXT), sa.Column("runtime_s", _TIME),
        _column("labels", _LONG_TEXT), _column("retries", _LONG_TEXT), _column("keep_dir", sa.SmallInteger()),
        _column("body_bytes", sa.Integer()), _column("definition_hash", sa.String(32)),
        sa.UniqueConstraint("run_no", "id", name="tasks_id"),
        sa.Index("tasks_by_state", "run_no", "init", "state"), sa.Index("tasks_unfinished", "state"),
    )  # fmt: skip
    _table(tables, "definitions", _key("task_no"), _column("definition", _BYTES))
    _table(
        tables, "dependencies",
        _key("task_no"), _key("on_task_no"), _column("met_by", sa.String(8)),
        sa.Index("dependencies_backwards", "on_task_no"),
    )  # fmt: skip
    _table(
        tables, "attempts",
        _key("task_no"), _key("number", sa.Integer()), _column("run_no", _NUMBER), _column("worker", _text(64)),
        _column("state", sa.String(10)), _column("assigned_at", _TIME), sa.Column("started_at", _TIME),
        sa.Column("ended_at", _TIME), sa.Column("reason", _LONG_TEXT), sa.Column("cause", sa.String(12)),
        sa.Column("exit_code", sa.Integer()), sa.Column("signal", sa.Integer()), sa.Column("error", _LONG_TEXT),
        sa.Column("command", _LONG_TEXT), sa.Column("stdout", _LONG_TEXT), sa.Column("stderr", _LONG_TEXT),
        sa.Column("fetch_s", _TIME), sa.Column("run_s", _TIME), sa.Column("store_s", _TIME),
        sa.Column("max_rss_mb", _TIME), sa.Column("manifest", _BYTES),
        sa.Index("attempts_by_state", "state"), sa.Index("attempts_by_end", "ended_at"),
    )  # fmt: skip


def _tables_of_machines(tables: sa.MetaData) -> None:
    _table(
        tables, "workers",
        _key("worker", _text(64)), _column("key_name", _text(64)), _column("state", sa.String(10)),
        _column("since", _TIME), _column("heard_at", _TIME), _column("hello", _BYTES), sa.Column("vm_no", _NUMBER),
        _column("reason", _LONG_TEXT), _column("trouble", _LONG_TEXT), sa.Index("workers_by_state", "state"),
    )  # fmt: skip
    _table(
        tables, "vms",
        _key("vm_no"), _column("pool", _text(64)), _column("state", sa.String(10)), _column("since", _TIME),
        _column("size", _LONG_TEXT), _column("boot_nonce", _text(64)), _column("cloud_id", _text(128)),
        _column("worker", _text(64)), _column("keep_alive", sa.SmallInteger()), _column("reason", _LONG_TEXT),
        _column("intended_at", _TIME), sa.Column("hello_at", _TIME), sa.Column("gone_at", _TIME),
        sa.Index("vms_by_state", "state"),
    )  # fmt: skip
