"""What keeps a pool from starting is shown within seconds: by `push_tasks.py --wait`, `status` and `doctor`; and
`doctor --boot` proves each pool with one VM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doors import Doors
from opennebula_double import OpenNebula
from services import Daemon, wait_until

PATIENCE_S = 60.0


@pytest.fixture
def double(tmp_path: Path) -> Iterator[OpenNebula]:
    made = OpenNebula(tmp_path / "cloud").start()
    made.add_worker_template()
    made.add_worker_template("broken", more=',GREETING="$USER[NAME]\nhello"')
    yield made
    made.end()


def settings(double: OpenNebula, *pools: str) -> dict[str, Any]:
    return {
        "OPENNEBULA_URL": double.url,
        "OPENNEBULA_USER": "alice",
        "OPENNEBULA_PASSWORD": "PASSWORD",
        "POOLS": tuple(
            {"name": name, "cloud": "opennebula", "template": name, "maximum": 2, "memory_mb": 500} for name in pools
        ),
    }


def test_doctor_boots_one_vm_of_each_pool_and_ends_it(
    daemons: Callable[..., Daemon], double: OpenNebula, tmp_path: Path
) -> None:
    doors = Doors(tmp_path / "place", daemons(**settings(double, "worker", "broken")).start())
    found = doors.admin("doctor", "--boot", "--json", code=3).json["findings"]
    texts = {finding["text"]: finding.get("remedy", "") for finding in found if finding["part"] == "boot"}
    good = next(text for text in texts if text.startswith("pool worker: vm/"))
    assert "booted, its worker reported after" in good
    assert texts[good] == ""
    bad = next(text for text in texts if text.startswith("pool broken: vm/"))
    assert "syntax error" in bad
    assert texts[bad]
    assert double.alive == [], "what was started was ended"


def test_a_pool_that_can_not_start_is_named_while_a_push_waits(
    daemons: Callable[..., Daemon], double: OpenNebula, tmp_path: Path
) -> None:
    doors = Doors(tmp_path / "place", daemons(**settings(double, "broken")).start())
    file = doors.write("film.json", [{"id": "a", "commands": "true"}])
    process = doors.begin("push_tasks.py", file, "--wait")
    try:
        wait_until(lambda: "syntax error" in doors.admin("status").out, PATIENCE_S, "status names it")
        assert "pool broken starts no VM" in doors.admin("status").out
        assert "pool broken starts no VM" in doors.admin("doctor", code=3).text
    finally:
        doors.admin("cancel", "a")
        said, _ = process.communicate(timeout=PATIENCE_S)
    assert "pool broken starts no VM" in said.decode()
    assert "syntax error" in said.decode()
