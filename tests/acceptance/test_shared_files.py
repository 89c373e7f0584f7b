"""Files that several tasks share, in real runs: merged directories, names with wildcards in them, refused lists."""

from __future__ import annotations

from doors import Doors


def test_a_merged_directory_and_names_like_patterns(doors: Doors) -> None:
    tasks = [
        {"id": "b", "commands": "mkdir data; echo B > data/b.txt", "results": ["data/b.txt"]},
        {"id": "a", "dependencies": ["b"], "commands": "mkdir -p data; echo A > data/a.txt", "results": ["data"]},
        {"id": "c", "dependencies": ["a"], "requirements": ["data"], "commands": "cat data/a.txt data/b.txt"},
        {"id": "br", "commands": "echo x > 'sample[1].txt'", "results": ["sample[1].txt"]},
        {"id": "dir", "commands": "mkdir 'run[1]'; touch 'run[1]/x' run1", "results": ["run[1]"]},
        {"id": "pair", "commands": "echo x > 'q?.txt'; echo y > qq.txt", "results": [["q?.txt", "renamed.txt"]]},
        {"id": "glob", "commands": "touch p1.dat p2.dat", "results": ["p?.dat"]},
        {"id": "nested", "commands": "mkdir -p n/m; touch n/a n/m/b", "results": ["n/m/b", "n"]},
    ]
    doors.push(doors.write("list.json", {"merged": ["data"], "tasks": tasks}), "--local", 2, "--wait")
    root = doors.place / "ecloud-data"
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and ".ecloud" not in path.parts}
    found.discard("list.output.txt")  # what the tasks printed
    assert found == {
        "data/a.txt", "data/b.txt", "sample[1].txt", "run[1]/x", "renamed.txt", "p1.dat", "p2.dat", "n/a", "n/m/b",
    }  # fmt: skip
    assert (root / "renamed.txt").read_text() == "x\n"


def test_what_would_be_lost_or_missing_is_refused_before_anything_runs(doors: Doors) -> None:
    nested = [
        {"id": "low", "commands": "true", "results": ["data/b.txt"]},
        {"id": "high", "commands": "true", "results": ["data"], "dependencies": ["low"]},
    ]
    told = doors.push(doors.write("nested.json", nested), "--local", 1, "--wait", code=2).err
    assert "task low" in told
    assert "task high" in told
    unordered = [
        {"id": "make", "commands": "echo 1 > n", "results": ["n"]},
        {"id": "use", "commands": "cat n", "requirements": ["n"]},
    ]
    path = doors.write("unordered.json", unordered)
    assert "--infer_dependencies" in doors.push(path, "--dry_run", code=2).err
    assert "levels: 2" in doors.push(path, "--dry_run", "--infer_dependencies").out
