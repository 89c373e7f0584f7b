"""`admin.py doctor --boot`: starts one VM of each pool, waits for its worker, and ends the VM.

The only complete check of a pool: its template, its image, its network and the connection to the broker. Requires a
running boss.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from ecloud.cli import app
from ecloud.config.settings import Settings
from ecloud.model.text import duration
from ecloud.queries import boot_history
from ecloud.queries import status as queries

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from ecloud.client.client import Client
    from ecloud.queries.views import VmView

LOOK_EVERY_S = 0.25
SPARE_S = 30.0
"""How much longer than the boss this check waits for a VM."""
END_S = 120.0
"""Time limit for the VMs to disappear."""


class Booted(msgspec.Struct, frozen=True):
    """Result for the VM of one pool. `remedy`: what to do; empty if its worker reported."""

    pool: str
    text: str
    remedy: str = ""


def boot(settings: Settings) -> Iterator[Booted]:
    """Start one VM of each pool concurrently; yield each result as soon as it is known. Ends every VM, also if the
    caller is interrupted. Raises as `app.boss` and `app.database` do."""
    pools = [pool.name for pool in settings.all_pools if pool.maximum]
    engine = app.database(settings)
    with app.boss(settings) as client:
        asked: dict[str, str] = {}
        """Pools by the name of their VM."""
        try:
            for pool in pools:
                answer = client.request("instantiate_worker", n=1, pool=pool, keep_alive=True)
                if answer.count:
                    asked[answer.names[0]] = pool
                else:
                    yield Booted(pool, f"no VM was started: {answer.text}", "end one of its VMs, or raise its maximum")
            yield from _await(engine, asked, time.monotonic() + settings.vm_boot_s + settings.vm_pending_s + SPARE_S)
        finally:
            left = _end(client, engine, list(asked))
        for vm in left:
            text = f"vm/{vm.vm_no} does not end: its end was requested {vm.end_asked} times in {duration(END_S)}"
            yield Booted(vm.pool, text, f"python admin.py why vm/{vm.vm_no}")


def _await(engine: Engine, asked: dict[str, str], deadline: float) -> Iterator[Booted]:
    waiting = dict(asked)
    while waiting:
        for name, vm in _vms(engine, waiting).items():
            if vm.hello_at is not None:
                took = duration(vm.hello_at - vm.intended_at)
                yield Booted(waiting.pop(name), f"{name} booted, its worker reported after {took}")
            elif vm.state in ("ending", "gone") or time.monotonic() > deadline:
                reason = vm.reason if vm.state != "intended" else "its cloud did not answer"
                why = _trouble(engine, vm)
                text = f"{name} did not start: {reason}" + (f": {why}" if why and why not in reason else "")
                yield Booted(waiting.pop(name), text, f"python admin.py why {name} shows each step")
        if waiting:
            time.sleep(LOOK_EVERY_S)


def _trouble(engine: Engine, vm: VmView) -> str:
    with queries.snapshot(engine) as connection:
        return boot_history.trouble(vm, boot_history.boot_views(connection, [vm.vm_no]).get(vm.vm_no))


def _end(client: Client, engine: Engine, names: list[str]) -> list[VmView]:
    """End VMs; return those that still exist after the time limit."""
    deadline = time.monotonic() + END_S
    left = _alive(engine, names)
    if left:
        client.request("end_vms", vms=[f"vm/{vm.vm_no}" for vm in left])
    while left and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY_S)
        left = _alive(engine, names)
    return left


def _alive(engine: Engine, names: list[str]) -> list[VmView]:
    return [vm for vm in _vms(engine, names).values() if vm.state != "gone"]


def _vms(engine: Engine, names: dict[str, str] | list[str]) -> dict[str, VmView]:
    return {f"vm/{vm.vm_no}": vm for vm in queries.vms(engine, gone=True) if f"vm/{vm.vm_no}" in names}
