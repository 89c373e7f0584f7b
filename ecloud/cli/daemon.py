"""Start the boss in the background and wait until it is up; stop it and report what still runs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import Any

import psutil
from sqlalchemy.engine import Engine

from datastore.problem import DONE, PART_AWAY, Problem
from ecloud.cli import app, cloud_probe
from ecloud.config.home import Home
from ecloud.config.settings import ROOT, Settings, child_environment, load_settings
from ecloud.model.text import counted

STARTED = ["-X", "utf8", "-m", "boss"]
"""How `start` calls Python."""
START_S = 20.0
SAYS_WAITING_S = 6.0
"""A boss that is not up after this time waits for something; `start` then prints what."""
STOP_S = 30.0
SAYS_LEFT_S = 10.0
"""Interval of messages about VMs that have not ended yet."""


def start(create: bool, as_json: bool, listen: str | None = None) -> int:
    """Start the boss; returns 0 when it is up. `create`: create the machines of broker and datastore if none run.
    `listen`: the address at which other machines reach the embedded broker.

    Raises `Problem`.
    """
    from ecloud.cli import base_machines

    settings = load_settings()
    base_machines.check(settings, create)
    home = settings.home_directory
    about = app.running_boss(home)
    if about is not None:
        _say(as_json, about, f"a boss already runs in {home.path} (pid {about.get('pid', 'unknown')})")
        if listen:
            raise Problem(
                f"--listen {listen} takes effect when a boss starts", "python admin.py stop, then start again"
            )
        base_machines.set_datastore(settings, create)
        return DONE
    broker_host = base_machines.broker_host(settings, create)
    options = [*(["--broker_host", broker_host] if broker_host else []), *(["--listen", listen] if listen else [])]
    try:
        home.make()
        home.boss_pid.unlink(missing_ok=True)
        log = (home.path / "start.log").open("wb")
    except OSError as error:
        raise Problem(
            f"the home {home.path} cannot be used: {error.strerror}; set HOME in settings.py or ECLOUD_HOME"
        ) from None
    with log:
        process = subprocess.Popen(
            [sys.executable, *STARTED, *options],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**child_environment(), "ECLOUD_HOME": str(home.path)},
        )
    _wait_until_up(home, process)
    about = app.running_boss(home) or {}
    _say(as_json, about, f"the boss runs (pid {process.pid}); its log: {home.log}")
    base_machines.note_broker(settings, broker_host)
    base_machines.set_datastore(settings, create)
    return DONE


def _wait_until_up(home: Home, process: subprocess.Popen[bytes]) -> None:
    began = time.monotonic()
    while not home.boss_pid.exists():
        words = _last_line(home)
        if process.poll() is not None:
            raise Problem(f"the boss does not start: {words or 'no output'}; see {home.log}", exit_code=PART_AWAY)
        waited_s = time.monotonic() - began
        if waited_s > START_S or (words and waited_s > SAYS_WAITING_S):
            raise Problem(f"the boss (pid {process.pid}) is not up yet: {words or 'no output'}; "
                        f"it keeps trying; see python admin.py doctor", exit_code=PART_AWAY)  # fmt: skip
        time.sleep(0.02)


def _last_line(home: Home) -> str:
    with contextlib.suppress(OSError):
        return (home.path / "start.log").read_text(errors="replace").strip().split("\n")[-1].removeprefix("boss: ")
    return ""


def stop(vms: bool, as_json: bool) -> int:
    """Stop the boss; returns 0 when it has ended. Raises `Problem`."""
    settings = load_settings()
    home = settings.home_directory
    about = app.running_boss(home)
    if about is None:
        _end_starting(home)
    if about is None and vms and _has_vms(settings):
        with contextlib.redirect_stdout(sys.stderr):
            print("no boss runs: starting one to end the VMs")
            start(False, False)
        about = app.running_boss(home)
    if about is None:
        _say(as_json, {}, f"no boss runs in {home.path}{_still_there(settings)}")
        if vms:
            _end_left_overs(home)
        return DONE
    if vms:
        _end_vms(settings)
    pid = about.get("pid")
    if not isinstance(pid, int):
        raise Problem(f"{home.boss_pid} does not name the boss's process", "end it by hand", PART_AWAY)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while app.running_boss(home) is not None:
        if time.monotonic() > deadline:
            raise Problem(f"the boss (pid {pid}) still runs after {STOP_S:.0f} s", f"see {home.log}", PART_AWAY)
        time.sleep(0.02)
    _say(as_json, about, f"the boss (pid {pid}) has left{_still_there(settings)}")
    if vms:
        _end_left_overs(home)
    return DONE


def _end_starting(home: Home) -> None:
    """End a boss of this home that has not written its pid yet. The command that started it may have been killed."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            is_boss = words[1:5] == STARTED and "--tied" not in words  # that is the boss of a local run
            if is_boss and process.environ().get("ECLOUD_HOME") == str(home.path):
                process.terminate()
                process.wait(STOP_S)


