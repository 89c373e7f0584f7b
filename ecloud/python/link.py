"""The thread that communicates with the boss for an executor: pushes calls, receives their outcomes, requests those
that it missed.

Calls that are submitted during a push go together into the next one. Every message is repeated until it is answered, so
boss and broker may restart meanwhile. Nothing of the user's is unpickled here.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import msgspec

from datastore.problem import PartAway, Problem, as_typed
from ecloud.client.client import BOSS_ADVICE, BossAway, why_away
from ecloud.client.conversation import Conversation
from ecloud.client.too_large import CUT_OFF_TIMES, LARGE_BYTES, too_large_for_broker
from ecloud.config.secrets import AccessFile
from ecloud.formats.large_tasks import MAX_DEFINITION_BYTES, too_large
from ecloud.model.tasks import ENDED, TaskDefinition, TaskState
from ecloud.model.wire import (
    BATCH_BYTES,
    BATCH_COUNT,
    CallEnded,
    CallsEnded,
    Goodbye,
    Message,
    PushOptions,
    Refused,
    Request,
    RequestDone,
    RunAccepted,
    RunChanged,
    RunRejected,
    SubmitTasks,
)
from ecloud.python.callbacks import Callbacks
from ecloud.python.future import KEPT_BYTES, CallFuture
from ecloud.python.payload import RemoteError

log = logging.getLogger("ecloud")
CONNECT_S = 10.0
REPEAT_S = 5.0
"""A message without an answer is sent again after this time."""
WINDOW = 3
"""Unanswered pushes at a time: enough that the boss never waits for the next one."""
ASK_AGAIN_S = 10.0
"""After this time without news of unfinished calls, the link requests their states."""
SILENT_S = 30.0
"""After this time without any message from the boss, a warning is logged. Restarts are shorter."""
FAILED_KEPT = 256
LOOKED_UP_MOST = 256
"""Values of an attached run that are requested together."""
MIN_WAIT_S, MAX_WAIT_S = 0.0, 1.0
_ENDED = frozenset(state.value for state in ENDED)


class _Push(msgspec.Struct, eq=False):
    """Calls on their way to the boss."""

    message: SubmitTasks
    size: int
    """Bytes of its tasks as JSON."""
    said_at: float = 0.0
    said_in: int = 0
    cut_off: int = 0
    """Connections in a row that ended while it was under way, if it is large."""


class _Asked(msgspec.Struct, eq=False):
    """A request that waits for its answer. `calls`: those of the answer's pages received so far."""

    request: Request
    answered: threading.Event | None = None
    answer: Message | None = None
    calls: list[CallEnded] = []
    said_at: float = 0.0
    said_in: int = 0


