"""A push that waits for the end of another run."""

from __future__ import annotations

from doors import Doors, ended


def test_a_run_that_starts_after_another(cluster: Doors) -> None:
    go = cluster.place / "go"
    first = [{"id": "a", "commands": f"until [ -e {go} ]; do sleep 0.1; done; exit 1"}]
    cluster.push(cluster.write("first.json", first))
    second = cluster.write("second.json", [{"id": "b", "commands": "true"}])
    waiting = cluster.begin("push_tasks.py", second, "--after", "first")
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == b"waiting for run first to end\n"
    assert [run["name"] for run in cluster.admin("status", "--json").json["runs"]] == ["first"]
    go.touch()
    assert waiting.wait(60) == 0
    waiting.stdout.close()
    assert ended(cluster, "first") == {"a": "failed"}
    assert ended(cluster, "second") == {"b": "succeeded"}
    assert "no run" in cluster.push(second, "--after", "nowhere", code=2).err
    assert "--local" in cluster.push(second, "--after", "first", "--local", code=2).err
