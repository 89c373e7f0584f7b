"""A capacity plan as `admin.py plan` shows it: lines for users, values for programs. Decides nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from boss.core.autoscale.scaling import Plan
from boss.core.model.rows import PoolRow
from ecloud.model.text import counted


def tell(plan: Plan, pools: list[PoolRow], alive: dict[str, int], maxima: dict[str, int], now: float) -> str:
    """One JSON document: `starts` by pool and reason, `ends`, `notes`, `pools`, and all of it as `lines`."""
    starts = Counter((start.pool, start.reason) for start in plan.starts)
    document: dict[str, Any] = {
        "starts": [{"pool": pool, "count": count, "reason": reason} for (pool, reason), count in starts.items()],
        "ends": [{"vm_no": end.vm_no, "pool": end.pool, "reason": end.reason} for end in plan.ends],
        "notes": plan.notes,
        "pools": [
            {**msgspec.to_builtins(row), "alive": alive.get(row.pool, 0), "maximum": maxima.get(row.pool, 0)}
            for row in pools
        ],
    }
    lines = [f"start {count} of pool {pool}: {reason}" for (pool, reason), count in starts.items()]
    lines += [f"end VM {end.vm_no} of pool {end.pool}: {end.reason}" for end in plan.ends]
    lines = lines or ["start nothing, end nothing"]
    lines += plan.notes
    for row in pools:
        lines.append(_pool(row, alive.get(row.pool, 0), maxima.get(row.pool, 0), now))
    document["lines"] = lines
    return msgspec.json.encode(document).decode()


def _pool(row: PoolRow, alive: int, maximum: int, now: float) -> str:
    boot = f"usual boot time {row.boot_s_p50:.1f} s, 95 % within {row.boot_s_p95:.1f} s" if row.boots else (
        f"no boot seen yet, {row.boot_s_p50:g} s assumed"
    )  # fmt: skip
    text = f"pool {row.pool}: {alive} of {counted(maximum, 'VM')}, {boot}"
    if row.closed:
        text += f"; rests: {row.closed}"
        text += f", for {max(0.0, row.until - now):.0f} s more" if row.until is not None else ""
    return text
