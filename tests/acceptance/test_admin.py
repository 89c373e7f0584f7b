"""`admin.py`, every action, against a boss that runs, and the questions also while it is down."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from doors import Doors, ended
from services import ROOT, wait_until

from ecloud.cli.actions import GROUPS
from ecloud.cli.main import main

ACTIONS = [name for names in GROUPS.values() for name in names]
SLEEPERS = [
    {"id": "long", "commands": "echo begun; sleep 1000", "labels": ["slow"]},
    {"id": "after", "commands": "true", "dependencies": ["long"]},
    {"id": "impossible", "commands": "true", "resources": {"cpus": 640}},
    {"id": "quick", "commands": ["echo one", "echo two >&2"]},
    {"id": "broken", "commands": ["true", "echo bad luck >&2; exit 3"]},
    {"id": "below", "commands": "true", "dependencies": ["broken"]},
]


def state_of(doors: Doors, task: str) -> str:
    return str(doors.admin("show_task_status", task, "--json").json["state"])


def pushed(doors: Doors) -> Doors:
    """The sleepers' run, as far as it gets without help."""
    doors.push(doors.write("sleepers.json", SLEEPERS))
    wait_until(lambda: state_of(doors, "long") == "running", what="long runs")
    wait_until(lambda: state_of(doors, "below") == "aborted", what="below is aborted")
    wait_until(lambda: state_of(doors, "quick") == "succeeded", what="quick succeeded")
    return doors


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_explains_itself(doors: Doors, action: str) -> None:
    out = doors.admin(action, "--help").out
    assert "--json" in out or action in ("completion", "top") or isinstance(main.commands[action], click.Group)
    assert len(out.splitlines()) > 4


def test_every_action_is_in_a_group_of_the_help() -> None:
    assert sorted(ACTIONS) == sorted(main.commands)


def test_where_no_boss_has_run_each_action_says_what_to_do(doors: Doors) -> None:
    for words in (["status"], ["show_tasks"], ["show_workers"], ["cancel", "x"], ["instantiate_worker"], ["why", "x"]):
        done = doors.admin(*words, code=3)
        assert "python admin.py start" in done.err
    assert "python admin.py start" in doors.push(doors.write("t.json", [{"id": "a", "commands": "true"}]), code=3).err


def test_an_interrupted_copy_into_a_directory_leaves_nothing(cluster: Doors) -> None:
    with (cluster.place / "huge").open("wb") as file:
        file.truncate(100 << 30)  # a hole: it takes a minute to read, and no room
    assert cluster.daemon is not None
    staging = cluster.daemon.home.datastore / ".ecloud/staging/put"
    putting = cluster.begin("admin.py", "put", "huge")
    wait_until(lambda: list(staging.rglob(".*.part")), what="it is on its way")
    putting.send_signal(signal.SIGINT)
    told = putting.communicate(timeout=60)[0].decode()
    assert putting.returncode == 130
    assert "interrupted: incomplete files were removed" in told
    assert not list(staging.rglob("*.part"))


def test_wrong_words_name_the_nearest(doors: Doors) -> None:
    assert "did you mean retry_failed?" in doors.admin("retry-failed", code=2).err
    assert "--stat" in doors.admin("show_tasks", "--stat", "x", code=2).err


def test_a_cluster_from_start_to_stop(doors: Doors) -> None:
    try:
        assert "the boss runs" in doors.admin("start").out
        assert "already runs" in doors.admin("start").out
        home = doors.place / "home"
        for name in ("client.access", "secrets/cluster.key"):
            assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
        tasks = doors.write("t.json", [{"id": "a", "commands": "echo 42 > out", "results": ["out"]}])
        assert "1 succeeded" in doors.push(tasks, "--wait").out
        assert doors.admin("ls", "--json").json[0]["path"] == "out"
        text = doors.admin("stop").out
        assert "still there: 1 VM," in text
        assert "not running" in doors.admin("status").out
        doors.admin("start")
    finally:
        assert "nothing else runs" in doors.admin("stop", "--vms").out
    assert doors.admin("show_vms", "--json").json == []


