"""A pool whose workers run under another account: tasks do their work and cannot read what the boss keeps to itself."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from services import ROOT, Daemon, wait_until, watch_to_the_end

from ecloud.db.database import make_engine
from ecloud.model.tasks import Requirement, Result, TaskDefinition
from ecloud.model.wire import PushOptions

ACCOUNT = "nobody"
START_S = 60.0
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts processes of another account")


def pythons() -> Iterator[tuple[str, str]]:
    """Interpreters like this one, with the PYTHONPATH that gives them this one's packages."""
    yield sys.executable, ""
    found = shutil.which(f"python{sys.version_info[0]}.{sys.version_info[1]}", path="/usr/bin:/usr/local/bin:/opt/bin")
    if found is not None:
        yield found, sysconfig.get_path("purelib")


@pytest.fixture(scope="module")
def python() -> tuple[str, str]:
    """One that the account can run with this checkout."""
    entry = pwd.getpwnam(ACCOUNT)
    said = ""
    for program, packages in pythons():
        variables = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{packages}"}
        try:
            done = subprocess.run(
                [program, "-c", "import worker.shell.runtime"], cwd="/", env=variables, user=entry.pw_uid,
                group=entry.pw_gid, extra_groups=[], capture_output=True, text=True, timeout=60,
            )  # fmt: skip
        except OSError as error:
            said = str(error)
            continue
        if done.returncode == 0:
            return program, packages
        said = done.stderr.strip()[-200:]
    pytest.skip(f"{ACCOUNT} can run no Python with our packages here: {said}")


@pytest.fixture
def place(python: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that every account may enter; the boss is started by a Python that every account may run."""
    program, packages = python
    monkeypatch.setattr(sys, "executable", program)
    if packages:
        monkeypatch.setenv("PYTHONPATH", packages)
    made = Path(tempfile.mkdtemp(prefix="ecloud-run-as-", dir="/var/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def daemon_of(place: Path, **settings: object) -> Daemon:
    """A boss whose only pool runs as `ACCOUNT`."""
    pool = {"name": "here", "maximum": 2, "run_as": ACCOUNT}
    every = {"POOLS": (pool,), "DATASTORE": str(place / "files"), "RUN_AS_HOME": str(place / "workers"), **settings}
    daemon = Daemon(place / "boss", **every)
    daemon.settings_file.chmod(0o600)
    return daemon


def test_tasks_do_their_work_and_read_no_secret_of_the_boss(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_PASSWORD", "of the boss")
    daemon = daemon_of(place)
    home = daemon.home
    (place / "files").mkdir()
    (place / "files/input").write_text("words\n")
    secret = [home.client_access, home.database, home.cluster_key, home.log, daemon.settings_file]
    # A command that begins with ! never ends the shell.
    reads = [f"if cat {path}; then exit 9; fi" for path in secret]
    reads += [f"if ls {home.path}; then exit 9; fi", 'test -z "$A_PASSWORD"']
    writes = [f"if touch {place}/{name}/x; then exit 9; fi" for name in ("files", "workers", "boss")]
    tasks = [
        TaskDefinition(id="reads", commands=tuple(reads)),
        TaskDefinition(id="writes", commands=tuple(writes)),
        TaskDefinition(
            id="works",
            commands=("cat in > out", "id -un >> out", "id -un"),
            requirements=(Requirement("input", "in"),),
            results=(Result("out", "made/out"),),
        ),
    ]
    try:
        daemon.start()
        assert [path for path in secret if not path.exists()] == []
        with daemon.client() as client:
            client.push(tasks, PushOptions("r"))
            picture = watch_to_the_end(client, "r", START_S)
            assert picture.states == {"succeeded": 3}, picture
        assert (place / "files/made/out").read_text() == f"words\n{ACCOUNT}\n"
        engine = make_engine(f"sqlite:///{home.database}")
        with engine.connect() as connection:
            query = "SELECT t.id, a.stdout FROM attempts a JOIN tasks t USING (task_no)"
            rows = connection.exec_driver_sql(query).all()
        engine.dispose()
        assert dict(map(tuple, rows)) == {"reads": None, "writes": None, "works": f"{ACCOUNT}\n"}
    finally:
        daemon.end()
    wait_until(lambda: not daemon.processes(), what="nothing is left")


def test_a_boss_says_at_its_start_what_the_account_lacks(place: Path) -> None:
    """A datastore below the boss's home is closed to it."""
    code, words = daemon_of(place, DATASTORE="").run()
    assert code != 0
    assert f"workers cannot run as {ACCOUNT}: it cannot enter the datastore {place}/boss/home/datastore" in words
    assert "set DATASTORE to a directory" in words
    assert "Traceback" not in words
    code, words = daemon_of(place, POOLS=({"name": "here", "run_as": "no-such-account"},)).run()
    assert code != 0
    assert "pool here: run_as = 'no-such-account': this machine has no such account" in words
