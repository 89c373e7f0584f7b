"""`push_tasks.py FILE --local`: a whole cluster for one list, which leaves nothing behind but results."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from doors import Doors
from services import ROOT, wait_until

INPUTS = ROOT / "tests" / "inputs"
WORKFLOWS = sorted(path.name.split(".")[0] for path in (INPUTS / "wf").iterdir())


def workflow(name: str, place: Path) -> Path:
    """The recorded workflow of that name as a file."""
    packed = INPUTS / "wf" / f"{name}.json.gz"
    if not packed.exists():
        return INPUTS / "wf" / f"{name}.json"
    path = place / f"{name}.json"
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    return path


def leftovers(marker: Path) -> list[str]:
    """Processes that know of `marker`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(marker) in command:
                found.append(command)
    return found


def end_states(report: dict[str, object]) -> dict[str, int]:
    states = report["states"]
    assert isinstance(states, dict)
    return states


@pytest.mark.parametrize("name", ["ecloud-2018", "ecloud-2019"])
def test_the_lists_of_the_tool_before_end_as_they_always_did(doors: Doors, name: str) -> None:
    report = doors.push(INPUTS / f"{name}.json", "--local", "--wait", "--json", code=1).json
    assert end_states(report) == {"succeeded": 2, "failed": 2, "aborted": 1}
    errors = {failure["id"]: failure for failure in report["failed"]}
    assert "non-existent-file" in errors["0"]["error"]
    assert "This error message should end up in the log." in errors["2"]["stderr"]
    assert "exit code 1" in errors["2"]["error"]
    assert (doors.place / "ecloud-data" / "TEST_SUCCEEDED").read_text() == "3.42\n"


def test_what_a_person_sees_names_the_failed_the_aborted_and_the_results(doors: Doors) -> None:
    text = doors.push(INPUTS / "ecloud-2019.json", "--local", "2", code=1).out
    assert "task 0 failed" in text
    assert "run ecloud-2019: 2 succeeded, 2 failed, 1 aborted" in text
    assert "TEST_SUCCEEDED" in text
    assert str(doors.place / "ecloud-data") in text


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if "montage" in name else name for name in WORKFLOWS]
)
def test_a_recorded_workflow_runs_whole_at_scale_0(doors: Doors, name: str) -> None:
    report = doors.push(workflow(name, doors.place), "--local", "--scale", "0", "--json").json
    assert set(end_states(report)) == {"succeeded"}


@pytest.mark.parametrize("name", [name for name in WORKFLOWS if "montage" not in name and "bacass" not in name])
def test_files_flow_from_their_producers_at_a_small_scale(doors: Doors, name: str) -> None:
    # Each stand-in checks that the first line of each file it reads names its producer.
    report = doors.push(workflow(name, doors.place), "--local", "--scale", "0.0005", "--json").json
    assert set(end_states(report)) == {"succeeded"}


@pytest.mark.long
@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_workflow_at_a_small_scale(doors: Doors, name: str) -> None:
    report = doors.push(workflow(name, doors.place), "--local", "--scale", "0.001", "--json").json
    assert set(end_states(report)) == {"succeeded"}


def test_nothing_is_left_but_the_results(doors: Doors) -> None:
    tasks = [{"id": "a", "commands": "echo hello > out; setsid sleep 77 &", "results": ["out"]}]
    doors.push(doors.write("t.json", tasks), "--local", "--datastore", "results")
    assert sorted(path.name for path in doors.place.iterdir()) == ["no-settings.py", "results", "t.json"]
    assert [path.name for path in (doors.place / "results").iterdir()] == ["out"]
    assert not leftovers(doors.place)


def test_an_interrupt_stops_everything_and_prints_how_to_continue(doors: Doors) -> None:
    tasks = [
        {"id": "quick", "commands": "echo 1 > out", "results": ["out"]},
        {"id": "slow", "commands": f"sleep 77; echo {doors.place}", "dependencies": [{"id": "quick", "on": "any"}]},
    ]
    door = doors.begin("push_tasks.py", doors.write("t.json", tasks), "--local", "--wait")
    # With `on: any` it is not chained: it starts when the quick task is recorded and its result is published.
    wait_until(lambda: any("sleep 77" in command for command in leftovers(doors.place)), 30, "the slow task runs")
    door.send_signal(signal.SIGINT)
    out, _ = door.communicate(timeout=30)
    assert door.returncode == 130
    assert "1 succeeded" in out.decode()
    assert "--skip_existing" in out.decode()
    assert not leftovers(doors.place)
    assert (doors.place / "ecloud-data" / "out").exists()


