"""The tables as they are now; migrations/ has their history. `queries` reads them; only the boss writes them.

Users' texts are stored as UTF-8 bytes (VARBINARY, BLOB) on MySQL and MariaDB: compared byte by byte, not padded, any
Unicode. Times are epoch seconds by the boss's clock.
"""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

REVISION = "0015"
"""The migration that this code needs (migrations/versions)."""


class Utf8(TypeDecorator[str]):
    """A text of at most `chars` characters (None: up to 16 MB) that compares by byte."""

    impl = sa.Text
    cache_ok = True

    def __init__(self, chars: int | None = None) -> None:
        super().__init__()
        self.chars = chars

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """VARBINARY or MEDIUMBLOB on MySQL, TEXT (which compares by byte) on SQLite."""
        if dialect.name == "sqlite":
            return dialect.type_descriptor(sa.Text())
        kind: TypeEngine[Any] = mysql.MEDIUMBLOB() if self.chars is None else mysql.VARBINARY(4 * self.chars)
        return dialect.type_descriptor(kind)

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:
        """To the driver."""
        return value if value is None else to_database(value, dialect.name)

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        """From the driver."""
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def to_database(text: str, dialect_name: str) -> str | bytes:
    """A text for the driver. Invalid Unicode is replaced, so that no row can make its batch fail."""
    data = text.encode("utf-8", "replace")
    return data.decode() if dialect_name == "sqlite" else data


_BLOB = sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
_TIME: TypeEngine[float] = sa.Double()
_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_STATE = sa.String(10).with_variant(mysql.CHAR(10, charset="ascii"), "mysql", "mariadb")
"""Of one length in every row: a move then changes its row in place, and splits no page."""
_OPTIONS: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4"}

metadata = sa.MetaData()

context = sa.Table(
    "context", metadata,
    sa.Column("name", Utf8(100), primary_key=True),
    sa.Column("value", Utf8(), nullable=False),
    **_OPTIONS,
)  # fmt: skip

leader = sa.Table(
    "leader", metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("epoch", _NUMBER, nullable=False),
    sa.Column("batch", _NUMBER, nullable=False),
    sa.Column("holder", Utf8(255), nullable=False),
    sa.Column("since", _TIME, nullable=False),
    sa.Column("renewed_at", _TIME, nullable=False),
    sa.Column("next_task_no", _NUMBER, nullable=False),
    sa.Column("next_run_no", _NUMBER, nullable=False),
    sa.Column("next_vm_no", _NUMBER, nullable=False),
    **_OPTIONS,
)  # fmt: skip

epochs = sa.Table(
    "epochs", metadata,
    sa.Column("epoch", _NUMBER, primary_key=True, autoincrement=False),
    sa.Column("batch", _NUMBER, nullable=False),
    **_OPTIONS,
)  # fmt: skip

runs = sa.Table(
    "runs", metadata,
    sa.Column("run_no", _NUMBER, primary_key=True, autoincrement=False),
    sa.Column("name", Utf8(255), nullable=False, unique=True),
    sa.Column("created_at", _TIME, nullable=False),
    sa.Column("held", Utf8(), nullable=False),
    sa.Column("ended_at", _TIME),
    **_OPTIONS,
)  # fmt: skip

pushes = sa.Table(
    "pushes", metadata,
    sa.Column("push_id", Utf8(64), primary_key=True),
    sa.Column("run_no", _NUMBER, nullable=False, index=True),
    sa.Column("states", Utf8(), nullable=False),
    sa.Column("decisions", Utf8(), nullable=False),
    sa.Column("answered_at", _TIME),
    **_OPTIONS,
)  # fmt: skip

