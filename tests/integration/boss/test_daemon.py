"""The daemon as its users run it: a graph pushed and watched to its end, and every part killed on the way."""

from __future__ import annotations

import os
import re
import signal
import stat
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from databases import MariaDb
from services import Daemon, Mosquitto, free_port, wait_until, watch_to_the_end

from ecloud.db.database import make_engine, migrate
from ecloud.model.tasks import Dependency, Result, TaskDefinition
from ecloud.model.wire import PushOptions

NewDaemon = Callable[..., Daemon]
LONG_LEASE_S = 15.0
"""No worker is taken for lost on a machine that is busy with other things: then nothing runs twice."""


# --- words of the stories -------------------------------------------------------------------------


def migrated(url: str) -> str:
    """A server's database with our tables."""
    engine = make_engine(url)
    migrate(engine)
    engine.dispose()
    return url


def rows(daemon: Daemon, query: str) -> list[tuple[Any, ...]]:
    """What the daemon's tables hold."""
    engine = make_engine(getattr(daemon, "database_url", "") or f"sqlite:///{daemon.home.database}")
    try:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(query)]
    finally:
        engine.dispose()


def execute(daemon: Daemon, statement: str) -> None:
    """Change the daemon's tables behind its back."""
    engine = make_engine(getattr(daemon, "database_url", "") or f"sqlite:///{daemon.home.database}")
    with engine.begin() as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()


def fan(count: int, journal: Path, sleep_s: float = 0.0) -> list[TaskDefinition]:
    """`count` tasks after one, and one after all of them. Each writes its name into `journal` when it has run."""

    def task(name: str, after: list[str]) -> TaskDefinition:
        commands = (f"sleep {sleep_s:g}", f"echo {name} >> {journal}")
        return TaskDefinition(id=name, commands=commands, dependencies=tuple(map(Dependency, after)), runtime_s=sleep_s)

    middle = [f"middle-{index}" for index in range(count)]
    return [task("first", []), *(task(name, ["first"]) for name in middle), task("last", middle)]


def ran(journal: Path) -> list[str]:
    """Which tasks ran, once for each time they did."""
    return journal.read_text().split() if journal.exists() else []


def each_ran_once(daemon: Daemon, tasks: list[TaskDefinition], journal: Path) -> None:
    """Nothing was lost, nothing was done twice, and every attempt has its one outcome."""
    assert Counter(ran(journal)) == Counter(task.id for task in tasks)
    assert rows(daemon, "SELECT state, COUNT(*) FROM tasks GROUP BY state") == [("succeeded", len(tasks))]
    attempts = rows(
        daemon, "SELECT state, cause, COUNT(*) FROM attempts WHERE state <> 'returned' GROUP BY state, cause"
    )
    assert attempts == [("ended", "success", len(tasks))]  # a queued one may have been given back for a free worker


@pytest.fixture
def on_server(daemons: NewDaemon, mariadb: MariaDb, mosquitto: Mosquitto) -> NewDaemon:
    """Makes daemons with an external MariaDB and Mosquitto, all on the same tables."""
    url = migrated(mariadb.new_url())

    def make(**settings: Any) -> Daemon:
        daemon = daemons(DATABASE_URL=url, **mosquitto.settings(), **{"LEASE_S": LONG_LEASE_S, **settings})
        daemon.database_url = url  # type: ignore[attr-defined]
        return daemon

    return make


@pytest.fixture(params=["embedded", "servers"])
def daemon(request: pytest.FixtureRequest) -> Daemon:
    """A daemon with nothing but itself, and one with servers."""
    if request.param == "embedded":
        return request.getfixturevalue("daemons")(LEASE_S=LONG_LEASE_S)  # type: ignore[no-any-return]
    return request.getfixturevalue("on_server")()  # type: ignore[no-any-return]


# --- a run ----------------------------------------------------------------------------------------