def test_questions_and_orders_about_tasks(cluster: Doors) -> None:
    doors = pushed(cluster)
    status = doors.admin("status", "--json").json
    assert status["tasks"]["failed"] == 1
    assert status["runs"][0]["name"] == "sleepers"
    assert status["boss"]["leads"] is True
    text = doors.admin("status").out
    assert "leads" in text
    assert "sleepers" in text
    assert [task["id"] for task in doors.admin("show_failed", "--json").json] == ["broken"]
    assert "bad luck" in doors.admin("show_failed").out
    assert "command 2 of 2 failed with exit code 3" in doors.admin("show_failed").out
    assert doors.admin("show_in_progress", "--json").json["total"] == 1
    assert doors.admin("show_queued", "--json").json["total"] == 2
    assert doors.admin("show_succeeded", "--json").json["total"] == 1
    assert doors.admin("show_tasks", "--label", "slow", "--json").json["total"] == 1
    assert doors.admin("show_tasks", "--run", "sleepers", "--state", "aborted", "--json").json["total"] == 1
    assert "no state" in doors.admin("show_tasks", "--state", "asleep", code=2).err
    assert "sleepers" in doors.admin("show_tasks", "--run", "sleeper", code=2).err
    assert doors.admin("show_task_commands", "quick").out == "echo one\necho two >&2\n"
    assert "long" in doors.admin("show_task_dependencies", "after").out
    assert "bad luck" in doors.admin("show_task", "broken").out
    assert doors.admin("show_task", "sleepers:broken", "--json").json["state"] == "failed"
    logs = doors.admin("logs", "quick")
    assert (logs.out, logs.err) == ("one\n", "two\n")
    assert "near to it: broken" in doors.admin("show_task", "brocken", code=2).err

    assert "long" in doors.admin("why", "after").out
    assert "640 cpus" in doors.admin("why", "impossible").out
    assert "broken" in doors.admin("why", "below").out
    assert "bad luck" in doors.admin("why", "broken").out
    assert len(doors.admin("why", "after", "--all", "--json").json["layers"]) >= 0

    assert "1 failed task is done again, with 1 below it" in doors.admin("retry_failed").out
    wait_until(lambda: state_of(doors, "below") == "aborted", what="below is aborted again")
    attempts = doors.admin("show_task", "broken", "--json").json["attempts"]
    assert [one["state"] for one in attempts if one["state"] != "returned"] == ["ended", "ended"]
    assert "1 task is done again" in doors.admin("redo_task", "quick").out
    wait_until(lambda: state_of(doors, "quick") == "succeeded", what="quick succeeded again")
    assert "which tasks?" in doors.admin("cancel", code=2).err
    assert "no task" in doors.admin("cancel", "nobody", code=2).err
    assert "1 cancelled" in doors.admin("cancel", "impossible", "--reason", "too large").out
    assert "too large" in doors.admin("why", "impossible").out
    assert doors.admin("cancel", "--label", "slow", "--json").json["count"] == 1
    assert set(ended(doors, "sleepers").values()) == {"succeeded", "failed", "aborted", "cancelled"}
    assert "2 tasks dropped" in doors.admin("drop_tasks", "quick", "below", "--yes").out
    assert doors.admin("show_tasks", "--json").json["total"] == 4
    doors.admin("drop_tasks", "--run", "sleepers", "--yes")
    assert doors.admin("show_tasks", "--json").json["total"] == 0


def test_characters_survive_the_way_and_an_ended_task_is_shown(cluster: Doors) -> None:
    pieces = ["caf\\303", "\\251 \\360\\237", "\\230\\200\\n"]
    command = "; sleep 0.3; ".join(f"printf '{piece}'" for piece in pieces)
    until = "until test -e go; do sleep 0.05; done"
    tasks = cluster.write("mb.json", [{"id": "mb", "commands": f"cd {cluster.place}; {until}; {command}"}])
    cluster.push(tasks)
    door = cluster.begin("admin.py", "logs", "mb", "-f")
    (cluster.place / "go").touch()
    followed = door.communicate(timeout=60)[0].decode()
    assert "\ufffd" not in followed
    assert "café 😀\n" in followed
    kept = cluster.admin("logs", "mb").out
    assert cluster.admin("logs", "mb", "-f").out == kept == "café 😀\n"


