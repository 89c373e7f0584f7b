"""SQL in the dialects of both databases, and the meaning of the drivers' errors for the boss. Knows no table.

One statement writes many rows (9 to 24 µs per outcome instead of 174).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from datastore.problem import PartAway
from ecloud.db.database import explain, where
from ecloud.db.schema import to_database

ROWS_A_STATEMENT = 1_000
DELETES_A_STATEMENT = 5_000
BYTES_A_STATEMENT = 256 * 1024
"""Maximum text in one statement of many rows. Escaping may double it, and it must stay below the smallest usual
max_allowed_packet of 1 MB."""
USUAL_PACKET_BYTES = 16 * 1024 * 1024
"""max_allowed_packet of MariaDB, and what `admin.py doctor` asks for."""
PACKET_MARGIN_BYTES = 64 * 1024
"""Part of a packet that is reserved for the statement around one long value."""
PIECES_A_PACKET = 16
"""A longer value is sent in pieces of this share of a packet: a row may have five long values, and escaping may double
each."""
SHORT_BYTES = 64
"""Texts of at most this length are encoded once: names of workers, labels, resources."""
NAME_CHARS = 16
"""Texts of at most this length that are no bytes are encoded once: states and conditions."""
_RESERVED = frozenset({"signal"})


class StoreAway(PartAway):
    """The database cannot be written now. The same batch is committed again later."""


class CommitRefused(Exception):
    """The database will never accept this batch. A bug: the boss restarts its core from the store."""


class Statements:
    """SQL for one dialect. Each text is built once."""

    def __init__(self, dialect: str) -> None:
        self.sqlite = dialect == "sqlite"
        self._dialect = dialect
        self._made: dict[object, str] = {}
        self.packet_bytes = USUAL_PACKET_BYTES
        """The server's max_allowed_packet, which limits statements and values."""
        self.for_update = "" if self.sqlite else " FOR UPDATE"

    @property
    def value_bytes(self) -> int | None:
        """The longest value that can be stored; None without a limit."""
        return None if self.sqlite else self.packet_bytes - PACKET_MARGIN_BYTES

    @property
    def piece_bytes(self) -> int:
        """Longer values are sent in pieces of this size."""
        return self.packet_bytes // PIECES_A_PACKET

    def too_long(self, what: str, size: int) -> CommitRefused:
        """The error for a value that is longer than `value_bytes`."""
        return CommitRefused(
            f"{what} has {size:,} bytes and the database takes at most {self.value_bytes:,}: raise its "
            f"max_allowed_packet (now {self.packet_bytes:,}) to {USUAL_PACKET_BYTES:,} or more and restart the boss"
        )

    def __call__(self, sql: str) -> str:
        """Replace question marks by this driver's placeholders."""
        return sql if self.sqlite else sql.replace("?", "%s")

    def text(self, text: str) -> str | bytes:
        """A text as this driver expects it."""
        return to_database(text, self._dialect)

    def clock(self, now: float) -> str:
        """SQL of the clock that measures a leader's silence: the server's, since machines' clocks differ; `now` for
        SQLite."""
        return repr(float(now)) if self.sqlite else "UNIX_TIMESTAMP(NOW(6))"

    def insert(self, table: str, columns: Sequence[str]) -> str:
        """Insert a new row."""
        return self._cached((table, columns), lambda: self._insert(table, columns))

    def insert_missing(self, table: str, columns: Sequence[str]) -> str:
        """Insert a row unless it exists."""
        return self._insert(table, columns).replace("INSERT", "INSERT OR IGNORE" if self.sqlite else "INSERT IGNORE", 1)

    def upsert(self, table: str, columns: Sequence[str], key: Sequence[str]) -> str:
        """Insert or update a row. `VALUES()` keeps PyMySQL's way of joining rows into one statement."""
        return self._cached((table, columns, key), lambda: self._upsert(table, columns, key))

    def _insert(self, table: str, columns: Sequence[str]) -> str:
        marks = ", ".join("?" * len(columns))
        return self(f"INSERT INTO {table} ({', '.join(_quoted(columns))}) VALUES ({marks})")

    def _upsert(self, table: str, columns: Sequence[str], key: Sequence[str]) -> str:
        others = [column for column in _quoted(columns) if column not in key] or list(key)
        if self.sqlite:
            changes = ", ".join(f"{column} = excluded.{column}" for column in others)
            return self._insert(table, columns) + f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET {changes}"
        changes = ", ".join(f"{column} = VALUES({column})" for column in others)
        return self._insert(table, columns) + f" ON DUPLICATE KEY UPDATE {changes}"

    def _cached(self, key: object, make: Callable[[], str]) -> str:
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = make()
        return made


def _quoted(columns: Sequence[str]) -> list[str]:
    """Quote column names: MySQL reserves `signal`; SQLite accepts backticks too."""
    return [f"`{column}`" if column in _RESERVED else column for column in columns]