def test_two_interrupts_stop_everything_at_once(doors: Doors) -> None:
    tasks = [{"id": "slow", "commands": f"trap '' TERM; sleep 78; sleep 78; echo {doors.place}"}]
    door = doors.begin("push_tasks.py", doors.write("t.json", tasks), "--local")
    wait_until(lambda: any("sleep 78" in command for command in leftovers(doors.place)), 30, "the task runs")
    door.send_signal(signal.SIGINT)
    door.send_signal(signal.SIGINT)
    door.communicate(timeout=30)
    assert door.returncode == 130
    wait_until(lambda: not leftovers(doors.place), 30, "nothing is left")


def test_a_killed_door_leaves_nothing_running(doors: Doors) -> None:
    tasks = [{"id": "slow", "commands": f"sleep 79; echo {doors.place}"}]
    door = doors.begin("push_tasks.py", doors.write("t.json", tasks), "--local")
    wait_until(lambda: any("sleep 79" in command for command in leftovers(doors.place)), 30, "the task runs")
    door.kill()
    door.communicate()
    wait_until(lambda: not leftovers(doors.place), 30, "nothing is left")


def test_what_was_done_is_skipped_when_asked(doors: Doors) -> None:
    tasks = [{"id": "a", "commands": "date +%N > out", "results": ["out"]}]
    path = doors.write("t.json", tasks)
    doors.push(path, "--local")
    first = (doors.place / "ecloud-data" / "out").read_text()
    doors.push(path, "--local", "--skip_existing")
    assert (doors.place / "ecloud-data" / "out").read_text() == first
    doors.push(path, "--local")
    assert (doors.place / "ecloud-data" / "out").read_text() != first


def test_working_directories_are_kept_when_asked(doors: Doors) -> None:
    doors.push(doors.write("t.json", [{"id": "a", "commands": "echo kept > note"}]), "--local", "--keep_dirs")
    (note,) = (doors.place / "ecloud-data-dirs").glob("*/note")
    assert note.read_text() == "kept\n"


def test_each_working_directory_is_kept_under_a_name_of_its_own(doors: Doors) -> None:
    names = ["a/b", "a_b", "n" * 150 + "1", "n" * 150 + "2", "日" * 100]
    tasks = [{"id": name, "commands": f"echo {number} > f"} for number, name in enumerate(names)]
    doors.push(doors.write("keep.json", tasks), "--local", 1, "--wait", "--keep_dirs")
    kept = (doors.place / "ecloud-data-dirs").glob("*/f")
    assert sorted(path.read_text().strip() for path in kept) == ["0", "1", "2", "3", "4"]


def test_this_machine_is_promised_once_to_all_local_pools(doors: Doors) -> None:
    """Two workers of one CPU each, and one of both: what these run at once never asks for more than two CPUs."""
    note = 'echo "$(date +%s.%N) {cpus}" >> ' + str(doors.place / "log") + "; sleep 0.4; "
    note += 'echo "$(date +%s.%N) -{cpus}" >> ' + str(doors.place / "log")
    tasks = [
        {"id": f"t{number}", "commands": note.format(cpus=cpus), "resources": {"cpus": cpus}, "priority": number % 3}
        for number, cpus in enumerate([2, 1, 1, 2, 1, 1, 1, 2])
    ]
    doors.push(doors.write("over.json", tasks), "--local", 2, "--wait")
    changes = sorted(
        (float(at), float(change)) for at, change in map(str.split, (doors.place / "log").read_text().splitlines())
    )
    used = most = 0.0
    for _, change in changes:
        used += change
        most = max(most, used)
    assert len(changes) == 16
    assert most == 2.0


def test_files_are_uploaded_first(doors: Doors) -> None:
    inputs = doors.place / "inputs" / "deep"
    inputs.mkdir(parents=True)
    (inputs / "in put").write_text("42")
    tasks = [{"id": "a", "commands": "cat got > out", "requirements": [["deep/in put", "got"]], "results": ["out"]}]
    doors.push(doors.write("t.json", tasks), "--local", "--upload", "inputs")
    assert (doors.place / "ecloud-data" / "out").read_text() == "42"


def test_a_missing_directory_is_reported_before_anything_else(doors: Doors) -> None:
    """No boss runs here, and none is asked for."""
    tasks = doors.write("t.json", [{"id": "a", "commands": "true"}])
    assert "--upload nodir: there is no such directory" in doors.push(tasks, "--upload", "nodir", code=2).err


def test_a_datastore_is_not_uploaded_into_itself(doors: Doors) -> None:
    tasks = doors.write("t.json", [{"id": "a", "commands": "echo 42 > out", "results": ["out"]}])
    for _ in range(2):
        doors.push(tasks, "--local", "--upload", ".")
    assert (doors.place / "ecloud-data" / "t.json").exists()
    assert not (doors.place / "ecloud-data" / "ecloud-data").exists()


