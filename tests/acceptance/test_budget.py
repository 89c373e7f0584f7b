"""A run's budget and a person's hook, as a person meets them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from doors import Doors
from services import Daemon, wait_until


def test_a_used_up_budget_is_shown_everywhere_and_running_tasks_continue(
    daemons: Callable[..., Daemon], tmp_path: Path
) -> None:
    told = tmp_path / "told"
    pool = {"name": "local", "maximum": 3, "memory_mb": 500}
    daemon = daemons(POOLS=(pool,), VM_HOURS_PER_RUN=1e-4, HOOK_COMMAND=f"cat >> {told}").start()
    doors = Doors(tmp_path / "place", daemon)
    film = [{"id": "long", "commands": "sleep 60", "runtime_s": 60}]
    doors.push(doors.write("film.json", film))

    def troubles() -> list[str]:
        return [text for text in doors.admin("status", "--json").json["cloud_troubles"] if "budget" in text]

    wait_until(troubles, 60.0, "a third of a second is used up")
    sentence = "the budget of 0.0001 VM-hours of run film is used up (VM_HOURS_PER_RUN in settings.py)"
    assert sentence in troubles()[0]
    assert sentence in doors.admin("status").out.replace("\n", " ")
    wait_until(lambda: told.exists() and sentence in told.read_text(), 60.0, "the hook was told")
    film.append({"id": "more", "commands": "true", "runtime_s": 60})
    doors.push(doors.write("film.json", film))
    assert sentence in " ".join(doors.admin("plan").out.split())
    assert sentence in " ".join(doors.admin("why", "more", "--all").out.split())
    assert sentence in " ".join(doors.admin("doctor", code=3).out.split())
    assert doors.admin("show_task_status", "long").out.strip() == "running"
    # Other runs, and a person, are not bound by it.
    doors.push(doors.write("other.json", [{"id": "o", "commands": "true", "runtime_s": 60}]), "--wait")
    # A user who wants it done requests more.
    doors.push(doors.write("film.json", film), "--vm_hours", "5")
    wait_until(lambda: doors.admin("show_task_status", "more").out.strip() == "succeeded", 60.0, "it was done")
    assert troubles() == []
    assert "budget/" not in doors.admin("show_context").out
