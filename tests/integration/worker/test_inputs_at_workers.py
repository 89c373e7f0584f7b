"""Tasks go where their big inputs are: three real workers, a real sshd, and each attempt's word on what crossed the
network. What boss and workers know of it survives them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa
from services import wait_until
from weather import PATIENCE_S, Weather

from boss.core.placement.placement import BEHIND
from ecloud.db import schema
from ecloud.queries import status

WORKERS, SIZE = 3, 12_000_000
INPUTS = "ABCDEF"
EACH = 12
LONE = 7
"""Where in the list the one stands whose input no other has."""


@pytest.fixture
def weather(tmp_path: Path) -> Iterator[Weather]:
    weather = Weather(tmp_path, workers=WORKERS)
    try:
        weather.start()
        yield weather
    finally:
        weather.end()


class Went(NamedTuple):
    """Where a task went, and when."""

    id: str
    worker: str
    assigned_at: float
    crossed_bytes: int


def went(weather: Weather, run: str) -> list[Went]:
    """All tasks of a run, in the order of its list."""
    tasks, attempts, runs = schema.tasks, schema.attempts, schema.runs
    crossed = attempts.c.fetch_bytes - attempts.c.cached_bytes
    query = (
        sa.select(tasks.c.id, attempts.c.worker, attempts.c.assigned_at, crossed)
        .join(attempts, attempts.c.task_no == tasks.c.task_no)
        .join(runs, runs.c.run_no == tasks.c.run_no)
        .where(runs.c.name == run)
        .order_by(tasks.c.task_no)
    )
    with weather.engine.connect() as connection:
        return [Went(*row) for row in connection.execute(query)]


def needs(id: str, path: str, seconds: float = 0.1) -> dict[str, Any]:
    """A task that takes a whole worker."""
    task = {"id": id, "commands": f"sleep {seconds}", "requirements": [[path, "in"]], "resources": {"cpus": 4}}
    return {**task, "retries": 0}


def test_few_workers_fetch_each_input_none_starves_and_it_is_known_after_all_were_killed(weather: Weather) -> None:
    for name in (*INPUTS, "lone"):
        (weather.root / name).write_bytes(os.urandom(SIZE))
    tasks = [needs(f"{path}{number}", path) for number in range(EACH) for path in INPUTS]
    tasks.insert(LONE, needs("lone", "lone"))
    run = weather.begin(*tasks)
    weather.is_over(run, len(tasks))
    done = went(weather, run)
    fetched = {(one.id[0], one.worker) for one in done if one.crossed_bytes}
    assert len(fetched) <= 1 + 0.7 * WORKERS * len(INPUTS), f"all fetched nearly all: {sorted(fetched)}"
    for index, one in enumerate(done):
        passed = sum(later.assigned_at < one.assigned_at for later in done[index + 1 :])
        assert passed < BEHIND, f"{one.id} was passed {passed} times"
    assert {one.worker for one in done} == set(weather.workers()), "no worker was idle"
    has = {(path, weather.agents.index(weather.agent_of(worker))) for path, worker in fetched}

    weather.daemon.kill()
    for number in range(WORKERS):
        weather.kill_agent(number)
    weather.daemon.start()
    for number in range(WORKERS):
        weather.start_agent(number)
    new = {agent.pid for agent in weather.agents}
    wait_until(lambda: pids(weather) == new, PATIENCE_S, "all are on duty again")
    paths = next(
        paths
        for paths in itertools.permutations(INPUTS, WORKERS)
        if all((path, number) in has for number, path in enumerate(paths))
    )
    again = weather.begin(*(needs(f"again-{path}", path) for path in sorted(paths)))
    weather.is_over(again, WORKERS)
    assert [one.crossed_bytes for one in went(weather, again)] == [0] * WORKERS, "each went where its input was"


def pids(weather: Weather) -> set[int]:
    """Of those on duty."""
    return {worker.pid for worker in status.workers(weather.engine, ("up",))}
