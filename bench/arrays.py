"""An array of a million elements: accepted, held by the boss, stored, and shown, before any element runs."""

from __future__ import annotations

import time
from pathlib import Path

import sqlalchemy as sa

from bench.report import Figure, micro, seconds
from bench.services import Services, cpu_s
from ecloud.client.client import Client
from ecloud.formats.arrays import as_array, split_arrays
from ecloud.formats.checking import check
from ecloud.model.tasks import ArrayOf, Dependency, Entry, TaskDefinition
from ecloud.model.wire import PushOptions
from ecloud.queries import status as queries

ELEMENTS = 1_000_000
MOST_S = 20.0
MOST_BOSS_BYTES = 300
MOST_DATABASE_BYTES = 200
MOST_STATUS_S = 0.3
LINE = "/data/sources/recording-{:07d}.wav --rate 48000 --channels 2"
"""A line of 61 characters, as in users' lists."""


def measure(profiles: Path | None = None) -> list[Figure]:
    """Measure a range, then lines of 61 characters, each followed by an array of the same size that waits for it
    element by element. No worker runs."""
    numbers = TaskDefinition("numbers", ("./simulate --seed {}",), array=ArrayOf(f"1-{ELEMENTS}"))
    entries = [Entry(number, LINE.format(number)) for number in range(1, ELEMENTS + 1)]
    lines = as_array(TaskDefinition("lines", ("./convert {}",)), entries)
    with Services(profiles) as services:
        return [*_one(services, "range", numbers), *_one(services, "lines", lines)]


def _one(services: Services, kind: str, array: TaskDefinition) -> list[Figure]:
    behind = TaskDefinition(
        "behind", ("./next {}",), (Dependency(array.id, each=True),), array=ArrayOf(f"1-{ELEMENTS}")
    )
    boss_before, database_before = _resident_bytes(services.boss.pid), _stored_bytes(services)
    with Client(services.client_access()) as client:
        client.connect()
        began, used, boss_cpu = time.monotonic(), time.process_time(), cpu_s(services.boss)
        problems = check([array, behind])
        assert not problems, problems
        accepted = client.push(split_arrays([array, behind]), PushOptions(run=kind))
        took_s, client_s = time.monotonic() - began, time.process_time() - used
        boss_s = cpu_s(services.boss) - boss_cpu
    assert sum(accepted.states.values()) == 2 * ELEMENTS, accepted
    boss_bytes = (_resident_bytes(services.boss.pid) - boss_before) / ELEMENTS
    database_bytes = (_stored_bytes(services) - database_before) / ELEMENTS
    began = time.monotonic()
    status = queries.status(services.engine())
    status_s = time.monotonic() - began
    assert any(run.name == kind and len(run.arrays) == 2 for run in status.runs)
    what = f"arrays: {ELEMENTS:,} elements ({kind}) and as many behind them"
    return [
        Figure(f"{what}, checked, pushed, answered", seconds(took_s), micro((client_s + boss_s) / ELEMENTS), "",
               f"less than {MOST_S:g} s", took_s < MOST_S),
        Figure(f"{what}: boss, resident", "", "", f"{boss_bytes:,.0f} B each", f"at most {MOST_BOSS_BYTES} B",
               boss_bytes <= MOST_BOSS_BYTES),
        Figure(f"{what}: MariaDB, on disk", "", "", f"{database_bytes:,.0f} B each",
               f"at most {MOST_DATABASE_BYTES} B", database_bytes <= MOST_DATABASE_BYTES),
        Figure(f"{what}: status", seconds(status_s), "", "", f"less than {MOST_STATUS_S:g} s",
               status_s < MOST_STATUS_S),
    ]  # fmt: skip


def _resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


def _stored_bytes(services: Services) -> int:
    """Return the bytes of all tables and indices, from the server's own statistics after ANALYZE."""
    with services.engine().connect() as connection:
        names = connection.execute(sa.text("SHOW TABLES")).scalars().all()
        connection.execute(sa.text(f"ANALYZE TABLE {', '.join(names)}")).all()
        query = "SELECT SUM(data_length + index_length) FROM information_schema.tables WHERE table_schema = DATABASE()"
        return int(connection.execute(sa.text(query)).scalar() or 0)
