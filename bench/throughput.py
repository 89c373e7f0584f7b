"""Short tasks through all real parts: 4,000 times `true` through Mosquitto, MariaDB, boss and one worker with two
slots, compared with `xargs -P2 -n1 sh -c true` on the same machine, in turns.

A turn in which other processes took much of the machine is repeated, since it would measure them.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench.report import Figure, micro, seconds
from bench.services import Services, cpu_s, machine_cpu_s, plain_environment, worker_cpu_s
from ecloud.client.client import Client
from ecloud.model.tasks import TaskDefinition
from ecloud.model.wire import PushOptions

TASKS = 4_000
SLOTS = 2
QUIET_TURNS, MOST_TURNS = 3, 9
QUIET = 0.1
"""Share of the machine that other processes may take in a turn that counts."""
LEAST_RATIO = 0.75
LONGEST_S = 120.0


@dataclass
class Turn:
    """Times of all tasks, by xargs and by ECLOUD. `stored_s`: from the boss's acceptance to the last outcome in the
    database."""

    xargs_s: float
    xargs_cpu_s: float
    stored_s: float
    whole_s: float
    cpu: dict[str, float]
    others: float

    @property
    def ratio(self) -> float:
        """ECLOUD's speed relative to xargs'."""
        return self.xargs_s / self.stored_s


class Ours:
    """The processes whose CPU time counts as ECLOUD's."""

    def __init__(self, services: Services, worker: subprocess.Popen[bytes]) -> None:
        self.worker = worker
        self.parts = {
            "worker": worker,
            "boss": services.boss,
            "MariaDB": services.database,
            "Mosquitto": services.broker,
        }

    def cpu(self) -> dict[str, float]:
        """Return the CPU seconds so far."""
        own, shells = worker_cpu_s(self.worker)
        return {"shells": shells, **{name: cpu_s(part) for name, part in self.parts.items()}, "worker": own}


def measure(profiles: Path | None = None) -> list[Figure]:
    """Measure the ratio, the median of the quiet turns, and the CPU time of each part."""
    turns: list[Turn] = []
    with Services(profiles) as services:
        worker = services.start_worker("w1", "--cpus", str(SLOTS))
        ours = Ours(services, worker)
        with Client(services.client_access()) as client:
            client.connect()
            _push(client, ours, "warm", 200)
            while len(turns) < MOST_TURNS and len(_quiet(turns)) < QUIET_TURNS:
                turn = _turn(client, ours, f"run{len(turns)}")
                turns.append(turn)
                text = f"{turn.ratio:.2f} of xargs, while others took {turn.others:.0%} of the machine"
                print(f"throughput: turn {len(turns)}: {text}", file=sys.stderr)
        services.end(worker)
    return _figures(turns)


def _quiet(turns: list[Turn]) -> list[Turn]:
    return [turn for turn in turns if turn.others <= QUIET]


def _figures(turns: list[Turn]) -> list[Figure]:
    quiet = sorted(_quiet(turns) or turns, key=lambda turn: turn.ratio)
    turn = quiet[len(quiet) // 2]
    ours_s = sum(turn.cpu.values())
    aim = f"at least {LEAST_RATIO}"
    name = f"throughput: {TASKS:,} x true by xargs -P{SLOTS}"
    counted = f"throughput: turns that count, of {len(turns)}; others took"
    return [
        Figure(name, seconds(turn.xargs_s), micro(turn.xargs_cpu_s / TASKS), f"{TASKS / turn.xargs_s:,.0f}/s"),
        Figure(
            "throughput: the same by us, accepted to recorded",
            seconds(turn.stored_s),
            micro(ours_s / TASKS),
            f"{TASKS / turn.stored_s:,.0f}/s",
        ),
        Figure("throughput: ratio, median turn", "", "", f"{turn.ratio:.2f}", aim, turn.ratio >= LEAST_RATIO),
        Figure("throughput: ratio, best turn", "", "", f"{quiet[-1].ratio:.2f}"),
        Figure(
            "throughput: ratio end to end, push included", seconds(turn.whole_s), "", _two(turn.xargs_s / turn.whole_s)
        ),
        *(Figure(f"throughput: CPU a task, {part}", "", micro(used / TASKS)) for part, used in turn.cpu.items()),
        Figure(counted, "", f"{turn.others:.0%}", str(len(_quiet(turns)))),
    ]


def _two(ratio: float) -> str:
    return f"{ratio:.2f}"


def _turn(client: Client, ours: Ours, run: str) -> Turn:
    busy, began = machine_cpu_s(), time.monotonic()
    own = time.process_time()
    before = ours.cpu()
    xargs_s, xargs_cpu_s = _xargs()
    stored_s, whole_s, cpu = _push(client, ours, run, TASKS)
    used = sum(ours.cpu().values()) - sum(before.values()) + xargs_cpu_s + time.process_time() - own
    others_s = max(0.0, machine_cpu_s() - busy - used)
    others = others_s / (time.monotonic() - began) / (os.cpu_count() or 1)
    return Turn(xargs_s, xargs_cpu_s, stored_s, whole_s, cpu, others)


def _xargs() -> tuple[float, float]:
    """Return the wall and CPU seconds of the same commands without ECLOUD."""
    numbers = "\n".join(map(str, range(TASKS))).encode()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    command = ["xargs", f"-P{SLOTS}", "-n1", "sh", "-c", "true"]
    subprocess.run(command, input=numbers, env=plain_environment(), check=True)
    wall_s = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _push(client: Client, ours: Ours, run: str, count: int) -> tuple[float, float, dict[str, float]]:
    """Return the seconds from acceptance, the seconds from the start of the push, and the CPU seconds of each part from
    acceptance on."""
    tasks = [TaskDefinition(id=f"t{number}", commands=("true",)) for number in range(count)]
    began = time.monotonic()
    client.push(tasks, PushOptions(run=run))
    before, accepted_at = ours.cpu(), time.monotonic()
    wait_until_over(client, run)
    ended = time.monotonic()
    cpu = {name: used - before[name] for name, used in ours.cpu().items()}
    return ended - accepted_at, ended - began, cpu


def wait_until_over(client: Client, run: str, longest_s: float = LONGEST_S) -> None:
    """Wait until the boss reports that nothing is left to do: it does so after the commit of the last outcome."""
    began = time.monotonic()
    for picture in client.watch(run):
        if picture.over:
            return
        if time.monotonic() - began > longest_s:
            raise TimeoutError(f"run {run} did not end within {longest_s:g} s")
