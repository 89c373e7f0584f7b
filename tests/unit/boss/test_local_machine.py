"""What local pools say of the machine that their workers share."""

from __future__ import annotations

from pathlib import Path

import pytest

from boss.providers import local, registry
from boss.providers.local import LocalCloud
from ecloud.config import this_host
from ecloud.config.home import Home
from ecloud.config.secrets import AccessFile
from ecloud.config.settings import PoolSettings, Settings, default_pools


@pytest.fixture(autouse=True)
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(this_host, "cpus", lambda: 2.0)
    monkeypatch.setattr(this_host, "memory_mb", lambda: 8_000.0)
    monkeypatch.setattr(this_host, "gpus", lambda: ("0", "1"))


def shared(*pools: PoolSettings) -> dict[str, float]:
    return registry._shared_here(Settings(pools=pools))


def test_what_is_measured_holds_for_the_pools_together() -> None:
    assert shared(*default_pools()) == {}
    assert shared(PoolSettings("a", maximum=2), PoolSettings("b", maximum=2)) == {}


def test_one_pool_that_is_allowed_more_is_believed() -> None:
    assert shared(*default_pools(6)) == {"cpus": 6.0}
    assert shared(PoolSettings("a", maximum=4, memory_mb=3_000.0)) == {"cpus": 4.0, "memory_mb": 12_000.0}


def test_workers_get_different_gpus_where_there_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = LocalCloud(Home(tmp_path), lambda name: AccessFile("c", "h", 1, name, "00" * 32), False, 60.0)
    living: list[local._Process] = []
    monkeypatch.setattr(cloud, "_recorded", lambda: living)
    monkeypatch.setattr(local, "_lives", lambda process: process.pid > 0)
    for wanted in (("0",), ("1",), ("0",)):
        gpus = cloud._choose_gpus(1)
        assert gpus == wanted
        living.append(local._Process(len(living) + 1, "1", len(living), gpus=gpus))
    assert set(cloud._choose_gpus(2)) == {"0", "1"}
    living.append(local._Process(-1, "1", 9, gpus=("1",)))
    assert cloud._choose_gpus(1) == ("1",), "a worker that is gone uses none"
