"""Requests about workers: drain, kill, forget."""

from __future__ import annotations

from collections.abc import Callable

from boss.core.autoscale.owed_vms import ASKED_FOR
from boss.core.autoscale.vms import Vms
from boss.core.clients.request_answers import Answer, RequestRefused, listed, text_of
from boss.core.model.fleet import Fleet
from boss.core.model.outbox import Outbox
from boss.core.model.worker import Worker
from boss.core.workers.leases import Leases
from ecloud.model.wire import Request


class WorkerRequests:
    """Carries out requests about workers. `verbs`: by name, called with the request and `now`."""

    def __init__(self, outbox: Outbox, fleet: Fleet, leases: Leases, vms: Vms) -> None:
        self._outbox = outbox
        self._fleet = fleet
        self._leases = leases
        self._vms = vms
        self.verbs: dict[str, Callable[[Request, float], Answer]] = {
            "drain_worker": self._drain,
            "undrain_worker": self._undrain,
            "kill_worker": self._kill,
            "drop_workers": self._drop_workers,
        }

    def _workers(self, request: Request) -> list[Worker]:
        wanted = [str(item) for item in listed(request, "workers")]
        if not wanted:
            return list(self._fleet.workers.values())
        found = []
        for prefix in wanted:
            matches = [worker for name, worker in self._fleet.workers.items() if name.startswith(prefix)]
            if len(matches) != 1:
                problem = (
                    f"{len(matches)} workers have names that begin with {prefix}"
                    if matches
                    else f"no worker {prefix} is on duty"
                )
                raise RequestRefused("no_such_worker", problem)
            found += matches
        return found

    def _drain(self, request: Request, now: float) -> Answer:
        reason = text_of(request, "reason", ASKED_FOR)
        drained = [worker.name for worker in self._workers(request) if self._leases.drain(worker, reason, False, now)]
        return len(drained), f"{len(drained)} draining", tuple(drained)

    def _undrain(self, request: Request, now: float) -> Answer:
        undrained = [worker.name for worker in self._workers(request) if self._leases.undrain(worker, now)]
        return len(undrained), f"{len(undrained)} take tasks again", tuple(undrained)

    def _kill(self, request: Request, now: float) -> Answer:
        workers = self._workers(request)
        for worker in workers:
            vm = self._vms.alive.get(worker.row.vm_no) if worker.row.vm_no is not None else None
            self._leases.kill(worker, f"killed: {ASKED_FOR}", now)
            if vm is not None:
                self._vms.kill(vm, f"killed: {ASKED_FOR}", now)
        text = f"{len(workers)} ordered to stop immediately"
        if unheard := sum([worker.conversation is None for worker in workers]):
            text += f", {unheard} of them as soon as this boss hears from them"
        return len(workers), text, tuple(worker.name for worker in workers)

    def _drop_workers(self, request: Request, now: float) -> Answer:
        names = [str(item) for item in listed(request, "workers") if str(item) not in self._fleet.workers]
        self._outbox.writes.dropped_workers.extend(names)
        return len(names), f"{len(names)} forgotten", tuple(names)
