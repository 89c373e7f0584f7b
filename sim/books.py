"""Checks the ledger at the end of a scenario: each microsecond of each VM is in exactly one part and charged to the
runs whose attempts were there, and each life equals the cloud's own list, to the second. Reads the tables as
`ecloud.queries.ledger` does; owns no state."""

from __future__ import annotations

from collections.abc import Container, Iterator

from ecloud.model.tasks import AttemptState
from ecloud.model.vm_life import Ran, VmLife, ahead_s, divide, micros
from sim.cloud import Cloud
from sim.store import Tables


def wrong(tables: Tables, cloud: Cloud, lost: Container[str] = ()) -> Iterator[str]:
    """Yield each error of the ledger. It must balance in spite of lost answers, different clocks and dead bosses.
    `lost`: VMs, by the cloud's name, that the database knew only before it was restored; they may be missing."""
    yield from _not_divided(tables)
    yield from _not_the_clouds(tables, cloud, lost)


def _not_the_clouds(tables: Tables, cloud: Cloud, lost: Container[str]) -> Iterator[str]:
    """Yield VMs whose life differs from the cloud's own list, and VMs that are in no row."""
    counted = {row.cloud_id: row for row in tables.vms.values() if row.cloud_id}
    for cloud_id, life in cloud.lives.items():
        row = counted.pop(cloud_id, None)
        if row is None:
            if cloud_id not in lost:
                yield f"{cloud_id} (intent {life.vm_no}) is in no row"
        elif (row.started_at, row.gone_at) != (life.since, life.ended_at):
            yield f"VM {row.vm_no} lived from {row.started_at} to {row.gone_at}, by the cloud's own list {life}"
    yield from (f"VM {row.vm_no} is {cloud_id}, which its cloud never made" for cloud_id, row in counted.items())


def _not_divided(tables: Tables) -> Iterator[str]:
    homes = {worker.worker: worker.vm_no for worker in tables.workers.values() if worker.vm_no is not None}
    ran: dict[int, list[Ran]] = {}
    for attempt in tables.attempts.values():
        vm_no = homes.get(attempt.worker)
        if vm_no is not None and attempt.started_at is not None:
            lost = attempt.state is AttemptState.LOST
            outcome = attempt.outcome
            times = (outcome.fetch_s, outcome.run_s) if outcome is not None else (0.0, None)
            ran.setdefault(vm_no, []).append(Ran(attempt.run_no, attempt.started_at, attempt.ended_at, lost, *times))
    for row in tables.vms.values():
        if row.started_at is None:
            if row.cloud_id:
                yield f"VM {row.vm_no} was made by its cloud at an unknown time"
            continue
        now = row.gone_at if row.gone_at is not None else max(row.since, row.started_at)
        ahead = ahead_s(row.intended_at, row.started_at, row.hello_at if row.hello_at is not None else now)
        life = VmLife(row.vm_no, row.pool, row.started_at, row.hello_at, row.ending_at, row.gone_at, ahead)
        division = divide(life, ran.get(row.vm_no, ()), now)
        over = micros(row.gone_at) if row.gone_at is not None else micros(now) + micros(ahead)
        whole = max(0, over - micros(row.started_at))
        if sum(division.parts.values()) != whole:
            yield f"the parts of VM {row.vm_no} are {division.parts}, its life {whole} µs"
        if division.runs and sum(sum(parts.values()) for parts in division.runs.values()) != whole:
            yield f"of the {whole} µs of VM {row.vm_no} its runs took {division.runs}"
