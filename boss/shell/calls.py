"""Blocking calls to the datastore and to clouds, made by small thread pools. Each call ends as an event for the loop,
whatever happens."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from boss.bootstrap.visit import Visitor
from boss.core.model.effects import (
    AskRoom,
    Call,
    DropStages,
    EndVm,
    FindResults,
    ListStages,
    ListVms,
    Promote,
    PromoteFiles,
    RemoveFiles,
    SignClientKey,
    SignKey,
    StartVm,
    TellPerson,
    UseDatastore,
    VisitVm,
)
from boss.core.model.events import (
    ClientKeySigned,
    DatastoreFailed,
    DatastoreUsed,
    Event,
    FilesPromoted,
    FreeSpaceSeen,
    KeySigned,
    ResultsFound,
    RoomSeen,
    StagesListed,
    VmListFailed,
    VmRefused,
    VmsListed,
    VmStarted,
)
from boss.providers.provider import (
    AskForLess,
    CloudState,
    CredentialsWrong,
    GivePoolUp,
    Gone,
    Provider,
    TryLater,
    Unanswered,
    VmFound,
    VmOrder,
)
from boss.shell.hook import Hook
from boss.shell.storage import Storage
from boss.store.statements import StoreAway
from datastore.existing import existing
from datastore.port import BadName, DatastoreAway, Entry, Promotion, Publisher
from datastore.problem import PartAway
from datastore.ssh.datastore import SshDatastore

log = logging.getLogger("boss")
DATASTORE_THREADS = 4
CLOUD_THREADS = 8
VISIT_THREADS = 16
"""Visits to VMs by SSH spend most of their time waiting; each ends within minutes. They have their own thread pool, so
that no other call waits for them."""
PROMOTED_AT_ONCE = 2_000
"""Maximum attempts in one call."""
RETRY_S = 10.0
TELL_EVERY_S = 600.0
GIVEN_UP_S = 300.0


class Calls:
    """Makes calls and puts their answers into the inbox."""

    def __init__(
        self,
        storage: Storage,
        clouds: Mapping[str, Provider],
        labels: Mapping[str, tuple[str, ...]],
        put: Callable[[Event], None],
        hook: Hook | None = None,
        leads: Callable[[], bool] = lambda: True,
        visitors: Mapping[str, Visitor] = {},
    ) -> None:
        self._visitors = visitors
        self._storage = storage
        self._leads = leads
        self._hook = hook or Hook("")
        self._clouds = clouds
        self._labels = labels
        self._put = put
        self._datastore_pool = ThreadPoolExecutor(DATASTORE_THREADS, "datastore")
        self._cloud_pool = ThreadPoolExecutor(CLOUD_THREADS, "cloud")
        self._visit_pool = ThreadPoolExecutor(VISIT_THREADS, "visit")
        self._lock = threading.Lock()
        self._to_promote: deque[PromoteFiles] = deque()
        self._promoting = False
        self._starting: set[int] = set()
        """Intents with a call in progress or queued."""
        self._told_at = -TELL_EVERY_S
        self._away: set[str] = set()
        """Pools whose cloud did not answer the last list call."""

    def make(self, call: Call) -> None:
        """Hand a call to its thread pool."""
        if isinstance(call, TellPerson):
            self._hook.tell(call)
        elif isinstance(call, VisitVm):
            self._visit_pool.submit(self._safely, call, self._to_vm)
        elif isinstance(call, (StartVm, EndVm, ListVms, AskRoom)):
            if isinstance(call, StartVm):
                with self._lock:
                    self._starting.add(call.vm_no)
            self._cloud_pool.submit(self._safely, call, self._to_cloud)
        elif isinstance(call, PromoteFiles):
            self._to_promote.append(call)
            with self._lock:
                begins, self._promoting = not self._promoting, True
            if begins:
                self._datastore_pool.submit(self._promote_waiting)
        else:
            self._datastore_pool.submit(self._safely, call, self._to_datastore)

    def close(self) -> None:
        """Begin no further calls."""
        self._hook.close()
        self._datastore_pool.shutdown(wait=False, cancel_futures=True)
        self._cloud_pool.shutdown(wait=False, cancel_futures=True)
        self._visit_pool.shutdown(wait=False, cancel_futures=True)
        for visitor in self._visitors.values():
            visitor.close()

    def _safely(self, call: Call, make: Callable[[Call], Event | None]) -> None:
        try:
            event = make(call)
        except Exception as error:
            log.exception("%s failed", type(call).__name__)
            event = _unexpected(call, error)
        if event is not None:
            self._put(event)
        if isinstance(call, StartVm):  # only now: until its answer is put, every list must name it as in progress
            with self._lock:
                self._starting.discard(call.vm_no)

    def _to_datastore(self, call: Call) -> Event | None:
        try:
            if isinstance(call, UseDatastore):
                self._storage.use(call.address, call.host_key, call.python, call.gate)
                self._put(DatastoreUsed(call.address))
                self._look_at_free_space()
                return None
            if isinstance(call, SignKey):
                return KeySigned(call.worker, *self._storage.sign(call.worker, call.public_key, call.refused))
            if isinstance(call, SignClientKey):
                return self._sign_for_client(call)
            datastore = self._storage.publisher
            if isinstance(call, PromoteFiles):
                return self._promote(datastore, call)
            if isinstance(call, FindResults):
                return ResultsFound(call.token, existing(datastore, list(call.paths)))
            if isinstance(call, ListStages):
                self._look_at_free_space()
                return StagesListed(tuple(datastore.stages()))
            if isinstance(call, DropStages):
                for stage in call.stages:
                    datastore.drop_stage(stage)
            if isinstance(call, RemoveFiles):
                for path in call.paths:
                    datastore.remove(path)
        except (DatastoreAway, BadName, OSError) as error:
            if isinstance(call, DropStages):
                log.warning("stages are left for the next sweep: %s", error)
                return None
            if isinstance(call, RemoveFiles):
                log.warning("files of archived runs are left in the datastore: %s", error)
                return None
            if isinstance(call, (SignKey, UseDatastore)):
                log.error("the datastore: %s", error)
                return None
            return DatastoreFailed(call, str(error))
        return None

    def _sign_for_client(self, call: SignClientKey) -> Event:
        address = self._storage.access.address
        try:
            signed = self._storage.sign_for_client(call.client, call.public_key)
        except (PartAway, ValueError) as error:
            return DatastoreFailed(call, str(error))
        return ClientKeySigned(call.client, call.request_id, address, *signed)

    def _look_at_free_space(self) -> None:
        """Report free space over SSH, rarely and only together with another call. For a directory, users can check
        themselves."""
        datastore = self._storage.publisher
        if isinstance(datastore, SshDatastore):
            self._put(FreeSpaceSeen(str(datastore.address), datastore.free_mb()))

    def _promote_waiting(self) -> None:
        """Make one call at a time: promotions that arrive meanwhile join the next call, so that calls are fewer and
        fuller under load (one query of datastore and database serves all of them)."""
        while True:
            promotions: list[Promote] = []
            with self._lock:
                while self._to_promote and len(promotions) < PROMOTED_AT_ONCE:
                    promotions += self._to_promote.popleft().promotions
                if not promotions:
                    self._promoting = False
                    return
            self._safely(PromoteFiles(tuple(promotions)), self._to_datastore)

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

    def _to_vm(self, call: Call) -> Event | None:
        assert isinstance(call, VisitVm)
        visitor = self._visitors.get(call.pool)
        try:
            if visitor is None or not self._leads():
                return None
        except StoreAway:
            return None  # the cloud's next list causes another visit
        event = visitor.visit(call)
        if event.visit.contact == "changed":
            log.error("VM %s is refused: its host key changed: %s", call.vm_no, event.visit.said)
        elif event.visit.problem:
            log.warning("VM %s at %s cannot be prepared: %s", call.vm_no, call.address, event.visit.problem)
        return event

    def _to_cloud(self, call: Call) -> Event | None:
        assert isinstance(call, (StartVm, EndVm, ListVms, AskRoom))
        cloud = self._clouds.get(call.pool)
        try:
            # The call may have waited long in the queue: another boss may lead now, with newer knowledge.
            if not self._leads():
                log.warning("the cloud of pool %s is no longer called: another boss leads", call.pool)
                return None
        except StoreAway as error:
            return _not_asked(call, f"the database cannot tell whether this boss still leads: {error}")
        if cloud is None:
            reason = f"pool {call.pool} is no longer in the settings"
            return VmRefused(call.vm_no, reason, GIVEN_UP_S, "unset") if isinstance(call, StartVm) else None
        if isinstance(call, StartVm):
            return self._start(call, cloud)
        if isinstance(call, AskRoom):
            return _ask_room(call, cloud)
        try:
            if isinstance(call, EndVm):
                if call.why:
                    log.warning("VM %s (%s) is ended: %s", call.vm_no, call.cloud_id, call.why)
                cloud.end(call.cloud_id)
            else:
                self._list(call, cloud)
        except (TryLater, CredentialsWrong, Gone) as error:
            if not isinstance(call, ListVms):
                log.warning("pool %s: %s", call.pool, error)
                return None
            if call.pool not in self._away:  # logged once, and once when it is back
                log.warning("pool %s: %s", call.pool, error)
            self._away.add(call.pool)
            return VmListFailed(call.pool, str(error))
        return None

    def _start(self, call: StartVm, cloud: Provider) -> Event | None:
        order = VmOrder(call.vm_no, call.pool, call.size, call.boot_nonce, self._labels.get(call.pool, ()))
        try:
            return VmStarted(call.vm_no, cloud.start(order))
        except Unanswered as error:  # its intent stays until the cloud's list shows the VM, or lacks it for long enough
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

    def _list(self, call: ListVms, cloud: Provider) -> None:
        """Put the cloud's list. VMs that were started meanwhile are not among `known`."""
        with self._lock:
            starting = set(self._starting)
        told = cloud.list(call.known, call.lost)
        if call.pool in self._away:
            self._away.discard(call.pool)
            log.info("pool %s: its cloud is back", call.pool)
        with self._lock:
            starting |= self._starting
        self._tell_of_hidden(call.pool, [vm for vm in told if vm.state is CloudState.HIDDEN])
        self._put(VmsListed(call.pool, tuple(told), frozenset(starting), frozenset(call.known), frozenset(call.lost)))

    def _tell_of_hidden(self, pool: str, hidden: Sequence[VmFound]) -> None:
        """Log VMs that need an operator, but not with every list."""
        if hidden and time.monotonic() - self._told_at > TELL_EVERY_S:
            self._told_at = time.monotonic()
            log.error("pool %s: the cloud does not report whether %d VMs run: %s", pool, len(hidden), hidden[0].text)


def _ask_room(call: AskRoom, cloud: Provider) -> Event:
    """Ask a cloud for its room. An unreadable answer limits nothing: the request for a VM will show."""
    try:
        room = cloud.room()
    except (TryLater, CredentialsWrong, GivePoolUp) as error:
        log.warning("pool %s does not report its free capacity: %s", call.pool, error)
        return RoomSeen(call.pool, None)
    return RoomSeen(call.pool, room.vms, room.reason)


def _not_asked(call: Call, reason: str) -> Event | None:
    log.warning("the cloud is not called: %s", reason)
    if isinstance(call, StartVm):
        return VmRefused(call.vm_no, reason, RETRY_S)
    return RoomSeen(call.pool, None) if isinstance(call, AskRoom) else None


def _unexpected(call: Call, error: Exception) -> Event | None:
    text = f"{type(error).__name__}: {error}"
    if isinstance(call, StartVm):
        return VmRefused(call.vm_no, text, RETRY_S)
    if isinstance(call, AskRoom):
        return RoomSeen(call.pool, None)
    if isinstance(call, (PromoteFiles, FindResults, SignClientKey)):
        return DatastoreFailed(call, text)
    return None
