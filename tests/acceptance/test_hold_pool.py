"""An operator holds a pool, in a terminal and in the monitor: no VM starts, everything says why, and a release ends it.
The cloud is the double; boss, doors and monitor are real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from doors import Doors
from monitor_client import Monitor, csrf_of
from opennebula_double import OpenNebula
from services import Daemon, wait_until


def test_a_held_pool_starts_nothing_until_it_is_released(daemons: Callable[..., Daemon], tmp_path: Path) -> None:
    double = OpenNebula(tmp_path / "cloud").start()
    double.add_worker_template()
    pool = {"name": "big", "cloud": "opennebula", "template": "worker", "maximum": 2, "memory_mb": 500}
    cloud = {"OPENNEBULA_URL": double.url, "OPENNEBULA_USER": "alice", "OPENNEBULA_PASSWORD": "PASSWORD"}
    daemon = daemons(**cloud, POOLS=(pool,)).start()
    doors = Doors(tmp_path / "place", daemon)
    try:
        refused = doors.admin("hold_pool", "bug", code=2).err
        assert "there is no pool 'bug'; there are big" in refused
        assert "pool big is held: it starts no VM until" in doors.admin("hold_pool", "big", "--reason", "new image").out
        doors.push(doors.write("film.json", [{"id": "one", "commands": "true"}]))
        for question in (["status"], ["plan"], ["why", "one"]):
            shown = doors.admin(*question).out
            assert "held by an operator (new image)" in " ".join(shown.split()), shown
        asked = doors.admin("instantiate_worker", code=2)
        assert "pool big starts no VM: held by an operator (new image)" in " ".join(asked.err.split())
        assert double.vms == {}
        daemon.end()
        daemon.start()
        released_in_the_monitor(doors)
        wait_until(lambda: double.vms, 60, "a VM starts for what waits")
    finally:
        double.end()


def released_in_the_monitor(doors: Doors) -> None:
    """The machines' page shows the hold, whose reason outlived the boss; the form says what a release would do."""
    monitor: Any = Monitor(doors)
    try:
        monitor.enter()
        page = monitor.get("/machines").text
        assert "held by an operator (new image)" in page
        assert "/confirm?verb=release_pool&amp;pool=big" in page
        assert "/confirm?verb=hold_pool" not in page
        asked = monitor.get("/confirm?verb=hold_pool&pool=big").text
        assert "Hold pool big (0 VMs): the boss starts no VM of it until you release it" in asked
        assert 'name="reason"' in asked
        form = monitor.get("/confirm?verb=release_pool&pool=big")
        assert "Release pool big (0 VMs): the boss may start VMs of it again." in form.text
        assert monitor.post("/do", verb="release_pool", pool="big", csrf=csrf_of(form)).code == 303
        assert "/confirm?verb=hold_pool&amp;pool=big" in monitor.get("/machines").text
    finally:
        monitor.end()