tasks = sa.Table(
    "tasks", metadata,
    sa.Column("task_no", _NUMBER, primary_key=True, autoincrement=False),
    sa.Column("run_no", _NUMBER, nullable=False),
    sa.Column("id", Utf8(255), nullable=False),
    sa.Column("state", _STATE, nullable=False),
    sa.Column("reason", Utf8(), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("retries_used", sa.Integer, nullable=False),
    sa.Column("not_before", _TIME, nullable=False),
    sa.Column("changed_at", _TIME, nullable=False),
    sa.Column("init", sa.SmallInteger, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("asks", Utf8(), nullable=False),
    sa.Column("runtime_s", _TIME),
    sa.Column("labels", Utf8(), nullable=False),
    sa.Column("retries", Utf8(), nullable=False),
    sa.Column("keep_dir", sa.SmallInteger, nullable=False),
    sa.Column("body_bytes", sa.Integer, nullable=False),
    sa.Column("definition_hash", sa.String(32), nullable=False),
    sa.Column("inputs", Utf8()),
    sa.Column("makes", sa.SmallInteger, nullable=False, server_default="2"),
    sa.UniqueConstraint("run_no", "id", name="tasks_id"),
    sa.Index("tasks_in_state", "state", "run_no", "init"),
    **_OPTIONS,
)  # fmt: skip

TASK, INIT, ARRAY = 0, 1, 2
"""What `tasks.init` says a row is."""

arrays = sa.Table(
    "arrays", metadata,
    sa.Column("task_no", _NUMBER, primary_key=True, autoincrement=False),
    sa.Column("run_no", _NUMBER, nullable=False, index=True),
    sa.Column("first_no", _NUMBER, nullable=False),
    sa.Column("indices", Utf8(), nullable=False),
    sa.Column("pending", Utf8(), nullable=False),
    sa.Column("pending_count", sa.Integer, nullable=False),
    sa.Column("pending_state", sa.String(10), nullable=False),
    sa.Column("states", Utf8(), nullable=False),
    sa.Column("each_of", Utf8(), nullable=False),
    **_OPTIONS,
)  # fmt: skip

array_entries = sa.Table(
    "array_entries", metadata,
    sa.Column("task_no", _NUMBER, primary_key=True, autoincrement=False),
    sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("entries", _BLOB, nullable=False),
    **_OPTIONS,
)  # fmt: skip

definitions = sa.Table(
    "definitions", metadata,
    sa.Column("task_no", _NUMBER, primary_key=True, autoincrement=False),
    sa.Column("definition", _BLOB, nullable=False),
    **_OPTIONS,
)  # fmt: skip

dependencies = sa.Table(
    "dependencies", metadata,
    sa.Column("task_no", _NUMBER, primary_key=True, autoincrement=False),
    sa.Column("on_task_no", _NUMBER, primary_key=True, autoincrement=False),
    sa.Column("met_by", sa.String(8), nullable=False),
    sa.Index("dependencies_backwards", "on_task_no"),
    **_OPTIONS,
)  # fmt: skip

attempts = sa.Table(
    "attempts", metadata,
    sa.Column("task_no", _NUMBER, primary_key=True, autoincrement=False),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("run_no", _NUMBER, nullable=False),
    sa.Column("worker", Utf8(64), nullable=False),
    sa.Column("state", _STATE, nullable=False),
    sa.Column("assigned_at", _TIME, nullable=False),
    sa.Column("started_at", _TIME),
    sa.Column("ended_at", _TIME),
    sa.Column("reason", Utf8()),
    sa.Column("cause", sa.String(12)),
    sa.Column("exit_code", sa.Integer),
    sa.Column("signal", sa.Integer),
    sa.Column("error", Utf8()),
    sa.Column("command", Utf8()),
    sa.Column("stdout", Utf8()),
    sa.Column("stderr", Utf8()),
    sa.Column("fetch_s", _TIME),
    sa.Column("run_s", _TIME),
    sa.Column("store_s", _TIME),
    sa.Column("max_rss_mb", _TIME),
    sa.Column("manifest", _BLOB),
    sa.Column("fetch_bytes", sa.BigInteger),
    sa.Column("cached_bytes", sa.BigInteger),
    sa.Column("value", _BLOB),
    sa.Column("stamps", _BLOB),
    sa.Column("asks", Utf8()),
    sa.Index("attempts_in_state", "state", "ended_at"),
    **_OPTIONS,
)  # fmt: skip

workers = sa.Table(
    "workers", metadata,
    sa.Column("worker", Utf8(64), primary_key=True),
    sa.Column("key_name", Utf8(64), nullable=False),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("since", _TIME, nullable=False),
    sa.Column("heard_at", _TIME, nullable=False),
    sa.Column("hello", _BLOB, nullable=False),
    sa.Column("vm_no", _NUMBER),
    sa.Column("reason", Utf8(), nullable=False),
    sa.Column("trouble", Utf8(), nullable=False),
    sa.Column("lane_since", _TIME),
    sa.Column("lane_wanted_since", _TIME),
    sa.Column("moving", Utf8()),
    sa.Column("moving_at", _TIME),
    sa.Column("killed_at", _TIME),
    sa.Index("workers_by_state", "state"),
    **_OPTIONS,
)  # fmt: skip

vms = sa.Table(
    "vms", metadata,
    sa.Column("vm_no", _NUMBER, primary_key=True, autoincrement=False),
    sa.Column("pool", Utf8(64), nullable=False),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("since", _TIME, nullable=False),
    sa.Column("size", Utf8(), nullable=False),
    sa.Column("boot_nonce", Utf8(64), nullable=False),
    sa.Column("cloud_id", Utf8(128), nullable=False),
    sa.Column("worker", Utf8(64), nullable=False),
    sa.Column("keep_alive", sa.SmallInteger, nullable=False),
    sa.Column("reason", Utf8(), nullable=False),
    sa.Column("intended_at", _TIME, nullable=False),
    sa.Column("hello_at", _TIME),
    sa.Column("gone_at", _TIME),
    sa.Column("started_at", _TIME),
    sa.Column("first_task_at", _TIME),
    sa.Column("ending_at", _TIME),
    sa.Column("end_asked", sa.Integer, nullable=False, server_default="0"),
    sa.Column("cause", sa.String(16), nullable=False, server_default=""),
    sa.Column("said", Utf8()),
    sa.Index("vms_by_state", "state"),
    **_OPTIONS,
)  # fmt: skip

pools = sa.Table(
    "pools", metadata,
    sa.Column("pool", Utf8(64), primary_key=True),
    sa.Column("closed", Utf8(), nullable=False),
    sa.Column("since", _TIME),
    sa.Column("until", _TIME),
    sa.Column("boots", sa.Integer, nullable=False),
    sa.Column("boot_s_p50", _TIME, nullable=False),
    sa.Column("boot_s_p95", _TIME, nullable=False),
    **_OPTIONS,
)  # fmt: skip

boots = sa.Table(
    "boots", metadata,
    sa.Column("vm_no", _NUMBER, primary_key=True, autoincrement=False),
    sa.Column("address", Utf8(), nullable=False),
    sa.Column("host_key", Utf8(), nullable=False),
    sa.Column("steps", Utf8(), nullable=False),
    sa.Column("visit", Utf8()),
    **_OPTIONS,
)  # fmt: skip

revoked_keys = sa.Table("revoked_keys", metadata, sa.Column("name", Utf8(64), primary_key=True), **_OPTIONS)

suspects = sa.Table(
    "suspects", metadata,
    sa.Column("task_no", _NUMBER, primary_key=True, autoincrement=False),
    sa.Column("run_no", _NUMBER, nullable=False),
    sa.Column("lost", sa.Integer, nullable=False),
    sa.Column("failed", sa.SmallInteger, nullable=False),
    sa.Column("reason", Utf8(), nullable=False),
    sa.Column("at", _TIME, nullable=False),
    **_OPTIONS,
)  # fmt: skip

archived_runs = sa.Table(
    "archived_runs", metadata,
    sa.Column("run_no", _NUMBER, primary_key=True, autoincrement=False),
    sa.Column("name", Utf8(255), nullable=False),
    sa.Column("created_at", _TIME, nullable=False),
    sa.Column("ended_at", _TIME),
    sa.Column("states", Utf8(), nullable=False),
    **_OPTIONS,
)  # fmt: skip


# --- how rows are asked for and read ------------------------------------------------------------


def is_listed() -> sa.ColumnElement[bool]:
    """Which rows of `tasks` a list shows: an array only where it stands for elements that have no rows."""
    unmade = sa.select(arrays.c.task_no).where(arrays.c.pending_count > 0)
    return sa.or_(tasks.c.init != ARRAY, tasks.c.task_no.in_(unmade))


def labelled(label: str) -> sa.ColumnElement[bool]:
    """Tasks with that label. Labels are stored as a JSON list."""
    text = msgspec.json.encode(label.encode("utf-8", "replace").decode()).decode()
    return sa.func.instr(tasks.c.labels, sa.bindparam(None, text, type_=Utf8())) > 0


def vm_values(row: Any) -> dict[str, Any]:
    """A whole row of `vms` by column name."""
    size, keep_alive = msgspec.json.decode(row.size), bool(row.keep_alive)
    return {**row._mapping, "size": size, "keep_alive": keep_alive, "said": row.said or ""}
