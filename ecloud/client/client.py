"""The client's calls to the boss: push tasks, watch a run, send a request, follow a task's output.

Every message is repeated until it is answered, so boss and broker may restart meanwhile. Owns no settings and prints
nothing.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from datastore.problem import PartAway, Problem
from ecloud.client.broker import BrokerAddress
from ecloud.client.conversation import Conversation
from ecloud.client.too_large import CUT_OFF_TIMES, LARGE_BYTES, request_too_large, too_large_for_broker
from ecloud.config.secrets import AccessFile, derive_key
from ecloud.model import wire
from ecloud.model.tasks import ENDED, TaskDefinition
from ecloud.model.topics import logs_topic
from ecloud.model.wire import (
    BATCH_BYTES,
    BATCH_COUNT,
    ChunkReceived,
    Goodbye,
    LogLines,
    PushOptions,
    Refused,
    Request,
    RequestDone,
    RunAccepted,
    RunChanged,
    RunRejected,
    SubmitTasks,
    Unreadable,
    Welcome,
)

CONNECT_S = 8.0
"""A command that reaches no boss must report it within 10 s; starting it takes the rest."""
REPEAT_S = 5.0
"""Unanswered messages are repeated after this."""
WINDOW = 4
"""Chunks under way at once: enough to hide the round trip, few enough to keep 4 MiB in the broker."""
PATIENCE_S = 60.0
"""How long a boss that was reached may be silent before a push or a request gives up."""
WHY_PATIENCE_S = 5.0
"""The same for a question that the database can also answer."""
PATIENCE_TASKS_PER_S = 2_000
"""The boss needs time to store a large push, but always stored at least this many tasks per second."""
BUSY_S = 1.0
SILENT_S = 2.0
"""A boss that was asked and is silent for this long may be waiting for its database."""
WATCH_AGAIN_S = 10.0
"""A watcher without news for this long asks again, in case a message was lost."""
LOGS_AGAIN_S = 15.0
"""A worker streams for 30 s unless asked again."""
PENDING_LINES = 1_000
"""Output messages kept until the boss confirms that their sender holds the attempt."""
LOGS_LOOK_S = 1.0
"""How often to check a task whose output is not streamed now."""

Argument = str | int | float | bool | list[str | int] | None


class BrokerAway(PartAway):
    """The broker cannot be reached."""


class BossAway(PartAway):
    """The broker answers, the boss does not."""


class PushRejected(Problem):
    """The boss rejected a push and stored nothing of it. `texts`: every problem."""


class RequestRefused(Problem):
    """The boss refused a request; its text says why. `code`: request, no_such_task, no_such_run, no_pool, …"""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


BOSS_ADVICE = (
    "it may be down (python admin.py start), waiting for its database (python admin.py doctor), "
    "or have revoked this access file"
)


def why_away(talk: Conversation, tried_s: float) -> PartAway:
    """Why a conversation has no session, or hears nothing."""
    place = f"{talk.access.host}:{talk.access.port}"
    if talk.broker_trouble or not talk.was_connected:
        reason = talk.broker_trouble or f"the broker at {place} does not answer"
        advice = "is the boss running? python admin.py start; python admin.py doctor checks every part"
        if BrokerAddress.of(talk.access).is_invited:
            advice = "on the boss's machine, python admin.py doctor checks every part"
        return BrokerAway(f"{reason} (tried for {tried_s:.0f} s)", advice)
    return BossAway(f"the broker at {place} answers, the boss does not (tried for {tried_s:.0f} s)", BOSS_ADVICE)


class Client:
    """A client of one boss. Use from one thread. `watchdog` is called at least once a second while waiting, and may
    raise.

    `on_trouble` receives one sentence about what is being waited for, and "" when the wait ends.
    """

    def __init__(
        self,
        access: AccessFile,
        on_trouble: Callable[[str], None] | None = None,
        watchdog: Callable[[], None] | None = None,
    ) -> None:
        self.access = access
        self._conversation = Conversation(access, watchdog)
        self.on_trouble = on_trouble or (lambda text: None)
        self.on_silence: Callable[[], None] = lambda: None
        """Called once for each push or request that the boss leaves unanswered for `SILENT_S`; may raise."""
        self._silent_since = 0.0
        self._trouble = ""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # --- beginning and end --------------------------------------------------------------------------

    def connect(self, timeout_s: float = CONNECT_S) -> Welcome:
        """Send Hello until the boss answers. Raises `BrokerAway` or `BossAway` after `timeout_s` seconds."""
        talk = self._conversation
        talk.start()
        deadline = time.monotonic() + timeout_s
        while not talk.session:
            self._require_welcome()
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise why_away(talk, timeout_s)
            talk.wait(left_s)
        assert talk.welcome is not None
        return talk.welcome

    def close(self) -> None:
        """Send Goodbye and disconnect. Unanswered requests may still be carried out."""
        self._conversation.say(Goodbye())
        self._conversation.stop()

    @property
    def datastore_address(self) -> str:
        """The datastore's address from the boss's Welcome; empty before it."""
        welcome = self._conversation.welcome
        return welcome.datastore.address if welcome is not None else ""

    def _require_welcome(self) -> None:
        if self._conversation.refusal:
            raise BossAway(self._conversation.refusal)

    # --- pushing ------------------------------------------------------------------------------------

    def push(
        self,
        tasks: Sequence[TaskDefinition],
        options: PushOptions,
        on_progress: Callable[[int], None] | None = None,
    ) -> RunAccepted:
        """Push a checked list; returns the boss's answer once the list is stored. `on_progress` receives the number of
        tasks that have arrived.

        Raises `PushRejected`, `BossAway` or `BrokerAway`. After the last two the push may still be stored: pushing
        again is harmless.
        """
        return _Push(self, tasks, options, on_progress or (lambda count: None)).run()

    # --- requests -----------------------------------------------------------------------------------

    def request(self, verb: str, **arguments: Argument) -> RequestDone:
        """Send a request. Raises `RequestRefused`, `BossAway`, `BrokerAway`."""
        return self._request(Request(secrets.token_hex(12), verb, dict(arguments)), PATIENCE_S)

    def why_ready(self, task_no: int) -> list[str]:
        """Why a ready task has not started, as the boss sees it, the nearest reason first; empty if it is not ready or
        a worker has it. Raises as `request` does, but sooner."""
        answer = self._request(Request(secrets.token_hex(12), "why", {"task_no": task_no}), WHY_PATIENCE_S)
        return msgspec.json.decode(answer.text, type=list[str])

    def _request(self, request: Request, patience_s: float) -> RequestDone:
        talk = self._conversation
        began, said_in, said_at = time.monotonic(), 0, 0.0
        size, cut_off = len(msgspec.json.encode(request)), 0
        while True:
            now = time.monotonic()
            if talk.session and (said_in != talk.sessions or now - said_at >= REPEAT_S):
                cut_off += size > LARGE_BYTES and said_in not in (0, talk.sessions)
                if cut_off >= CUT_OFF_TIMES:  # repeating it would not help
                    raise RequestRefused("request", request_too_large(request.verb, request.arguments, size))
                talk.say(request)
                said_in, said_at = talk.sessions, now
            message = talk.wait(min(LOOK_S, patience_s))
            if isinstance(message, RequestDone) and message.request_id == request.request_id:
                return message
            if isinstance(message, Refused) and message.about == request.request_id:
                raise self._refused(message)
            self._keep_patience(began, patience_s)

    def _refused(self, message: Refused) -> RequestRefused:
        lost = "; the database was restored from an older backup: push again" if self._conversation.history_lost else ""
        return RequestRefused(message.code, message.reason + lost)

    def _keep_patience(self, began: float, patience_s: float) -> None:
        """Report what is being waited for. Gives up if nothing was heard for `patience_s`."""
        self._require_welcome()
        talk = self._conversation
        silent_s = time.monotonic() - max(began, talk.heard_at)
        self._say_trouble(silent_s)
        if silent_s > SILENT_S and self._silent_since != began:
            self._silent_since = began
            self.on_silence()
        if silent_s > patience_s:
            raise why_away(talk, patience_s)

    def _say_trouble(self, silent_s: float) -> None:
        talk, text = self._conversation, ""
        if talk.broker_trouble:
            text = f"waiting for the broker: {talk.broker_trouble}"
        elif not talk.session:
            text = "waiting for the boss: the broker answers, the boss does not"
        elif talk.welcome is not None and silent_s > 3 * talk.welcome.heartbeat_s:
            text = f"waiting for the boss: silent for {silent_s:.0f} s"
        if bool(text) != bool(self._trouble) or text.split(":")[0] != self._trouble.split(":")[0]:
            self._trouble = text
            self.on_trouble(text)

    # --- watching -----------------------------------------------------------------------------------

    def watch(self, run: str, again_s: float = WATCH_AGAIN_S) -> Iterator[RunChanged]:
        """States of a run as it changes, forever: the caller stops after the one that is `over`.

        The last state is repeated after `again_s` without news. Survives restarts of boss and broker. Raises
        `RequestRefused` if there is no such run, `BossAway` if the boss refuses this client.
        """
        talk = self._conversation
        asked_in, asked_at, yielded_at, heard_at = 0, 0.0, time.monotonic(), 0.0
        request_id, picture = "", None
        while True:
            now = time.monotonic()
            if talk.session and (asked_in != talk.sessions or now - max(asked_at, heard_at) >= WATCH_AGAIN_S):
                request_id = secrets.token_hex(12)
                talk.say(Request(request_id, "watch", {"run": run}))
                asked_in, asked_at = talk.sessions, now
            message = talk.wait(min(again_s, WATCH_AGAIN_S))
            self._require_welcome()
            self._say_trouble(talk.silent_s)
            if isinstance(message, Refused) and message.about == request_id:
                raise self._refused(message)
            if isinstance(message, RunChanged) and message.run == run:
                picture = message
                yielded_at = heard_at = time.monotonic()
                yield picture
            elif picture is not None and time.monotonic() - yielded_at >= again_s:
                yielded_at = time.monotonic()
                # `ended` is news, and was reported already
                yield msgspec.structs.replace(picture, ended=())

    def logs(self, task: str, secret: bytes, run: str = "", attempts: int | None = None) -> Iterator[LogLines]:
        """A task's output as it is written, from what its worker still buffers, until the task has ended.

        `secret`: the cluster's (`cluster_secret`): workers sign lines with keys derived from it. `attempts` limits how
        many are followed. Raises `RequestRefused` if there is no such task.
        """
        return _Following(self, task, secret, run, attempts).lines()


class _Push:
    """One push under way."""

    def __init__(
        self, client: Client, tasks: Sequence[TaskDefinition], options: PushOptions, on_progress: Callable[[int], None]
    ) -> None:
        self._client = client
        self._talk = client._conversation
        self._tasks = tasks
        self._options = options
        self._on_progress = on_progress
        self._bounds, digest = _cut(tasks)
        # A nonce: only a repetition of this call is the same push. The same file pushed later is a new one.
        content = digest + msgspec.json.encode(options) + secrets.token_bytes(16)
        self.push_id = hashlib.blake2b(content, digest_size=16).hexdigest()
        self._said_in = 0
        self._on_the_way: dict[int, float] = {}
        self._received: set[int] = set()
        self._next = 0
        self._nudged_at = 0.0
        self._cut_off = 0
        """Connections in a row that ended while a large chunk was under way."""

    def run(self) -> RunAccepted:
        """Push; returns the boss's answer."""
        began = time.monotonic()
        patience_s = PATIENCE_S + len(self._tasks) / PATIENCE_TASKS_PER_S
        while True:
            if self._talk.session:
                self._send_what_is_due(time.monotonic())
            message = self._talk.wait(LOOK_S)
            if isinstance(message, ChunkReceived) and message.push_id == self.push_id:
                self._on_received(message.k)
            elif isinstance(message, RunAccepted) and message.push_id == self.push_id:
                return message
            elif isinstance(message, RunRejected) and message.push_id == self.push_id:
                raise PushRejected(message.problems)
            elif isinstance(message, Refused) and message.about == self.push_id:
                # Too many pushes at once: repeat in a moment.
                self._on_the_way = {k: time.monotonic() - REPEAT_S + BUSY_S for k in self._on_the_way}
            self._client._keep_patience(began, patience_s)

    def _send_what_is_due(self, now: float) -> None:
        if self._said_in != self._talk.sessions:
            # A new session: the boss may know nothing of this push.
            self._notice_cut_off()
            self._said_in, self._next, self._nudged_at = self._talk.sessions, 0, now
            self._on_the_way.clear()
            self._received.clear()
        for k, said_at in tuple(self._on_the_way.items()):
            if now - said_at >= REPEAT_S:
                self._send(k, now)
        while self._next < len(self._bounds) and len(self._on_the_way) < WINDOW:
            self._send(self._next, now)
            self._next += 1
        if len(self._received) == len(self._bounds) and now - self._nudged_at >= REPEAT_S:
            # All chunks arrived but the answer did not: it may be lost. A repeated chunk is answered with it.
            self._nudged_at = now
            self._send(len(self._bounds) - 1, now, counted=False)

    def _notice_cut_off(self) -> None:
        """Detect a broker that ends the connection because a message is too large: repeating it would not help."""
        large = [k for k in self._on_the_way if self._chunk_bytes(k) > LARGE_BYTES]
        self._cut_off = self._cut_off + 1 if large else 0
        if self._cut_off >= CUT_OFF_TIMES:
            task = self._tasks[self._bounds[large[0]][0]]  # alone in its chunk
            raise PushRejected((too_large_for_broker(task, self._chunk_bytes(large[0])),))

    def _chunk_bytes(self, k: int) -> int:
        start, end = self._bounds[k]
        return len(msgspec.json.encode(self._tasks[start:end]))

    def _send(self, k: int, now: float, counted: bool = True) -> None:
        start, end = self._bounds[k]
        self._talk.say(SubmitTasks(self.push_id, k, len(self._bounds), self._options, tuple(self._tasks[start:end])))
        if counted:
            self._on_the_way[k] = now

    def _on_received(self, k: int) -> None:
        self._on_the_way.pop(k, None)
        if self._cut_off and 0 <= k < len(self._bounds) and self._chunk_bytes(k) > LARGE_BYTES:
            self._cut_off = 0
        if 0 <= k < len(self._bounds) and k not in self._received:
            self._received.add(k)
            self._nudged_at = time.monotonic()
            self._on_progress(sum(end - start for start, end in (self._bounds[k] for k in self._received)))


