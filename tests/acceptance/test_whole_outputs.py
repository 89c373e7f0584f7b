"""Whole outputs: kept as files of the datastore, of successes and failures, and printed without a limit."""

from __future__ import annotations

from doors import Doors, ended

COUNT = 60_000


def test_all_that_tasks_write_is_kept(cluster: Doors) -> None:
    tasks = [
        {"id": "ok", "commands": f"seq {COUNT}; echo err >&2", "stdout": "logs/%t.%a.out", "stderr": "logs/%t.%a.err"},
        {
            "id": "bad",
            "commands": ["echo 1 > never", f"seq {COUNT}", "echo last >&2; exit 3"],
            "stdout": "logs/%t.%a",
            "stderr": "stdout",
            "results": ["never"],
            "retries": 1,
        },
        {"id": "quiet", "commands": "true", "stdout": "logs/quiet"},
    ]
    cluster.push(cluster.write("o.json", tasks))
    assert ended(cluster, "o") == {"ok": "succeeded", "bad": "failed", "quiet": "succeeded"}
    assert cluster.daemon is not None
    logs = cluster.daemon.home.datastore / "logs"
    whole = "".join(f"{number}\n" for number in range(1, COUNT + 1))
    assert (logs / "ok.1.out").read_text() == whole
    assert (logs / "ok.1.err").read_text() == "err\n"
    assert [(logs / name).read_text() for name in ("bad.1", "bad.2")] == [f"{whole}last\n"] * 2
    assert (logs / "quiet").read_text() == ""
    assert not (logs.parent / "never").exists(), "a task that failed publishes no results"
    told = cluster.admin("logs", "ok")
    assert (told.out, told.err) == (whole, "err\n")
    assert cluster.admin("logs", "bad", "--attempt", 1).out == f"{whole}last\n"
    cluster.push("--array", "1-2", "--run", "arr", "--output", "all", "--wait", "--", "echo", "{}")
    assert (logs.parent / "all/arr[2].1.out").read_text() == "2\n"
    assert not list(cluster.daemon.home.path.rglob("*.stdout")), "nothing is left at workers"


def test_wrong_names_are_refused(doors: Doors) -> None:
    tasks = [
        {"id": "a", "commands": "true", "stdout": "same"},
        {"id": "b", "commands": "true", "stdout": "same"},
        {"id": "c", "commands": "true", "stdout": "x%d"},
        {"id": "d", "commands": "true", "stderr": "stdout"},
        {"id": "e", "commands": "true", "stdout": "../%t"},
        {"id": "f", "init": True, "commands": "true", "stdout": "f"},
    ]
    told = doors.push(doors.write("w.json", tasks), "--dry_run", code=2).err
    for line in (
        "task b, results: 'same' is also a result of task a",
        "task c, stdout: 'x%d': % is followed by t (the task), a (the attempt) or %",
        'task d, stderr: "stdout" merges it with stdout',
        "task e, stdout: '../e' leads outside its directory",
        "task f, stdout: the output of an init task is not kept as a file",
    ):
        assert line in told
