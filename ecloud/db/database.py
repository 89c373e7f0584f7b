"""Database engines made from the settings, and database errors in words that users can act on.

Owns no tables (`ecloud.db.schema`) and no migrations (`migrate` runs those of migrations/). Writes no row but the
schema's revision.
"""

from __future__ import annotations

import functools
import itertools
import math
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url

from datastore.problem import PartAway
from ecloud.config.settings import ROOT, Settings, SettingsWrong
from ecloud.db.schema import REVISION, metadata

BUSY_S = 10.0
"""How long a reader or writer of SQLite waits for another."""
CONNECT_S = 5
PING_AFTER_S = 1.0
ANSWER_S = 120.0
"""How long a server may take for one statement. A command that must answer soon asks for less."""
BACKUPS_KEPT = 5
_PACKAGED = Path(__file__).parent / "migrations"
MIGRATIONS = _PACKAGED if _PACKAGED.is_dir() else ROOT / "migrations"
"""Beside this file in an installed package; beside the packages in a checkout."""

BEGUN = "begun"
"""The revision of a database whose tables are being made."""
_REVISIONS = sa.Table(
    "alembic_version", sa.MetaData(), sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)  # fmt: skip
"""Alembic's own."""

_SESSION = "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', time_zone = '+00:00'"
"""Refuse values that do not fit instead of cutting them; report the server's clock in UTC."""


class DatabaseAway(PartAway):
    """The database cannot be used now: which, where, why, and what to do."""


class SchemaWrong(PartAway):
    """The tables have another version than this code. The text says what to run."""


def database_url(settings: Settings) -> URL:
    """The URL of the database: the setting, or SQLite in the home. Raises `SettingsWrong`."""
    if not settings.database_url:
        return URL.create("sqlite", database=str(settings.home_directory.database))
    example = "write it as mysql://USER:PASSWORD@HOST:3306/DATABASE or sqlite:////path/to/file"
    try:
        url = make_url(settings.database_url)
    except (sa.exc.ArgumentError, ValueError):  # their text would show the password
        raise SettingsWrong([f"DATABASE_URL cannot be read: {example}"]) from None
    kind = url.drivername
    if url.get_backend_name() not in ("sqlite", "mysql", "mariadb"):
        raise SettingsWrong([f"DATABASE_URL names {kind}; ECLOUD knows MySQL, MariaDB and SQLite: {example}"])
    if not url.database:
        raise SettingsWrong([f"DATABASE_URL names no database: {example}"])
    return url.set(drivername="mysql+pymysql") if kind in ("mysql", "mariadb", "mariadb+pymysql") else url


def make_engine(url: URL | str, answer_s: float = ANSWER_S) -> Engine:
    """An engine that connects at first use. Does not raise for a server that is away: see `explain`."""
    url = make_url(url)
    if url.get_backend_name() == "sqlite":
        engine = sa.create_engine(url, connect_args={"timeout": BUSY_S})
        sa.event.listen(engine, "connect", _set_pragmas)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    from pymysql.constants.CLIENT import FOUND_ROWS, MULTI_STATEMENTS  # here: an installation for SQLite lacks it

    arguments = {
        "connect_timeout": CONNECT_S,
        "read_timeout": answer_s,
        "write_timeout": answer_s,
        "charset": "utf8mb4",
        "init_command": _SESSION,
        "client_flag": FOUND_ROWS | MULTI_STATEMENTS,
    }
    # No ROLLBACK when a connection is returned: its transaction has ended, and each statement is a round trip.
    engine = sa.create_engine(url, connect_args=arguments, pool_recycle=3600, pool_reset_on_return=None)
    sa.event.listen(engine, "do_connect", _connect)
    sa.event.listen(engine, "checkin", _note_rest)
    sa.event.listen(engine, "checkout", _ping_after_rest)
    return engine


def _connect(dialect: object, record: object, arguments: Any, options: Any) -> Any:
    return _connection_class()(*arguments, **options)