def test_a_graph_is_pushed_and_watched_to_its_end(daemon: Daemon, tmp_path: Path) -> None:
    daemon.start()
    tasks = fan(20, tmp_path / "journal")
    with daemon.client() as client:
        accepted = client.push(tasks, PushOptions("r"))
        assert (accepted.run, accepted.decisions) == ("r", {"new": 22})
        assert watch_to_the_end(client, "r").states == {"succeeded": 22}
    each_ran_once(daemon, tasks, tmp_path / "journal")
    order = ran(tmp_path / "journal")
    assert (order[0], order[-1]) == ("first", "last")


def test_results_are_in_the_datastore_when_the_run_has_ended(daemons: NewDaemon) -> None:
    daemon = daemons().start()
    made = TaskDefinition("made", ("echo hello > out",), results=(Result("out", "there/out.txt"),))
    with daemon.client() as client:
        client.push([made], PushOptions("r"))
        watch_to_the_end(client, "r")
    assert (daemon.home.datastore / "there/out.txt").read_text() == "hello\n"


def test_a_run_over_a_broker_behind_tls(daemons: NewDaemon, mosquitto_tls: Mosquitto, tmp_path: Path) -> None:
    daemon = daemons(**mosquitto_tls.settings(), BROKER_CA=str(tmp_path / "authority" / "ca.pem")).start()
    with daemon.client() as client:
        client.push([TaskDefinition("one", ("true",))], PushOptions("r"))
        assert watch_to_the_end(client, "r").states == {"succeeded": 1}


# --- the boss is killed ---------------------------------------------------------------------------


