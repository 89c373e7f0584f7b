"""Call hosts of a worker: real interpreters, which have calls that wait behind the one in progress."""

from __future__ import annotations

import os
import pickle
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from ecloud.model.tasks import Cause
from worker.shell.call_hosts import CallEnd, CallHosts, CallOrder, HostKind, Key
from worker.shell.environment import encoded
from worker.shell.process import Processes
from worker.shell.pythons import Pythons

cloudpickle.register_pickle_by_value(sys.modules[__name__])
PATIENCE_S = 60.0
KIND = HostKind(run_no=1, python=sys.executable)


class Owner:
    """A worker's loop around its call hosts. `told`: what they report, in order."""

    def __init__(self, place: Path) -> None:
        self.place = place
        (place / "control").mkdir()
        self._poll = select.epoll()
        self._processes = Processes(self._poll, encoded(dict(os.environ)), lambda *piece: None)
        self.hosts = CallHosts(self._poll, self._processes, place / "control", Pythons(os.environ))
        self.hosts.owner = self
        self.told: list[tuple[Any, ...]] = []

    def order(self, number: int, function: Callable[..., Any], *arguments: Any) -> CallOrder:
        code, data = cloudpickle.dumps(function), pickle.dumps((arguments, {}))
        head = {
            "call": [number, 1], "name": function.__name__, "function": f"{function.__name__}", "many": False,
            "directory": str(self.place), "env": {}, "code": len(code), "arguments": len(data), "setup": 0,
        }  # fmt: skip
        return CallOrder((number, 1), head, (code, data))

    def run(self, number: int, function: Callable[..., Any], *arguments: Any) -> None:
        self.hosts.run(self.order(number, function, *arguments), KIND, {}, self.place, lambda argv: argv)

    def prefetch(self, number: int, behind: int, function: Callable[..., Any], *arguments: Any) -> None:
        assert self.hosts.prefetch(self.order(number, function, *arguments), KIND, (behind, 1), PATIENCE_S)

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, self.told
            for descriptor, _ in self._poll.poll(0.05):
                if self._processes.owns(descriptor):
                    for _, finished in self._processes.on_ready(descriptor, time.monotonic()):
                        self.hosts.on_finished(finished)
                elif self.hosts.owns(descriptor):
                    self.hosts.on_ready(descriptor)
            self._processes.pass_deadlines(1.0, time.monotonic())

    def ended(self, number: int) -> Cause | None:
        return next((cause for what, key, cause in self.told if (what, key) == ("ended", number)), None)

    def close(self) -> None:
        self._processes.end_all()
        self.hosts.close()
        self._poll.close()

    def call_began(self, key: Key, after: Key) -> None:
        self.told.append(("began", key[0], after[0]))

    def calls_recalled(self, keys: Sequence[Key]) -> None:
        self.told.append(("recalled", *(key[0] for key in keys)))

    def call_undone(self, key: Key, ran: bool) -> None:
        self.told.append(("undone", key[0], ran))

    def call_ended(self, end: CallEnd) -> None:
        self.told.append(("ended", end.outcome.task_no, end.outcome.cause))


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    """Ends with all its hosts."""
    owner = Owner(tmp_path)
    yield owner
    owner.close()


def wait_for_go(word: str, number: int = 0) -> None:
    """Say that it runs, wait for the file `go`, and end by this signal."""
    Path(word).touch()
    while not Path("go").exists():
        time.sleep(0.01)
    if number:
        os.kill(os.getpid(), number)


def touch(word: str) -> None:
    Path(word).touch()


def with_two_waiting(owner: Owner, number: int = 0) -> None:
    """Call 1 runs, calls 2 and 3 wait at its host."""
    owner.run(1, wait_for_go, "one", number)
    owner.until((owner.place / "one").exists)
    owner.prefetch(2, 1, touch, "two")
    owner.prefetch(3, 1, touch, "three")
    assert not owner.told


def test_waiting_calls_begin_one_after_another(owner: Owner) -> None:
    with_two_waiting(owner)
    (owner.place / "go").touch()
    owner.until(lambda: owner.ended(3) is not None)
    good = Cause.SUCCESS
    assert owner.told == [("began", 2, 1), ("ended", 1, good), ("began", 3, 2), ("ended", 2, good), ("ended", 3, good)]


def test_recalled_calls_do_not_begin_and_run_later_on_the_same_host(owner: Owner) -> None:
    with_two_waiting(owner)
    owner.hosts.recall((3, 1))
    assert owner.told == [("recalled", 2, 3)]
    (owner.place / "go").touch()
    owner.until(lambda: owner.ended(1) is not None)
    owner.run(2, touch, "two")
    owner.until(lambda: owner.ended(2) is not None)
    assert (owner.place / "two").exists()
    assert not (owner.place / "three").exists()


def test_a_crash_costs_the_call_in_progress_only(owner: Owner) -> None:
    with_two_waiting(owner, signal.SIGSEGV)
    (owner.place / "go").touch()
    owner.until(lambda: owner.ended(1) is not None)
    assert owner.told == [("recalled", 2, 3), ("ended", 1, Cause.SIGNAL)]
    assert not (owner.place / "two").exists()


def test_a_stop_ends_one_call_and_recalls_the_others(owner: Owner) -> None:
    with_two_waiting(owner)
    assert owner.hosts.stop((1, 1), 0.1)
    owner.until(lambda: owner.ended(1) is not None)
    assert owner.told == [("recalled", 2, 3), ("ended", 1, Cause.STOPPED)]


def test_a_host_that_ends_right_after_its_answer_loses_nothing(owner: Owner) -> None:
    """The answer of a call and the end of its host arrive together."""
    with_two_waiting(owner)
    owner.prefetch(4, 1, wait_for_go, "four", signal.SIGKILL)
    (owner.place / "go").touch()
    deadline = time.monotonic() + PATIENCE_S
    while not (owner.place / "four").exists() and time.monotonic() < deadline:
        time.sleep(0.01)  # nothing is read meanwhile
    owner.until(lambda: owner.ended(4) is not None)
    assert [owner.ended(number) for number in (1, 2, 3, 4)] == [*[Cause.SUCCESS] * 3, Cause.SIGNAL]


def test_a_large_call_that_is_stopped_before_it_begins_leaves_no_trace(owner: Owner) -> None:
    owner.run(1, touch, "x" * 100_000)
    owner.hosts.stop((1, 1), 0.1)
    owner.until(lambda: owner.ended(1) is not None)
    owner.run(2, touch, "two")
    owner.until(lambda: owner.ended(2) is not None)
    assert owner.ended(2) is Cause.SUCCESS
