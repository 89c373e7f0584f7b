"""What people ask for: cancel, retry, redo, drop, watch, drain, start VMs. Each is answered once, and again if asked
again.

Owns requests that wait for the store's answer. Anything that concerns ended tasks reads their runs from the store
first.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable

import msgspec

from boss.core.autoscale.vms import Vms
from boss.core.clients import plan_report
from boss.core.clients.watchers import Watchers
from boss.core.model.effects import SelectTasks, UseDatastore
from boss.core.model.fleet import Fleet, Worker
from boss.core.model.graph import Node
from boss.core.model.outbox import Conversation, Outbox
from boss.core.model.rows import RunImage, TaskRow
from boss.core.tasks.apply_merge import apply, overlay
from boss.core.tasks.attempts import Attempts
from boss.core.tasks.merging import Merge, replant
from boss.core.tasks.taskbook import TaskBook
from boss.core.workers.datastore_access import Access
from boss.core.workers.leases import Leases
from ecloud.model.tasks import ENDED, TaskState
from ecloud.model.text import counted
from ecloud.model.wire import Refused, Request, RequestDone, StreamLogs

ANSWERS_KEPT = 1_000
MAX_TEXT_CHARS = 4_096
"""Of an id, a verb or an argument: longer ones name nothing, but would come back in answers and go into queries that no
database takes."""
NAMES_SHOWN = 20
"""Ids named in an answer."""
STREAM_LOGS_S = 30.0
"""A worker streams for this long unless it is asked again."""

DATASTORE_NOTES = ("datastore_address", "datastore_host_key", "datastore_python", "datastore_gate")

Answer = tuple[int, str, tuple[str, ...]]


class RequestRefused(Exception):
    """The request can't be done; its text tells why and what to do."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


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
        duty: Leases,
        vms: Vms,
        watchers: Watchers,
        access: Access,
        clients: dict[str, Conversation],
        revoked_keys: set[str],
    ) -> None:
        self._outbox = outbox
        self._book = book
        self._attempts = attempts
        self._fleet = fleet
        self._duty = duty
        self._vms = vms
        self._watchers = watchers
        self._access = access
        self._clients = clients
        self._revoked_keys = revoked_keys
        self._waiting: dict[int, _Waiting] = {}
        self._tokens = 0
        self._answers: OrderedDict[str, RequestDone | Refused] = OrderedDict()
        self._about_tasks: dict[str, Callable[[Request, list[RunImage], frozenset[int], float], Answer]] = {
            "cancel": self._cancel,
            "retry_failed": self._retry_failed,
            "redo_task": self._redo,
            "drop_tasks": self._drop,
            "logs": self._logs,
        }
        self._about_others: dict[str, Callable[[Request, float], Answer]] = {
            "instantiate_worker": self._instantiate,
            "plan": self._plan,
            "drain_worker": self._drain,
            "undrain_worker": self._undrain,
            "kill_worker": self._kill,
            "drop_workers": self._drop_workers,
            "end_vms": self._end_vms,
            "set_context": self._set_context,
            "drop_context": self._drop_context,
            "set_datastore": self._set_datastore,
            "revoke_key": self._revoke_key,
        }

    def on_request(self, client: Conversation, request: Request, now: float) -> None:
        """Do it now, or once the store has told which tasks are meant."""
        known = self._answers.get(request.request_id)
        if what := _too_long(request):
            reason = f"{what} is longer than {MAX_TEXT_CHARS:,} characters"
            self._outbox.say(client, Refused("request", reason, about=request.request_id[:MAX_TEXT_CHARS]))
        elif known is not None:
            self._outbox.say(client, known)
        elif any(waiting.request.request_id == request.request_id for waiting in self._waiting.values()):
            pass  # asked again while the store is being read
        elif request.verb == "watch":
            self._watch(client, request, now)
        elif request.verb in self._about_tasks:
            self._tokens += 1
            self._waiting[self._tokens] = _Waiting(request, client.peer)
            ids = tuple(str(item) for item in _list(request, "ids"))
            run, state, label = (str(request.arguments.get(name) or "") for name in ("run", "state", "label"))
            self._outbox.read(SelectTasks(self._tokens, ids, run, state, label))
        elif request.verb in self._about_others:
            action = self._about_others[request.verb]
            self._answer(client.peer, request, lambda: action(request, now))
        else:
            known_verbs = ", ".join(sorted([*self._about_tasks, *self._about_others, "watch"]))
            refused = Refused(
                "request", f"the boss does not know {request.verb!r}; it knows {known_verbs}", request.request_id
            )
            self._outbox.say(client, refused)

    def on_selected(
        self, token: int, images: Iterable[RunImage], task_nos: frozenset[int], problem: str, now: float
    ) -> None:
        """The store told which tasks are meant."""
        waiting = self._waiting.pop(token, None)
        if waiting is None:
            return
        request = waiting.request
        images = list(images)

        def act() -> Answer:
            if problem:
                raise RequestRefused("no_such_task", problem)
            for image in images:
                overlay(image, self._book.graph)
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

    # --- tasks -----------------------------------------------------------------------------------

    def _cancel(self, request: Request, images: list[RunImage], task_nos: frozenset[int], now: float) -> Answer:
        reason = str(request.arguments.get("reason") or "a person asked for it")
        cancelled = self._cancel_nodes(task_nos, f"cancelled: {reason}", now)
        return len(cancelled), f"{len(cancelled)} cancelled", tuple(node.id for node in cancelled)

    def _cancel_nodes(self, task_nos: Iterable[int], reason: str, now: float) -> list[Node]:
        cancelled = []
        # Dependents first (they mostly have the higher numbers), so that they are cancelled, not aborted.
        for task_no in sorted(task_nos, reverse=True):
            node = self._book.graph.nodes.get(task_no)
            if node is None or node.init or (task_no, node.assigned) in self._attempts.promoting:
                continue  # one whose results are being published has all but succeeded
            if node.assigned:
                self._attempts.stop([self._attempts.active[(task_no, node.assigned)]], reason)
                node.assigned = 0
            self._book.end(node, TaskState.CANCELLED, reason, now)
            cancelled.append(node)
        return cancelled

    def _retry_failed(self, request: Request, images: list[RunImage], task_nos: frozenset[int], now: float) -> Answer:
        count, names = 0, []
        for image in images:
            targets = {
                row.task_no
                for row in image.tasks
                if row.state is TaskState.FAILED and (row.task_no in task_nos or row.init)
            }
            names += [row.id for row in image.tasks if row.task_no in targets]
            count += self._again(image, targets, False, now)
        return count, f"{len(names)} failed tasks are done again, with {count - len(names)} below them", tuple(names)

    def _redo(self, request: Request, images: list[RunImage], task_nos: frozenset[int], now: float) -> Answer:
        count, names = 0, []
        for image in images:
            targets = {row.task_no for row in image.tasks if row.task_no in task_nos and row.state in ENDED}
            names += [row.id for row in image.tasks if row.task_no in targets]
            count += self._again(image, targets, bool(request.arguments.get("below")), now)
        return count, f"{len(names)} tasks are done again, with {count - len(names)} below them", tuple(names)

    def _again(self, image: RunImage, targets: set[int], below: bool, now: float) -> int:
        if not targets:
            return 0
        fresh = targets | _below(image.tasks, targets, ENDED if below else frozenset({TaskState.ABORTED}))
        merged = Merge()
        replant(merged, image.tasks, fresh)
        apply(merged, image, self._outbox, self._book, self._attempts, now)
        return len(fresh)

    def _drop(self, request: Request, images: list[RunImage], task_nos: frozenset[int], now: float) -> Answer:
        dropped: list[str] = []
        dropped_nos: set[int] = set()
        for image in images:
            meant = {row.task_no for row in image.tasks if row.task_no in task_nos}
            self._cancel_nodes(meant, "cancelled: dropped", now)
            run = self._book.run_of(image.run)
            writes = self._outbox.writes
            for row in image.tasks:
                if row.task_no not in meant or row.task_no in self._book.graph.nodes:
                    continue
                moved = writes.tasks.pop(row.task_no, None)
                state = moved.state if moved is not None else row.state
                if not row.init:
                    run.states[state] = run.states.get(state, 0) - 1
                dropped.append(row.id)
                dropped_nos.add(row.task_no)
                writes.dropped_tasks.append(row.task_no)
            if not any(run.states.values()):
                dropped_nos |= self._drop_run(image.run.run_no)
        self._attempts.forget_tasks(dropped_nos)
        return len(dropped), f"{len(dropped)} tasks dropped", tuple(dropped)

    def _drop_run(self, run_no: int) -> set[int]:
        run = self._book.forget_run(run_no)
        self._outbox.writes.runs.pop(run_no, None)
        self._book.graph.remove(run.inits)
        for task_no in run.inits:
            self._outbox.writes.tasks.pop(task_no, None)
        self._outbox.writes.dropped_runs.append(run_no)
        self._attempts.forget_run(run_no)
        return set(run.inits)

    def _logs(self, request: Request, images: list[RunImage], task_nos: frozenset[int], now: float) -> Answer:
        if len(task_nos) != 1:
            raise RequestRefused("request", f"logs follows one task, not {len(task_nos)}")
        (task_no,) = task_nos
        node = self._book.graph.nodes.get(task_no)
        if node is None or not node.assigned:
            row = next(row for image in images for row in image.tasks if row.task_no == task_no)
            return 0, row.state.value, (str(task_no),)
        attempt = self._attempts.active[(task_no, node.assigned)]
        worker = self._fleet.workers.get(self._attempts.holder(attempt))
        if worker is not None and worker.conversation is not None:
            self._outbox.say(worker.conversation, StreamLogs(task_no, attempt.number, STREAM_LOGS_S))
        return 1, node.state.value, (str(task_no),)

    def _watch(self, client: Conversation, request: Request, now: float) -> None:
        name = str(request.arguments.get("run") or "")
        run = next((run for run in self._book.runs.values() if run.row.name == name), None)
        if run is None:
            self._outbox.say(client, Refused("no_such_run", f"there is no run {name!r}", about=request.request_id))
            return
        self._outbox.say(client, RequestDone(request.request_id, run.left, "watching"))
        self._watchers.watch(client, run, now)

    # --- workers and VMs -------------------------------------------------------------------------

    def _instantiate(self, request: Request, now: float) -> Answer:
        count = request.arguments.get("n", 1)
        if not self._vms.pools:
            raise RequestRefused("no_pool", "no pool is set: name one in POOLS of settings.py")
        name = str(request.arguments.get("pool") or next(iter(self._vms.pools)))
        pool = self._vms.pools.get(name)
        if pool is None:
            raise RequestRefused("no_pool", f"there is no pool {name!r}; there are {', '.join(self._vms.pools)}")
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise RequestRefused("request", f"{count!r} is not a number of workers: 1 or more")
        keep_alive = bool(request.arguments.get("keep_alive"))
        little = self._vms.openings.too_little_room(name, count, now) or self._vms.health[name].closed(now)
        started = self._vms.start(pool, count, keep_alive, "a person asked for it", now)
        text = f"{started} asked for in pool {name}"
        if started < count:
            text += f"; its maximum of {counted(pool.maximum, 'VM')} allows no more"
        if started and little:
            text += f"; {little}"
        return started, text, ()

    def _plan(self, request: Request, now: float) -> Answer:
        made = self._vms.plan(now)
        alive = Counter(vm.pool for vm in self._vms.alive.values())
        maxima = {name: pool.maximum for name, pool in self._vms.pools.items()}
        text = plan_report.tell(made, self._vms.pool_rows(now), alive, maxima, now)
        return len(made.starts) + len(made.ends), text, ()

    def _workers(self, request: Request) -> list[Worker]:
        wanted = [str(item) for item in _list(request, "workers")]
        if not wanted:
            return list(self._fleet.workers.values())
        found = []
        for prefix in wanted:
            matches = [worker for name, worker in self._fleet.workers.items() if name.startswith(prefix)]
            if len(matches) != 1:
                problem = (
                    f"{len(matches)} workers on duty are called {prefix}…"
                    if matches
                    else f"no worker {prefix} is on duty"
                )
                raise RequestRefused("no_such_worker", problem)
            found += matches
        return found

    def _drain(self, request: Request, now: float) -> Answer:
        reason = str(request.arguments.get("reason") or "a person asked for it")
        drained = [worker.name for worker in self._workers(request) if self._duty.drain(worker, reason, False, now)]
        return len(drained), f"{len(drained)} draining", tuple(drained)

    def _undrain(self, request: Request, now: float) -> Answer:
        undrained = [worker.name for worker in self._workers(request) if self._duty.undrain(worker, now)]
        return len(undrained), f"{len(undrained)} take tasks again", tuple(undrained)

    def _kill(self, request: Request, now: float) -> Answer:
        workers = self._workers(request)
        for worker in workers:
            vm = self._vms.alive.get(worker.row.vm_no) if worker.row.vm_no is not None else None
            self._duty.kill(worker, "killed: a person asked for it")
            if vm is not None:
                self._vms.kill(vm, "killed: a person asked for it", now)
        return len(workers), f"{len(workers)} told to stop at once", tuple(worker.name for worker in workers)

    def _drop_workers(self, request: Request, now: float) -> Answer:
        names = [str(item) for item in _list(request, "workers") if str(item) not in self._fleet.workers]
        self._outbox.writes.dropped_workers.extend(names)
        return len(names), f"{len(names)} forgotten", tuple(names)

    def _end_vms(self, request: Request, now: float) -> Answer:
        count = self._vms.end_all("ended: a person asked for it", now)
        return count, f"{count} {'VM is' if count == 1 else 'VMs are'} being ended", ()

    # --- context ---------------------------------------------------------------------------------

    def _set_context(self, request: Request, now: float) -> Answer:
        key, value = str(request.arguments.get("key") or ""), str(request.arguments.get("value") or "")
        if not key or len(key) > 100 or key == "cluster_id" or "/" in key:  # names with a stroke are the boss's own
            raise RequestRefused("request", f"{key!r} can't be set in the context")
        self._outbox.writes.context[key] = value
        return 1, f"{key} set", (key,)

    def _drop_context(self, request: Request, now: float) -> Answer:
        keys = [str(key) for key in _list(request, "keys")] or ["boss_address", *DATASTORE_NOTES]
        if kept := [key for key in keys if key == "cluster_id" or "/" in key]:
            raise RequestRefused("request", f"{kept[0]!r} can't be dropped: VMs and keys of this cluster go by it")
        usual, moved = self._access.usual, ""
        if usual not in ("", self._access.datastore.address) and not set(keys).isdisjoint(DATASTORE_NOTES):
            self._refuse_while_files_move()
            keys = list(dict.fromkeys([*keys, *DATASTORE_NOTES]))
            self._access.move(UseDatastore(usual, "", "", ""))
            moved = f"; the datastore is {usual} from now on"
        for key in keys:
            self._outbox.writes.context[key] = None
        return len(keys), f"{len(keys)} dropped{moved}", tuple(keys)

    def _set_datastore(self, request: Request, now: float) -> Answer:
        address = str(request.arguments.get("address") or "")
        if not address:
            raise RequestRefused("request", "set_datastore needs an address")
        if address != self._access.datastore.address:
            self._refuse_while_files_move()
        use = UseDatastore(
            address, *(str(request.arguments.get(name) or "") for name in ("host_key", "python", "gate"))
        )
        values = (use.address, use.host_key, use.python, use.gate)
        self._outbox.writes.context.update({name: value or None for name, value in zip(DATASTORE_NOTES, values)})
        self._access.move(use)
        return 1, f"the datastore is {address}", ()

    def _refuse_while_files_move(self) -> None:
        if count := len(self._attempts.active):
            raise RequestRefused(
                "busy", f"{count} attempts are under way, with files where they are now: wait, or cancel"
            )

    def _revoke_key(self, request: Request, now: float) -> Answer:
        name = str(request.arguments.get("name") or "")
        if not name.startswith(("invite-", "vm-")):
            raise RequestRefused("request", f"{name!r} is not the name of an invitation")
        self._revoked_keys.add(name)
        self._outbox.writes.revoked_keys.add(name)
        return 1, f"{name} opens nothing any more", (name,)


