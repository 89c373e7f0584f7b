"""A broker and a database that take 1 MB at most: what is longer travels through the datastore or is refused alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from databases import MariaDb
from doors import Doors, ended
from services import ROOT, Daemon, Mosquitto, watch_to_the_end

from datastore.port import DatastoreAway
from ecloud import ClusterExecutor
from ecloud.db.database import make_engine, migrate

cloudpickle.register_pickle_by_value(sys.modules[__name__])
MB = 1_000_000
LONG = ": " + "x" * 3 * MB


@pytest.fixture
def doors(mariadb: MariaDb, daemons: Callable[..., Daemon], tmp_path: Path) -> Iterator[Doors]:
    broker = Mosquitto(tmp_path / "mosquitto", f"max_packet_size {MB}", f"message_size_limit {MB}").start()
    try:
        with mariadb.packets_of(MB):
            engine = make_engine(mariadb.new_url())
            migrate(engine)
            engine.dispose()
            url = engine.url.render_as_string(hide_password=False)
            settings = {"POOLS": ({"name": "local", "maximum": 2, "cpus": 4},), "LEASE_S": 60.0, **broker.settings()}
            yield Doors(tmp_path / "place", daemons(DATABASE_URL=url, **settings).start())
    finally:
        broker.stop()


def task(name: str, *commands: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "commands": list(commands), **fields}


@pytest.mark.timeout(300)
def test_what_is_long_travels_as_files_or_is_refused_and_the_rest_continues(doors: Doors) -> None:
    _is_refused_where_the_datastore_is_out_of_reach(doors)
    _long_commands_many_tasks_and_loud_failures_all_pass(doors)


def _long_commands_many_tasks_and_loud_failures_all_pass(doors: Doors) -> None:
    loud = "head -c 70000 /dev/zero | tr '\\0' '\\1' | tee /dev/stderr; exit 3"
    tasks = [
        task("long", LONG, "echo $LONGEST >o", results=["o"], env={"LONGEST": "e" * 90_000}),
        *(task(f"small-{number}", f"true {'y' * 20_000}") for number in range(100)),
        *(task(f"loud-{number}", loud) for number in range(6)),
        task("many", f"mkdir d; seq -f 'd/{'n' * 200}%05g' 3500 | xargs touch", results=["d"]),
    ]
    doors.push(doors.write("tasks.json", {"name": "r", "tasks": tasks}))
    assert doors.daemon is not None
    with doors.daemon.client() as client:
        watch_to_the_end(client, "r", 100)
    states = ended(doors, "r")
    assert states.pop("long") == "succeeded"
    assert states.pop("many") == "failed"
    assert {name for name, state in states.items() if state == "failed"} == {f"loud-{n}" for n in range(6)}
    reason = doors.admin("show_task_status", "many", code=None).out
    commands = doors.admin("show_task_commands", "long").out
    doors.admin("get", "o")
    assert "the list of its 3,501 result files" in reason
    assert "pack many result files into an archive" in reason
    assert commands == f"{LONG}\necho $LONGEST >o\n"
    assert (doors.place / "o").read_text() == "e" * 90_000 + "\n"


def piece(number: int) -> bytes:
    return bytes([number % 256]) * 30 * 1024


def total(*pieces: bytes) -> int:
    return sum([len(piece) * piece[0] for piece in pieces])


@pytest.mark.timeout(300)
def test_a_call_that_needs_18_mb_of_values_of_others_gets_them_page_by_page(doors: Doors) -> None:
    assert doors.daemon is not None
    with ClusterExecutor(doors.daemon.home.client_access) as executor:
        pieces = [executor.submit(piece, number) for number in range(600)]
        expected = sum([30 * 1024 * (number % 256) for number in range(600)])
        assert executor.submit(total, *pieces).result(200) == expected
        # Each fits into a message, and all together do not.
        parts = [executor.submit(total, *pieces[start : start + 10]) for start in range(0, 600, 10)]
        assert sum([part.result(100) for part in parts]) == expected
    assert "waiting for the broker" not in doors.daemon.log


@pytest.mark.timeout(300)
def test_long_lists_of_names_are_refused_with_the_task_its_size_and_the_remedy(doors: Doors) -> None:
    assert doors.daemon is not None
    names = [f"{number:05}-{'n' * 240}" for number in range(4_500)]
    waits = task("last", "true", dependencies=names)
    refused = doors.push(
        doors.write("many.json", {"name": "r", "tasks": [*[task(name, "true") for name in names], waits]}), code=2
    )
    assert "task last: its definition has 1," in refused.err
    assert "of them 4,500 dependencies" in refused.err
    assert "let it depend on a few tasks that each depend on a part of these" in refused.err
    _two_tasks_may_share_a_list_of_requirements_just_below_the_limit(doors)
    with ClusterExecutor(doors.daemon.home.client_access) as executor:
        pieces = [executor.options(key=f"{number:05}-{'k' * 190}").submit(abs, number) for number in range(2_700)]
        refused_call = executor.submit(count, *pieces)
        # Each push of these calls is below the limit, although all together are above it.
        parts = [executor.submit(count, *pieces[start : start + 200]) for start in range(0, 2_700, 20)]
        assert sum([part.result(100) for part in parts]) == sum([min(200, 2_700 - at) for at in range(0, 2_700, 20)])
        with pytest.raises(ValueError, match=r"of them 2,700 dependencies.*let other calls combine a part of these"):
            refused_call.result(100)


@pytest.mark.timeout(300)
def test_a_request_that_names_too_many_tasks_is_given_up_with_the_remedy(doors: Doors) -> None:
    names = [f"{number:05}-{'n' * 200}" for number in range(5_000)]
    doors.push(doors.write("t.json", [task(name, "sleep 1000") for name in names[:4_000]]))
    told = doors.admin("cancel", *names, code=2).err
    assert "cancel: the request has 1,0" in told
    assert "names 5,000 things" in told
    assert "Select tasks by --run, --state or --label" in told
    assert doors.admin("cancel", *names[:4_000]).out.startswith("4000 cancelled")


def count(*values: int) -> int:
    return len(values)


def _two_tasks_may_share_a_list_of_requirements_just_below_the_limit(doors: Doors) -> None:
    shared = [f"{'d' * 180}/{number:05}" for number in range(2_200)]
    tasks = [task("fails", "false"), *[task(name, "true", requirements=shared) for name in ("a", "b")]]
    for waits in tasks[1:]:
        waits["dependencies"] = ["fails"]
    doors.push(doors.write("shared.json", {"name": "shared", "tasks": tasks}))
    assert doors.daemon is not None
    with doors.daemon.client() as client:
        watch_to_the_end(client, "shared", 100)
    assert ended(doors, "shared") == {"fails": "failed", "a": "aborted", "b": "aborted"}


def _is_refused_where_the_datastore_is_out_of_reach(doors: Doors) -> None:
    assert doors.daemon is not None
    elsewhere = {**doors.environment, "ECLOUD_ACCESS": str(doors.daemon.home.client_access)}
    doors.daemon.home.datastore.rename(doors.place / "moved")
    long = doors.write("long.json", {"name": "r", "tasks": [task("long", LONG)]})
    command = [sys.executable, str(ROOT / "push_tasks.py"), str(long)]
    done = subprocess.run(command, env=elsewhere, cwd=doors.place, capture_output=True, text=True, timeout=100)
    with (
        ClusterExecutor(doors.daemon.home.client_access) as executor,
        pytest.raises(DatastoreAway, match=r"this machine does not have the datastore dir:.*: mount it, run this on"),
    ):
        executor.submit(len, bytes(MB))
    assert not doors.daemon.home.datastore.exists(), "an empty datastore was made where no worker sees it"
    os.rename(doors.place / "moved", doors.daemon.home.datastore)
    assert done.returncode == 2, done.stderr
    assert "the commands of task long (3 MB) travel in one message" in done.stderr
    assert "put long commands into a file that the task requires" in done.stderr