def test_output_is_followed_as_it_is_written(cluster: Doors) -> None:
    release = cluster.place / "release"
    commands = f"echo begun; while [ ! -e '{release}' ]; do sleep 0.1; done; echo released >&2; exit 4"
    cluster.push(cluster.write("t.json", [{"id": "talker", "commands": commands}]))
    wait_until(lambda: state_of(cluster, "talker") == "running")
    door = cluster.begin("admin.py", "logs", "talker", "-f")
    assert door.stdout is not None
    assert door.stdout.readline() == b"begun\n"
    release.write_text("")
    rest = door.stdout.read().decode()
    assert door.wait(30) == 1
    door.stdout.close()
    assert "released" in rest
    assert "failed: " in rest


def test_workers_are_started_drained_killed_and_forgotten(cluster: Doors) -> None:
    assert "2 requested in pool" in cluster.admin("instantiate_worker", 2, "--keep_alive").out

    def workers(*words: str) -> list[dict[str, object]]:
        found: list[dict[str, object]] = cluster.admin("show_workers", "--json", *words).json
        return found

    wait_until(lambda: len(workers()) == 2, what="both have joined")
    assert "allows no more" in cluster.admin("instantiate_worker", 5, code=1).out
    assert "no pool 'moon'" in cluster.admin("instantiate_worker", "--pool", "moon", code=2).err
    assert cluster.admin("instantiate_worker", "--", -1, code=2).err
    name = str(workers()[0]["worker"])
    assert name in cluster.admin("show_workers").out
    assert "idle" in cluster.admin("why", f"worker/{name}").out
    assert "1 draining" in cluster.admin("drain_worker", name[:8]).out
    wait_until(lambda: {worker["state"] for worker in workers()} == {"up", "draining"})
    assert "1 take tasks again" in cluster.admin("undrain_worker", name).out
    assert "which workers?" in cluster.admin("kill_worker", code=2).err
    assert "2 ordered to stop" in cluster.admin("kill_worker", "--all").out
    wait_until(lambda: not workers(), what="both are gone")
    assert len(workers("--all")) == 2
    assert "gone" in cluster.admin("why", f"worker/{name}").out
    assert len(cluster.admin("show_vms", "--all", "--json").json) == 2
    assert "VM 1" in cluster.admin("why", "vm/1").out
    assert "2 forgotten" in cluster.admin("drop_workers", "--all").out
    assert workers("--all") == []


def test_the_plan_tells_what_would_start_and_why(cluster: Doors) -> None:
    assert "start nothing, end nothing" in cluster.admin("plan").out
    cluster.push(cluster.write("wide.json", [{"id": "wide", "commands": "true", "resources": {"cpus": 640}}]))
    told = cluster.admin("plan", "--json").json
    assert told["starts"] == told["ends"] == []
    assert "1 task of 640 cpus fits no pool" in told["notes"]
    assert {pool["pool"] for pool in told["pools"]} >= {"local"}
    assert "pool local: " in cluster.admin("plan").out
    assert cluster.admin("show_vms", "--json").json == []


