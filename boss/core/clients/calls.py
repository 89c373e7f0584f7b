"""Clients that wait for calls: each gets the end of each call, with its value, as soon as that is committed.

Owns which client waits for the calls of which run. A client that missed messages sends the request `calls`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from boss.core.clients.request_answers import RequestRefused, listed, text_of
from boss.core.model.effects import LoadCalls
from boss.core.model.outbox import Conversation, Outbox
from boss.core.tasks.taskbook import TaskBook, TaskEnd
from ecloud.model.tasks import Outcome
from ecloud.model.wire import BATCH_BYTES, BATCH_COUNT, CallEnded, CallsEnded, Refused, Request

CALLS_A_PAGE = 4 * BATCH_COUNT
"""Calls named in one answer that lists all of a run."""


class _Asked(msgspec.Struct, frozen=True):
    request_id: str
    run: str
    peer: str


class Calls:
    """Which client waits for which calls."""

    def __init__(self, outbox: Outbox, book: TaskBook, clients: dict[str, Conversation]) -> None:
        self._outbox = outbox
        self._book = book
        self._clients = clients
        self._watching: dict[int, dict[str, Conversation]] = {}
        self._asked: dict[int, _Asked] = {}
        self._tokens = 0
        self._bound: dict[int, str] = {}
        """Runs whose calls are cancelled when a client is lost, with the name of that client."""

    def bind(self, client: Conversation, run_no: int) -> None:
        """Bind the calls of this run to the client: they are to be cancelled if it is lost."""
        self._bound[run_no] = client.peer

    def bound_to(self, peer: str) -> list[int]:
        """The runs whose calls are bound to this client."""
        return [run_no for run_no, owner in self._bound.items() if owner == peer]

    def watch(self, client: Conversation, run_no: int) -> None:
        """Send the client each call of this run that ends from now on."""
        self._watching.setdefault(run_no, {})[client.peer] = client
        self._book.ends.setdefault(run_no, [])

    def is_watched(self, run_no: int) -> bool:
        """Whether a client waits for calls of this run."""
        return run_no in self._watching

    def forget(self, peer: str) -> None:
        """The client left: send it no more."""
        for run_no in self.bound_to(peer):
            del self._bound[run_no]
        for run_no in [run_no for run_no, clients in self._watching.items() if peer in clients]:
            del self._watching[run_no][peer]
            if not self._watching[run_no]:
                self.forget_run(run_no)

    def forget_run(self, run_no: int) -> None:
        """The run is archived: send nothing more about it."""
        self._watching.pop(run_no, None)
        self._bound.pop(run_no, None)
        self._book.ends.pop(run_no, None)

    def tell(self, now: float) -> None:
        """At the end of a batch: send the calls that ended in it."""
        for run_no, ends in tuple(self._book.ends.items()):
            run = self._book.runs.get(run_no)
            if run is None:  # it was dropped
                self.forget_run(run_no)
            elif ends:
                calls = [self._call(end) for end in ends]
                ends.clear()
                for client in self._watching[run_no].values():
                    self._say(client, run.row.name, calls)

    def _call(self, end: TaskEnd) -> CallEnded:
        row = self._outbox.writes.attempts.get((end.task_no, end.attempts))
        if row is None or row.outcome is None:
            return CallEnded(end.task_no, end.id, end.state.value, end.attempts, error=end.reason)
        return call_ended(end.task_no, end.id, end.state.value, end.reason, row.worker, row.outcome)

    def _say(
        self, client: Conversation, run: str, calls: Sequence[CallEnded], request_id: str = "", more: bool = False
    ) -> None:
        """Send messages of at most `BATCH_COUNT` calls and `BATCH_BYTES`; the last one has the given `more`."""
        pages: list[list[CallEnded]] = [[]]
        size = 0
        for call in calls:
            call_bytes = 200 + len(call.value) * 4 // 3 + len(call.error)
            if pages[-1] and (len(pages[-1]) >= BATCH_COUNT or size + call_bytes > BATCH_BYTES):
                pages.append([])
                size = 0
            pages[-1].append(call)
            size += call_bytes
        for page in pages[:-1]:
            self._outbox.say(client, CallsEnded(run, tuple(page), request_id, is_last=False))
        self._outbox.say(client, CallsEnded(run, tuple(pages[-1]), request_id, more=more))

    # --- requests ---------------------------------------------------------------------------------

    def on_request(self, client: Conversation, request: Request) -> None:
        """Query the states of calls: those of `ids`, or a page of all after task `after`. Raises `RequestRefused`."""
        ids = listed(request, "ids") if request.arguments.get("ids") is not None else None
        after = request.arguments.get("after")
        if ids is not None and len(ids) > BATCH_COUNT:
            raise RequestRefused("request", f"{len(ids):,} calls; at most {BATCH_COUNT} in one request")
        self._tokens += 1
        run = text_of(request, "run")
        self._asked[self._tokens] = _Asked(request.request_id, run, client.peer)
        wanted = None if ids is None else tuple([str(item) for item in ids])
        after_no = after if isinstance(after, int) else -1
        self._outbox.read(LoadCalls(self._tokens, run, wanted, after_no, CALLS_A_PAGE))

    def on_loaded(self, token: int, calls: Sequence[CallEnded], more: bool) -> None:
        """Send the rows that the store has read."""
        asked = self._asked.pop(token, None)
        client = self._clients.get(asked.peer) if asked is not None else None
        if asked is None or client is None:
            return
        if not calls and self._book.run_named(asked.run) is None:
            self._outbox.say(client, Refused("no_such_run", f"there is no run {asked.run!r}", about=asked.request_id))
            return
        self._say(client, asked.run, calls, asked.request_id, more)


def call_ended(task_no: int, id: str, state: str, reason: str, worker: str, outcome: Outcome) -> CallEnded:
    """The end of a call, as sent to a client. `outcome`: of its last attempt."""
    return CallEnded(
        task_no=task_no,
        id=id,
        state=state,
        number=outcome.number,
        worker=worker,
        cause=outcome.cause.value,
        error=reason or outcome.error,
        exit_code=outcome.exit_code,
        signal=outcome.signal,
        run_s=outcome.run_s,
        value=outcome.value,
        path=outcome.manifest[0].path if outcome.manifest else "",
    )