LOOK_S = 1.0
"""Between checks of what is due in a push or a request."""


def _cut(tasks: Sequence[TaskDefinition]) -> tuple[list[tuple[int, int]], bytes]:
    """Split a list into chunks (start, end), each of at most `BATCH_COUNT` tasks and `BATCH_BYTES` (a larger task
    travels alone). Also returns a hash of the list."""
    bounds, digest = [], hashlib.blake2b(digest_size=32)
    encode = msgspec.json.Encoder().encode
    start = size = 0
    for index, task in enumerate(tasks):
        data = encode(task)
        digest.update(data)
        if index > start and (index - start >= BATCH_COUNT or size + len(data) > BATCH_BYTES):
            bounds.append((start, index))
            start, size = index, 0
        size += len(data)
    bounds.append((start, len(tasks)))
    return bounds, digest.digest()


class _Holder(NamedTuple):
    """A worker process that was given an attempt of the task."""

    number: int
    peer: str
    key_name: str


class _Following:
    """The output of one task while it is followed."""

    def __init__(self, client: Client, task: str, secret: bytes, run: str, attempts: int | None) -> None:
        self._client = client
        self._talk = client._conversation
        self._task = task
        self._secret = secret
        self._run = run
        self._attempts_left = attempts
        self._pending: list[tuple[_Holder, LogLines]] = []
        self._holders: set[_Holder] = set()
        """Who held an attempt of the task, as the boss reported. Lines of others are not shown."""
        self._task_no: int | None = None
        self._last: dict[tuple[int, str], int] = {}
        self._ended: set[tuple[int, str]] = set()

    def lines(self) -> Iterator[LogLines]:
        """See `Client.logs`."""
        cluster_id = self._client.access.cluster_id
        # Until the boss tells the task's number, receive lines of all tasks: the first may come before its answer.
        every = f"ecloud/{cluster_id}/logs/+"
        self._talk.subscribe(every)
        self._talk.on_other = self._take
        topics = [every]
        try:
            while True:
                answer = self._client.request("logs", ids=[self._task], run=self._run or None)
                if self._task_no is None and answer.names:
                    self._task_no = int(answer.names[0])
                    topics.append(logs_topic(cluster_id, self._task_no))
                    self._talk.subscribe(topics[1])
                    self._talk.unsubscribe(topics.pop(0))
                if len(answer.names) == 4:
                    self._holders.add(_Holder(int(answer.names[1]), answer.names[2], answer.names[3]))
                yield from self._arrived()
                if not answer.count and answer.text in {state.value for state in ENDED}:
                    return
                yield from self._listen(LOGS_AGAIN_S if answer.count else LOGS_LOOK_S)
                if self._attempts_left is not None and len({n for n, _ in self._ended}) >= self._attempts_left:
                    return
        finally:
            self._talk.on_other = lambda topic, payload: None
            for topic in topics:
                self._talk.unsubscribe(topic)

    def _listen(self, most_s: float) -> Iterator[LogLines]:
        """Lines that arrive within `most_s` seconds, or until the attempt has ended."""
        until, ended, sessions = time.monotonic() + most_s, len(self._ended), self._talk.sessions
        while (left_s := until - time.monotonic()) > 0 and self._talk.sessions == sessions:
            self._talk.wait(min(left_s, 0.1))
            yield from self._arrived()
            if len(self._ended) - ended >= 2:
                until = min(until, time.monotonic() + LOGS_LOOK_S)

    def _arrived(self) -> Iterator[LogLines]:
        if self._task_no is None:
            return
        pending, self._pending = self._pending, []
        for holder, lines in pending:
            if holder not in self._holders:
                # Its worker may have got it a moment ago: the boss's next answer tells.
                self._pending.append((holder, lines))
                continue
            key = (lines.number, lines.stream)
            if lines.task_no != self._task_no or (lines.start <= self._last.get(key, -1) and not lines.ended):
                continue  # of another task, or a duplicate
            self._last[key] = lines.start
            if lines.ended:
                self._ended.add(key)
            yield lines

    def _take(self, topic: str, payload: bytes) -> None:
        try:
            envelope, key_name = wire.decode(payload, topic, lambda name: derive_key(self._secret, name))
        except Unreadable as error:
            self._talk.ignored[error.why] += 1
            return
        message = envelope.message
        if isinstance(message, LogLines) and self._task_no in (None, message.task_no):
            self._pending.append((_Holder(message.number, envelope.peer, key_name), message))
            del self._pending[:-PENDING_LINES]