@functools.cache
def _connection_class() -> Any:
    from pymysql.connections import Connection
    from pymysql.constants.SERVER_STATUS import SERVER_STATUS_IN_TRANS

    class OpenOnly(Connection):
        """Commits only if a transaction may be open: statements that end with a COMMIT need no further round trip."""

        def query(self, sql: Any, unbuffered: bool = False) -> Any:
            """Note that this may open a transaction: PyMySQL takes no status from the end of a list of rows, and a
            query that seemed to need no COMMIT would keep its snapshot for the next one."""
            self.server_status = getattr(self, "server_status", 0) | SERVER_STATUS_IN_TRANS
            return super().query(sql, unbuffered)

        def commit(self) -> None:
            """End the transaction that the server's last answer shows as open."""
            if getattr(self, "server_status", SERVER_STATUS_IN_TRANS) & SERVER_STATUS_IN_TRANS:
                super().commit()

    return OpenOnly


def _note_rest(connection: Any, record: Any) -> None:
    record.info["rests_since"] = time.monotonic()


def _ping_after_rest(connection: Any, record: Any, proxy: object) -> None:
    """Ping a connection that was idle, and replace it if it is dead. Trust one that was used just now."""
    if time.monotonic() - record.info.get("rests_since", -math.inf) < PING_AFTER_S:
        return
    try:
        connection.ping(False)
    except Exception as error:
        raise sa.exc.DisconnectionError from error


def _set_pragmas(connection: Any, record: object) -> None:
    connection.isolation_level = None  # we begin transactions ourselves
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA cache_size=-65536")
    cursor.execute("PRAGMA journal_size_limit=67108864")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the lock at once: after reading first it could lose it to another and fail for good.
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def database_now(connection: Connection) -> float:
    """Epoch seconds by the clock that writes `leader.renewed_at`: the server's, or ours for SQLite."""
    if connection.dialect.name == "sqlite":
        return time.time()
    return float(connection.exec_driver_sql("SELECT UNIX_TIMESTAMP(NOW(6))").scalar_one())


def where(url: URL) -> str:
    """The database for messages, without its password."""
    if url.get_backend_name() == "sqlite":
        return f"the SQLite file {url.database}"
    return f"the database {url.database} at {url.host or 'localhost'}:{url.port or 3306}"


_SERVER_ADVICE = {
    1040: "it has no connection left: raise its max_connections",
    1044: "grant the user rights on it",
    1045: "check the user and password in DATABASE_URL",
    1142: "grant the user rights on its tables",
    1146: "its tables are missing: python admin.py migrate",
    1153: "raise its max_allowed_packet to 16 MB or more",
    2003: "check DATABASE_URL and that the server runs",
    2005: "check the host in DATABASE_URL",
    2013: "check that the server runs",
}
_FILE_ADVICE = (
    ("no such table", "its tables are missing: python admin.py migrate"),
    ("not a database", "move it away, or put back one of the backups"),
    ("malformed", "put back one of the backups"),
    ("locked", "another process writes it; try again"),
    ("full", "make room on its disk"),
    ("", "check its directory, its disk and your rights"),
)


def database_away(error: BaseException, url: URL) -> DatabaseAway:
    """A database error for users: which database, what happened, what to do."""
    original = getattr(error, "orig", None) or error
    arguments: tuple[object, ...] = getattr(original, "args", ())
    text = str(arguments[1]) if len(arguments) > 1 else str(original)
    if url.get_backend_name() == "sqlite":
        advice: str | None = next(advice for words, advice in _FILE_ADVICE if words in text)
    elif arguments and arguments[0] == 1049:
        advice = f"make it: CREATE DATABASE {url.database}"
    else:
        advice = _SERVER_ADVICE.get(arguments[0] if arguments and isinstance(arguments[0], int) else -1)
    return DatabaseAway(f"{where(url)} cannot be used: {text}", advice or "")


def explain(error: BaseException, url: URL) -> str:
    """The same in one sentence."""
    return str(database_away(error, url))


# --- the tables' revision -------------------------------------------------------------------------