class Link:
    """One conversation for one run. Other threads call `submit`, `cancel`, `ask`, `fetch`, `close`."""

    def __init__(
        self,
        access: AccessFile,
        run: str,
        watchdog: Callable[[], None] | None = None,
        replace_changed: bool = False,
        bound: bool = False,
    ) -> None:
        """`bound`: the boss cancels the calls if this program is lost."""
        self.run = run
        self._pid = os.getpid()
        self.condition = threading.Condition()
        """Shared by all futures of this link."""
        self.pending: dict[str, CallFuture] = {}
        self.done_count = 0
        self.workers = 0
        """Number of workers, as last reported by the boss."""
        self.states: dict[str, int] = {}
        self.waits = ""
        """Why calls wait that are ready, as last reported by the boss; empty if they only wait for their turn."""
        self._said_waits = ""
        """The last reason that was logged."""
        self.failed: dict[str, CallFuture] = {}
        """The calls that failed last, by id: the causes of the failures of those that depend on them."""
        self._is_report_due = False
        """Whether calls ended after the last report of the run's states."""
        self.on_progress: Callable[[int, int, int], None] = lambda done, total, failed: None
        """Called by the link's thread with the numbers of calls that ended, of all, and of those that failed."""
        self._failed = 0
        self.fetch: Callable[[CallEnded], bytes] = self._fetch
        self._talk = Conversation(access, watchdog)
        self._outgoing: deque[TaskDefinition] = deque()
        self._replace_changed = replace_changed
        self._bound = bound
        self._pushes: dict[str, _Push] = {}
        self._unsaid: set[str] = set()
        """Ids of calls whose push was not answered yet."""
        self._never_pushed: dict[str, str] = {}
        """By id, calls that the boss does not know: cancelled before they were pushed, rejected, or waiting for such a
        one. The text is what fails the calls that wait for them, in the boss's words."""
        self._asked: dict[str, _Asked] = {}
        self.listed: dict[str, None] = {}
        """Ids of calls of an attached run that ended and whose values were not requested yet, in order."""
        self._looked_up: dict[str, CallEnded] = {}
        """Calls that were requested together with the last one."""
        self._orders: deque[Callable[[], None]] = deque()
        self._cancelled: deque[str] = deque()
        """Ids that the boss is not yet asked to cancel. Other threads append, only the link's thread removes."""
        self._callbacks = Callbacks()
        self._accepted = False
        self._watched_in = 0
        self._asking = ""
        self._heard_at = time.monotonic()
        self._is_silent = False
        self._is_woken = False
        self._closing = False
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ecloud-calls", daemon=True)
        self._owner = threading.main_thread()

    # --- other threads ------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect. Raises `PartAway` if nothing answers within `CONNECT_S`."""
        self._talk.start()
        deadline = time.monotonic() + CONNECT_S
        while not self._talk.session:
            left_s = deadline - time.monotonic()
            if self._talk.refusal or left_s <= 0:
                self._talk.stop()
                raise BossAway(self._talk.refusal) if self._talk.refusal else why_away(self._talk, CONNECT_S)
            self._talk.wait(left_s)
        self._thread.start()
        self._callbacks.start()

    @property
    def is_open(self) -> bool:
        """Whether its thread still receives messages."""
        return self.failure is None and self._thread.is_alive()

    @property
    def is_foreign(self) -> bool:
        """Whether this process was forked by the one that made the link: it has no thread, and shares a connection."""
        return os.getpid() != self._pid

    def require_own_process(self) -> None:
        """Raise `RuntimeError` in a process that the one of this link forked."""
        if self.is_foreign:
            raise RuntimeError(
                f"this executor belongs to process {self._pid}, which forked this one ({os.getpid()}): make one here"
            )

    @property
    def datastore_address(self) -> str:
        """The address of the datastore, as reported by the boss."""
        welcome = self._talk.welcome
        return welcome.datastore.address if welcome is not None else ""

    def submit(self, future: CallFuture, definition: TaskDefinition) -> None:
        """Hand a call over; the link's thread pushes it soon."""
        self.pending[definition.id] = future
        self._unsaid.add(definition.id)
        self._never_pushed.pop(definition.id, None)
        self._outgoing.append(definition)
        self._wake()

    def watch(self, futures: Iterable[CallFuture]) -> None:
        """Wait for calls that were pushed before, by this program or another one."""
        for future in futures:
            self.pending[future.id] = future
        self._accepted = True
        self._wake()

    def cancel(self, future: CallFuture) -> None:
        """Cancel a call on the cluster."""
        with self.condition:
            self.pending.pop(future.id, None)
        self._cancelled.append(future.id)
        self._wake()

    def ask(self, verb: str, timeout_s: float = 60.0, **arguments: Any) -> tuple[Message, list[CallEnded]]:
        """Make a request; its answer, and the calls that it names. Raises `Problem` where it is refused, `PartAway`
        where it is not answered or the executor is shut down."""
        self.require_own_process()
        if not self.is_open:
            raise self.failure or PartAway("the connection to the cluster was closed by shutdown")
        asked = _Asked(Request(secrets.token_hex(12), verb, arguments), threading.Event(), calls=[])
        self._orders.append(lambda: self._asked.update({asked.request.request_id: asked}))
        self._wake()
        assert asked.answered is not None
        if not asked.answered.wait(timeout_s):
            raise PartAway(f"the boss did not answer within {timeout_s:.0f} s")
        if isinstance(asked.answer, Refused):
            raise Problem(asked.answer.reason)
        if asked.answer is None:
            raise self.failure or PartAway("the connection to the cluster was closed")
        return asked.answer, asked.calls

    def request(self, verb: str, **arguments: Any) -> RequestDone:
        """As `ask`, for a request whose answer names no calls."""
        answer, _ = self.ask(verb, **arguments)
        assert isinstance(answer, RequestDone)
        return answer

    def _fetch(self, ended: CallEnded) -> bytes:
        """The pickled value of a call, from the boss."""
        value = self.look_up(ended).value
        if not value:
            raise RemoteError(f"the value of {ended.id} is no longer kept")
        return value

    def look_up(self, ended: CallEnded) -> CallEnded:
        """Return the same call with its value, if it has a small one. Also requests the next values of an attached run:
        a program mostly wants all of them."""
        known = self._looked_up.pop(ended.id, None)
        if known is not None:
            return known
        others = islice((id for id in self.listed if id != ended.id), LOOKED_UP_MOST - 1)
        ids = [ended.id, *others]
        for id in ids:
            self.listed.pop(id, None)
        _, calls = self.ask("calls", run=self.run, ids=ids)
        found = {call.id: call for call in calls}
        self._looked_up = {id: call for id, call in found.items() if len(call.value) <= KEPT_BYTES}
        return self._looked_up.pop(ended.id, None) or found.get(ended.id, ended)

    def list_calls(self) -> list[CallEnded]:
        """All calls of the run, without their values. Raises `Problem` where there is no such run."""
        found: list[CallEnded] = []
        while True:
            answer, calls = self.ask("calls", run=self.run, after=found[-1].task_no if found else -1)
            found += calls
            if not isinstance(answer, CallsEnded) or not answer.more or not calls:
                return found

    def note_failed(self, future: CallFuture) -> None:
        """Keep a failed call for the failures of those that depend on it."""
        self.failed[future.id] = future
        while len(self.failed) > FAILED_KEPT:
            del self.failed[next(iter(self.failed))]

    def wait_for_report(self, timeout_s: float = 1.0) -> None:
        """If all calls have ended: wait for the report of the states that contains this. The boss sends it with the
        last call."""
        if threading.current_thread() is self._thread:
            return
        with self.condition:
            self.condition.wait_for(lambda: self.pending or not self._is_report_due or not self.is_open, timeout_s)

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until the boss has answered all submitted and cancelled calls, while it sends anything at least every
        `timeout_s`. Return whether it has."""
        answered, began = threading.Event(), time.monotonic()
        while self.failure is None and self._thread.is_alive():
            if time.monotonic() - max(began, self._talk.heard_at) > timeout_s:
                break
            # The link's thread looks: another one could miss ids that are moved meanwhile.
            self._orders.append(lambda: answered.set() if self._is_answered else None)
            self._wake()
            if answered.wait(0.02):
                return True
        return False

    @property
    def _is_answered(self) -> bool:
        """Whether the boss has answered all submitted and cancelled calls. On the link's thread."""
        cancels = any(asked.request.verb == "cancel" for asked in self._asked.values())
        return not (self._outgoing or self._pushes or self._cancelled or cancels)

    def close(self) -> None:
        """Send Goodbye and disconnect. Pushed calls continue. If all calls have ended, their callbacks end first."""
        self._callbacks.close(wait=not self.pending)
        self._closing = True
        self._wake()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(10.0)

    def _wake(self) -> None:
        if not self._is_woken:
            self._is_woken = True
            self._talk.wake()

    # --- the thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing:
                self._is_woken = False
                now = time.monotonic()
                self._work(now)
                message = self._talk.wait(MAX_WAIT_S)
                if self._talk.refusal:
                    raise BossAway(self._talk.refusal)
                self._note_silence()
                if message is not None:
                    self._hear(message)
        except BaseException as error:
            self.failure = error
            if self._talk.refusal:  # a program that only waits for the end of its calls sees no exception
                log.warning("run %s can no longer be followed: %s", self.run, error)
            self._fail_all(error)
        finally:
            while self._orders:
                self._orders.popleft()()
            for asked in self._asked.values():
                if asked.answered is not None:
                    asked.answered.set()
            self._talk.say(Goodbye())
            self._talk.stop()

    def _note_silence(self) -> None:
        """Log once that the boss is silent, and once that it answers again."""
        welcome = self._talk.welcome
        silent_s = self._talk.silent_s
        is_silent = silent_s > max(SILENT_S, 3 * welcome.heartbeat_s if welcome is not None else 0.0)
        if is_silent == self._is_silent:
            return
        self._is_silent = is_silent
        calls = "" if self._bound else "; the calls continue"  # the boss cancels bound calls of a program that is lost
        if not is_silent:
            log.warning("the boss answers again")
        elif self._talk.broker_trouble:
            log.warning("%s: waiting for it%s", self._talk.broker_trouble, calls)
        else:
            advice = as_typed(BOSS_ADVICE[0].upper() + BOSS_ADVICE[1:])
            log.warning("the boss has not answered for %.0f s: waiting for it%s. %s", silent_s, calls, advice)

    def _fail_all(self, error: BaseException) -> None:
        text = str(error) or type(error).__name__
        pending, self.pending = self.pending, {}
        for future in pending.values():
            future.fail(RemoteError(f"the cluster can no longer be asked how the call ends: {text}"))

    def _work(self, now: float) -> None:
        """Send the messages that are due."""
        while self._orders:
            self._orders.popleft()()
        if not self._talk.session:
            return
        if self._watched_in != self._talk.sessions and self._accepted:
            self._watched_in = self._talk.sessions
            self._heard_at = 0.0
            self._request("watch", run=self.run, calls=True, bound=self._bound)
        if self._cancelled:
            self._cancel_on_the_cluster()
        for push_id, push in tuple(self._pushes.items()):
            if push.said_in != self._talk.sessions and push.said_in and push.size > LARGE_BYTES:
                push.cut_off += 1
                if push.cut_off >= CUT_OFF_TIMES:  # a large call is alone in its push
                    self._on_rejected(push_id, [too_large_for_broker(push.message.tasks[0], push.size)])
                    continue
            if push.said_in != self._talk.sessions or now - push.said_at >= REPEAT_S:
                self._say_push(push, now)
        while self._outgoing and len(self._pushes) < WINDOW:
            if not self._push_next(now):
                break
        if self.pending and now - self._heard_at >= ASK_AGAIN_S and not self._asking:
            self._ask_about_pending(now)
        for asked in self._asked.values():
            if asked.said_in != self._talk.sessions or now - asked.said_at >= REPEAT_S:
                asked.said_in, asked.said_at = self._talk.sessions, now
                self._talk.say(asked.request)

    def _push_next(self, now: float) -> bool:
        """Push waiting calls, up to a message's size. Return False if the first one waits for the answer to another
        push."""
        part: list[TaskDefinition] = []
        own: set[str] = set()
        size = 0
        while self._outgoing and len(part) < BATCH_COUNT:
            task = self._outgoing[0]
            if any(wanted.id in self._unsaid and wanted.id not in own for wanted in task.dependencies):
                break  # a call that it depends on is still in an unanswered push
            task_bytes = len(msgspec.json.encode(task))
            if part and size + task_bytes > BATCH_BYTES:
                break
            self._outgoing.popleft()
            unmet = next(filter(None, (self._never_pushed.get(wanted.id) for wanted in task.dependencies)), "")
            if task_bytes > MAX_DEFINITION_BYTES:
                unmet = unmet or f"task {task.id}: {too_large(task, task_bytes)}"
            if unmet or task.id not in self.pending:
                self._leave_out(task.id, unmet or f"task {task.id} cancelled")
            else:
                part.append(task)
                own.add(task.id)
                size += task_bytes
        if not part:
            return False
        options = PushOptions(self.run, "extend", replace_changed=self._replace_changed)
        message = SubmitTasks(secrets.token_hex(16), 0, 1, options, tuple(part))
        push = self._pushes[message.push_id] = _Push(message, size)
        self._say_push(push, now)
        return True

    def _leave_out(self, id: str, reason: str) -> None:
        """Do not push a call that was cancelled, or that waits for such a one."""
        self._unsaid.discard(id)
        self._never_pushed[id] = reason
        future = self.pending.pop(id, None)
        if future is not None:
            future.fail(RemoteError(reason))

    def _say_push(self, push: _Push, now: float) -> None:
        push.said_at, push.said_in = now, self._talk.sessions
        self._talk.say(push.message)

    def _request(self, verb: str, **arguments: Any) -> str:
        request = Request(secrets.token_hex(12), verb, arguments)
        self._asked[request.request_id] = _Asked(request)
        return request.request_id

    def _cancel_on_the_cluster(self) -> None:
        """Request the cancellation of calls that the boss knows. Those in an unanswered push wait for its answer; those
        that were never pushed need none."""
        on_the_way = self._on_the_way
        said: list[str] = []
        for _ in range(len(self._cancelled)):
            id = self._cancelled.popleft()
            if id in self._unsaid:
                if id in on_the_way:
                    self._cancelled.append(id)
            elif id not in self._never_pushed:
                said.append(id)
        for start in range(0, len(said), BATCH_COUNT):
            self._request("cancel", run=self.run, ids=said[start : start + BATCH_COUNT])

    @property
    def _on_the_way(self) -> set[str]:
        return {task.id for push in self._pushes.values() for task in push.message.tasks}

    def _ask_about_pending(self, now: float) -> None:
        """Request the states of calls that were pushed and have not ended, the oldest first."""
        self._heard_at = now
        ids = []
        for id in tuple(self.pending):
            if id not in self._unsaid:
                ids.append(id)
                if len(ids) == BATCH_COUNT:
                    break
        if ids:
            self._asking = self._request("calls", run=self.run, ids=ids)
            with self.condition:  # other threads cancel calls meanwhile
                for id in ids:  # to the end of the order, so that the next request has others
                    if id in self.pending:
                        self.pending[id] = self.pending.pop(id)

    # --- received messages --------------------------------------------------------------------------

    def _hear(self, message: Message) -> None:
        match message:
            case CallsEnded(run, calls, request_id):
                if run == self.run:
                    self._is_report_due = self._is_report_due or not request_id  # the boss reports both together
                    self._on_calls(calls)
                self._on_page(message, request_id, calls)
            case RunAccepted(push_id):
                self._on_accepted(push_id, message)
            case RunRejected(push_id, problems):
                self._on_rejected(push_id, problems)
            case RunChanged():
                with self.condition:
                    self.workers, self.states, self._is_report_due = message.workers, message.states, False
                    self.condition.notify_all()
                self._tell_waits(message.held or message.waits)
                for id in message.running:
                    future = self.pending.get(id)
                    if future is not None:
                        future.on_running()
            case RequestDone(request_id):
                self._on_answer(request_id, message)
            case Refused(about=about):
                if about in self._pushes:
                    self._pushes[about].said_at = time.monotonic() - REPEAT_S + 1.0  # too many pushes at a time
                else:
                    self._on_answer(about, message)
            case _:
                pass

    def _tell_waits(self, reason: str) -> None:
        """Say once why calls wait although they are ready."""
        reason = as_typed(reason)
        if reason and reason != self._said_waits:
            log.warning("calls of run %s wait: %s", self.run, reason)
            self._said_waits = reason
        self.waits = reason

    def _on_calls(self, calls: Sequence[CallEnded]) -> None:
        self._heard_at = time.monotonic()
        finished: list[CallFuture] = []
        with self.condition:
            for call in calls:
                if call.state in _ENDED:
                    future = self.pending.pop(call.id, None)
                    if future is not None and future.on_ended(call):
                        finished.append(future)
                        self._failed += call.state != TaskState.SUCCEEDED
                        if call.state == TaskState.FAILED:
                            self.note_failed(future)
            self.done_count += len(finished)
            left = [future for future in finished if future._callbacks]
            # Given before any thread can see that the last call has ended and close the link.
            left = [future for future in left if not self._callbacks.give(future._invoke_callbacks)]
            if finished:
                self.condition.notify_all()
        self.on_progress(self.done_count, self.done_count + len(self.pending), self._failed)
        for future in left:  # the link is being closed
            future._invoke_callbacks()

    def _on_page(self, message: CallsEnded, request_id: str, calls: Sequence[CallEnded]) -> None:
        asked = self._asked.get(request_id)
        if asked is None:
            return
        asked.calls.extend(calls)
        if message.is_last:
            self._on_answer(request_id, message)

    def _on_answer(self, request_id: str, message: Message) -> None:
        asked = self._asked.pop(request_id, None)
        if request_id == self._asking:
            self._asking = ""
            if isinstance(message, CallsEnded) and len(self.pending) > BATCH_COUNT and message.calls:
                self._heard_at = min(self._heard_at, time.monotonic() - ASK_AGAIN_S + 0.1)
        if asked is None:
            return
        if asked.answered is not None:
            asked.answer = message
            asked.answered.set()
        elif isinstance(message, Refused):
            log.warning("the boss refuses %s: %s", asked.request.verb, message.reason)

    def _on_accepted(self, push_id: str, message: RunAccepted) -> None:
        push = self._pushes.pop(push_id, None)
        if push is None:
            return
        ids = [task.id for task in push.message.tasks]
        self._unsaid.difference_update(ids)
        if not self._accepted:
            self._accepted = True
        if message.decisions.get("kept"):
            # The boss does not report again what had ended before: request it.
            self._request("calls", run=self.run, ids=[id for id in ids if id in self.pending])

    def _on_rejected(self, push_id: str, problems: Sequence[str]) -> None:
        push = self._pushes.pop(push_id, None)
        if push is None:
            return
        tasks = push.message.tasks
        if len(tasks) > 1:  # one of them is wrong: push each alone, so that the others are accepted
            for task in tasks:
                message = msgspec.structs.replace(push.message, push_id=secrets.token_hex(16), tasks=(task,))
                self._pushes[message.push_id] = _Push(message, len(msgspec.json.encode(task)))
            return
        self._unsaid.discard(tasks[0].id)
        self._never_pushed[tasks[0].id] = "; ".join(problems)
        future = self.pending.pop(tasks[0].id, None)
        if future is not None:
            future.fail(ValueError("; ".join(problems)))
