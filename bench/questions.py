"""Commands while the boss holds much: `status`, `why` and `retry_failed` with 100,000 tasks, some of which failed;
10,000 runs of one task each; a task that waits for 100,000 others.

The commands are real processes. Workers are simulated, as in `simulated.py`.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

from bench.report import Figure, micro, seconds
from bench.services import ROOT, Services, cpu_s, plain_environment
from bench.simulated import Crew, graph
from bench.throughput import wait_until_over
from ecloud.client.client import Client
from ecloud.model.tasks import Dependency, TaskDefinition
from ecloud.model.wire import PushOptions

TASKS = 100_000
WIDTH = 4_000
FAILS_EVERY = 100
"""Of the first layer; their dependents are aborted."""
SMALL_RUNS = 10_000
FAN_IN = 100_000
MOST_S = 1.0
LEAST_RUNS_PER_S = 500
LONGEST_S = 300.0


def measure() -> list[Figure]:
    """Measure the seconds of each command (the process included), the small runs a second, and the end of a fan-in."""
    with Services() as services, Client(services.client_access()) as client:
        client.connect()
        return [*_with_failures(services, client), *_fan_in(services, client), *_small_runs(services, client)]


def _with_failures(services: Services, client: Client) -> list[Figure]:
    tasks = graph(TASKS, WIDTH)
    client.push(tasks, PushOptions(run="large"))
    with Crew(services, lambda task_no: task_no <= WIDTH and task_no % FAILS_EVERY == 0):
        wait_until_over(client, "large", LONGEST_S)
    last = f"t{TASKS - WIDTH + FAILS_EVERY + 20}"  # aborted, 24 layers below a failed one
    found = [
        _command(services, f"status with {TASKS:,} tasks and failures", "status"),
        _command(services, "why an aborted task", "why", last),
        _command(services, "why a failed task", "why", f"t{FAILS_EVERY - 1}"),
        _command(services, "retry_failed", "retry_failed"),
        _command(services, "why a task that waits again", "why", last),
    ]
    with Crew(services):
        wait_until_over(client, "large", LONGEST_S)
    return found


def _fan_in(services: Services, client: Client) -> list[Figure]:
    tasks = [TaskDefinition(id=f"t{number}", commands=("true",)) for number in range(FAN_IN)]
    wanted = tuple([Dependency(task.id) for task in tasks])
    client.push([*tasks, TaskDefinition(id="last", commands=("true",), dependencies=wanted)], PushOptions(run="fan-in"))
    why = _command(services, f"why a task that waits for {FAN_IN:,}", "why", "fan-in:last")
    before = cpu_s(services.boss)
    with Crew(services):
        while sum(_left(client, "fan-in").values()) > 1:
            time.sleep(0.02)
        began = time.monotonic()
        wait_until_over(client, "fan-in", LONGEST_S)
        took_s = time.monotonic() - began
    boss = cpu_s(services.boss) - before
    what = f"questions: end of a task with {FAN_IN:,} dependencies, after the last of them"
    return [
        why,
        Figure(what, seconds(took_s), "", "", f"at most {MOST_S:g} s", took_s <= MOST_S),
        Figure("questions: CPU of the boss for each of them", "", micro(boss / FAN_IN)),
    ]


def _left(client: Client, run: str) -> dict[str, int]:
    picture = next(iter(client.watch(run)))
    return {state: count for state, count in picture.states.items() if state in ("waiting", "ready", "running")}


def _small_runs(services: Services, client: Client) -> list[Figure]:
    task = [TaskDefinition(id="t", commands=("true",))]
    boss, database, used = cpu_s(services.boss), cpu_s(services.database), time.process_time()
    began = time.monotonic()
    for number in range(SMALL_RUNS):
        client.push(task, PushOptions(run=f"small{number}"))
    took_s = time.monotonic() - began
    rate = SMALL_RUNS / took_s
    what = f"questions: {SMALL_RUNS:,} runs of one task, pushed one after another"
    parts = (("boss", cpu_s(services.boss) - boss), ("MariaDB", cpu_s(services.database) - database),
             ("client", time.process_time() - used))  # fmt: skip
    return [
        Figure(what, seconds(took_s), "", f"{rate:,.0f}/s", f"at least {LEAST_RUNS_PER_S}/s", rate >= LEAST_RUNS_PER_S),
        *(Figure(f"questions: CPU a run, {name}", "", f"{took / SMALL_RUNS * 1e6:,.0f} us") for name, took in parts),
        _command(services, f"status with {SMALL_RUNS:,} more runs", "status"),
    ]


def _command(services: Services, what: str, *words: str) -> Figure:
    boss, database = cpu_s(services.boss), cpu_s(services.database)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [sys.executable, "admin.py", *words],
        cwd=ROOT,
        env={**plain_environment(), "ECLOUD_SETTINGS": str(services.settings)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    took_s, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"admin.py {' '.join(words)} ended with {done.returncode}: {done.stderr}")
    command_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    parts = f"{command_s:.2f}+{cpu_s(services.boss) - boss:.2f}+{cpu_s(services.database) - database:.2f} s"
    return Figure(f"questions: {what}", seconds(took_s), parts, "", f"at most {MOST_S:g} s", took_s <= MOST_S)
