"""VM-seconds over time: the ledger's parts in equal slices from the first VM to now."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from ecloud.db import schema
from ecloud.db.database import database_now
from ecloud.model.vm_life import PARTS, spans
from ecloud.queries.ledger import lives
from ecloud.queries.status import snapshot

SLICES = 120


class LedgerHistory(msgspec.Struct, frozen=True):
    """`parts`: for each part of a VM's life, the VM-seconds in each slice of `slice_s` from `begin` (seconds since
    1970) to `end`. Their sum is the ledger's total."""

    begin: float
    end: float
    parts: dict[str, list[float]]

    @property
    def slice_s(self) -> float:
        """Duration of one slice."""
        return (self.end - self.begin) / SLICES


def ledger_history(engine: Engine, now: float | None = None) -> LedgerHistory:
    """Compute the history of all VMs. Raises `DatabaseAway`."""
    vms = schema.vms.c
    with snapshot(engine) as connection:
        now = database_now(connection) if now is None else now
        begin = connection.execute(sa.select(sa.func.min(vms.started_at))).scalar()
        last = connection.execute(sa.select(sa.func.max(vms.gone_at))).scalar() or now
        alive = sa.select(sa.func.count()).where(vms.started_at.is_not(None), vms.gone_at.is_(None))
        end = now if connection.execute(alive).scalar() else min(now, last)
        begin = end - 1.0 if begin is None else min(begin, end - 1.0)
        history = LedgerHistory(begin, end, {part: [0.0] * SLICES for part in PARTS})
        for vm, ran in lives(connection, now):
            for start, stop, part in spans(vm, ran, now):
                _add(history, part, start, stop)
    return history


def _add(history: LedgerHistory, part: str, start: float, stop: float) -> None:
    """Spread the seconds from `start` to `stop` over the slices that they touch."""
    amounts, width = history.parts[part], history.slice_s
    place = min(SLICES - 1, max(0, int((start - history.begin) / width)))
    at = start
    while at < stop:
        edge = history.begin + (place + 1) * width
        upto = stop if place == SLICES - 1 else max(at, min(stop, edge))
        amounts[place] += upto - at
        at, place = upto, place + 1
