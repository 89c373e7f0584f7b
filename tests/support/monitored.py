"""A cluster's history as rows, for the monitor: a run of any size with a graph and failures, VMs, a sweep, pools."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import large_history
import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from ecloud.db import schema
from ecloud.model.wire import Hello

ROWS_A_STATEMENT = 5_000
ROWS_ONE_BY_ONE = 50_000
"""Longer runs are written by the database itself."""
LABELS = ("prepare", "align", "count", "merge")
WORKERS = 40
RUN = "genomes"
SWEEP = "sweep"
ERRORS = (
    "Traceback (most recent call last):\nKeyError: 'sample_{0}'",
    "samtools: error reading {0}.bam",
    "MemoryError",
)
EVIL = "<script>alert(1)</script>"


def fill(engine: Engine, tasks: int, *, ended: bool = True, seed: int = 1) -> None:
    """Write a run of this many tasks, four levels of them in groups, and a sweep; all VMs are gone. `ended` False: the
    last tenth has not run yet."""
    History(tasks, ended, random.Random(seed)).write(engine)


class History:
    """What happened, made up but consistent: attempts begin after the tasks they depend on ended."""

    def __init__(self, tasks: int, ended: bool, chance: random.Random) -> None:
        self._tasks = tasks
        self._chance = chance
        self._end = time.time() - 60.0
        self._span = 600.0 if tasks < 1_000 else 7_200.0
        self._begin = self._end - self._span
        self._unended = 0 if ended else max(1, tasks // 10)

    def write(self, engine: Engine) -> None:
        """All rows, in one transaction."""
        with engine.connect().execution_options(writes=True) as connection, connection.begin():
            first = 1
            _require_leader(connection)
            self._run(connection, RUN, 1, None if self._unended else self._end)
            if self._tasks > ROWS_ONE_BY_ONE:
                large_history.write(
                    connection, self._tasks, self._unended, LABELS, ERRORS, WORKERS, self._begin, self._span
                )
            else:
                _insert(connection, schema.tasks, self._task_rows(first))
                _insert(connection, schema.definitions, self._definition_rows(first))
                _insert(connection, schema.dependencies, self._edge_rows(first))
                _insert(connection, schema.attempts, self._attempt_rows(first))
            self._sweep(connection, first + self._tasks)
            self._machines(connection)
            connection.execute(
                sa.update(schema.leader).values(next_task_no=first + self._tasks + 1_000, next_run_no=3, next_vm_no=99)
            )

    def _run(self, connection: Connection, name: str, run_no: int, ended_at: float | None) -> None:
        row = {"run_no": run_no, "name": name, "created_at": self._begin - 5, "held": "", "ended_at": ended_at}
        connection.execute(schema.runs.insert(), row)

    # --- the large run ------------------------------------------------------------------------------

    def _level(self, at: int) -> int:
        return at * len(LABELS) // self._tasks

    def _start(self, at: int) -> float:
        """Tasks start in their order, a level after the other."""
        return self._begin + self._span * (at / self._tasks) * 0.94

    def _state(self, at: int) -> str:
        if at >= self._tasks - self._unended:
            return "ready" if at % 3 else "waiting"
        return "failed" if at % 97 == 5 else "succeeded"

    def _task_rows(self, first: int) -> Iterator[dict[str, Any]]:
        for at in range(self._tasks):
            state = self._state(at)
            label = LABELS[self._level(at)]
            yield _task_row(first + at, 1, f"{label}-{at:07d}", state, self._start(at) + 20, [label])

    def _definition_rows(self, first: int) -> Iterator[dict[str, Any]]:
        for at in range(self._tasks):
            name = f"{LABELS[self._level(at)]}-{at:07d}"
            body = {"id": name, "commands": [f"./work --part {at}"], "labels": [LABELS[self._level(at)]]}
            yield {"task_no": first + at, "definition": json.dumps(body).encode()}

    def _edge_rows(self, first: int) -> Iterator[dict[str, Any]]:
        level = max(1, self._tasks // len(LABELS))
        for at in range(level, self._tasks):
            for before in {at - level, max(0, at - level - 1)} if at % 2 else {at - level}:
                yield {"task_no": first + at, "on_task_no": first + before, "met_by": "success"}

    def _attempt_rows(self, first: int) -> Iterator[dict[str, Any]]:
        for at in range(self._tasks - self._unended):
            start = self._start(at)
            failed = self._state(at) == "failed"
            run_s = self._chance.uniform(0.5, 0.9) * min(20.0, self._span * WORKERS / self._tasks)
            yield _attempt_row(
                first + at,
                1,
                f"w{at % WORKERS:03d}",
                start,
                run_s,
                "exit" if failed else "success",
                1 if failed else 0,
                stderr=ERRORS[at % len(ERRORS)].format(at) if failed else None,
            )

    # --- others -------------------------------------------------------------------------------------

    def _sweep(self, connection: Connection, first: int) -> None:
        self._run(connection, SWEEP, 2, self._end)
        points = [
            (lr, batch, opt)
            for lr in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
            for batch in (16, 32, 64, 128)
            for opt in ("adam", "sgd", "lion")
        ]
        tasks, bodies, attempts = [], [], []
        for at, (lr, batch, optimizer) in enumerate(points):
            best = {"adam": -7.0, "sgd": -5.0, "lion": -8.0}[optimizer]
            accuracy = 0.93 - 0.03 * (math.log(lr) - best) ** 2 / 6 - 0.01 * abs(batch - 64) / 64
            accuracy += self._chance.uniform(-0.008, 0.008)
            name = f"train-{at:03d}"
            parameters = {"lr": str(lr), "batch": str(batch), "optimizer": optimizer}
            tasks.append(_task_row(first + at, 2, name, "succeeded", self._end, []))
            body = {"id": name, "commands": ["python train.py"], "env": {"ECLOUD_PARAMETERS": json.dumps(parameters)}}
            bodies.append({"task_no": first + at, "definition": json.dumps(body).encode()})
            numbers = json.dumps({"accuracy": round(accuracy, 4), "loss": round(1.2 - accuracy, 4), "epochs": 10})
            start = self._begin + self._span * at / len(points)
            attempts.append(
                _attempt_row(first + at, 2, f"w{at % WORKERS:03d}", start, 30 + batch / 4, "success", 0, stdout=numbers)
            )
        _insert(connection, schema.tasks, tasks)
        _insert(connection, schema.definitions, bodies)
        _insert(connection, schema.attempts, attempts)

    def _machines(self, connection: Connection) -> None:
        vms, workers = [], []
        for at in range(WORKERS):
            pool = ("small", "large", "spot")[at % 3]
            asked = self._begin - 40 + self._span * 0.4 * (at / WORKERS)
            boot = self._chance.uniform(12, 70)
            gone = self._end - self._chance.uniform(0, self._span * 0.2)
            vms.append(
                {
                    "vm_no": at + 1,
                    "pool": pool,
                    "state": "gone",
                    "since": gone,
                    "size": '{"cpus": 4.0, "memory_mb": 8000.0}',
                    "boot_nonce": f"n{at}",
                    "cloud_id": str(4000 + at),
                    "worker": f"w{at:03d}",
                    "keep_alive": 0,
                    "reason": "idle for 60 s",
                    "intended_at": asked,
                    "hello_at": asked + boot,
                    "gone_at": gone,
                    "started_at": asked + 3,
                    "first_task_at": asked + boot + 1,
                    "ending_at": gone - 8,
                    "end_asked": 1,
                    "cause": "",
                }
            )
            hello = msgspec.json.encode(Hello("n", "worker", host=f"node{at:02d}", resources={"cpus": 4.0}))
            workers.append(
                {
                    "worker": f"w{at:03d}",
                    "key_name": "local",
                    "state": "gone",
                    "since": gone,
                    "heard_at": gone,
                    "hello": hello,
                    "vm_no": at + 1,
                    "reason": "idle",
                    "trouble": "",
                    "lane_since": None,
                    "lane_wanted_since": None,
                    "moving": None,
                    "moving_at": None,
                    "killed_at": None,
                }
            )
        _insert(connection, schema.vms, vms)
        _insert(connection, schema.workers, workers)
        pools = [
            {
                "pool": "small",
                "closed": "",
                "since": None,
                "until": None,
                "boots": 14,
                "boot_s_p50": 31.0,
                "boot_s_p95": 66.0,
            },
            {
                "pool": "large",
                "closed": "",
                "since": None,
                "until": None,
                "boots": 13,
                "boot_s_p50": 34.0,
                "boot_s_p95": 68.0,
            },
            {
                "pool": "spot",
                "closed": "quota of the user is used up",
                "since": self._end - 900,
                "until": None,
                "boots": 13,
                "boot_s_p50": 40.0,
                "boot_s_p95": 70.0,
            },
        ]
        _insert(connection, schema.pools, pools)


def _require_leader(connection: Connection) -> None:
    """The row that a boss makes at its first start."""
    if connection.execute(sa.select(schema.leader)).first() is None:
        row = {
            "id": 1,
            "epoch": 0,
            "batch": 0,
            "holder": "",
            "since": 0,
            "renewed_at": 0,
            "next_task_no": 1,
            "next_run_no": 1,
            "next_vm_no": 1,
        }
        connection.execute(schema.leader.insert(), row)


def _task_row(task_no: int, run_no: int, id: str, state: str, at: float, labels: Sequence[str]) -> dict[str, Any]:
    tried = int(state in ("succeeded", "failed"))
    return {
        "task_no": task_no,
        "run_no": run_no,
        "id": id,
        "state": state,
        "reason": "exit code 1" if state == "failed" else "",
        "attempts": tried,
        "retries_used": 0,
        "not_before": 0.0,
        "changed_at": at,
        "init": 0,
        "priority": 0,
        "asks": '{"cpus": 1.0}',
        "runtime_s": None,
        "labels": json.dumps(list(labels)),
        "retries": "{}",
        "keep_dir": 0,
        "body_bytes": 100,
        "definition_hash": "0" * 32,
        "inputs": None,
        "makes": 0,
    }


def _attempt_row(
    task_no: int,
    run_no: int,
    worker: str,
    start: float,
    run_s: float,
    cause: str,
    exit_code: int,
    stdout: str | None = None,
    stderr: str | None = None,
) -> dict[str, Any]:
    return {
        "task_no": task_no,
        "number": 1,
        "run_no": run_no,
        "worker": worker,
        "state": "ended",
        "assigned_at": start - 0.5,
        "started_at": start,
        "ended_at": start + run_s * 1.05,
        "reason": None,
        "cause": cause,
        "exit_code": exit_code,
        "signal": None,
        "error": f"command 1 ended with exit code {exit_code}" if exit_code else None,
        "command": None,
        "stdout": stdout,
        "stderr": stderr,
        "fetch_s": run_s * 0.03,
        "run_s": run_s,
        "store_s": run_s * 0.02,
        "max_rss_mb": 321.0,
        "manifest": None,
        "fetch_bytes": None,
        "cached_bytes": None,
    }


def _insert(connection: Connection, table: sa.Table, rows: Any) -> None:
    rows = iter(rows)
    while some := list(islice(rows, ROWS_A_STATEMENT)):
        connection.execute(table.insert(), some)