def test_the_ledger_accounts_for_every_second(cluster: Doors) -> None:
    assert "no VMs yet" in cluster.admin("ledger").out
    tasks = [{"id": f"t{number}", "commands": "sleep 0.3"} for number in range(4)]
    cluster.push(cluster.write("naps.json", tasks), "--wait")
    cluster.admin("kill_worker", "--all")
    wait_until(lambda: not cluster.admin("show_vms", "--json").json, what="all VMs are gone")
    books = cluster.admin("ledger", "--run", "naps", "--json").json
    lives = {vm["vm_no"]: vm["gone_at"] - vm["started_at"] for vm in cluster.admin("show_vms", "--all", "--json").json}
    for vm in books["vms"]:
        assert sum(vm["parts"].values()) == pytest.approx(lives[vm["vm_no"]], abs=1e-5)
    assert books["total"]["life_s"] == pytest.approx(sum(vm["life_s"] for vm in books["vms"]))
    assert books["run"]["parts"]["running"] > 0.25
    assert books["run"]["taken_s"] == pytest.approx(sum(books["run"]["parts"].values()))
    shown = cluster.admin("ledger", "--run", "naps").out
    assert "booting s" in shown
    assert "run naps took" in shown
    assert "no run 'nope'" in cluster.admin("ledger", "--run", "nope", code=2).err
    assert "its first task after" in cluster.admin("why", f"vm/{books['vms'][0]['vm_no']}", "--all").out


def test_files_and_context(cluster: Doors) -> None:
    (cluster.place / "in.txt").write_text("hello")
    assert "in/deep.txt" in cluster.admin("put", "in.txt", "in/deep.txt").out
    tasks = [
        {
            "id": "copy",
            "commands": "cp given made",
            "requirements": [["in/deep.txt", "given"]],
            "results": [["made", "out/made"]],
        }
    ]
    cluster.push(cluster.write("t.json", tasks), "--wait")
    assert "out/made" in cluster.admin("ls", "-r").out
    assert [entry["path"] for entry in cluster.admin("ls", "--task", "copy", "--json").json] == ["out/made"]
    cluster.admin("get", "out/made", "here")
    assert (cluster.place / "here").read_text() == "hello"
    assert "exists" in cluster.admin("get", "out/made", "here", code=2).err
    assert "not in the datastore" in cluster.admin("get", "nowhere", code=2).err
    assert cluster.admin("du", "--json").json["bytes"] == 10
    below = cluster.admin("put", "in.txt", "in/deep.txt/x", code=2).err
    assert "in/deep.txt is a file in the datastore" in below
    assert "the datastore is inside" in cluster.admin("put", cluster.daemon.home.path, code=2).err
    context = cluster.admin("show_context", "--json").json
    assert len(context["cluster_id"]) == 16
    assert str(cluster.daemon and cluster.daemon.home.datastore) in context["datastore_address"]
    assert "set_datastore where?" in cluster.admin("set_datastore", "", code=2).err
    cluster.admin("set_datastore", cluster.place / "../elsewhere")
    assert ".." not in cluster.admin("show_context", "--json").json["datastore_address"]
    assert "elsewhere" in cluster.admin("show_context").out
    assert "there is no note 'nope'" in cluster.admin("drop_context", "nope", code=2).err
    assert "'cluster_id' cannot be deleted" in cluster.admin("drop_context", "cluster_id", code=None).err
    assert "dropped" in cluster.admin("drop_context").out
    assert "elsewhere" not in cluster.admin("show_context").out


def test_a_worker_that_was_invited_works_until_it_is_no_more_wanted(cluster: Doors) -> None:
    cluster.admin("invite", "guest.access")
    path = cluster.place / "guest.access"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "exists" in cluster.admin("invite", "guest.access", code=2).err
    name = json.loads(path.read_text())["key_name"]
    command = ["-m", "worker", str(path), "--home", str(cluster.place / "guest"), "--resource", "telescope=1"]
    assert cluster.daemon is not None
    worker = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=cluster.environment, stderr=subprocess.PIPE)
    try:
        tasks = [{"id": "look", "commands": "true", "resources": {"telescope": 1}}]
        cluster.push(cluster.write("t.json", tasks), "--wait")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
    finally:
        worker.kill()
        worker.communicate()
    assert name in cluster.admin("invite", "--revoke", name).out
    shown = cluster.admin("invite", "--list", "--json").json
    assert [(one["name"], one["role"], one["revoked"]) for one in shown] == [(name, "worker", True)]
    assert "revoked" in cluster.admin("invite", "--list").out
    environment = {**cluster.environment, "ECLOUD_ACCESS": str(path)}
    door = [sys.executable, str(ROOT / "push_tasks.py"), str(cluster.place / "t.json")]
    refused = subprocess.run(door, env=environment, capture_output=True, timeout=60, cwd=cluster.place)
    assert refused.returncode == 3
    assert b"revoked" in refused.stderr


