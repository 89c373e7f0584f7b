"""The tables as the code knows them and as the migrations make them are the same; ids compare by byte."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Engine

from ecloud.config.settings import Settings, SettingsWrong
from ecloud.db import schema
from ecloud.db.database import (
    MIGRATIONS,
    DatabaseAway,
    SchemaWrong,
    database_url,
    make_engine,
    migrate,
    present_revision,
    require_schema,
    where,
)


@pytest.fixture(params=["sqlite", "mariadb"])
def new_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Engine]]:
    """Makes databases without any table, both kinds in turn."""
    made: list[Engine] = []

    def new() -> Engine:
        is_file = request.param == "sqlite"
        url = f"sqlite:///{tmp_path}/{len(made)}.db" if is_file else request.getfixturevalue("mariadb").new_url()
        made.append(make_engine(url))
        return made[-1]

    yield new
    for engine in made:
        engine.dispose()


@pytest.fixture
def empty_engine(new_engine: Callable[[], Engine]) -> Engine:
    """A database without any table, both kinds in turn."""
    return new_engine()


def test_the_migrations_make_the_tables_that_the_code_knows(empty_engine: Engine) -> None:
    add_another_table(empty_engine)
    migrate(empty_engine)
    assert differences(empty_engine) == []


def add_another_table(engine: Engine) -> None:
    """A table that is not ECLOUD's: the database is not empty, so the migrations make the tables."""
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE another_program (number INTEGER)")


def test_a_new_database_has_exactly_the_tables_that_the_migrations_make(new_engine: Callable[[], Engine]) -> None:
    """Its tables are made at once; an older database becomes the same."""
    new, older = new_engine(), new_engine()
    add_another_table(older)
    migrate(older)
    migrate(new)
    add_another_table(new)
    assert definitions(new) == definitions(older)


