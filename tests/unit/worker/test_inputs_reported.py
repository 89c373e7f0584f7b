"""A worker tells which big inputs it keeps: from its disk, so after its restart, too; and once, until that changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from worker_script import WorkerScript

from datastore.port import Entry
from ecloud.model.transfer_status import BIG_INPUT_BYTES, INPUTS_TOLD, HeldInput
from worker.core.events import StateMeasured
from worker.shell.cache import Cache, key_of


def keeps(cache: Cache, to: Path, name: str, size: int = BIG_INPUT_BYTES) -> None:
    """It fetches a file of this many bytes, all of them holes."""
    entry = Entry(name, "file", size, 0o644, 1.0)

    def transfer(path: Path) -> int:
        with path.open("wb") as file:
            file.truncate(size)
        return size

    (to / name).unlink(missing_ok=True)
    cache.fetch(key_of("here", [entry]), [entry], to / name, transfer)


@pytest.fixture
def cache(tmp_path: Path) -> Callable[[], Cache]:
    """Made again on the same disk."""

    def made() -> Cache:
        cache = Cache(tmp_path / "cache")
        cache.limit_bytes = 10 * BIG_INPUT_BYTES
        return cache

    return made


def test_big_inputs_are_reported_used_last_first_and_survive(cache: Callable[[], Cache], tmp_path: Path) -> None:
    first = cache()
    assert first.big_inputs() == ()
    keeps(first, tmp_path, "small", BIG_INPUT_BYTES - 1)
    keeps(first, tmp_path, "a")
    keeps(first, tmp_path, "b", 2 * BIG_INPUT_BYTES)
    told = (HeldInput("b", 2 * BIG_INPUT_BYTES), HeldInput("a", BIG_INPUT_BYTES))
    assert first.big_inputs() == told
    assert first.big_inputs() is first.big_inputs(), "read each second: it costs nothing if nothing changed"
    again = cache()
    assert again.big_inputs() == told
    again.limit_bytes = 0
    again.shrink()
    assert again.big_inputs() == ()


def test_no_more_inputs_are_reported_than_the_boss_reads(cache: Callable[[], Cache], tmp_path: Path) -> None:
    full = cache()
    full.limit_bytes = 100 * BIG_INPUT_BYTES
    for number in range(INPUTS_TOLD + 3):
        keeps(full, tmp_path, f"n{number:02}")
    told = full.big_inputs()
    assert len(told) == INPUTS_TOLD
    assert told[0].path == f"n{INPUTS_TOLD + 2:02}"


def test_heartbeats_tell_of_it_once_in_each_session_and_when_it_changes() -> None:
    script = WorkerScript()
    kept = (HeldInput("a", BIG_INPUT_BYTES),)
    script.connect()
    script.handle(StateMeasured(inputs=kept))
    script.welcome(script.hello())
    assert script.beats().inputs == kept
    assert script.wait(5.0).beats().inputs is None
    script.handle(StateMeasured(inputs=()))
    assert script.wait(5.0).beats().inputs == ()
    assert script.wait(5.0).beats().inputs is None