def _end_left_overs(home: Home) -> None:
    """End processes that tasks left on this machine, if a worker was killed with all its launchers."""
    from ecloud.config import left_overs
    from ecloud.model.text import counted

    count = left_overs.end(home.workers)
    if count:
        print(f"ended {counted(count, 'process', 'processes')} that tasks left on this machine", file=sys.stderr)


def _has_vms(settings: Settings) -> bool:
    """Whether the database has VMs that have not ended, or a cloud lists some."""
    from ecloud.queries import status as queries

    try:
        engine = _database_of_any_schema(settings)
    except Problem:
        return False  # no boss has ever run here, or the database is unavailable
    cluster_id = queries.context(engine).get("cluster_id", "")
    return bool(_left_by_rows(engine) or _left_in_clouds(settings, cluster_id))


def _end_vms(settings: Settings) -> None:
    """Request the end of all VMs and wait until the clouds list none."""
    from ecloud.cli.files import told_when_interrupted
    from ecloud.queries import status as queries

    with app.boss(settings) as client:
        print(client.request("end_vms").text, file=sys.stderr)
    engine = _database_of_any_schema(settings)
    cluster_id = queries.context(engine).get("cluster_id", "")
    with told_when_interrupted(lambda: "the boss stays and continues to end them; to wait: python admin.py stop --vms"):
        _wait_until_ended(settings, engine, cluster_id)


def _wait_until_ended(settings: Settings, engine: Engine, cluster_id: str) -> None:
    deadline = time.monotonic() + settings.end_vms_s
    tell_at = time.monotonic() + SAYS_LEFT_S
    while left := _left_by_rows(engine) or _left_in_clouds(settings, cluster_id):
        if time.monotonic() > deadline:
            raise Problem(
                f"not ended after {settings.end_vms_s:.0f} s (END_VMS_S): {_some(left)}; the boss continues to end "
                "them: python admin.py show_vms",
                exit_code=PART_AWAY,
            )
        if time.monotonic() > tell_at:
            tell_at = time.monotonic() + SAYS_LEFT_S
            print(f"waiting for the end of {_some(left)}", file=sys.stderr)
        time.sleep(0.1)


def _left_by_rows(engine: Engine) -> list[str]:
    from ecloud.queries import status as queries

    return [f"VM {vm_no} ({state})" for vm_no, state in queries.unended_vms(engine)]


def _database_of_any_schema(settings: Settings) -> Engine:
    """Open the database of a boss that runs, also if that boss is older than this code. Raises `DatabaseAway`."""
    from ecloud.queries.status import open_database

    return open_database(settings, app.ANSWER_S, any_schema=True)


def _left_in_clouds(settings: Settings, cluster_id: str) -> list[str]:
    """Return the VMs of this cluster that the clouds list."""
    if not cloud_probe.has_clouds(settings):
        return []
    try:
        left = cloud_probe.ask("--left", cluster_id)
    except cloud_probe.CloudsAway as error:
        return [f"what a cloud runs that {error.text}"]
    return [
        item.get("problem") or f"VM {item['vm_no']} ({item['state']} by the cloud, there {item['cloud_id']})"
        for item in left
    ]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more


def _still_there(settings: Settings) -> str:
    """Describe what continues without a boss, as the end of a sentence."""
    from ecloud.queries import status as queries

    try:
        engine = app.database(settings)
        vms, workers = queries.vms(engine), queries.workers(engine, ("up", "draining"))
    except Exception as error:
        if app.problem_of(error) is None:
            raise
        return ""
    if not vms and not workers:
        return "; nothing else runs"
    others = sum(worker.vm_no is None for worker in workers)
    parts = [counted(len(vms), "VM")] if vms else []
    parts += [counted(others, "invited worker")] if others else []
    busy = counted(sum(len(worker.running) for worker in workers), "running task")
    text = f"; still there: {' and '.join(parts)}, which finish {busy} and wait for the boss's return"
    return text + ("; stop --vms also ends VMs" if vms else "")


def _say(as_json: bool, about: dict[str, Any], text: str) -> None:
    if as_json:
        from ecloud.cli.tables import print_json

        print_json({**about, "text": text})
    else:
        print(text, flush=True)  # flush, so that it precedes later messages on stderr, also in a pipe
