"""Calls in the boss's core: a run grows push by push, and its client gets each end with its value."""

from __future__ import annotations

import subprocess
from typing import Any

import msgspec
import pytest
from boss_script import BossScript, Peer, task

from boss.core.clients import calls
from boss.core.model.effects import RemoveFiles
from boss.core.model.events import FilesPromoted
from ecloud.model import wire
from ecloud.model.calls import calls_directory
from ecloud.model.tasks import INLINE_BYTES, Call, Cause, ManifestEntry, Requirement, TaskBody, TaskDefinition


def call(id: str, *, after: str = "", fingerprint: str = "", code: bytes = b"f", **fields: Any) -> TaskDefinition:
    """A call of `id`, which needs the values of the calls in `after`."""
    needs = tuple(after.split())
    what = Call("f", "hash", code=code, arguments=b"()", needs=needs, fingerprint=fingerprint)
    return task(id, after=after, commands=(), call=what, **fields)


def heard(script: BossScript, client: Peer) -> dict[str, tuple[str, bytes]]:
    """What the client heard of calls that ended, all of it."""
    ends = {}
    while any(isinstance(send.envelope.message, wire.CallsEnded) for send in script.said):
        for end in script.take(client, wire.CallsEnded).calls:
            ends[end.id] = (end.state, end.value)
    return ends


def extend(script: BossScript, *tasks: TaskDefinition, **options: Any) -> dict[str, int]:
    """Push calls into run r."""
    return script.push("r", *tasks, merge_strategy="extend", **options).decisions


def test_a_run_grows_and_its_client_hears_each_value() -> None:
    script = BossScript()
    worker = script.worker("w1", cpus=2)
    client = script.client()
    assert extend(script, call("a")) == {"new": 1}
    script.starts(worker, "a")
    assert extend(script, call("b")) == {"new": 1}
    script.starts(worker, "b")
    script.ended(worker, "a", value=b"one")
    assert heard(script, client) == {"a": ("succeeded", b"one")}
    script.ended(worker, "b", cause=Cause.EXIT, exit_code=1, error="ValueError: no", value=b"why")
    assert heard(script, client) == {"b": ("failed", b"why")}
    assert {state: count for state, count in script.boss.book.runs[1].states.items() if count} == {
        "succeeded": 1,
        "failed": 1,
    }


def test_a_call_waits_for_one_of_an_earlier_push_and_gets_its_value() -> None:
    script = BossScript()
    worker = script.worker("w1")
    extend(script, call("a"))
    script.starts(worker, "a")
    extend(script, call("b", after="a"))
    script.states(b="waiting")
    script.ended(worker, "a", value=b"one")
    order = script.take(worker, wire.StartTasks).attempts[0]
    assert order.values == (wire.CallValue("a", b"one"),)


@pytest.mark.parametrize("open_ones", [("a",), ("b",), ("a", "b")])
def test_a_waiting_call_that_a_later_push_names_still_waits_for_calls_that_this_push_does_not_name(
    open_ones: tuple[str, ...],
) -> None:
    script = BossScript()
    worker = script.worker("w1", cpus=4)
    extend(script, call("a"), call("b"))
    script.starts(worker, "a", "b")
    extend(script, call("c", after="a b"))
    script.ended(worker, *[id for id in "ab" if id not in open_ones], value=b"one")
    extend(script, call("d", after="c a"))
    extend(script, call("e", after="d"))
    extend(script, call("c"), call("f", after="c"))
    script.states(c="waiting", d="waiting", e="waiting", f="waiting")
    script.ended(worker, *open_ones, value=b"two")
    order = script.take(worker, wire.StartTasks).attempts[-1]
    assert [value.id for value in order.values] == ["a", "b"]
    script.states(c="ready", d="waiting", e="waiting", f="waiting")


def needy(script: BossScript, worker: Peer) -> wire.AttemptOrder:
    """The order of a call that needs the values of five others, each of 900 bytes."""
    ids = [f"n{number}" for number in range(5)]
    extend(script, *map(call, ids))
    script.starts(worker, *ids)
    extend(script, call("sum", after=" ".join(ids)))
    script.ended(worker, *ids, value=b"v" * 900)
    (order,) = script.take(worker, wire.StartTasks).attempts
    assert isinstance(order, wire.AttemptOrder)
    worker.holds = {(order.task_no, order.number): "queued"}
    script.said.clear()
    return order


def test_values_that_do_not_fit_into_a_message_are_sent_page_by_page_when_the_worker_asks() -> None:
    script = BossScript(values_bytes=3_000)
    worker = script.worker("w1", cpus=5)
    order = needy(script, worker)
    assert (order.values, order.values_apart) == ((), True)
    found: list[str] = []
    for after, count, more in (("", 2, True), ("n1", 2, True), ("n3", 1, False), ("n3", 1, False)):
        script.hear(worker, wire.ValuesWanted(order.task_no, order.number, after))
        page = script.take(worker, wire.CallValues)
        assert (page.after, len(page.values), page.more) == (after, count, more)
        found += [value.id for value in page.values]
    assert found == ["n0", "n1", "n2", "n3", "n4", "n4"]
    script.started(worker, "sum").said.clear()
    script.hear(worker, wire.ValuesWanted(order.task_no, order.number, "")).nothing_else()