def definitions(engine: Engine) -> dict[str, str]:
    """The definition of each table and index, as the database prints it."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            found = connection.exec_driver_sql("SELECT type || ' ' || name, sql FROM sqlite_master").fetchall()
        else:
            tables = sa.inspect(connection).get_table_names()
            found = [connection.exec_driver_sql(f"SHOW CREATE TABLE {table}").one() for table in tables]
        return {name: re.sub(r"\s*([,()])\s*", r"\1", " ".join((text or "").split())) for name, text in found}


def differences(engine: Engine) -> list[object]:
    """Between the tables there and those that the code knows: columns, types, indexes, unique names."""
    options = {"compare_type": True}
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection, opts=options), schema.metadata)
        return [change for change in found if not re.search("alembic_version|another_program", str(change))]


def test_the_code_asks_for_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    assert ScriptDirectory.from_config(config).get_current_head() == schema.REVISION


def test_migrating_twice_changes_nothing(engine: Engine, tmp_path: Path) -> None:
    assert migrate(engine, tmp_path) is None
    assert present_revision(engine) == schema.REVISION
    require_schema(engine)


def test_a_migration_that_was_cut_off_can_be_run_again(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE alembic_version")
        connection.exec_driver_sql("DROP TABLE vms")
        connection.exec_driver_sql("DROP TABLE attempts")
    migrate(engine)
    assert {"vms", "attempts"} <= set(sa.inspect(engine).get_table_names())


class PowerCut(Exception):
    """The process that migrates is gone."""


def test_a_migration_may_be_cut_off_at_any_of_its_statements(empty_engine: Engine) -> None:
    add_another_table(empty_engine)
    assert cut_off_and_repeat(empty_engine, 3) >= 3
    assert differences(empty_engine) == []


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_new_database_may_be_cut_off_at_any_of_its_statements(new_engine: Callable[[], Engine], count: int) -> None:
    cut, whole = new_engine(), new_engine()
    assert cut_off_and_repeat(cut, count) >= 3
    migrate(whole)
    assert definitions(cut) == definitions(whole)


def cut_off_and_repeat(engine: Engine, count: int) -> int:
    """Cut the process off after each `count` statements that change something, and begin again, until the tables are
    there; returns how often."""
    done = left = 0

    def cut_off(connection: object, cursor: object, statement: str, *others: object) -> None:
        nonlocal left
        if statement.strip().startswith(("CREATE", "INSERT")):
            left -= 1
            if left < 0:
                raise PowerCut

    sa.event.listen(engine, "before_cursor_execute", cut_off)
    while present_revision(engine) != schema.REVISION:
        # A server keeps each statement; in a file all is one transaction.
        left = count if engine.dialect.name == "mysql" else count * (done + 1)
        try:
            migrate(engine)
        except PowerCut:
            done += 1
            with pytest.raises(SchemaWrong, match=r"no tables yet|has schema 00"):
                require_schema(engine)
    sa.event.remove(engine, "before_cursor_execute", cut_off)
    return done


def test_no_migration_changes_with_the_code() -> None:
    for file in (MIGRATIONS / "versions").glob("*.py"):
        imported = [line for line in file.read_text().splitlines() if line.startswith(("import ", "from "))]
        assert not [line for line in imported if "ecloud" in line or "boss" in line], file


def test_an_empty_database_is_refused_with_the_command_that_corrects_it(tmp_path: Path) -> None:
    engine = make_engine(f"sqlite:///{tmp_path}/empty.db")
    with pytest.raises(SchemaWrong, match=r"python admin\.py migrate"):
        require_schema(engine)
    engine.dispose()


@pytest.mark.parametrize(("found", "advice"), [("0000", "run python admin.py migrate"), ("9999", "update ECLOUD")])
def test_another_revision_is_refused_by_name(sqlite_engine: Engine, found: str, advice: str) -> None:
    with sqlite_engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = ?", (found,))
    with pytest.raises(SchemaWrong, match=found) as refused:
        require_schema(sqlite_engine)
    for words in (schema.REVISION, advice):
        assert words in str(refused.value)


def test_a_newer_database_is_never_migrated(sqlite_engine: Engine) -> None:
    with sqlite_engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaWrong, match="newer"):
        migrate(sqlite_engine)


def test_an_older_embedded_database_is_copied_before_it_is_migrated(tmp_path: Path) -> None:
    file = tmp_path / "ecloud.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        connection.execute("INSERT INTO alembic_version VALUES ('0000')")
        connection.execute("CREATE TABLE keepsake (text TEXT)")
        connection.execute("INSERT INTO keepsake VALUES ('here')")
    connection.close()
    engine = make_engine(f"sqlite:///{file}")
    backups = tmp_path / "backups"
    with pytest.raises((SchemaWrong, DatabaseAway)):
        migrate(engine, backups)  # there is no way from 0000, but the copy came first
    engine.dispose()
    (backup,) = backups.iterdir()
    copy = sqlite3.connect(backup)
    assert copy.execute("SELECT text FROM keepsake").fetchall() == [("here",)]
    copy.close()


def test_what_cannot_be_copied_is_not_migrated(tmp_path: Path) -> None:
    file = tmp_path / "ecloud.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        connection.execute("INSERT INTO alembic_version VALUES ('0000')")
    connection.close()
    (tmp_path / "backups").write_text("a file where the directory should be")
    engine = make_engine(f"sqlite:///{file}")
    with pytest.raises(DatabaseAway, match="it was not changed"):
        migrate(engine, tmp_path / "backups")
    assert present_revision(engine) == "0000"
    engine.dispose()


def test_the_database_is_named_without_its_password() -> None:
    url = database_url(Settings(database_url="mysql://anna:secret@db.example:3307/ecloud"))
    assert "db.example:3307" in where(url)
    assert "secret" not in where(url)


@pytest.mark.parametrize("wrong", ["mysql:/nonsense@@", "oracle://x/y", "nothing at all", "mysql://host:port/x"])
def test_a_database_url_that_cannot_be_read_is_a_wrong_setting(wrong: str) -> None:
    with pytest.raises(SettingsWrong, match="DATABASE_URL"):
        database_url(Settings(database_url=wrong))


def test_a_server_that_is_away_is_named_with_what_to_do() -> None:
    engine = make_engine("mysql+pymysql://u:secret@127.0.0.1:1/none")
    with pytest.raises(DatabaseAway, match=r"127\.0\.0\.1:1") as away:
        present_revision(engine)
    assert "secret" not in str(away.value)
    assert "DATABASE_URL" in str(away.value)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    file = tmp_path / "ecloud.db"
    file.write_text("this is not a database, but a text of some length" * 50)
    engine = make_engine(f"sqlite:///{file}")
    with pytest.raises(DatabaseAway, match=r"ecloud\.db"):
        present_revision(engine)
    engine.dispose()