def _too_long(request: Request) -> str:
    """The part of a request that is too long to be anything, in words."""
    parts = {"the request's id": request.request_id, "the verb": request.verb}
    for part, value in [
        *parts.items(),
        *((f"argument {name[:20]!r}", item) for name, item in request.arguments.items()),
    ]:
        texts = value if isinstance(value, list) else [value]
        if any(isinstance(text, str) and len(text) > MAX_TEXT_CHARS for text in texts):
            return part
    return ""


def _list(request: Request, name: str) -> list[str | int]:
    value = request.arguments.get(name)
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [str(value)]


def _below(rows: Iterable[TaskRow], targets: set[int], states: frozenset[TaskState]) -> set[int]:
    """Tasks in one of `states` that lie below `targets`, along tasks in those states."""
    state_of: dict[int, TaskState] = {}
    dependents: dict[int, list[int]] = {}
    for row in rows:
        state_of[row.task_no] = row.state
        for on_task_no, _ in row.dependencies:
            dependents.setdefault(on_task_no, []).append(row.task_no)
    found: set[int] = set()
    todo = list(targets)
    while todo:
        for dependent in dependents.get(todo.pop(), ()):
            if dependent not in found and dependent not in targets and state_of[dependent] in states:
                found.add(dependent)
                todo.append(dependent)
    return found
