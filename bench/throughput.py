"""Short tasks through everything that is real: 4,000 times `true` through Mosquitto, MariaDB, boss and one worker with
two slots, beside `xargs -P2 -n1 sh -c true` on the same machine, in turns."""

from __future__ import annotations

import resource
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from bench.report import Figure, micro, seconds
from bench.services import Services, children_cpu_s, cpu_s, plain_environment
from ecloud.client import Client
from ecloud.tasks import TaskDefinition
from ecloud.wire import PushOptions

TASKS = 4_000
SLOTS = 2
REPEATS = 3
LEAST_RATIO = 0.75
LONGEST_S = 120.0
PARTS = ("worker", "boss", "MariaDB", "Mosquitto")


@dataclass
class Turn:
    """One time all tasks. `stored_s`: from the boss's acceptance to the last outcome in the database."""

    stored_s: float
    whole_s: float
    cpu: dict[str, float]


def measure(profiles: Path | None = None) -> list[Figure]:
    """The ratio, the median of turns; CPU of each part."""
    xargs: list[tuple[float, float]] = []
    turns: list[Turn] = []
    with Services(profiles) as services:
        worker = services.start_worker("w1", "--cpus", str(SLOTS))
        engine = services.engine()
        parts = dict(zip(PARTS, (worker, services.boss, services.database, services.broker), strict=True))
        with Client(services.client_access()) as client:
            client.connect()
            _turn(client, engine, parts, "warm", 200)
            for number in range(REPEATS):
                xargs.append(_xargs())
                turns.append(_turn(client, engine, parts, f"run{number}", TASKS))
        engine.dispose()
        services.end(worker)
    return _figures(xargs, turns)


def _figures(xargs: list[tuple[float, float]], turns: list[Turn]) -> list[Figure]:
    beside = statistics.median(wall for wall, _ in xargs)
    turns.sort(key=lambda turn: turn.stored_s)
    middle = turns[len(turns) // 2]
    ratios = sorted(wall / turn.stored_s for (wall, _), turn in zip(xargs, turns, strict=True))
    ratio, best = beside / middle.stored_s, max(ratios)
    shell_s = statistics.median(cpu for _, cpu in xargs) / TASKS
    rate, rate_beside = TASKS / middle.stored_s, TASKS / beside
    aim = f"at least {LEAST_RATIO}"
    return [
        Figure(
            f"throughput: {TASKS:,} x true by xargs -P{SLOTS}", seconds(beside), micro(shell_s), f"{rate_beside:,.0f}/s"
        ),
        Figure("throughput: the same, accepted to recorded", seconds(middle.stored_s), "", f"{rate:,.0f}/s"),
        Figure("throughput: ratio to xargs (median)", "", "", f"{ratio:.2f}", aim, ratio >= LEAST_RATIO),
        Figure("throughput: ratio to xargs (best turn)", "", "", f"{best:.2f}"),
        Figure("throughput: end to end, push included", seconds(middle.whole_s), "", f"{beside / middle.whole_s:.2f}"),
        *(Figure(f"throughput: CPU a task, {part}", "", micro(used / TASKS)) for part, used in middle.cpu.items()),
    ]


def _xargs() -> tuple[float, float]:
    """Wall and CPU seconds of the same commands without any of us."""
    numbers = "\n".join(map(str, range(TASKS))).encode()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    command = ["xargs", f"-P{SLOTS}", "-n1", "sh", "-c", "true"]
    subprocess.run(command, input=numbers, env=plain_environment(), check=True)
    wall = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _turn(client: Client, engine: Engine, parts: dict[str, subprocess.Popen[bytes]], run: str, count: int) -> Turn:
    tasks = [TaskDefinition(id=f"t{number}", commands=("true",)) for number in range(count)]
    used = {name: cpu_s(process) for name, process in parts.items()}
    children = children_cpu_s(parts["worker"])
    began = time.monotonic()
    accepted = client.push(tasks, PushOptions(run=run))
    accepted_at = time.monotonic()
    wait_until_over(engine, accepted.run_no)
    ended = time.monotonic()
    cpu = {name: cpu_s(process) - used[name] for name, process in parts.items()}
    cpu = {"shells": children_cpu_s(parts["worker"]) - children, **cpu}
    return Turn(ended - accepted_at, ended - began, cpu)


def wait_until_over(engine: Engine, run_no: int) -> None:
    """Until the run's end is in the database: written with its last outcome. Looks seldom, so as not to disturb."""
    query = sa.text("SELECT ended_at FROM runs WHERE run_no = :run_no")
    deadline = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline:
        with engine.connect() as connection:
            if connection.execute(query, {"run_no": run_no}).scalar() is not None:
                return
        time.sleep(0.01)
    raise TimeoutError(f"run {run_no} did not end within {LONGEST_S:g} s")
