"""Requests of clients: one answer to each, and the same answer to a repetition.

Owns the requests that wait for the store, and the last answers. A request about tasks first reads the runs concerned
from the store, including ended tasks. task_requests, worker_requests and context_requests carry out the verbs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

import msgspec

from boss.core.autoscale.autoscaler import Autoscaler
from boss.core.autoscale.vms import Vms
from boss.core.clients.calls import Calls
from boss.core.clients.context_requests import ContextRequests
from boss.core.clients.datastore_access import AccessForClients
from boss.core.clients.request_answers import Answer, RequestRefused, listed, text_of
from boss.core.clients.task_requests import TaskRequests, reads_for
from boss.core.clients.vm_requests import VmRequests
from boss.core.clients.watchers import Watchers
from boss.core.clients.why_ready import WhyReady
from boss.core.clients.worker_requests import WorkerRequests
from boss.core.model.effects import SelectTasks
from boss.core.model.fleet import Fleet
from boss.core.model.outbox import Conversation, Outbox
from boss.core.model.rows import RunImage
from boss.core.tasks.apply_merge import overlay
from boss.core.tasks.attempts import Attempts
from boss.core.tasks.taskbook import TaskBook
from boss.core.workers.datastore_access import Access
from boss.core.workers.leases import Leases
from ecloud.model.calls import is_python_resource
from ecloud.model.roles import why_not_request
from ecloud.model.wire import Refused, Request, RequestDone

ANSWERS_KEPT = 1_000
"""Answers remembered for clients that did not receive theirs."""
MAX_TEXT_CHARS = 4_096
"""Longest id, verb or argument. A longer one names nothing, but would appear in answers and in queries that no database
accepts."""
NAMES_SHOWN = 20
"""Ids named in an answer."""


class _Waiting(msgspec.Struct):
    request: Request
    peer: str


class Requests:
    """Requests by verb."""

    def __init__(
        self,
        outbox: Outbox,
        book: TaskBook,
        attempts: Attempts,
        fleet: Fleet,
        leases: Leases,
        vms: Vms,
        autoscaler: Autoscaler,
        watchers: Watchers,
        access: Access,
        access_for_clients: AccessForClients,
        clients: dict[str, Conversation],
        forget_client: Callable[[Conversation], None],
        why_ready: WhyReady,
        revoked_keys: set[str],
        calls: Calls,
    ) -> None:
        self._calls = calls
        self._access_for_clients = access_for_clients
        self._outbox = outbox
        self._book = book
        self._watchers = watchers
        self._clients = clients
        self._waiting: dict[int, _Waiting] = {}
        self._tokens = 0
        self._answers: OrderedDict[str, RequestDone | Refused] = OrderedDict()
        self._tasks = TaskRequests(outbox, book, attempts, fleet, calls)
        self._about_tasks = self._tasks.verbs
        self._why_ready = why_ready
        self._fleet = fleet
        self._pools_now = autoscaler.pools_now
        self._about_others: dict[str, Callable[[Request, float], Answer]] = {
            "why": self._why,
            "pythons": self._pythons,
            **WorkerRequests(outbox, fleet, leases, vms).verbs,
            **VmRequests(vms, autoscaler).verbs,
            **ContextRequests(outbox, attempts, access, leases, vms, clients, forget_client, revoked_keys).verbs,
        }

    def on_request(self, client: Conversation, request: Request, now: float) -> None:
        """Carry out a request now, or after the store returned the tasks that it concerns."""
        known = self._answers.get(request.request_id)
        if what := _too_long(request):
            reason = f"{what} is longer than {MAX_TEXT_CHARS:,} characters"
            self._outbox.say(client, Refused("request", reason, about=request.request_id[:MAX_TEXT_CHARS]))
        elif problem := why_not_request(client.key_name, request.verb):
            self._outbox.say(client, Refused("role", problem, about=request.request_id))
        elif known is not None:
            self._outbox.say(client, known)
        elif any(waiting.request.request_id == request.request_id for waiting in self._waiting.values()):
            pass  # repeated while the store is being read
        elif request.verb == "watch":
            self._watch(client, request, now)
        elif request.verb == "open_datastore":
            self._access_for_clients.on_request(client, request, now)
        elif request.verb == "calls":
            try:
                self._calls.on_request(client, request)
            except RequestRefused as why:
                self._outbox.say(client, Refused(why.code, str(why), about=request.request_id))
        elif request.verb in self._about_tasks:
            self._tokens += 1
            self._waiting[self._tokens] = _Waiting(request, client.peer)
            ids = tuple(str(item) for item in listed(request, "ids"))
            run, state, label = (text_of(request, name) for name in ("run", "state", "label"))
            self._outbox.read(SelectTasks(self._tokens, ids, run, state, label, reads_for(request)))
        elif request.verb in self._about_others:
            action = self._about_others[request.verb]
            self._answer(client.peer, request, lambda: action(request, now))
        else:
            known_verbs = ", ".join(
                sorted([*self._about_tasks, *self._about_others, "calls", "open_datastore", "watch"])
            )
            refused = Refused(
                "request", f"the boss does not know {request.verb!r}; it knows {known_verbs}", request.request_id
            )
            self._outbox.say(client, refused)

    def on_client_lost(self, client: Conversation, now: float) -> None:
        """A client was silent for too long: cancel the calls that are bound to it."""
        for run_no in self._calls.bound_to(client.peer):
            self._tasks.cancel_run(run_no, "cancelled: its program was lost (on_client_lost='cancel')", now)

    def on_selected(
        self, token: int, images: Iterable[RunImage], task_nos: frozenset[int], problem: str, now: float
    ) -> None:
        """The store returned the tasks that a request concerns."""
        waiting = self._waiting.pop(token, None)
        if waiting is None:
            return
        request = waiting.request
        images = list(images)

        def act() -> Answer:
            if problem:
                raise RequestRefused("no_such_task", problem)
            for image in images:
                overlay(image, self._book)
            return self._about_tasks[request.verb](request, images, task_nos, now)

        self._answer(waiting.peer, request, act)

    def _answer(self, peer: str, request: Request, action: Callable[[], Answer]) -> None:
        answer: RequestDone | Refused
        try:
            count, text, names = action()
            answer = RequestDone(request.request_id, count, text, names[:NAMES_SHOWN])
        except RequestRefused as refused:
            answer = Refused(refused.code, str(refused), about=request.request_id)
        self._answers[request.request_id] = answer
        while len(self._answers) > ANSWERS_KEPT:
            self._answers.popitem(last=False)
        client = self._clients.get(peer)
        if client is not None:
            self._outbox.say(client, answer)

    def _why(self, request: Request, now: float) -> Answer:
        """The reasons of a ready task, as a JSON list. The database explains all others."""
        task_no = request.arguments.get("task_no")
        layers = self._why_ready.layers(task_no, now) if isinstance(task_no, int) else []
        return len(layers), msgspec.json.encode(layers).decode(), ()

    def _pythons(self, request: Request, now: float) -> Answer:
        """The resources `python3.X` that workers on duty and pools offer, in `names`."""
        offers = [worker.capacity for worker in self._fleet.workers.values()]
        offers += [pool.config.size for pool in self._pools_now(now) if pool.config.maximum]
        offered = {name for offer in offers for name, amount in offer.items() if amount}
        names = sorted(filter(is_python_resource, offered))
        return len(names), "", tuple(names)

    def _watch(self, client: Conversation, request: Request, now: float) -> None:
        name = text_of(request, "run")
        run = self._book.run_named(name)
        if run is None:
            self._outbox.say(client, Refused("no_such_run", f"there is no run {name!r}", about=request.request_id))
            return
        self._outbox.say(client, RequestDone(request.request_id, run.left, "watching"))
        if request.arguments.get("calls"):
            self._calls.watch(client, run.row.run_no)
        if request.arguments.get("bound"):
            self._calls.bind(client, run.row.run_no)
        self._watchers.watch(client, run, now)


def _too_long(request: Request) -> str:
    """The part of a request that is too long, in words; empty if none is."""
    parts = {"the request's id": request.request_id, "the verb": request.verb}
    for part, value in [
        *parts.items(),
        *((f"argument {name[:20]!r}", item) for name, item in request.arguments.items()),
    ]:
        texts = value if isinstance(value, list) else [value]
        if any(isinstance(text, str) and len(text) > MAX_TEXT_CHARS for text in texts):
            return part
    return ""