def present_revision(engine: Engine) -> str | None:
    """The schema's revision; None for an empty database. Raises `DatabaseAway`."""
    try:
        with engine.connect() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return None
            found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
            return None if found is None else str(found)
    except sa.exc.SQLAlchemyError as error:
        raise database_away(error, engine.url) from None


def require_schema(engine: Engine) -> None:
    """Raise `SchemaWrong` unless the tables have this code's revision."""
    _require(engine, present_revision(engine))


def _require(engine: Engine, present: str | None) -> None:
    if present == REVISION:
        return
    place = where(engine.url)
    if present is not None and present != BEGUN and present > REVISION:
        raise SchemaWrong(f"{place} has schema {present}, newer than {REVISION} of this ECLOUD", "update ECLOUD")
    state = "no tables yet" if present in (None, BEGUN) else f"schema {present}"
    raise SchemaWrong(f"{place} has {state}; this ECLOUD needs {REVISION}", "run python admin.py migrate")


def migrate(engine: Engine, backups: Path | None = None) -> str | None:
    """Make the tables of an empty database, or migrate them to this code's revision. An older SQLite file is first
    copied into `backups`; returns the copy's path.

    Continues what was interrupted. Raises `DatabaseAway`, and `SchemaWrong` for a database newer than this code or
    of an unknown revision.
    """
    present = present_revision(engine)
    if present == REVISION:
        return None
    try:
        if present == BEGUN or (present is None and _is_empty(engine)):
            _make_tables(engine, present)
            return None
    except sa.exc.SQLAlchemyError as error:
        raise database_away(error, engine.url) from None
    if present is not None and present > REVISION:
        _require(engine, present)
    backup = None
    if present is not None and engine.url.get_backend_name() == "sqlite" and backups is not None:
        try:
            backup = _back_up(Path(str(engine.url.database)), backups, present)
        except (OSError, sqlite3.Error) as error:
            text = f"{where(engine.url)} cannot be copied into {backups}: {error}; it was not changed"
            raise DatabaseAway(text, "make room there and check your rights") from None
    from alembic import command  # here, since it takes a quarter of a second to import
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    try:
        with engine.connect().execution_options(writes=True) as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
    except sa.exc.SQLAlchemyError as error:
        raise database_away(error, engine.url) from None
    except CommandError as error:
        raise SchemaWrong(
            f"{where(engine.url)} has schema {present}, which cannot be brought to {REVISION}: {error}"
        ) from None
    return backup


def _is_empty(engine: Engine) -> bool:
    return set(sa.inspect(engine).get_table_names()) <= {_REVISIONS.name}


def _make_tables(engine: Engine, present: str | None) -> None:
    """Make all tables as the code knows them. The migrations make the same ones in half a second of CPU."""
    with engine.connect().execution_options(writes=True) as connection:
        if present is None:
            _REVISIONS.create(connection, checkfirst=True)
            connection.execute(_REVISIONS.insert().values(version_num=BEGUN))
            connection.commit()
        metadata.create_all(connection)
        if present == BEGUN:  # a server keeps each statement: a table may be there without its indexes
            for index in itertools.chain.from_iterable(table.indexes for table in metadata.sorted_tables):
                index.create(connection, checkfirst=True)
        connection.execute(_REVISIONS.update().values(version_num=REVISION))
        connection.commit()


def _back_up(file: Path, backups: Path, revision: str) -> str:
    """Copy a whole SQLite file, even while others write. Deletes the oldest copies beyond `BACKUPS_KEPT`."""
    backups.mkdir(mode=0o700, parents=True, exist_ok=True)
    to = backups / f"ecloud-{revision}-{time.strftime('%Y%m%d-%H%M%S')}.db"
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(to)) as copy:
        source.backup(copy)
    to.chmod(0o600)
    for old in sorted(backups.glob("ecloud-*.db"), key=lambda path: path.stat().st_mtime)[:-BACKUPS_KEPT]:
        old.unlink()
    return str(to)