def test_the_doctor_checks_every_part(cluster: Doors) -> None:
    found = cluster.admin("doctor", "--json").json
    assert found["ok"] is True
    parts = {finding["part"] for finding in found["findings"]}
    assert parts >= {"versions", "settings", "home", "limits", "database", "boss", "broker", "datastore"}
    assert cluster.daemon is not None
    cluster.daemon.stop()
    text = cluster.admin("doctor", code=3).out
    assert "!! boss" in text
    assert "python admin.py start" in text


def test_the_doctor_says_what_is_wrong(doors: Doors) -> None:
    first = doors.admin("doctor", code=3).out
    assert "datastore: the boss will create it" in first
    assert not (doors.place / "home").exists(), "looking makes nothing"
    settings = doors.place / "no-settings.py"
    for line, part in (
        ("DATABASE_URL = 'mysql://u:hunter2@127.0.0.1:1/x'", "127.0.0.1:1"),
        ("BROKER_HOST = '127.0.0.1'; BROKER_PORT = 1", "127.0.0.1:1"),
        ("HEARTBEATS = 3", "HEARTBEAT_S"),
        ("import nonsense", "line 1"),
    ):
        environment = doors.environment
        settings.write_text(line + "\n")
        command = [sys.executable, str(ROOT / "admin.py"), "doctor"]
        done = subprocess.run(command, cwd=doors.place, env=environment, capture_output=True, timeout=60)
        text = done.stdout.decode() + done.stderr.decode()
        assert done.returncode == 3, text
        assert part in text
        assert "hunter2" not in text
        assert "Traceback" not in text


def test_questions_are_answered_while_the_boss_is_down(cluster: Doors) -> None:
    cluster.push(cluster.write("t.json", [{"id": "a", "commands": "sleep 100"}]))
    wait_until(lambda: state_of(cluster, "a") == "running")
    assert cluster.daemon is not None
    cluster.daemon.kill()
    assert cluster.admin("show_tasks", "--json").json["total"] == 1
    assert "runs on worker" in cluster.admin("why", "a").out
    assert cluster.admin("status").out
    refused = cluster.admin("cancel", "a", code=3)
    assert "python admin.py start" in refused.err


def test_a_push_into_a_run_that_exists(cluster: Doors) -> None:
    def push(tasks: list[dict[str, object]], *options: str) -> dict[str, int]:
        done = cluster.push(cluster.write("r.json", tasks), "--wait", *options, code=None)
        assert done.code in (0, 1)
        return ended(cluster, "r")  # type: ignore[return-value]

    count = cluster.place / "count"
    task = {"id": "a", "commands": f"echo a >> '{count}'"}
    other = {"id": "b", "commands": f"echo b >> '{count}'; [ -e '{cluster.place}/mended' ]", "dependencies": ["a"]}
    assert push([task, other]) == {"a": "succeeded", "b": "failed"}
    (cluster.place / "mended").write_text("")
    assert push([task, other]) == {"a": "succeeded", "b": "succeeded"}
    assert count.read_text().split() == ["a", "b", "b"]
    changed = {**task, "env": {"X": "1"}}
    push([changed, other])
    assert count.read_text().split() == ["a", "b", "b", "a", "b"]
    push([changed], "--merge_strategy", "replace")
    assert ended(cluster, "r") == {"a": "succeeded"}
    assert count.read_text().split() == ["a", "b", "b", "a", "b", "a"]


def test_status_is_watched_until_an_interrupt(cluster: Doors) -> None:
    door = cluster.begin("admin.py", "status", "--watch")
    assert door.stdout is not None
    assert b"boss" in door.stdout.readline()
    door.send_signal(signal.SIGINT)
    door.stdout.read()
    assert door.wait(30) == 0
    door.stdout.close()


