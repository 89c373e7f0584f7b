"""A large push: 100,000 tasks with 200,000 edges through the client, and the time of `status` after it."""

from __future__ import annotations

import time
from pathlib import Path

from bench.report import Figure, micro, seconds
from bench.services import Services, cpu_s
from bench.simulated import graph
from ecloud.client.client import Client
from ecloud.model.wire import PushOptions
from ecloud.queries import status as queries

TASKS = 100_000
WIDTH = 50
"""Tasks without dependencies; every other one waits for two, which makes 199,899 edges."""
MOST_S = 15.0
MOST_STATUS_S = 1.0
STATUSES = 5


def measure(profiles: Path | None = None) -> list[Figure]:
    """Measure the seconds from the first chunk to the boss's answer, which follows the commit, and of a status after
    it."""
    tasks = graph(TASKS, WIDTH)
    edges = sum(len(task.dependencies) for task in tasks)
    with Services(profiles) as services, Client(services.client_access()) as client:
        client.connect()
        boss, database = cpu_s(services.boss), cpu_s(services.database)
        began, used = time.monotonic(), time.process_time()
        accepted = client.push(tasks, PushOptions(run="large"))
        push_s = time.monotonic() - began
        client_s = time.process_time() - used
        boss, database = cpu_s(services.boss) - boss, cpu_s(services.database) - database
        assert sum(accepted.states.values()) == TASKS, accepted
        status = _statuses(services)
    status_s, status_cpu_s = max(status)
    what = f"push: {TASKS:,} tasks, {edges:,} edges, stored and answered"
    return [
        Figure(what, seconds(push_s), micro((boss + database + client_s) / TASKS), f"{TASKS / push_s:,.0f}/s",
               f"less than {MOST_S:g} s", push_s < MOST_S),
        Figure("push: CPU a task, client", "", micro(client_s / TASKS)),
        Figure("push: CPU a task, boss", "", micro(boss / TASKS)),
        Figure("push: CPU a task, MariaDB", "", micro(database / TASKS)),
        Figure("push: status after it (the slowest)", seconds(status_s), seconds(status_cpu_s), "",
               f"less than {MOST_STATUS_S:g} s", status_s < MOST_STATUS_S),
    ]  # fmt: skip


def _statuses(services: Services) -> list[tuple[float, float]]:
    found = []
    for _ in range(STATUSES):
        engine = services.engine()
        began, used = time.monotonic(), time.process_time()
        status = queries.status(engine)
        found.append((time.monotonic() - began, time.process_time() - used))
        engine.dispose()
        assert len(status.runs) == 1, status
    return found