class StatementQueue:
    """The writing statements of one transaction. MySQL and MariaDB get them together, at most `BYTES_A_STATEMENT` in a
    packet: a round trip costs more than most statements. SQLite executes each immediately.

    Methods raise the errors of SQLAlchemy; a statement's error may appear in a later call.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._cursor = None if connection.dialect.name == "sqlite" else connection.connection.cursor()
        self._texts: list[str] = []
        self._bytes = 0

    def execute(self, statement: str, values: Sequence[Any] = ()) -> None:
        """Execute one statement, soon."""
        if self._cursor is None:
            self._connection.exec_driver_sql(statement, tuple(values))
            return
        text: str = self._cursor.mogrify(statement, values)
        if self._texts and self._bytes + len(text) > BYTES_A_STATEMENT:
            self.flush()
        self._texts.append(text)
        self._bytes += len(text)

    def write_many(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Write all rows in one statement, or a few if they are many or long."""
        if not rows:
            return
        if self._cursor is None:
            self._connection.exec_driver_sql(statement, list(rows))
        elif " VALUES (" in statement:
            for text in _as_text(statement, rows):
                self.execute(text)
        else:
            for row in rows:
                self.execute(statement, row)

    def delete_rows(self, table: str, column: str, numbers: Sequence[int]) -> None:
        """Delete by numbers, in bounded statements. Numbers are written as text: thousands of placeholders cost
        more."""
        for start in range(0, len(numbers), DELETES_A_STATEMENT):
            part = in_list(numbers[start : start + DELETES_A_STATEMENT])
            self.execute(f"DELETE FROM {table} WHERE {column} IN ({part})")

    def query(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """The rows of a query, after the statements so far."""
        self.flush()
        return list(self._connection.exec_driver_sql(statement, tuple(values)))

    def commit(self) -> None:
        """Commit together with what is left. (The connection then has no transaction to commit; see `make_engine`.)"""
        if self._cursor is not None:
            self._texts.append("COMMIT")
            self.flush()

    def flush(self) -> None:
        """Execute what is left."""
        if self._cursor is None or not self._texts:
            return
        text, self._texts, self._bytes = ";".join(self._texts), [], 0
        dbapi = self._connection.dialect.dbapi
        assert dbapi is not None
        try:
            self._cursor.execute(text)
            while self._cursor.nextset():
                pass
        except dbapi.Error as error:
            if self._connection.dialect.is_disconnect(error, None, None):
                self._connection.invalidate(error)
            raise sa.exc.DBAPIError.instance(text[:200], None, error, dbapi.Error) from error


def _as_text(statement: str, rows: Sequence[tuple[Any, ...]]) -> Iterator[str]:
    """Statements with values as text: a placeholder costs PyMySQL more than the value itself."""
    head, _, tail = statement.partition(" VALUES (")
    tail = tail[tail.index(")") + 1 :]
    texts: list[str] = []
    size = 0
    for row in rows:
        text = ",".join([_LITERALS[type(value)](value) for value in row])
        if texts and (len(texts) >= ROWS_A_STATEMENT or size + len(text) > 2 * BYTES_A_STATEMENT):
            yield f"{head} VALUES ({'),('.join(texts)}){tail}"
            texts, size = [], 0
        texts.append(text)
        size += len(text)
    yield f"{head} VALUES ({'),('.join(texts)}){tail}"


@functools.lru_cache(maxsize=1_000)
def _of_float(value: float) -> str:
    """Cached: most are times of the batch, and zeros."""
    text = repr(value)
    if text[-1] in "fn":
        raise OverflowError(f"{text} is not a number that a database takes")
    return text


@functools.cache
def _escape() -> Callable[[str], str]:
    """PyMySQL's own; imported when MySQL is the database, as an installation for SQLite comes without it."""
    from pymysql.converters import escape_string

    return escape_string


def _of_text(value: str) -> str:
    return _of_name(value) if len(value) <= NAME_CHARS else _quoted_text(value)


@functools.lru_cache(maxsize=1_000)
def _of_name(value: str) -> str:
    return _quoted_text(value)


def _quoted_text(value: str) -> str:
    return "'" + _escape()(value).replace("%", "%%") + "'"


@functools.lru_cache(maxsize=10_000)
def _of_short(value: bytes) -> str:
    return f"X'{value.hex()}'"


def _of_bytes(value: bytes) -> str:
    return _of_short(value) if len(value) <= SHORT_BYTES else f"X'{value.hex()}'"


_LITERALS: dict[type, Callable[[Any], str]] = {
    int: repr,
    float: _of_float,
    bytes: _of_bytes,
    str: _of_text,
    type(None): lambda value: "NULL",
}
"""How to write a value in a statement for MySQL or MariaDB, by its type."""


def in_list(numbers: Sequence[int]) -> str:
    """Whole numbers separated by commas."""
    return ",".join(map(str, map(int, numbers)))


@contextmanager
def transaction(engine: Engine, writes: bool = True) -> Iterator[Connection]:
    """Begin and commit. Turns the driver's errors into `StoreAway` (the commit can be repeated) or `CommitRefused`."""
    try:
        with engine.connect() as connection:
            if writes and engine.dialect.name == "sqlite":
                connection = connection.execution_options(writes=True)
            with connection.begin():
                yield connection
    except sa.exc.SQLAlchemyError as error:
        sentence = explain(error, engine.url)
        if _is_ours(error):
            raise CommitRefused(sentence) from error
        raise StoreAway(sentence) from error
    except (OverflowError, UnicodeError) as error:  # the driver cannot send a value
        raise CommitRefused(f"{where(engine.url)} cannot take a value: {error}") from error


def read(engine: Engine, query: str, values: Sequence[Any] = ()) -> list[Any]:
    """The rows of one query, which is a transaction of its own. Errors as of `transaction`."""
    with transaction(engine, writes=False) as connection:
        end = "" if engine.dialect.name == "sqlite" else ";COMMIT"  # in the same packet
        return list(connection.exec_driver_sql(query + end, tuple(values)))


_TOO_LARGE = frozenset({1153, 1301})
"""A packet, or the result of CONCAT, exceeds max_allowed_packet."""


def _is_ours(error: sa.exc.SQLAlchemyError) -> bool:
    """Whether trying again cannot help because the data or the statement is wrong."""
    if isinstance(error, (sa.exc.DataError, sa.exc.IntegrityError, sa.exc.ProgrammingError, sa.exc.NotSupportedError)):
        return True
    original = getattr(error, "orig", None)
    return bool(original is not None and original.args and original.args[0] in _TOO_LARGE)
