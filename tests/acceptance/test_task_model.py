"""What a task list can say, as it is kept: conditions, init tasks, resources, order, time limits, retries, files."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doors import Doors, ended
from services import Daemon, wait_until

Task = dict[str, Any]


def run(doors: Doors, tasks: list[Task], *options: str) -> dict[str, Any]:
    """Push a list, wait for its end; every task by id, as `show_task --json` gives it."""
    doors.push(doors.write("run.json", tasks), *options)
    states = ended(doors, "run")
    return {id: doors.admin("show_task", f"run:{id}", "--json").json for id in states}


def states(found: dict[str, Any]) -> dict[str, str]:
    """State by id."""
    return {id: task["state"] for id, task in found.items()}


def last(found: dict[str, Any], id: str) -> dict[str, Any]:
    """The last attempt of a task."""
    attempt: dict[str, Any] = found[id]["attempts"][-1]
    return attempt


def test_conditions_decide_who_follows_whom(cluster: Doors) -> None:
    found = run(
        cluster,
        [
            {"id": "good", "commands": "true"},
            {"id": "bad", "commands": "exit 1"},
            {"id": "after_good", "commands": "true", "dependencies": ["good"]},
            {"id": "after_bad", "commands": "true", "dependencies": ["bad"]},
            {"id": "far_below_bad", "commands": "true", "dependencies": ["after_bad"]},
            {"id": "clean_up", "commands": "true", "dependencies": [{"id": "bad", "on": "failure"}]},
            {"id": "no_need", "commands": "true", "dependencies": [{"id": "good", "on": "failure"}]},
            {"id": "anyway", "commands": "true", "dependencies": [{"id": "bad", "on": "any"}, "good"]},
        ],
    )
    assert states(found) == {
        "good": "succeeded",
        "bad": "failed",
        "after_good": "succeeded",
        "after_bad": "aborted",
        "far_below_bad": "aborted",
        "clean_up": "succeeded",
        "no_need": "aborted",
        "anyway": "succeeded",
    }
    assert "bad" in found["after_bad"]["reason"]


def test_one_shell_runs_all_commands_and_stops_at_the_first_that_fails(cluster: Doors) -> None:
    found = run(
        cluster,
        [
            {"id": "carries", "commands": ["mkdir d", "cd d", "export X='a b'", 'echo "$X in $(basename $PWD)"']},
            {"id": "stops", "commands": ["echo one", "sh -c 'echo why >&2; exit 7'", "echo three"]},
            {"id": "signal", "commands": "kill -SEGV $$"},
            {"id": "unicode", "commands": "echo ‘ünï’ 🐙 $GREETING", "env": {"GREETING": "grüß\ngott"}},
            {"id": "promised", "commands": "true", "results": ["never made"]},
            {"id": "lacking", "commands": "true", "requirements": ["never/there"]},
        ],
    )
    assert last(found, "carries")["stdout"] == "a b in d\n"
    stops = last(found, "stops")
    assert (stops["exit_code"], stops["stdout"]) == (7, "one\n")
    assert stops["command"] == "sh -c 'echo why >&2; exit 7'"
    assert "command 2 of 3 failed with exit code 7" in stops["error"]
    assert stops["error"].endswith("why")
    assert "SIGSEGV" in last(found, "signal")["error"]
    assert last(found, "unicode")["stdout"] == "‘ünï’ 🐙 grüß gott\n"
    assert "never made" in last(found, "promised")["error"]
    assert "never/there" in last(found, "lacking")["error"]
    assert set(states(found).values()) == {"succeeded", "failed"}


def test_the_environment_tells_a_task_where_it_is(cluster: Doors) -> None:
    command = 'echo "$ECLOUD_TASK $ECLOUD_RUN $ECLOUD_ATTEMPT $ECLOUD_WORKER"; env'
    found = run(cluster, [{"id": "who", "commands": command}])
    first, *rest = last(found, "who")["stdout"].splitlines()
    assert first == f"who run 1 {last(found, 'who')['worker']}"
    assert not [line for line in rest if "SECRET" in line or "KEY" in line or "access" in line.lower()]


def test_an_init_task_prepares_each_worker_before_anything_else(cluster: Doors) -> None:
    init = {"id": "prepare", "init": True, "commands": 'echo ready > "$ECLOUD_WORKER_DIR/prepared"'}
    work = [{"id": f"t{i}", "commands": 'cat "$ECLOUD_WORKER_DIR/prepared"; sleep 0.2'} for i in range(8)]
    found = run(cluster, [init, *work])
    assert {task["attempts"][-1]["stdout"] for id, task in found.items() if id != "prepare"} == {"ready\n"}
    prepared = cluster.admin("show_task", "prepare", "--json").json
    assert len(prepared["attempts"]) == len({task["attempts"][-1]["worker"] for task in found.values()})


def test_an_init_task_that_fails_everywhere_stops_its_run_and_no_other(cluster: Doors) -> None:
    init = {"id": "prepare", "init": True, "commands": "echo no compiler >&2; exit 1"}
    done = cluster.push(cluster.write("held.json", [init, {"id": "t", "commands": "true"}]), "--wait", code=1)
    assert "init task prepare failed in 2 worker processes" in done.text
    assert "no compiler" in done.text
    assert "prepare" in cluster.admin("why", "t", "--run", "held").out
    assert cluster.admin("show_task_status", "t", "--run", "held", "--json").json["state"] == "ready"
    found = run(cluster, [{"id": "other", "commands": "true"}])
    assert states(found) == {"other": "succeeded"}


def test_an_init_task_that_failed_in_three_processes_holds_its_run(
    daemons: Callable[..., Daemon], tmp_path: Path
) -> None:
    doors = Doors(tmp_path / "place", daemons(POOLS=({"name": "local", "maximum": 4},)).start())
    init = {"id": "prepare", "init": True, "commands": "echo no compiler >&2; exit 1"}
    tasks = [init, *({"id": f"t{i}", "commands": "true"} for i in range(9))]
    doors.push(doors.write("held.json", tasks))
    wait_until(lambda: _run(doors, "held")["held"], 60, "the run is held")
    assert "prepare" in _run(doors, "held")["held"]
    fine = [{**init, "commands": "true"}, *tasks[1:]]
    doors.push(doors.write("held.json", fine), "--wait")


def _run(doors: Doors, name: str) -> dict[str, Any]:
    (found,) = (item for item in doors.admin("status", "--json").json["runs"] if item["name"] == name)
    return dict(found)


def test_a_time_limit_ends_the_whole_process_group_and_what_left_it(cluster: Doors, tmp_path: Path) -> None:
    marker = tmp_path / "alive"
    child = f"setsid sh -c 'trap \"\" TERM; while :; do date > {marker}; sleep 0.1; done' & sleep 100"
    found = run(cluster, [{"id": "slow", "commands": child, "timeout_s": 1.5}])
    assert last(found, "slow")["cause"] == "timeout"
    assert "timeout_s = 1.5" in last(found, "slow")["error"]
    marker.unlink(missing_ok=True)
    time.sleep(0.5)  # what still lived would write in this time
    assert not marker.exists()


def test_retries_are_used_up_by_the_causes_that_were_named(cluster: Doors) -> None:
    found = run(
        cluster,
        [
            {"id": "third_time", "commands": '[ "$ECLOUD_ATTEMPT" = 3 ]', "retries": 3},
            {"id": "never", "commands": "exit 1", "retries": 2},
            {"id": "other_cause", "commands": "exit 1", "retries": {"max": 5, "on": ["timeout"]}},
            {"id": "slow", "commands": "sleep 9", "timeout_s": 0.2, "retries": {"max": 1, "on": ["timeout"]}},
        ],
    )
    tries = {id: len(task["attempts"]) for id, task in found.items()}
    assert tries == {"third_time": 3, "never": 3, "other_cause": 1, "slow": 2}
    assert states(found)["third_time"] == "succeeded"


def test_results_that_exist_are_not_made_again_unless_wished(cluster: Doors) -> None:
    (cluster.place / "old").write_text("old")
    cluster.admin("put", "old", "kept")
    cluster.admin("put", "old", "made")
    found = run(
        cluster,
        [
            {"id": "keeps", "commands": "echo new > kept", "results": ["kept"], "overwrite_result": False},
            {"id": "makes", "commands": "echo new > made", "results": ["made"]},
            {"id": "first", "commands": "echo new > fresh", "results": ["fresh"], "overwrite_result": False},
        ],
    )
    assert set(states(found).values()) == {"succeeded"}
    assert found["keeps"]["attempts"] == []
    assert "skipped" in found["keeps"]["reason"]
    assert cluster.daemon is not None
    root = cluster.daemon.home.datastore
    assert [(root / name).read_text() for name in ("kept", "made", "fresh")] == ["old", "new\n", "new\n"]


def test_directories_and_globs_are_results_too(cluster: Doors) -> None:
    commands = ["mkdir -p out/deep", "echo 1 > out/deep/a", "echo 2 > 'out/b c'", "ln -s a out/deep/l"]
    commands += ["echo x > p1.txt", "echo y > p2.txt"]
    made = {"id": "make", "commands": commands, "results": [["out", "all"], ["p*.txt", "parts"]]}
    use = {
        "id": "use",
        "commands": "cat in/deep/l 'in/b c' q/p1.txt q/p2.txt",
        "dependencies": ["make"],
        "requirements": [["all", "in"], ["parts", "q"]],
    }
    found = run(cluster, [made, use])
    assert last(found, "use")["stdout"] == "1\n2\nx\ny\n"


def test_gpus_are_given_by_index_and_never_twice(
    daemons: Callable[..., Daemon], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho '0, GPU-a'\necho '1, GPU-b'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    daemon = daemons(POOLS=({"name": "local", "maximum": 1, "cpus": 8, "gpus": 2},)).start()
    doors = Doors(tmp_path / "place", daemon)
    show = 'echo "[$CUDA_VISIBLE_DEVICES]"; sleep 0.3'
    tasks: list[Task] = [{"id": f"one{i}", "commands": show, "resources": {"gpus": 1}} for i in range(4)]
    tasks += [{"id": "both", "commands": show, "resources": {"gpus": 2}}, {"id": "none", "commands": show}]
    found = run(doors, tasks)
    seen = {id: task["attempts"][-1]["stdout"].strip() for id, task in found.items()}
    assert {seen[f"one{i}"] for i in range(4)} == {"[0]", "[1]"}
    assert seen["both"] == "[0,1]"
    assert seen["none"] == "[]"
    spans = [(t["attempts"][-1]["started_at"], t["attempts"][-1]["ended_at"], seen[id]) for id, t in found.items()]
    ones = sorted(span for span in spans if span[2] in ("[0]", "[1]"))
    for first, second in itertools.pairwise(ones):
        assert second[0] >= first[1] - 0.05 or first[2] != second[2]


def test_urgent_tasks_go_first(daemons: Callable[..., Daemon], tmp_path: Path) -> None:
    daemon = daemons(POOLS=({"name": "local", "maximum": 1},)).start()
    doors = Doors(tmp_path / "place", daemon)
    journal = doors.place / "journal"
    tasks: list[Task] = [{"id": "gate", "commands": f"while [ ! -e '{doors.place}/go' ]; do sleep 0.05; done"}]
    tasks += [{"id": f"p{p}", "commands": f"echo {p} >> '{journal}'", "priority": p} for p in (-1, 0, 5, 3)]
    doors.push(doors.write("run.json", tasks))
    wait_until(lambda: doors.admin("show_task_status", "gate", "--json").json["state"] == "running")
    (doors.place / "go").write_text("")
    ended(doors, "run")
    order = journal.read_text().split()
    # A worker has a short queue, given before: what came into it first may go before its betters.
    assert order.index("5") < order.index("-1")
    assert sorted(order) == ["-1", "0", "3", "5"]


def test_two_runs_share_the_workers(cluster: Doors) -> None:
    for name in ("first", "second"):
        tasks = [{"id": f"t{i}", "commands": "sleep 0.15"} for i in range(20)]
        cluster.push(cluster.write(f"{name}.json", tasks))
    ended(cluster, "first")
    second = _run(cluster, "second")["states"]
    ended(cluster, "second")
    assert second.get("succeeded", 0) > 2  # not first in, first out


def test_odd_names_and_long_commands(cluster: Doors) -> None:
    long_id = "x" * 255
    big = "# " + "y" * 1_000_000
    tasks: list[Task] = [
        {"id": "A", "commands": "true"},
        {"id": "a", "commands": "true", "dependencies": ["A"]},
        {"id": "-rf", "commands": "true"},
        {"id": "a b\u2028c 🐙", "commands": "true"},
        {"id": long_id, "commands": "true"},
        {"id": "big", "commands": [big, "echo done"]},
    ]
    cluster.push(cluster.write("run.json", tasks))
    found = ended(cluster, "run")
    assert set(found.values()) == {"succeeded"}
    assert set(found) == {task["id"] for task in tasks}
    assert cluster.admin("logs", "big").out == "done\n"