def test_a_door_with_a_python_that_lacks_the_packages_says_what_to_run(tmp_path: Path) -> None:
    for name in ("admin.py", "push_tasks.py"):
        done = subprocess.run([sys.executable, "-S", str(ROOT / name)], capture_output=True, timeout=60, cwd=tmp_path)
        assert done.returncode == 3
        assert b"make install" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_tasks_are_dropped_only_where_that_is_confirmed(cluster: Doors) -> None:
    tasks = [{"id": f"s{number}", "commands": "sleep 60"} for number in range(8)]
    watcher = cluster.begin("push_tasks.py", cluster.write("r.json", tasks), "--wait")
    wait_until(lambda: cluster.admin("show_in_progress", "--json").json["total"], what="some run")
    refused = cluster.admin("drop_tasks", "--run", "r", code=2).err
    assert "8 tasks (s0, s1, s2, s3, s4, …)" in refused
    assert "--yes" in refused
    assert "8 tasks dropped" in cluster.admin("drop_tasks", "--run", "r", "--yes").out
    told, _ = watcher.communicate(timeout=60)
    assert watcher.returncode == 1, told
    assert b"run r was deleted while you watched it" in told


def test_a_push_that_runs_nothing_prints_that(cluster: Doors) -> None:
    path = cluster.write("t.json", [{"id": "a", "commands": "echo 1 > out", "results": ["out"]}])
    assert "earlier" not in cluster.push(path, "--wait").out
    again = cluster.push(path, "--wait")
    assert "(1 had succeeded earlier, 0 ran)" in again.out
    assert cluster.daemon is not None
    (cluster.daemon.home.datastore / "out").unlink()
    assert "some of their results are not in this datastore: a (out)" in cluster.push(path, "--wait").err
    again = cluster.push(path, "--wait", "--rerun_changed")
    assert "1 task runs again" in again.err
    assert "earlier" not in again.out
    assert (cluster.daemon.home.datastore / "out").exists()


def test_what_changed_since_a_success_is_listed_and_run_again_on_request(cluster: Doors) -> None:
    inputs = cluster.place / "inputs"
    (inputs / "tree").mkdir(parents=True)
    (inputs / "data").write_text("one")
    (inputs / "tree/x").write_text("x")
    tasks = [
        {"id": "a", "commands": "cat data > out", "requirements": ["data"], "results": ["out"]},
        {"id": "b", "commands": "cat out > all", "requirements": ["out"], "dependencies": ["a"], "results": ["all"]},
        {"id": "t", "commands": "cat tree/* > t", "requirements": ["tree"], "results": ["t"]},
    ]
    path = cluster.write("c.json", tasks)
    cluster.push(path, "--wait", "--upload", inputs)
    assert "another version" not in cluster.push(path, "--wait", "--upload", inputs).err
    os.utime(inputs / "data", (1, 1))  # it was touched, and is the same
    assert "another version" not in cluster.push(path, "--wait", "--upload", inputs).err
    (inputs / "data").write_text("two")
    (inputs / "tree/y").write_text("y")
    told = cluster.push(path, "--wait", "--upload", inputs)
    assert "2 tasks succeeded with another version of what they require: a (data), t (tree)" in told.err
    assert "--rerun_changed" in told.err
    assert cluster.daemon is not None
    made = cluster.daemon.home.datastore
    assert (made / "all").read_text() == "one"
    again = cluster.push(path, "--wait", "--rerun_changed")
    assert "3 tasks run again" in again.err
    assert "earlier" not in again.out
    assert (made / "all").read_text() == "two"
    assert (made / "t").read_text() == "xy"
    assert "again" not in cluster.push(path, "--wait", "--rerun_changed").err