def test_a_list_that_no_worker_here_could_run_is_refused_by_name(doors: Doors) -> None:
    tasks = [{"id": "a", "commands": "true"}, {"id": "huge", "commands": "true", "resources": {"gpus": 99}}]
    text = doors.push(doors.write("t.json", tasks), "--local", code=2).err
    assert "task huge" in text
    assert "99 gpus" in text


def test_a_dry_run_says_what_would_run(doors: Doors) -> None:
    tasks = [
        {"id": "a", "commands": "true", "runtime_s": 5},
        {"id": "b", "commands": "true", "runtime_s": 7, "dependencies": ["a"]},
        {"id": "c", "commands": "true", "runtime_s": 1, "dependencies": ["a"], "requirements": ["input"]},
    ]
    plan = doors.push(doors.write("t.json", tasks), "--dry_run", "--json").json
    assert plan["levels"] == [1, 2]
    assert plan["width"] == 2
    assert plan["critical_path"] == ["a", "b"]
    assert plan["critical_s"] == 12
    assert plan["missing_inputs"] == ["input"]
    text = doors.push(doors.place / "t.json", "--dry_run").out
    assert "critical path: 12 s of 13 s" in text


def test_every_problem_of_a_list_is_named_at_once(doors: Doors) -> None:
    tasks = [
        {"id": "a", "comands": "true"},
        {"id": "b", "commands": "true", "dependencies": ["nobody"]},
        {"id": "b", "commands": "true", "results": ["/etc/passwd"]},
        {"id": "c", "commands": "true", "dependencies": ["d"]},
        {"id": "d", "commands": "true", "dependencies": ["c"], "results": ["../out"]},
    ]
    for option in ([], ["--local"], ["--dry_run"]):
        text = doors.push(doors.write("t.json", tasks), *option, code=2).err
        for part in ("comands", "nobody", "/etc/passwd", "../out", "nothing was pushed"):
            assert part in text
    assert not (doors.place / "ecloud-data").exists()


def test_files_that_are_no_lists(doors: Doors) -> None:
    path = doors.place / "t.json"
    for data, part in (
        (b'[{"id": "a"', "line 1, column"),
        (b"[" * 100_000, "deep"),
        (b"\xff\xfe", "UTF-8"),
        (b"42", "list"),
        (b"", "the file is empty"),
    ):
        path.write_bytes(data)
        assert part in doors.push(path, "--local", code=2).err
    assert "No such file" in doors.push("nowhere.json", code=2).err


def test_a_list_from_standard_input(doors: Doors) -> None:
    done = doors.run("push_tasks.py", "-", "--local", stdin=json.dumps([{"id": "a", "commands": "true"}]))
    assert "run tasks: 1 succeeded" in done.out


def test_the_demo_runs_from_a_path_with_a_space_and_runs_again(tmp_path: Path) -> None:
    place = tmp_path / "a path with a space"
    names = ("boss", "worker", "ecloud", "datastore", "migrations", "examples")
    for name in names:
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "push_tasks.py", "admin.py", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, place / name)
    (place / ".venv").symlink_to(ROOT / ".venv")
    if not (ROOT / ".venv").exists():
        pytest.fail("the demo needs .venv: make install")
    demo = Doors(place)
    for _ in range(2):
        done = subprocess.run(
            ["make", "-o", ".venv/.runtime", "demo"], cwd=place, env=demo.environment, capture_output=True, timeout=100
        )
        assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
        assert "12 succeeded" in done.stdout.decode()
        assert "Warmest readings" in (place / "demo-results" / "final" / "report.txt").read_text()


def test_what_the_tasks_printed_is_kept_beside_the_results(doors: Doors) -> None:
    lines = 'for i in $(seq 30); do echo "line $i" >&2; done; exit 4'
    tasks = [
        {"id": "bad", "commands": lines},
        {"id": "silent", "commands": "true"},
        {"id": "good", "commands": "echo hi"},
    ]
    (doors.place / "run-x.json").write_text(json.dumps(tasks))
    said = doors.push("run-x.json", "--local", "--wait", code=1).out
    assert "what the tasks printed: ecloud-data/run-x.output.txt" in said
    kept = (doors.place / "ecloud-data" / "run-x.output.txt").read_text()
    bad = "=== task bad, attempt 1 (exit 4): stderr\n" + "".join(f"line {number}\n" for number in range(1, 31))
    assert kept == f"{bad}=== task good, attempt 1 (success): stdout\nhi\n"


def test_every_failure_is_shown_where_no_command_can_show_it_later(doors: Doors) -> None:
    tasks = [{"id": f"t{number}", "commands": "exit 1"} for number in range(25)]
    said = doors.push(doors.write("t.json", tasks), "--local", 2, "--wait", code=1).text
    assert [name for name in (f"t{number} " for number in range(25)) if name not in said] == []
    assert "show_failed" not in said
