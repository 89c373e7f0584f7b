"""Calls that block: datastore and clouds. Made from two small pools; each ends as an event for the loop, whatever
happens."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from boss.cloud.provider import (
    AskForLess,
    CredentialsWrong,
    GivePoolUp,
    Gone,
    Provider,
    TryLater,
    Unanswered,
    VmOrder,
    VmState,
)
from boss.core.effects import (
    Call,
    DropStages,
    EndVm,
    FindResults,
    ListStages,
    ListVms,
    PromoteFiles,
    SignKey,
    StartVm,
    UseDatastore,
)
from boss.core.events import (
    DatastoreFailed,
    Event,
    FilesPromoted,
    KeySigned,
    ResultsFound,
    StagesListed,
    VmRefused,
    VmsListed,
    VmStarted,
)
from boss.storage import Storage
from datastore.port import BadName, DatastoreAway, Entry, Promotion, Publisher

log = logging.getLogger("boss")
DATASTORE_THREADS = 4
CLOUD_THREADS = 8
RETRY_S = 10.0
GIVEN_UP_S = 300.0
_HEALTHY = (VmState.BOOTING, VmState.RUNNING, VmState.ENDING)
"""States of a VM about which there is nothing to say."""


class Calls:
    """Makes calls and puts what comes of them into the inbox."""

    def __init__(
        self,
        storage: Storage,
        clouds: Mapping[str, Provider],
        labels: Mapping[str, tuple[str, ...]],
        put: Callable[[Event], None],
    ) -> None:
        self._storage = storage
        self._clouds = clouds
        self._labels = labels
        self._put = put
        self._datastore_pool = ThreadPoolExecutor(DATASTORE_THREADS, "datastore")
        self._cloud_pool = ThreadPoolExecutor(CLOUD_THREADS, "cloud")
        self._lock = threading.Lock()
        self._started: dict[tuple[str, str], int] = {}
        """VMs that were started while a list was being made, which may lack them: pool and cloud id, and intent."""
        self._listing: Counter[str] = Counter()

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
            if isinstance(call, UseDatastore):
                self._storage.use(call.address, call.host_key, call.python, call.gate)
                return None
            if isinstance(call, SignKey):
                return KeySigned(call.worker, *self._storage.sign(call.worker, call.public_key))
            datastore = self._storage.publisher
            if isinstance(call, PromoteFiles):
                return self._promote(datastore, call)
            if isinstance(call, FindResults):
                found = datastore.stat(list(call.paths))
                return ResultsFound(
                    call.token, frozenset(p for p, entry in zip(call.paths, found) if entry is not None)
                )
            if isinstance(call, ListStages):
                return StagesListed(tuple(datastore.stages()))
            if isinstance(call, DropStages):
                for stage in call.stages:
                    datastore.drop_stage(stage)
        except (DatastoreAway, BadName, OSError) as error:
            if isinstance(call, DropStages):
                log.warning("stages are left for the next sweep: %s", error)
                return None
            if isinstance(call, (SignKey, UseDatastore)):
                log.error("the datastore: %s", error)
                return None
            return DatastoreFailed(call, str(error))
        return None

    def _promote(self, datastore: Publisher, call: PromoteFiles) -> Event:
        promotions = [
            Promotion(
                item.stage,
                tuple(Entry(e.path, e.kind, e.size, e.mode, 0.0, e.sha256) for e in item.manifest),
            )
            for item in call.promotions
        ]
        problems = datastore.promote(promotions)
        return FilesPromoted(
            tuple((item.task_no, item.number, problem) for item, problem in zip(call.promotions, problems))
        )

    def _to_cloud(self, call: Call) -> Event | None:
        assert isinstance(call, (StartVm, EndVm, ListVms))
        cloud = self._clouds.get(call.pool)
        if cloud is None:
            reason = f"no pool {call.pool} is set any more"
            return VmRefused(call.vm_no, reason, GIVEN_UP_S, "unset") if isinstance(call, StartVm) else None
        if isinstance(call, StartVm):
            order = VmOrder(call.vm_no, call.pool, call.size, call.boot_nonce, self._labels.get(call.pool, ()))
            try:
                self._put_started(call, cloud.start(order))
                return None
            except Unanswered as error:  # its intent stays until the cloud's list has shown the VM, or long has not
                log.warning("a VM of pool %s may have been started: %s", call.pool, error)
                return None
            except TryLater as error:
                return VmRefused(call.vm_no, str(error), RETRY_S, "later")
            except AskForLess as error:
                return VmRefused(call.vm_no, str(error), RETRY_S, "less")
            except GivePoolUp as error:
                return VmRefused(call.vm_no, str(error), GIVEN_UP_S, "pool")
            except CredentialsWrong as error:
                return VmRefused(call.vm_no, str(error), GIVEN_UP_S, "credentials")
        try:
            if isinstance(call, EndVm):
                cloud.end(call.cloud_id)
            else:
                self._list(call, cloud)
        except (TryLater, CredentialsWrong, Gone) as error:
            log.warning("pool %s: %s", call.pool, error)
        return None

    def _put_started(self, call: StartVm, cloud_id: str) -> None:
        with self._lock:
            if self._listing[call.pool]:
                self._started[call.pool, cloud_id] = call.vm_no
            self._put(VmStarted(call.vm_no, cloud_id))

    def _list(self, call: ListVms, cloud: Provider) -> None:
        """What the cloud says, and what was started while it said so: a VM that is missing in a list that is older than
        itself is not gone."""
        with self._lock:
            self._listing[call.pool] += 1
        found = None
        try:
            found = cloud.list()
        finally:
            with self._lock:
                by_vm_no = {no: cloud_id for (pool, cloud_id), no in self._started.items() if pool == call.pool}
                self._listing[call.pool] -= 1
                if not self._listing[call.pool]:
                    self._started = {key: no for key, no in self._started.items() if key[0] != call.pool}
                if found is not None:
                    by_vm_no.update({vm.vm_no: vm.cloud_id for vm in found})
                    seen = {vm.vm_no: (vm.state.value, vm.text) for vm in found if vm.text or vm.state not in _HEALTHY}
                    self._put(VmsListed(call.pool, frozenset(by_vm_no.values()), by_vm_no, seen))


def _unexpected(call: Call, error: Exception) -> Event | None:
    text = f"{type(error).__name__}: {error}"
    if isinstance(call, StartVm):
        return VmRefused(call.vm_no, text, RETRY_S)
    if isinstance(call, (PromoteFiles, FindResults)):
        return DatastoreFailed(call, text)
    return None
