"""Requests about VMs and their pools: start, plan, end, forget, hold, release."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from boss.core.autoscale.autoscaler import Autoscaler
from boss.core.autoscale.owed_vms import ASKED_FOR
from boss.core.autoscale.vm import Vm
from boss.core.autoscale.vms import Vms
from boss.core.clients import plan_report
from boss.core.clients.request_answers import Answer, RequestRefused, listed, text_of
from boss.core.model.config import PoolConfig
from ecloud.model.text import counted
from ecloud.model.vm_states import VmState
from ecloud.model.wire import Request


class VmRequests:
    """Carries out requests about VMs. `verbs`: by name, called with the request and `now`."""

    def __init__(self, vms: Vms, autoscaler: Autoscaler) -> None:
        self._vms = vms
        self._autoscaler = autoscaler
        self.verbs: dict[str, Callable[[Request, float], Answer]] = {
            "instantiate_worker": self._instantiate,
            "plan": self._plan,
            "end_vms": self._end,
            "forget_vm": self._forget,
            "hold_pool": self._hold,
            "release_pool": self._release,
        }

    def _instantiate(self, request: Request, now: float) -> Answer:
        count = request.arguments.get("n", 1)
        pools = self._vms.pools
        if not pools.configs:
            raise RequestRefused("no_pool", "no pool is set: name one in POOLS of settings.py")
        name = text_of(request, "pool", next(iter(pools.configs)))
        pool = self._pool(name)
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise RequestRefused("request", f"{count!r} is not a number of workers: 1 or more")
        if why := pools.held.why(name):
            raise RequestRefused("held", f"pool {name} starts no VM: {why}")
        keep_alive = bool(request.arguments.get("keep_alive"))
        little = pools.too_little_room(name, count, now) or pools.health[name].closed(now)
        vm_nos = self._vms.start(pool, count, keep_alive, ASKED_FOR, now)
        started = len(vm_nos)
        text = f"{started} requested in pool {name}"
        if started < count:
            text += f"; its maximum of {counted(pool.maximum, 'VM')} allows no more"
        if started and little:
            text += f"; {little}"
        return started, text, tuple(f"vm/{vm_no}" for vm_no in vm_nos)

    def _plan(self, request: Request, now: float) -> Answer:
        made = self._autoscaler.plan(now)
        alive = Counter(row.pool for row in self._vms.rows)
        maxima = {name: pool.maximum for name, pool in self._vms.pools.configs.items()}
        text = plan_report.tell(made, self._autoscaler.pool_rows(now), alive, maxima, now)
        return len(made.starts) + len(made.ends), text, ()

    def _end(self, request: Request, now: float) -> Answer:
        reason = f"ended: {ASKED_FOR}"
        if named := listed(request, "vms"):
            vms = [self._vm(str(name)) for name in named]
            for vm in vms:
                self._vms.kill(vm, reason, now)
            count = len(vms)
        else:
            count = self._vms.end_all(reason, now)
        return (
            count,
            f"{counted(count, 'VM')} {'is' if count == 1 else 'are'} being ended" if count else "no VM is left to end",
            (),
        )

    def _forget(self, request: Request, now: float) -> Answer:
        name = text_of(request, "vm")
        vm = self._vm(name)
        if vm.state is not VmState.ENDING:
            raise RequestRefused(
                "request", f"{name} is {vm.state}: end it first; only VMs that do not end are forgotten"
            )
        self._vms.write_off(vm, f"written off: {ASKED_FOR}", now)
        return 1, f"{name} is written off: it may still run and cost money; check the cloud", (name,)

    def _hold(self, request: Request, now: float) -> Answer:
        name = text_of(request, "pool")
        self._pool(name)
        self._vms.pools.held.hold(name, text_of(request, "reason"), now)
        alive = sum(1 for row in self._vms.rows if row.pool == name)
        text = f"pool {name} is held: it starts no VM until python admin.py release_pool {name}"
        if alive:
            text += f"; its {counted(alive, 'VM')} {'continues' if alive == 1 else 'continue'}"
        return 1, text, ()

    def _release(self, request: Request, now: float) -> Answer:
        name = text_of(request, "pool")
        if self._vms.pools.held.release(name):  # also one that is no longer in the settings
            return 1, f"pool {name} is released: it may start VMs again", ()
        self._pool(name)
        return 0, f"pool {name} was not held", ()

    def _pool(self, name: str) -> PoolConfig:
        """The pool of this name. Raises `RequestRefused` if no such pool is set."""
        configs = self._vms.pools.configs
        if name not in configs:
            there = f"there are {', '.join(configs)}" if configs else "no pool is set: name one in POOLS of settings.py"
            raise RequestRefused("no_pool", f"there is no pool {name!r}; {there}")
        return configs[name]

    def _vm(self, name: str) -> Vm:
        """The VM named vm/N, or N. Raises `RequestRefused` if it does not exist or is gone."""
        number = name.removeprefix("vm/")
        vm = self._vms.alive.get(int(number)) if number.isascii() and number.isdecimal() else None
        if vm is None:
            raise RequestRefused("no_such_vm", f"there is no VM {name}, or it is gone: python admin.py show_vms")
        return vm