def test_on_a_worker_that_cannot_ask_for_values_such_a_call_fails_with_that_reason() -> None:
    script = BossScript(values_bytes=3_000)
    worker = script.worker("w1", cpus=5)
    script.hello(worker, resources={"cpus": 5.0}, home="home-w1", asks_values=False).beats(worker)
    order = needy(script, worker)
    assert (order.values, order.values_apart) == ((), False)
    assert order.body is not None
    body = msgspec.json.decode(msgspec.json.encode(order.body), type=TaskBody)
    assert body.call is None
    done = subprocess.run(["sh", "-ec", "\n".join(body.commands)], capture_output=True, text=True)
    assert (done.returncode, done.stderr.split(":")[0]) == (1, "update ECLOUD on this worker")


def test_a_boss_that_starts_sends_the_rest_of_the_values() -> None:
    script = BossScript(values_bytes=3_000)
    worker = script.worker("w1", cpus=5)
    order = needy(script, worker)
    script.start().hello(worker, resources={"cpus": 5.0}, home="home-w1").beats(worker)
    script.hear(worker, wire.ValuesWanted(order.task_no, order.number, "n1"))
    assert [value.id for value in script.take(worker, wire.CallValues).values] == ["n2", "n3"]


def test_values_are_sent_to_the_holder_of_the_attempt_only() -> None:
    script = BossScript(values_bytes=3_000)
    worker = script.worker("w1", cpus=5)
    order = needy(script, worker)
    other = script.worker("w2")
    script.hear(other, wire.ValuesWanted(order.task_no, order.number, ""))
    script.hear(worker, wire.ValuesWanted(order.task_no, order.number + 1, "")).nothing_else()


def test_several_calls_with_values_stay_below_the_size_of_a_message() -> None:
    script = BossScript(values_bytes=3_000)
    worker = script.worker("w1", cpus=9)
    extend(script, call("a"))
    script.starts(worker, "a")
    extend(script, *[call(f"b{number}", after="a") for number in range(4)])
    script.ended(worker, "a", value=b"v" * 900)
    orders = script.take(worker, wire.StartTasks).attempts
    assert [(bool(order.values), order.values_apart) for order in orders] == [(True, False)] * 1 + [(False, True)] * 3


def test_a_call_that_waits_for_one_that_failed_before_is_aborted_and_told() -> None:
    script = BossScript()
    worker = script.worker("w1")
    client = script.client()
    extend(script, call("a"))
    script.starts(worker, "a").ended(worker, "a", cause=Cause.EXIT, error="no")
    heard(script, client)
    extend(script, call("b", after="a"))
    assert heard(script, client) == {"b": ("aborted", b"")}
    assert script.reason("b") == "task a failed"


def test_an_unknown_dependency_is_named_and_nothing_is_stored() -> None:
    script = BossScript()
    client = script.client()
    script.hear(client, wire.SubmitTasks("p", 0, 1, wire.PushOptions("r", "extend"), (call("b", after="a"),)))
    assert script.take(client, wire.RunRejected).problems == ("task b: dependencies: there is no task a in run r",)
    assert not script.store.tasks


def test_what_succeeded_is_kept_what_failed_is_done_again_and_changed_code_only_on_request() -> None:
    script = BossScript()
    worker = script.worker("w1", cpus=4)
    extend(script, call("a", fingerprint="1"), call("b", fingerprint="1"), call("c", fingerprint="1"))
    script.starts(worker, "a", "b", "c")
    script.ended(worker, "a", "c", value=b"one").ended(worker, "b", cause=Cause.EXIT, error="no")
    # The same function, pickled to other bytes: nothing changed.
    file = (Requirement("calls/r/other", "other"),)
    again = [call(id, fingerprint="1", code=b"other bytes", requirements=file) for id in "ab"]
    assert extend(script, *again, call("c", fingerprint="2")) == {"kept": 2, "anew": 1}
    script.starts(worker, "b")
    assert extend(script, *again, call("c", fingerprint="2"), replace_changed=True) == {"kept": 2, "replaced": 1}
    script.starts(worker, "c").states(a="succeeded", b="ready", c="ready")


def test_the_request_calls_tells_what_a_client_missed_also_after_a_restart() -> None:
    script = BossScript()
    worker = script.worker("w1", cpus=2)
    extend(script, call("a"), call("b", fingerprint="7"))
    script.starts(worker, "a", "b").ended(worker, "a", value=b"one")
    script.start()
    client = script.client()
    script.hear(client, wire.Request("q1", "calls", {"run": "r", "ids": ["a", "b"]}))
    answer = script.take(client, wire.CallsEnded)
    assert [(end.id, end.state, end.value) for end in answer.calls] == [("a", "succeeded", b"one"), ("b", "ready", b"")]
    script.hear(client, wire.Request("q2", "calls", {"run": "r"}))
    answer = script.take(client, wire.CallsEnded)
    assert [(end.id, end.value, end.fingerprint) for end in answer.calls] == [("a", b"", ""), ("b", b"", "7")]
    script.hear(client, wire.Request("q3", "calls", {"run": "none"}))
    assert script.take(client, wire.Refused).code == "no_such_run"


