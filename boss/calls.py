"""Calls that block: datastore and clouds. Made from two small pools; each ends as an event for the loop, whatever
happens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from boss.cloud.provider import AskForLess, CredentialsWrong, GivePoolUp, Provider, TryLater, VmOrder
from boss.core.effects import Call, DropStages, EndVm, FindResults, ListStages, ListVms, PromoteFiles, StartVm
from boss.core.events import (
    DatastoreFailed,
    Event,
    FilesPromoted,
    ResultsFound,
    StagesListed,
    VmRefused,
    VmsListed,
    VmStarted,
)
from datastore.port import BadName, DatastoreAway, Entry, Promotion, Publisher

log = logging.getLogger("boss")
DATASTORE_THREADS = 4
CLOUD_THREADS = 8
RETRY_S = 10.0
GIVEN_UP_S = 300.0


class Calls:
    """Makes calls and puts what comes of them into the inbox."""

    def __init__(
        self,
        datastore: Publisher,
        clouds: Mapping[str, Provider],
        labels: Mapping[str, tuple[str, ...]],
        put: Callable[[Event], None],
    ) -> None:
        self._datastore = datastore
        self._clouds = clouds
        self._labels = labels
        self._put = put
        self._datastore_pool = ThreadPoolExecutor(DATASTORE_THREADS, "datastore")
        self._cloud_pool = ThreadPoolExecutor(CLOUD_THREADS, "cloud")

    def make(self, call: Call) -> None:
        """Hand a call to its pool."""
        if isinstance(call, (StartVm, EndVm, ListVms)):
            self._cloud_pool.submit(self._safely, call, self._to_cloud)
        else:
            self._datastore_pool.submit(self._safely, call, self._to_datastore)

    def close(self) -> None:
        """Begin no call any more."""
        self._datastore_pool.shutdown(wait=False, cancel_futures=True)
        self._cloud_pool.shutdown(wait=False, cancel_futures=True)

    def _safely(self, call: Call, make: Callable[[Call], Event | None]) -> None:
        try:
            event = make(call)
        except Exception as error:
            log.exception("%s failed", type(call).__name__)
            event = _unexpected(call, error)
        if event is not None:
            self._put(event)

    def _to_datastore(self, call: Call) -> Event | None:
        try:
            if isinstance(call, PromoteFiles):
                return self._promote(call)
            if isinstance(call, FindResults):
                found = self._datastore.stat(list(call.paths))
                return ResultsFound(
                    call.token, frozenset(p for p, entry in zip(call.paths, found) if entry is not None)
                )
            if isinstance(call, ListStages):
                return StagesListed(tuple(self._datastore.stages()))
            if isinstance(call, DropStages):
                for stage in call.stages:
                    self._datastore.drop_stage(stage)
        except (DatastoreAway, BadName, OSError) as error:
            if isinstance(call, DropStages):
                log.warning("stages are left for the next sweep: %s", error)
                return None
            return DatastoreFailed(call, str(error))
        return None

    def _promote(self, call: PromoteFiles) -> Event:
        promotions = [
            Promotion(
                item.stage,
                tuple(Entry(e.path, e.kind, e.size, e.mode, 0.0, e.sha256) for e in item.manifest),
            )
            for item in call.promotions
        ]
        problems = self._datastore.promote(promotions)
        return FilesPromoted(
            tuple((item.task_no, item.number, problem) for item, problem in zip(call.promotions, problems))
        )

    def _to_cloud(self, call: Call) -> Event | None:
        assert isinstance(call, (StartVm, EndVm, ListVms))
        cloud = self._clouds.get(call.pool)
        if cloud is None:
            reason = f"no pool {call.pool} is set any more"
            return VmRefused(call.vm_no, reason, GIVEN_UP_S) if isinstance(call, StartVm) else None
        if isinstance(call, StartVm):
            order = VmOrder(call.vm_no, call.pool, call.size, call.boot_nonce, self._labels.get(call.pool, ()))
            try:
                return VmStarted(call.vm_no, cloud.start(order))
            except (TryLater, AskForLess) as error:
                return VmRefused(call.vm_no, str(error), RETRY_S)
            except (GivePoolUp, CredentialsWrong) as error:
                return VmRefused(call.vm_no, str(error), GIVEN_UP_S)
        try:
            if isinstance(call, EndVm):
                cloud.end(call.cloud_id)
                return None
            found = cloud.list()
        except (TryLater, CredentialsWrong) as error:
            log.warning("the cloud of pool %s does not answer: %s", call.pool, error)
            return None
        return VmsListed(call.pool, frozenset(vm.cloud_id for vm in found), {vm.vm_no: vm.cloud_id for vm in found})


def _unexpected(call: Call, error: Exception) -> Event | None:
    text = f"{type(error).__name__}: {error}"
    if isinstance(call, StartVm):
        return VmRefused(call.vm_no, text, RETRY_S)
    if isinstance(call, (PromoteFiles, FindResults)):
        return DatastoreFailed(call, text)
    return None
