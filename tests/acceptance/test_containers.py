"""Containers of a pool, of a list and of a task: the narrower one counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from doors import Doors, ended
from services import Daemon

pytestmark = pytest.mark.timeout(120)


def test_a_task_runs_in_its_own_container_or_in_its_lists_or_its_pools(
    daemons: Callable[..., Daemon], tmp_path: Path, image: Path
) -> None:
    """Both runtimes are real."""
    pool = {"name": "boxed", "maximum": 1, "container": {"image": str(image), "runtime": "bubblewrap"}}
    doors = Doors(tmp_path / "place", daemons(POOLS=[pool]).start())
    words = {"commands": 'echo "$(cat /etc/image) $PWD" > seen', "results": [["seen", "seen"]]}
    doors.push(doors.write("pool.json", [{"id": "of/pool", **words}]))
    in_list = {"image": str(image), "runtime": "charliecloud"}
    doors.push(
        doors.write(
            "list.json",
            {"defaults": {"container": in_list}, "tasks": [
                {"id": "of/list", "commands": ["cat /etc/image", "test -d /ecloud/shared"]},
                {"id": "own", "commands": "true", "container": "/no/such/image"},
            ]},
        )
    )  # fmt: skip
    states = ended(doors, "pool") | ended(doors, "list")
    assert states == {"of/pool": "succeeded", "of/list": "succeeded", "own": "failed"}
    doors.admin("get", "seen", "seen")
    assert (doors.place / "seen").read_text() == "the image /ecloud/work\n"
    why = " ".join(doors.admin("why", "own").out.split())
    assert "/no/such/image is not on host" in why
    assert "copy it there" in why


def test_a_pool_whose_container_cannot_be_is_refused_at_the_start(
    daemons: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = daemons(POOLS=[{"name": "boxed", "container": {"image": "debian:12", "runtime": "lxc"}}])
    code, said = daemon.run()
    assert code == 2
    assert "boxed: container: runtime 'lxc': known are auto, " in said