def test_status_and_the_queue_show_tasks_that_nothing_can_run(cluster: Doors) -> None:
    tasks = [
        {"id": "gpu", "commands": "true", "resources": {"gpus": 64}},
        {"id": "after", "commands": "true", "dependencies": ["gpu"]},
        *({"id": f"quick{number}", "commands": "true"} for number in range(4)),
    ]
    pushing = cluster.begin("push_tasks.py", cluster.write("res.json", tasks), "--wait")
    assert pushing.stdout is not None
    told = b""
    while b"needs 64 gpus" not in told:
        line = pushing.stdout.readline()
        assert line, f"the push ended without the reason: {told!r}"
        told += line
    wait_until(lambda: state_of(cluster, "quick3") == "succeeded", what="what can run has run")
    rows = {line["id"]: line["reason"] for line in cluster.admin("show_queued", "--json").json["tasks"]}
    assert "needs 64 gpus" in rows["gpu"]
    assert rows["after"] == "waits for gpu (ready)"
    status = cluster.admin("status").out
    assert "time left unknown\n  task gpu needs 64 gpus" in status
    assert "about" not in status
    cluster.admin("drop_tasks", "--run", "res", "--yes")
    told = pushing.communicate(timeout=60)[0]
    assert pushing.returncode == 1
    assert b"run res was deleted while you watched it" in told


def test_a_run_that_is_dropped_ends_a_watch_with_a_document_too(cluster: Doors) -> None:
    pushing = cluster.begin(
        "push_tasks.py", cluster.write("d.json", [{"id": "s", "commands": "sleep 60"}]), "--wait", "--json"
    )
    wait_until(lambda: cluster.admin("show_tasks", "--json").json["total"], what="it was pushed")
    cluster.admin("drop_tasks", "--run", "d", "--yes")
    out = pushing.communicate(timeout=60)[0].decode()
    assert pushing.returncode == 1
    assert '"dropped": true' in out
    assert "run d was deleted while you watched it" in out


def test_a_task_may_be_called_like_a_worker(cluster: Doors) -> None:
    cluster.push(cluster.write("w.json", [{"id": "worker/1", "commands": "true"}]), "--wait")
    assert "task worker/1 succeeded" in cluster.admin("why", "worker/1").out
    assert "task worker/1 succeeded" in cluster.admin("why", "worker/1", "--run", "w").out
    assert "there is no worker" in cluster.admin("why", "worker/2", code=2).err


def test_output_is_shown_raw_where_that_is_asked_for(cluster: Doors) -> None:
    text = "a\r\x1b[31mb\n"
    cluster.push(cluster.write("o.json", [{"id": "o", "commands": "printf 'a\\r\\033[31mb\\n'"}]), "--wait")
    assert cluster.admin("logs", "o", "--raw").out == text
    assert cluster.admin("logs", "o").out == "a\\r\\x1b[31mb\n"
    assert "-f follows the attempt that runs now" in cluster.admin("logs", "o", "-f", "--attempt", 1, code=2).err


def test_times_name_their_zone(cluster: Doors) -> None:
    cluster.push(cluster.write("z.json", [{"id": "z", "commands": "true"}]), "--wait")
    zone = time.strftime("%Z")
    assert f" {zone}" in cluster.admin("show_task", "z").out
    assert f" {zone}" in cluster.admin("why", "z").out


def test_a_reader_that_ends_is_no_error(cluster: Doors) -> None:
    door = [sys.executable, str(ROOT / "admin.py")]
    for words in ("show_tasks", "status", "status --watch --json", "--help"):
        command = " ".join(["exec", *door, words])
        done = subprocess.run(
            ["bash", "-c", f"({command}) | head -c 1 >/dev/null; exit ${{PIPESTATUS[0]}}"],
            env=cluster.environment,
            capture_output=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, b"")


def test_vms_are_ended_also_where_no_boss_runs(cluster: Doors) -> None:
    cluster.push(cluster.write("t.json", [{"id": "a", "commands": "sleep 100"}]))
    wait_until(lambda: state_of(cluster, "a") == "running", what="a runs")
    assert cluster.daemon is not None
    cluster.daemon.kill()
    assert "silent for" in cluster.admin("status").out, "a killed boss does not lead"
    done = cluster.admin("stop", "--vms")
    assert "starting one to end the VMs" in done.err
    assert "nothing else runs" in done.out
