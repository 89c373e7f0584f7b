"""Receives task lists: chunks until a list is whole, then one decision, one commit, one answer.

Owns pushes without an answer. The function `merging.merge` decides what a push means for each task of its run.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from boss.core.autoscale.run_budgets import RunBudgets
from boss.core.clients.calls import Calls
from boss.core.model.config import BossConfig
from boss.core.model.effects import FindResults, LoadRun
from boss.core.model.outbox import Conversation, Outbox
from boss.core.model.packed import Packed
from boss.core.model.rows import PushAnswered, RunImage, RunRow, TaskRow
from boss.core.tasks import extending
from boss.core.tasks.apply_merge import apply, overlay
from boss.core.tasks.attempts import Attempts
from boss.core.tasks.input_locality import note_shared
from boss.core.tasks.merging import Allocation, merge, without_entries
from boss.core.tasks.taskbook import TaskBook
from ecloud.formats import check
from ecloud.formats.arrays import ENTRIES_A_PART, join_arrays
from ecloud.formats.graph import Outline
from ecloud.formats.large_tasks import largest_part
from ecloud.model.tasks import ENDED, TaskDefinition, TaskState
from ecloud.model.wire import ChunkReceived, PushOptions, Refused, RunAccepted, RunRejected, SubmitTasks

MAX_OPEN_PUSHES = 64
"""Maximum pushes in progress; each holds its chunks in memory."""
APART_S = 60.0
"""For this long after a refused batch, each push is decided alone."""
ANSWERS_KEPT = 1_000
"""Answers remembered for clients that did not receive theirs."""
MAX_CHUNKS = 100_000
MAX_PLAIN_CHUNKS = 8
"""The chunks of a push that has more are held packed: a few thousand tasks take little memory."""
MAX_OPEN_BYTES = 2**30
"""Maximum bytes of the messages of all pushes in progress together: about 300 MB for a list of a million tasks. The
boss holds them packed, in a tenth of that."""
MAX_PUSH_ID_CHARS = 64
MAX_VM_HOURS = 1e9
_UNFINISHED = tuple(state for state in TaskState if state not in ENDED)
EXTEND = "extend"
STRATEGIES = ("keep_succeeded", "replace", EXTEND)


class Push(msgspec.Struct, eq=False):
    """A push in progress. `stage`: collecting (chunks), looking (which results exist), loading (its run)."""

    push_id: str
    options: PushOptions
    n: int
    client: Conversation | None
    """The client that sent a chunk last; None after it left."""
    chunks: dict[int, Packed[TaskDefinition]] = msgspec.field(default_factory=dict)
    size: int = 0
    """Bytes of its chunks."""
    count: int = 0
    """Tasks in them."""
    stage: str = "collecting"
    existing: frozenset[str] = frozenset()
    whole: bool = False
    """It disturbs tasks that others may wait for: the whole run must be read."""
    has_arrays: bool = False
    looks: bool = False
    """Whether tasks have results that may exist already, which makes a difference."""
    definitions: Packed[TaskDefinition] = msgspec.field(default_factory=lambda: Packed(TaskDefinition))
    """All tasks, in order, once all chunks are there; arrays with all their entries."""
    order: Sequence[int] = ()
    """Positions in `definitions`, dependencies first, once they were checked."""

    def add(self, k: int, tasks: tuple[TaskDefinition, ...], size: int) -> None:
        """Keep chunk `k` of `size` bytes."""
        self.chunks[k] = chunk = Packed(TaskDefinition, tasks)
        if self.n > MAX_PLAIN_CHUNKS:
            chunk.pack()
        self.size += size
        self.count += len(tasks)
        self.has_arrays = self.has_arrays or any(task.array is not None for task in tasks)
        self.looks = self.looks or any(self._looks_for(task) for task in tasks)

    def _looks_for(self, task: TaskDefinition) -> bool:
        may_exist = self.options.skip_existing or not task.overwrite_result
        return may_exist and task.array is None and bool(task.results)

    @property
    def wanted(self) -> tuple[str, ...]:
        """Paths of the results that may exist already."""
        tasks = self.definitions if self.looks else ()
        return tuple([result.path for task in tasks if self._looks_for(task) for result in task.results])

    def join(self) -> None:
        """Put the chunks together."""
        definitions: Packed[TaskDefinition] = Packed(TaskDefinition)
        for k in range(self.n):
            definitions.add_packed(self.chunks.pop(k))
        self.definitions = Packed(TaskDefinition, join_arrays(definitions)) if self.has_arrays else definitions

    @property
    def named(self) -> tuple[str, ...] | None:
        """Ids of the tasks that it concerns; None for the whole run. A run that grows call by call is not read as a
        whole each time."""
        if self.options.merge_strategy != EXTEND or self.whole:
            return None
        ids = dict.fromkeys(task.id for task in self.definitions)
        ids.update(dict.fromkeys(on.id for task in self.definitions for on in task.dependencies))
        return tuple(ids)


class Pushes:
    """Pushes by id."""

    def __init__(
        self,
        outbox: Outbox,
        book: TaskBook,
        attempts: Attempts,
        run_spending: RunBudgets,
        config: BossConfig,
        allocation: Allocation,
        calls: Calls,
    ) -> None:
        self._calls = calls
        self._run_spending = run_spending
        self._outbox = outbox
        self._book = book
        self._attempts = attempts
        self._config = config
        self._allocation = allocation
        self._open: dict[str, Push] = {}
        self._by_token: dict[int, str] = {}
        self._tokens = 0
        self._answers: OrderedDict[str, RunAccepted | RunRejected] = OrderedDict()
        self._apart_until = 0.0

    def on_batch_refused(self, now: float) -> None:
        """The database refused a batch, perhaps because of a push in it: for a while each push reads the store, so that
        it is decided alone."""
        self._apart_until = now + APART_S

    def are_apart(self, now: float) -> bool:
        """Whether each push is decided alone now: the good ones must not be refused with a bad one."""
        return now < self._apart_until

    def on_chunk(self, client: Conversation, chunk: SubmitTasks, size: int, now: float) -> None:
        """Keep a chunk of `size` bytes. When all have arrived, begin. A push that was already answered gets the same
        answer."""
        if len(chunk.push_id) > MAX_PUSH_ID_CHARS:
            self._outbox.say(client, Refused("request", "the push's id is too long", about=chunk.push_id[:64]))
            return
        answer = self._answers.get(chunk.push_id)
        if answer is not None:
            self._outbox.say(client, answer)
            return
        push = self._open.get(chunk.push_id)
        if push is None:
            if len(self._open) >= MAX_OPEN_PUSHES:
                reason = f"{MAX_OPEN_PUSHES} pushes are in progress: try again in a moment"
                self._outbox.say(client, Refused("busy", reason, about=chunk.push_id))
                return
            push = Push(chunk.push_id, chunk.options, chunk.n, client)
            self._open[chunk.push_id] = push
        push.client = client
        if not (0 <= chunk.k < push.n <= MAX_CHUNKS and chunk.n == push.n):
            self._reject(push, [f"chunk {chunk.k} of {chunk.n} does not fit a push of {push.n} chunks"])
            return
        if push.stage == "collecting" and chunk.k not in push.chunks:
            if problem := self._too_much(push, chunk, size):
                self._reject(push, [problem])
                return
            if self._open_bytes + size > MAX_OPEN_BYTES:
                reason = "the boss's memory for pushes is full: try again in a moment"
                self._outbox.say(client, Refused("busy", reason, about=chunk.push_id))
                return
            push.add(chunk.k, chunk.tasks, size)
        if push.stage == "collecting" and len(push.chunks) == push.n:
            self._begin(push, now)  # its result follows soon
        else:
            self._outbox.say(client, ChunkReceived(chunk.push_id, chunk.k))

    @property
    def _open_bytes(self) -> int:
        return sum(push.size for push in self._open.values())

    def _too_much(self, push: Push, chunk: SubmitTasks, size: int) -> str:
        """Why a push is too large, before the boss holds all of it; empty if it is not."""
        most = self._config.max_tasks_per_push
        if push.count + len(chunk.tasks) > most:
            return f"the list has more than {most:,} tasks (MAX_TASKS_PER_PUSH): push it in parts"
        if push.size + size > MAX_OPEN_BYTES:
            return f"the list has more than {MAX_OPEN_BYTES / 1e6:,.0f} MB: push it in parts"
        return ""

    def _begin(self, push: Push, now: float) -> None:
        push.join()
        definitions = push.definitions
        extends = push.options.merge_strategy == EXTEND
        outline = Outline()
        problems = check(definitions, self._config.max_tasks_per_push, all_named=not extends, outline=outline)
        if extends and any(task.init for task in definitions):
            problems = ["a push that extends a run has no init tasks", *problems]
        if not push.options.run or len(push.options.run) > 255:
            problems = [f"run name {push.options.run[:40]!r}: 1 to 255 characters", *problems]
        if push.options.merge_strategy not in STRATEGIES:
            problems = [f"merge strategy {push.options.merge_strategy!r}: {', '.join(STRATEGIES)}", *problems]
        if push.options.vm_hours is not None and not 0 <= push.options.vm_hours < MAX_VM_HOURS:
            problems = [f"vm_hours {push.options.vm_hours:g}: 0 or more", *problems]
        if problems:
            self._reject(push, problems)
            return
        push.order = array("l", outline.order())
        del outline  # it is large, and the push may be decided at once
        if wanted := push.wanted:
            push.stage = "looking"
            self._outbox.call(FindResults(self._token(push), wanted))
        else:
            self._load(push, now)

    def on_results_found(self, token: int, existing: frozenset[str], now: float) -> None:
        """The datastore reported which results exist."""
        push = self._open.get(self._by_token.pop(token, ""))
        if push is not None:
            push.existing = existing
            self._load(push, now)

    def _load(self, push: Push, now: float) -> None:
        named = push.named
        image = None if self.are_apart(now) else self._known_image(push, named, now)
        if image is not None:
            self._decide(push, image, now)
            return
        push.stage = "loading"
        self._outbox.read(LoadRun(self._token(push), push.options.run, push.push_id, named))

    def _known_image(self, push: Push, named: tuple[str, ...] | None, now: float) -> RunImage | None:
        """What the store would return, if that is certain: there is no such run, or it has none of the tasks."""
        name, names = push.options.run, self._book.names
        if names.is_new(name, push.push_id):
            return self._new_run(push, now)
        run = self._book.run_named(name)
        if (
            run is None
            or named is None
            or len(named) > len(push.definitions)
            or not names.lacks(name, push.push_id, named)
        ):
            return None
        return RunImage(run.row, [], is_part=True)

    def on_run_loaded(self, token: int, image: RunImage | None, answered: PushAnswered | None, now: float) -> None:
        """The store returned the run: decide, write, answer. A push that was already `answered` gets the same answer,
        even if its run was dropped since."""
        push = self._open.get(self._by_token.pop(token, ""))
        if push is None:
            return
        if answered is not None:
            run_no, states, decisions = answered.run_no, answered.states, answered.decisions
            self._answer(push, RunAccepted(push.push_id, push.options.run, run_no, states, decisions))
            return
        self._decide(push, image or self._new_run(push, now), now)

    def _new_run(self, push: Push, now: float) -> RunImage:
        return RunImage(RunRow(self._allocation.next_run_no(), push.options.run, created_at=now), [])

    def _decide(self, push: Push, image: RunImage, now: float) -> None:
        """Merge the push into its run, or reject it."""
        overlay(image, self._book)
        if image.is_part and _disturbs_others(push, image):
            push.whole = True
            self._load(push, now)
            return
        extends = push.options.merge_strategy == EXTEND
        if extends and (problems := list(extending.misfits(push.definitions, image))):
            self._reject(push, problems)
            return
        if extends and push.client is not None:
            self._calls.watch(push.client, image.run.run_no)  # before any of its calls can end
        in_order = push.definitions.in_order(push.order)
        merged = merge(image, in_order, push.options, push.existing, self._allocation)
        if extends and not image.is_part:
            merged.problems += extending.cycles(merged)
        if problems := merged.problems or self._too_long(push.definitions, merged.stored):
            self._reject(push, problems)
            return
        if extends and not any(task.array is not None for task in push.definitions):
            is_first = image.run.run_no not in self._book.runs
            self._book.names.extend(push.options.run, [task.id for task in push.definitions], is_first)
        else:
            self._book.names.change(push.options.run)
        note_shared(push.definitions, merged, self._book.graph.known_inputs)
        apply(merged, image, self._outbox, self._book, self._attempts, now)
        if push.options.vm_hours is not None:
            self._run_spending.on_pushed(image.run.run_no, push.options.vm_hours, now)
        counts = self._book.runs[image.run.run_no].states if image.is_part else merged.states
        states = {state.value: count for state, count in counts.items() if count}
        self._outbox.writes.pushes.append(PushAnswered(push.push_id, image.run.run_no, states, merged.decisions))
        self._answer(push, RunAccepted(push.push_id, push.options.run, image.run.run_no, states, merged.decisions))

    def _too_long(self, definitions: Packed[TaskDefinition], stored: Sequence[TaskRow]) -> list[str]:
        most = self._config.max_value_bytes
        long = {row.id: row.body_bytes for row in stored if row.body_bytes > most}
        return [
            f"task {task.id}: its definition has {long[task.id]:,} bytes, {part.size:,} of them {part.name}, and "
            f"the database takes at most {most:,}: {part.remedy}, or raise max_allowed_packet of the database to 16M "
            "and restart the boss"
            for task in (definitions if long else ())
            if task.id in long
            for part in [largest_part(without_entries(task))]
        ] + [
            f"task {row.id}: {ENTRIES_A_PART} of its entries have {longest:,} bytes and the database takes "
            f"at most {most:,}: put long entries into files"
            for row in stored
            if row.elements is not None and (longest := max(map(len, row.elements.entries), default=0)) > most
        ]

    def _reject(self, push: Push, problems: list[str]) -> None:
        self._answer(push, RunRejected(push.push_id, tuple(problems[:1_000])))

    def _answer(self, push: Push, answer: RunAccepted | RunRejected) -> None:
        self._open.pop(push.push_id, None)
        self._answers[push.push_id] = answer
        while len(self._answers) > ANSWERS_KEPT:
            self._answers.popitem(last=False)
        if push.client is not None:
            self._outbox.say(push.client, answer)

    def forget(self, peer: str) -> None:
        """A client left: drop its unfinished pushes."""
        for push in [push for push in self._open.values() if push.client is not None and push.client.peer == peer]:
            push.client = None
            if push.stage == "collecting":
                del self._open[push.push_id]

    def _token(self, push: Push) -> int:
        self._tokens += 1
        self._by_token[self._tokens] = push.push_id
        return self._tokens


def _disturbs_others(push: Push, image: RunImage) -> bool:
    """Whether the push may redo tasks that others wait for, or names elements of arrays."""
    named = {task.id for task in push.definitions}
    if extending.names_elements(push.definitions):
        return True
    return any(
        row.id in named and (push.options.replace_changed or row.state not in (TaskState.SUCCEEDED, *_UNFINISHED))
        for row in image.tasks
    )
