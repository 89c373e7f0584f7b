"""From settings to a database that can be asked: engines, their pragmas, the schema's revision, and errors in words."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url

from ecloud.schema import REVISION
from ecloud.settings import ROOT, Settings

BUSY_S = 10.0
"""How long a reader or writer of SQLite waits for another."""
CONNECT_S = 5
MIGRATIONS = ROOT / "migrations"


class DatabaseAway(Exception):
    """The database can't be asked now: which, where, why, and what to do."""


class SchemaWrong(Exception):
    """The tables are of another version than this code; the text says what to run."""


def database_url(settings: Settings) -> URL:
    """Where the tables are: the setting, or SQLite in the home."""
    if settings.database_url:
        url = make_url(settings.database_url)
        return url.set(drivername="mysql+pymysql") if url.drivername in ("mysql", "mariadb") else url
    return URL.create("sqlite", database=str(settings.home_directory.database))


def make_engine(url: URL | str) -> Engine:
    """An engine that connects when first asked. Raises nothing for a server that is away: see `explain`."""
    url = make_url(url)
    if url.get_backend_name() == "sqlite":
        engine = sa.create_engine(url, connect_args={"timeout": BUSY_S})
        sa.event.listen(engine, "connect", _set_pragmas)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    arguments = {"connect_timeout": CONNECT_S, "read_timeout": 120, "write_timeout": 120, "charset": "utf8mb4"}
    return sa.create_engine(url, connect_args=arguments, pool_pre_ping=True, pool_recycle=3600)


def _set_pragmas(connection: Any, record: object) -> None:
    connection.isolation_level = None  # transactions are ours to begin
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA cache_size=-65536")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the lock at once: one that reads first could lose it to another and fail for good.
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def where(url: URL) -> str:
    """The database in words, without its password."""
    if url.get_backend_name() == "sqlite":
        return f"the SQLite file {url.database}"
    return f"the database {url.database} at {url.host or 'localhost'}:{url.port or 3306}"


def explain(error: BaseException, url: URL) -> str:
    """One sentence on a database error: which database, what happened, what to do."""
    original = getattr(error, "orig", None) or error
    code = original.args[0] if getattr(original, "args", None) else None
    text = str(original.args[1]) if len(getattr(original, "args", ())) > 1 else str(original)
    advice = {
        1045: "check the user and password in DATABASE_URL",
        1044: "grant the user rights on it",
        1049: f"make it: CREATE DATABASE {url.database}",
        2003: "check DATABASE_URL and that the server runs",
        2005: "check the host in DATABASE_URL",
        1146: "its tables are missing: python admin.py migrate",
    }.get(code if isinstance(code, int) else -1)
    if url.get_backend_name() == "sqlite":
        advice = "its tables are missing: start the boss once" if "no such table" in text else "check the disk and its rights"
    return f"{where(url)} can't be used: {text}" + (f"; {advice}" if advice else "")


def present_revision(engine: Engine) -> str | None:
    """The schema's revision; None for an empty database. Raises `DatabaseAway`."""
    try:
        with engine.connect() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return None
            return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    except sa.exc.SQLAlchemyError as error:
        raise DatabaseAway(explain(error, engine.url)) from None


def require_schema(engine: Engine) -> None:
    """Raises `SchemaWrong` unless the tables are of this code's revision."""
    present = present_revision(engine)
    if present == REVISION:
        return
    if present is not None and present > REVISION:
        raise SchemaWrong(f"{where(engine.url)} has schema {present}, newer than {REVISION} of this ECLOUD: update ECLOUD")
    state = f"schema {present}" if present else "no tables yet"
    raise SchemaWrong(f"{where(engine.url)} has {state}; this ECLOUD needs {REVISION}: run python admin.py migrate")


def migrate(engine: Engine, backups: Path | None = None) -> str | None:
    """Bring the tables to this code's revision; an existing SQLite file is copied into `backups` first. The backup's path.

    Raises `DatabaseAway`, or `SchemaWrong` for a database newer than this code.
    """
    present = present_revision(engine)
    if present == REVISION:
        return None
    if present is not None and present > REVISION:
        require_schema(engine)
    backup = None
    if present is not None and engine.url.get_backend_name() == "sqlite" and backups is not None:
        backup = str(backups / f"ecloud-{present}-{time.strftime('%Y%m%d-%H%M%S')}.db")
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copy2(str(engine.url.database), backup)
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    try:
        with engine.connect().execution_options(writes=True) as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
    except sa.exc.SQLAlchemyError as error:
        raise DatabaseAway(explain(error, engine.url)) from None
    return backup