def test_all_calls_of_a_run_are_listed_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "CALLS_A_PAGE", 2)
    script = BossScript()
    extend(script, *map(call, "abc"))
    client = script.client()
    told, after = [], -1
    for more in (True, False):
        script.hear(client, wire.Request(f"q{after}", "calls", {"run": "r", "after": after}))
        page = script.take(client, wire.CallsEnded)
        assert page.more == more
        told += [end.id for end in page.calls]
        after = page.calls[-1].task_no
    assert told == ["a", "b", "c"]


def test_large_values_are_sent_in_messages_that_a_client_reads_and_larger_ones_by_their_file() -> None:
    script = BossScript()
    most = wire.BATCH_BYTES // (INLINE_BYTES * 4 // 3 + 200)  # in JSON
    ids = [f"c{number}" for number in range(most + 2)]
    worker = script.worker("w1", cpus=len(ids) + 1)
    client = script.client()
    extend(script, *map(call, ids), call("file", results=("values/file",)))
    script.starts(worker, *ids, "file").ended(worker, *ids, value=b"v" * INLINE_BYTES)
    assert [len(script.take(client, wire.CallsEnded).calls) for _ in range(2)] == [most, 2]
    script.ended(worker, "file", manifest=(ManifestEntry("values/file", 1, "00"),))
    script.handle(FilesPromoted(((*script.key("file"), None),)))
    script.start()
    client = script.client()
    script.hear(client, wire.Request("q", "calls", {"run": "r", "ids": ["file"]}))
    (end,) = script.take(client, wire.CallsEnded).calls
    assert (end.state, end.path) == ("succeeded", "values/file")


def test_calls_are_never_chained() -> None:
    script = BossScript()
    worker = script.worker("w1")
    extend(script, call("a", runtime_s=0.01), call("b", after="a", runtime_s=0.01))
    script.starts(worker, "a")
    script.states(b="waiting")
    assert not any(isinstance(send.envelope.message, wire.StartTasks) for send in script.said)


def test_calls_that_are_bound_to_a_program_are_cancelled_when_it_is_lost() -> None:
    script = BossScript()
    worker = script.worker("w1")
    client = script.client()
    extend(script, call("a"), call("b"))
    script.starts(worker, "a", "b")
    script.ask("watch", run="r", calls=True, bound=True)
    for _ in range(26):  # the worker lives, the client is silent
        script.wait(5.0).beats(worker)
    script.stops(worker, "b").stops(worker, "a").states(a="cancelled", b="cancelled")
    assert client.name not in script.boss.clients


def test_calls_that_are_not_bound_outlive_their_program() -> None:
    script = BossScript()
    worker = script.worker("w1")
    extend(script, call("a"))
    script.starts(worker, "a")
    script.ask("watch", run="r", calls=True)
    script.started(worker, "a")
    for _ in range(26):
        script.wait(5.0).beats(worker)
    script.states(a="running")


def test_the_boss_names_the_pythons_that_it_can_offer() -> None:
    script = BossScript()
    for offered in ((), ("python3.12",)):
        answer = script.ask("pythons")
        assert isinstance(answer, wire.RequestDone)
        assert answer.names == offered
        script.worker("w1", **{"python3.12": 1000.0, "gpus": 1.0})


def test_large_pickles_are_removed_with_their_run() -> None:
    script = BossScript(keep_runs_s=100.0)
    worker = script.worker("w1")
    extend(script, call("a"))
    script.starts(worker, "a").ended(worker, "a", value=b"one").wait(3 * 3600)
    assert script.call(RemoveFiles).paths == ("calls/r",)


def test_large_pickles_are_removed_when_their_run_is_dropped_and_no_program_waits_for_it() -> None:
    script = BossScript()
    extend(script, call("a"))
    script.ask("drop_tasks", run="r")
    assert not [one for one in script.calls if isinstance(one, RemoveFiles)], "the program may know them as stored"
    extend(script, call("b"))
    script.hear(script.client(), wire.Goodbye())
    script.peers["operator"] = operator = Peer("operator", "client")
    script.hello(operator)
    script.hear(operator, wire.Request("drop", "drop_tasks", {"run": "r"}))
    assert script.call(RemoveFiles).paths == ("calls/r",)


def test_runs_do_not_share_a_directory_for_pickles() -> None:
    names = ["run", "run 1", "run_1", ".run", "a/b", "..", ""]
    directories = [calls_directory(name) for name in names]
    assert len(set(directories)) == len(names)
    assert calls_directory("run") == "calls/run"
    assert all(directory.count("/") == 1 and ".." not in directory for directory in directories)