def test_a_boss_killed_in_the_middle_continues_where_it_was(daemon: Daemon, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    daemon.start()
    tasks = fan(24, journal, sleep_s=0.3)
    with daemon.client() as client:
        client.push(tasks, PushOptions("r"))
        for share in (3, 12):
            wait_until(lambda share=share: len(ran(journal)) >= share, what=f"{share} tasks have run")
            daemon.restart()
        assert watch_to_the_end(client, "r").states == {"succeeded": 26}
    each_ran_once(daemon, tasks, journal)


def test_what_ends_while_there_is_no_boss_is_not_lost(on_server: NewDaemon, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    daemon = on_server().start()
    tasks = fan(2, journal, sleep_s=0.5)
    with daemon.client() as client:
        client.push(tasks, PushOptions("r"))
        wait_until(lambda: rows(daemon, "SELECT 1 FROM attempts WHERE task_no > 1 AND state = 'started'"))
        daemon.kill()
        wait_until(lambda: len(ran(journal)) >= 2, what="a task ends without a boss")
        daemon.start()
        assert watch_to_the_end(client, "r").states == {"succeeded": 4}
    each_ran_once(daemon, tasks, journal)


def test_a_boss_killed_in_the_middle_of_a_push_stores_it_once(daemon: Daemon) -> None:
    daemon.start()
    tasks = [TaskDefinition(f"t{index}", ("true",), labels=("nobody has this",)) for index in range(3_000)]
    heard: list[int] = []

    def on_progress(count: int) -> None:
        heard.append(count)
        if len(heard) == 2:
            daemon.restart()

    with daemon.client() as client:
        accepted = client.push(tasks, PushOptions("r"), on_progress)
        assert accepted.decisions == {"new": 3_000}
        again = client.push(tasks, PushOptions("r"))
        assert again.decisions == {"kept": 3_000}
    assert rows(daemon, "SELECT COUNT(*) FROM tasks") == [(3_000,)]


# --- two bosses -----------------------------------------------------------------------------------


def test_a_second_boss_of_the_same_home_leaves(daemons: NewDaemon) -> None:
    daemon = daemons().start()
    assert daemon.process is not None
    code, words = daemon.run()
    assert code == 3
    assert f"a boss already runs in {daemon.home.path} (pid {daemon.process.pid} on " in words
    assert "python admin.py stop" in words
    assert "--standby" in words
    assert not daemon.is_over


def test_a_second_boss_of_the_same_database_leaves(on_server: NewDaemon) -> None:
    first, second = on_server().start(), on_server()
    assert first.process is not None
    code, words = second.run()
    assert code == 3
    assert f"a boss already leads: pid {first.process.pid} on " in words
    assert "--standby" in words
    assert not first.is_over


@pytest.mark.parametrize("place", ["home", "database"])
def test_a_standby_leads_when_the_first_is_gone(place: str, on_server: NewDaemon, tmp_path: Path) -> None:
    first = on_server().start()
    second = first if place == "home" else on_server()
    standby = second.launch("--standby")
    wait_until(lambda: "waiting until it is gone" in second.words, what="the second waits")
    tasks = fan(4, tmp_path / "journal", sleep_s=0.3)
    with first.client() as client:
        client.push(tasks, PushOptions("r"))
        wait_until(lambda: ran(tmp_path / "journal"), what="a task has run")
        first.kill()
        wait_until(lambda: second.leads(standby), what="the second leads")
        if second is first:
            assert watch_to_the_end(client, "r").states == {"succeeded": 6}
    if second is not first:  # another home: another secret, so the first's workers and clients are strangers to it
        with second.client() as client:
            assert watch_to_the_end(client, "r").states == {"succeeded": 6}
    assert rows(first, "SELECT DISTINCT state FROM tasks") == [("succeeded",)]


def test_a_standby_stops_on_request_while_it_waits(daemons: NewDaemon) -> None:
    daemon = daemons().start()
    standby = daemon.launch("--standby")
    wait_until(lambda: "waiting until it is gone" in daemon.words, what="the second waits")
    standby.terminate()
    assert standby.wait(30) == 0


def test_a_boss_that_slept_while_another_took_over_leaves_and_writes_nothing(on_server: NewDaemon) -> None:
    first, second = on_server().start(), on_server()
    assert first.process is not None
    wait_until(lambda: "connected to the broker" in first.log, what="its first batch is behind it, no lock is held")
    first.process.send_signal(signal.SIGSTOP)
    try:
        execute(first, "UPDATE leader SET renewed_at = 0")  # as if it had been silent for long
        second.start()
    finally:
        first.process.send_signal(signal.SIGCONT)
    assert first.process.wait(30) == 3
    assert re.search(r"this boss leaves: epoch \d+ has ended: another boss leads", first.log)
    assert not second.is_over
    with second.client() as client:
        client.push([TaskDefinition("one", ("true",))], PushOptions("r"))
        assert watch_to_the_end(client, "r").states == {"succeeded": 1}


# --- parts that are away --------------------------------------------------------------------------


def test_a_broker_that_is_killed_and_comes_back(on_server: NewDaemon, mosquitto: Mosquitto, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    daemon = on_server().start()
    tasks = fan(16, journal, sleep_s=0.2)
    with daemon.client() as client:
        client.push(tasks, PushOptions("r"))
        wait_until(lambda: len(ran(journal)) >= 3, what="3 tasks have run")
        mosquitto.kill()
        wait_until(lambda: "waiting for the broker" in daemon.log, what="the boss says what it waits for")
        mosquitto.start()
        assert watch_to_the_end(client, "r").states == {"succeeded": 18}
    each_ran_once(daemon, tasks, journal)


def test_an_embedded_broker_that_is_killed_is_started_again(daemons: NewDaemon, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    daemon = daemons(LEASE_S=LONG_LEASE_S).start()
    tasks = fan(16, journal, sleep_s=0.2)
    with daemon.client() as client:
        client.push(tasks, PushOptions("r"))
        wait_until(lambda: len(ran(journal)) >= 3, what="3 tasks have run")
        broker_pid = int((daemon.home.broker / "pid").read_text())
        assert "mosquitto" in daemon.processes()[broker_pid]
        os.kill(broker_pid, signal.SIGKILL)
        assert watch_to_the_end(client, "r").states == {"succeeded": 18}
    each_ran_once(daemon, tasks, journal)


@pytest.mark.parametrize("accident", ["frozen", "killed"])
def test_a_database_that_is_gone_for_a_while(
    accident: str, on_server: NewDaemon, mariadb: MariaDb, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    daemon = on_server().start()
    assert mariadb.process is not None
    tasks = fan(12, journal, sleep_s=0.2)
    with daemon.client() as client:
        client.push(tasks, PushOptions("r"))
        wait_until(lambda: len(ran(journal)) >= 3, what="3 tasks have run")
        if accident == "killed":
            mariadb.kill()
            try:
                wait_until(lambda: "waiting for the database" in daemon.log, what="the boss says what it waits for")
            finally:
                mariadb.start()
        else:
            mariadb.process.send_signal(signal.SIGSTOP)
            try:
                # Tasks that were assigned before continue; no more are assigned until the database has written it.
                wait_until(lambda: set_still(journal), what="nothing changes")
            finally:
                mariadb.process.send_signal(signal.SIGCONT)
        assert watch_to_the_end(client, "r").states == {"succeeded": 14}
    assert not daemon.is_over
    each_ran_once(daemon, tasks, journal)


def set_still(journal: Path) -> bool:
    """Whether the journal did not grow for a second."""
    before = len(ran(journal))
    time.sleep(1.0)
    return len(ran(journal)) == before


def test_a_boss_that_starts_before_its_database_waits(on_server: NewDaemon, mariadb: MariaDb) -> None:
    daemon = on_server()
    mariadb.kill()
    try:
        process = daemon.launch()
        wait_until(lambda: "waiting for the database" in daemon.words, what="the boss says what it waits for")
        assert f"at 127.0.0.1:{mariadb.port}" in daemon.words
        assert "secret" not in daemon.words
    finally:
        mariadb.start()
    wait_until(lambda: daemon.leads(process), what="the boss leads")


def test_a_boss_that_starts_before_its_broker_waits(on_server: NewDaemon, mosquitto: Mosquitto) -> None:
    mosquitto.kill()
    daemon = on_server().start()
    wait_until(lambda: f"no broker listens at 127.0.0.1:{mosquitto.port}" in daemon.log, what="the boss says it")
    mosquitto.start()
    with daemon.client() as client:
        client.push([TaskDefinition("one", ("true",))], PushOptions("r"))
        assert watch_to_the_end(client, "r").states == {"succeeded": 1}


# --- what is wrong at the start -------------------------------------------------------------------


def test_an_older_schema_on_a_server_is_refused_with_the_command_that_corrects_it(
    on_server: NewDaemon, daemons: NewDaemon, mariadb: MariaDb
) -> None:
    empty = daemons(DATABASE_URL=mariadb.new_url())
    code, words = empty.run()
    assert (code, "python admin.py migrate" in words) == (2, True), words

    old = on_server()
    execute(old, "UPDATE alembic_version SET version_num = '0000'")
    code, words = old.run()
    assert code == 2
    assert "has schema 0000" in words
    assert "python admin.py migrate" in words
    assert "Traceback" not in words


def test_wrong_settings_are_all_named_at_once(daemons: NewDaemon) -> None:
    daemon = daemons(LEASE="60", HEARTBEAT_S="often", BROKER_PORT=0, ON_OLD_RUNS="burn")
    code, words = daemon.run()
    assert code == 2
    assert len(words.strip().split("\n")) == 4, words
    assert "LEASE is no setting; did you mean LEASE_S?" in words
    assert "HEARTBEAT_S = 'often'" in words
    assert "BROKER_PORT = 0: at least 1" in words
    assert "ON_OLD_RUNS = 'burn': one of archive, drop" in words


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"DATABASE_URL": "no url"}, "DATABASE_URL cannot be read: write it as mysql://"),
        ({"DATABASE_URL": "oracle://u:secret@h/d"}, "DATABASE_URL names oracle; ECLOUD knows MySQL"),
        ({"BROKER_HOST": "127.0.0.1", "BROKER_CA": "/does/not/exist"}, "BROKER_CA = '/does/not/exist': No such file"),
        ({"BROKER_HOST": "127.0.0.1", "BROKER_CA": "/etc/hostname"}, "BROKER_CA = '/etc/hostname': it holds no cert"),
        ({"DATASTORE": "/dev/null/store"}, "set DATASTORE"),
        ({"HOME": "/dev/null/home"}, "the home /dev/null/home cannot be made"),
    ],
)
def test_a_wrong_setting_is_one_sentence(settings: dict[str, Any], sentence: str, daemons: NewDaemon) -> None:
    code, words = daemons(**settings).run()
    assert code == 2, words
    assert sentence in words
    assert words.count(sentence[:15]) == 1, words
    assert "Traceback" not in words
    assert "secret" not in words


def test_a_damaged_key_is_one_sentence(daemons: NewDaemon) -> None:
    daemon = daemons()
    daemon.home.make().cluster_key.write_text("damaged")
    code, words = daemon.run()
    assert code == 2
    assert f"the cluster's key {daemon.home.cluster_key} is damaged: restore it from a backup" in words
    assert "Traceback" not in words


def test_a_database_that_does_not_exist_is_waited_for_and_named(daemons: NewDaemon) -> None:
    daemon = daemons(DATABASE_URL=f"mysql://u:secret@127.0.0.1:{free_port()}/d")
    process = daemon.launch()
    wait_until(lambda: "waiting for the database" in daemon.words, what="the boss says what it waits for")
    process.terminate()
    assert process.wait(30) == 0, daemon.words
    assert "secret" not in daemon.words


# --- the end --------------------------------------------------------------------------------------


def test_told_to_stop_it_leaves_in_order(daemons: NewDaemon, tmp_path: Path) -> None:
    daemon = daemons("--end_vms").start()
    with daemon.client() as client:
        client.push(fan(2, tmp_path / "journal"), PushOptions("r"))
        watch_to_the_end(client, "r")
    assert any("-m worker" in command for command in daemon.processes().values())
    assert daemon.stop() == 0
    wait_until(lambda: not daemon.processes(), what="nothing is left running")
    assert daemon.words == ""
    assert "left" in daemon.log
    assert not daemon.home.boss_pid.exists()
    assert rows(daemon, "SELECT holder FROM leader") == [("",)]


def test_workers_continue_without_a_boss_that_was_ordered_to_stop(on_server: NewDaemon, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    daemon = on_server().start()
    tasks = fan(2, journal, sleep_s=1.0)
    with daemon.client() as client:
        client.push(tasks, PushOptions("r"))
        wait_until(lambda: rows(daemon, "SELECT 1 FROM attempts WHERE task_no > 1 AND state = 'started'"))
        assert daemon.stop() == 0
        wait_until(lambda: len(ran(journal)) >= 2, what="a task ends without a boss")
        daemon.start()
        assert watch_to_the_end(client, "r").states == {"succeeded": 4}
    each_ran_once(daemon, tasks, journal)


def test_secrets_are_for_their_owner_alone(daemons: NewDaemon) -> None:
    daemon = daemons().start()
    private = [daemon.home.client_access, *daemon.home.secrets.iterdir(), *daemon.home.broker.glob("*.conf")]
    private += [daemon.home.broker / "passwords", daemon.home.cluster_key]
    for file in private:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    for directory in (daemon.home.path, daemon.home.secrets, daemon.home.broker, daemon.home.workers):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700, directory
    assert daemon.home.cluster_key.read_text().strip() not in daemon.log


def test_a_closed_terminal_is_a_clean_stop(daemons: NewDaemon) -> None:
    daemon = daemons().start()
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    assert daemon.process.wait(30) == 0
    assert not daemon.home.boss_pid.exists(), "it has left, not died"
