"""The boss's core alone: does the cost of a task grow with the number of waiting tasks, and how much memory does each
need?

Drives `Boss` directly: a graph of tasks with two dependencies each, four simulated workers that answer immediately, no
store and no socket. Each size runs in its own process, so that their memory is separate.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator

from bench.report import Figure, micro
from boss.core.boss import Boss
from boss.core.model.config import BossConfig, PoolConfig
from boss.core.model.effects import Effects
from boss.core.model.events import Event, MessageArrived
from boss.core.model.rows import RunRow, Snapshot, TaskRow
from ecloud.model import wire
from ecloud.model.tasks import Cause, Condition, Outcome, TaskState
from ecloud.model.wire import Envelope

SMALL, LARGE = 100_000, 1_000_000
DONE = 20_000
"""Tasks completed in a measurement, after the same number to warm up."""
WIDTH = 5_000
"""Ready tasks at any time: a task waits for two of those this far before it."""
WORKERS, CPUS, OUTCOMES = 4, 16, 64
MOST_GROWTH = 1.25
MOST_BYTES = 1024
REPEATS = 3


def measure() -> list[Figure]:
    """Measure the CPU time of a task at both sizes, alternating, and the memory of a waiting task at the larger
    size."""
    found: dict[int, list[dict[str, float]]] = {SMALL: [], LARGE: []}
    for _ in range(REPEATS):
        for size in found:
            found[size].append(_in_a_process(size))
    figures = []
    best = {}
    for size, results in found.items():
        result = min(results, key=lambda one: one["cpu_s"])
        best[size] = result["cpu_s"]
        figures.append(Figure(f"core: a task while {size:,} wait", micro(result["wall_s"]), micro(result["cpu_s"])))
    growth = best[LARGE] / best[SMALL]
    weight = min(one["bytes"] for one in found[LARGE])
    growth_aim, weight_aim = f"at most {MOST_GROWTH}", f"at most {MOST_BYTES} B"
    return [
        *figures,
        Figure("core: growth of CPU, tenfold tasks", "", "", f"{growth:.2f} x", growth_aim, growth <= MOST_GROWTH),
        Figure("core: memory of a waiting task", "", "", f"{weight:.0f} B", weight_aim, weight <= MOST_BYTES),
    ]


def _in_a_process(size: int) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.core", str(size)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(answer.stdout)
    return result


# --- in the process of one size ------------------------------------------------------------------


class Workers:
    """Simulated workers: every ordered attempt has succeeded by the next batch."""

    def __init__(self, boss: Boss) -> None:
        self.boss = boss
        self.now = 1.0
        self.done = 0
        self.cpu_s = self.wall_s = 0.0
        self._numbers: dict[str, int] = {}
        self._sessions: dict[str, str] = {}
        self._orders: dict[str, deque[tuple[int, int]]] = {}
        self._seen: dict[str, int] = {}
        for number in range(WORKERS):
            peer = f"w{number}"
            self._orders[peer] = deque()
            self._seen[peer] = 0
            hello = wire.Hello(
                nonce=f"{peer}-1", kind="worker", home=peer, resources={"cpus": float(CPUS)}, chains=True
            )
            self._tell(MessageArrived(Envelope(wire.PROTOCOL_VERSION, peer, "", 0, hello), peer))
            self._numbers[peer] = 0
        for peer in self._orders:
            self._tell(self._said(peer, wire.Heartbeat(0)))

    def complete(self, count: int) -> None:
        """Complete `count` more tasks."""
        until = self.done + count
        while self.done < until:
            events = list(self._outcomes())
            assert events, "nothing runs"
            self._tell(*events)

    def _outcomes(self) -> Iterator[Event]:
        for peer, orders in self._orders.items():
            keys = [orders.popleft() for _ in range(min(OUTCOMES, len(orders)))]
            if keys:
                self.done += len(keys)
                yield self._said(
                    peer, wire.TasksEnded(tuple(Outcome(*key, Cause.SUCCESS, exit_code=0) for key in keys))
                )

    def _said(self, peer: str, message: wire.Message) -> Event:
        self._numbers[peer] += 1
        envelope = Envelope(wire.PROTOCOL_VERSION, peer, self._sessions[peer], self._numbers[peer], message)
        return MessageArrived(envelope, peer)

    def _tell(self, *events: Event) -> None:
        self.now += 0.001
        wall, cpu = time.perf_counter(), time.process_time()
        effects = self.boss.handle(events, self.now)
        self.cpu_s += time.process_time() - cpu
        self.wall_s += time.perf_counter() - wall
        self._hear(effects)

    def _hear(self, effects: Effects) -> None:
        for send in effects.sends:
            message = send.envelope.message
            if isinstance(message, wire.Welcome):
                self._sessions[send.envelope.peer] = message.session
            elif isinstance(message, wire.StartTasks):
                self._orders[send.envelope.peer].extend((order.task_no, order.number) for order in message.attempts)


def _snapshot(size: int) -> Snapshot:
    tasks = []
    for task_no in range(1, size + 1):
        first = task_no - WIDTH
        dependencies = ((first, Condition.SUCCESS), (max(1, first - 1), Condition.SUCCESS)) if first > 1 else ()
        state = TaskState.WAITING if dependencies else TaskState.READY
        row = TaskRow(
            task_no, 1, f"task{task_no:07}", state, asks={"cpus": 1.0}, body_bytes=100, dependencies=dependencies
        )
        tasks.append(row)
    waiting = sum(row.state is TaskState.WAITING for row in tasks)
    states = {1: {"waiting": waiting, "ready": size - waiting}}
    return Snapshot("bench", 1, size + 1, 2, 1, runs=[RunRow(1, "bench")], tasks=tasks, states=states)


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def _one_size(size: int) -> dict[str, float]:
    gc.disable()
    snapshot = _snapshot(size)
    rows = list(snapshot.tasks)  # kept until the nodes were weighed: their memory would be used again
    with_rows = _resident_bytes()
    boss = Boss(snapshot, BossConfig(pools=(PoolConfig("none", {"cpus": 1.0}),)), 0.0)
    weight = (_resident_bytes() - with_rows) / size
    ids = sum(sys.getsizeof(row.id) + 2 * sys.getsizeof(row.task_no) for row in rows) / size
    del snapshot, rows
    gc.enable()
    gc.collect()
    gc.freeze()
    workers = Workers(boss)
    workers.complete(DONE)
    workers.cpu_s = workers.wall_s = 0.0
    done = workers.done
    workers.complete(DONE)
    count = workers.done - done
    return {"cpu_s": workers.cpu_s / count, "wall_s": workers.wall_s / count, "bytes": weight + ids}


if __name__ == "__main__":
    print(json.dumps(_one_size(int(sys.argv[1]))))
