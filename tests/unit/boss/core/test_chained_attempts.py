"""Chained attempts as the boss gives, records and voids them. `docs/protocol.md` has the rules."""

from __future__ import annotations

import msgspec
import pytest
from boss_script import BossScript, Peer, task

from boss.core.model.effects import DropStages, FindResults, PromoteFiles
from boss.core.model.events import FilesPromoted, ResultsFound
from ecloud.model import wire
from ecloud.model.tasks import AttemptState, Cause, ManifestEntry, Retries
from ecloud.model.wire import UNCHAINED, AttemptName

OUT = (ManifestEntry("out", 1, "00"),)


@pytest.fixture
def script() -> BossScript:
    return BossScript()


def worker(script: BossScript, name: str, cpus: float = 1.0) -> Peer:
    """A worker that knows chained attempts."""
    peer = script.peers[name] = Peer(name, "worker")
    script.hello(peer, resources={"cpus": cpus}, home=f"home-{name}", chains=True)
    script.beats(peer)
    return peer


def orders(script: BossScript, peer: Peer) -> dict[str, list[str]]:
    """What the boss ordered in its next message: after what, by id."""
    names = {number: id for id, number in script.names.items()}
    found = script.take(peer, wire.StartTasks).attempts
    for order in found:
        peer.holds[(order.task_no, order.number)] = "queued"
    return {names[order.task_no]: [names[name.task_no] for name in order.after] for order in found}


def promoted(script: BossScript, id: str, problem: str | None = None) -> None:
    script.calls = [call for call in script.calls if not isinstance(call, PromoteFiles)]
    script.handle(FilesPromoted(((*script.key(id), problem),)))


def attempt_state(script: BossScript, id: str, number: int | None = None) -> AttemptState:
    return script.store.attempts[script.key(id, number)].state


def test_a_waiting_task_goes_with_the_one_it_waits_for(script: BossScript) -> None:
    w1 = worker(script, "w1")
    script.push("r", task("a", runtime_s=0.01), task("b", after="a", runtime_s=0.01), task("c", after="b"))
    assert orders(script, w1) == {"a": [], "b": ["a"], "c": ["b"]}
    script.nothing_else().states(a="ready", b="waiting", c="waiting")
    script.ended(w1, "a", "b", "c").stored(w1, "a", "b", "c").nothing_else()
    script.states(a="succeeded", b="succeeded", c="succeeded")


def test_a_worker_that_does_not_know_chains_is_given_none(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", task("a", runtime_s=0.01), task("b", after="a", runtime_s=0.01))
    script.starts(w1, "a").nothing_else()


def test_a_join_is_chained_where_one_worker_has_all_that_it_waits_for(script: BossScript) -> None:
    w1, w2 = worker(script, "w1", 2.0), worker(script, "w2")
    script.push(
        "r", *[task(id, runtime_s=0.01) for id in ("a", "b", "x")],
        task("here", after="a b", runtime_s=0.01), task("apart", after="a x", runtime_s=0.01),
    )  # fmt: skip
    given = [orders(script, w1), orders(script, w2)]
    places = {id: index for index, found in enumerate(given) for id in found}
    after = {id: set(names) for found in given for id, names in found.items()}
    for id, wanted in (("here", {"a", "b"}), ("apart", {"a", "x"})):
        together = len({places[name] for name in wanted}) == 1
        assert (id in after) == together, f"{id} in {given}"
        assert after.get(id, wanted) == wanted


def test_an_outcome_that_comes_too_early_is_neither_recorded_nor_answered(script: BossScript) -> None:
    w1 = worker(script, "w1")
    script.push("r", task("a", results=["out"], runtime_s=0.01), task("b", after="a", runtime_s=0.01))
    assert orders(script, w1) == {"a": [], "b": ["a"]}
    script.ended(w1, "a", manifest=OUT).ended(w1, "b")
    script.states(a="running", b="waiting")
    assert attempt_state(script, "b") is AttemptState.ASSIGNED
    script.wait(3.0).stored(w1, "a")
    promoted(script, "a")
    script.states(a="succeeded", b="succeeded")
    script.stored(w1, "b").nothing_else()


def test_a_failure_ends_what_is_chained_to_it_at_no_cost(script: BossScript) -> None:
    w1 = worker(script, "w1")
    retried = Retries(1)
    script.push(
        "r",
        task("a", retries=retried, runtime_s=0.01),
        task("b", after="a", retries=retried, runtime_s=0.01),
        task("c", after="b"),
    )
    assert list(orders(script, w1)) == ["a", "b", "c"]
    script.ended(w1, "a", cause=Cause.EXIT, exit_code=1).stops(w1, "b", "c")
    script.states(a="ready", b="waiting", c="waiting")
    script.returned(w1, "b", "c").wait(1.5)
    assert orders(script, w1) == {"a": [], "b": ["a"], "c": ["b"]}
    assert script.boss.book.graph.nodes[script.names["b"]].retries_used == 0
    script.ended(w1, "a", "b", "c")
    script.states(a="succeeded", b="succeeded", c="succeeded")


def test_results_that_cannot_be_published_end_what_read_them(script: BossScript) -> None:
    w1 = worker(script, "w1")
    script.push("r", task("a", results=["out"], runtime_s=0.01), task("b", after="a", results=["out2"], runtime_s=0.01))
    assert orders(script, w1) == {"a": [], "b": ["a"]}
    script.ended(w1, "a", manifest=OUT).ended(w1, "b", manifest=(ManifestEntry("out2", 1, "00"),))
    promoted(script, "a", "it is not there")
    script.states(a="failed", b="aborted")
    assert attempt_state(script, "b") is AttemptState.ENDED
    assert any(isinstance(call, DropStages) for call in script.calls), "what it staged is dropped"
    script.calls = []
    script.stored(w1, "a", "b")


def test_who_is_cancelled_takes_its_chain_along(script: BossScript) -> None:
    w1 = worker(script, "w1")
    script.push("r", task("a", runtime_s=0.01), task("b", after="a"))
    assert list(orders(script, w1)) == ["a", "b"]
    script.ask("cancel", ids=["a"])
    script.states(a="cancelled", b="aborted").stops(w1, "a", "b")


def test_a_lost_worker_loses_the_chain(script: BossScript) -> None:
    w1 = worker(script, "w1")
    script.push("r", task("a", runtime_s=0.01), task("b", after="a"))
    assert list(orders(script, w1)) == ["a", "b"]
    script.hear(w1, wire.Goodbye("told to"))
    script.states(a="ready", b="waiting")
    w2 = worker(script, "w2")
    assert orders(script, w2) == {"a": [], "b": ["a"]}


def test_a_new_boss_knows_the_chains_of_the_one_before_it(script: BossScript) -> None:
    w1 = worker(script, "w1")
    script.push("r", task("a", retries=Retries(1), runtime_s=0.01), task("b", after="a", runtime_s=0.01))
    assert list(orders(script, w1)) == ["a", "b"]
    script.start()
    script.hello(w1, resources={"cpus": 1.0}, home="home-w1", chains=True)
    script.beats(w1)
    script.ended(w1, "b").states(a="ready", b="waiting")
    script.ended(w1, "a").states(a="succeeded", b="succeeded")


def test_one_that_is_given_back_waits_for_the_record(script: BossScript) -> None:
    w1 = worker(script, "w1")
    script.push("r", task("a", results=["out"], runtime_s=0.01), task("b", after="a"))
    assert list(orders(script, w1)) == ["a", "b"]
    script.hear(w1, wire.TasksReturned((AttemptName(*script.key("b")),), UNCHAINED))
    del w1.holds[script.key("b")]
    script.beats(w1).nothing_else().states(b="waiting")
    assert script.store.workers["w1"].trouble == ""
    script.ended(w1, "a", manifest=OUT)
    promoted(script, "a")
    script.stored(w1, "a")
    assert orders(script, w1) == {"b": []}


def test_what_a_later_task_may_require_is_named_until_it_is_recorded(script: BossScript) -> None:
    w1 = worker(script, "w1")
    script.push(
        "r", task("a", results=["out"], runtime_s=0.01), task("b", after="a", runtime_s=0.01), task("c", after="b")
    )
    assert orders(script, w1) == {"a": [], "b": ["a"], "c": ["a", "b"]}


@pytest.mark.parametrize("on", ["any", "failure"])
def test_only_successes_are_waited_for_in_chains(script: BossScript, on: str) -> None:
    w1 = worker(script, "w1")
    script.push("r", task("a", runtime_s=0.01), task("b", after="a", on=on))
    assert list(orders(script, w1)) == ["a"]


def test_one_whose_results_may_be_there_is_not_chained(script: BossScript) -> None:
    w1 = worker(script, "w1")
    client = script.client()
    tasks = task("a", runtime_s=0.01), task("b", after="a", results=["out"], overwrite_result=False)
    script.hear(client, wire.SubmitTasks("p", 0, 1, wire.PushOptions(run="r"), tasks))
    script.handle(ResultsFound(script.call(FindResults).token, frozenset()))
    script.names.update({row.id: row.task_no for row in script.store.tasks.values()})
    assert list(orders(script, w1)) == ["a"]


def test_what_is_ready_goes_before_chains_of_lower_priority(script: BossScript) -> None:
    w1 = worker(script, "w1")
    script.push("r", task("a", runtime_s=0.01), task("b", after="a"), task("urgent", priority=9, runtime_s=900.0))
    assert list(orders(script, w1)) == ["urgent", "a", "b"]


def test_a_long_one_that_waits_for_room_is_not_kept_waiting_by_a_chain(script: BossScript) -> None:
    w1 = worker(script, "w1")
    script.push("r", *[task(f"t{n}", **({"after": f"t{n - 1}"} if n else {}), runtime_s=0.2) for n in range(9)])
    first = list(orders(script, w1))
    script.push("s", task("urgent", priority=9, runtime_s=900.0))
    script.ended(w1, first[0]).nothing_else()
    script.ended(w1, *first[1:])
    assert next(iter(orders(script, w1))) == "urgent"


def test_a_fan_out_does_not_wait_where_it_began_while_others_idle(script: BossScript) -> None:
    w1, w2 = worker(script, "w1"), worker(script, "w2")
    script.push(
        "r", task("a", runtime_s=0.01), task("b", after="a", runtime_s=0.01), task("c", after="a", runtime_s=0.01)
    )
    with_a, other = (w1, w2) if any(key[0] == script.names["a"] for key in _held(script, "w1")) else (w2, w1)
    assert orders(script, with_a) == {"a": [], "b": ["a"]}
    script.ended(with_a, "a")
    assert orders(script, other) == {"c": []}


def _held(script: BossScript, name: str) -> list[tuple[int, int]]:
    return list(script.boss.fleet.workers[name].held)


def test_what_follows_a_failure_is_void_while_the_output_of_the_failure_is_published(script: BossScript) -> None:
    """Else the worker would keep it for ever, and the boss would count on it once a retry succeeded."""
    w1 = worker(script, "w1")
    kept = msgspec.structs.replace(task("a", runtime_s=0.01, retries=Retries(1)), stdout="logs/%t")
    script.push("r", kept, task("b", after="a", runtime_s=0.01))
    assert orders(script, w1) == {"a": [], "b": ["a"]}
    script.ended(w1, "a", cause=Cause.EXIT, error="exit 1", manifest=(ManifestEntry("logs/a", 1, "00"),))
    script.stops(w1, "b").returned(w1, "b")
    promoted(script, "a")
    script.states(a="ready", b="waiting")
    assert attempt_state(script, "b") is AttemptState.RETURNED
    script.wait(5.0)
    assert orders(script, w1)["a"] == []
    script.ended(w1, "a")
    assert script.key("b")[1] == 2
    script.ended(w1, "b").states(a="succeeded", b="succeeded")


def test_after_a_restart_what_follows_results_that_can_not_be_published_is_void(script: BossScript) -> None:
    w1 = worker(script, "w1")
    script.push("r", task("a", results=["out"], runtime_s=0.01), task("b", after="a", runtime_s=0.01))
    assert orders(script, w1) == {"a": [], "b": ["a"]}
    script.ended(w1, "a", manifest=OUT)
    script.start()
    w1.holds = {script.key("b", 1): "running"}
    script.hello(w1, resources={"cpus": 1.0}, home="home-w1", chains=True).beats(w1)
    promoted(script, "a", "the disk of the datastore is broken")
    script.stops(w1, "b").states(a="failed", b="aborted")


def test_the_state_of_a_chained_task_follows_what_its_worker_reported_before_it_counted(script: BossScript) -> None:
    w1 = worker(script, "w1", 2.0)
    script.push("r", task("a", results=["out"], runtime_s=0.01), *[task(id, after="a", runtime_s=0.01) for id in "bc"])
    assert orders(script, w1) == {"a": [], "b": ["a"], "c": ["a"]}
    script.ended(w1, "a", manifest=OUT).started(w1, "b").states(a="running", b="waiting", c="waiting")
    promoted(script, "a")
    script.states(a="succeeded", b="running", c="ready")


def test_a_task_that_is_pushed_later_follows_one_that_runs(script: BossScript) -> None:
    w1 = worker(script, "w1", 2.0)
    tasks = [task(id, runtime_s=0.01) for id in "ax"]
    script.push("r", *tasks)
    assert list(orders(script, w1)) == ["a", "x"]
    script.started(w1, "a").push("r", *tasks, task("b", after="a", runtime_s=0.01))
    script.ended(w1, "x")
    assert orders(script, w1) == {"b": ["a"]}


def test_the_first_task_of_a_chain_may_bring_an_init_task_along(script: BossScript) -> None:
    w1 = worker(script, "w1", 2.0)
    tasks = [task(id, runtime_s=0.01) for id in "ax"]
    script.push("r", *tasks)
    assert list(orders(script, w1)) == ["a", "x"]
    script.push("r", task("i", init=True), *tasks, task("b", after="a", runtime_s=0.01))
    script.ended(w1, "x")
    assert orders(script, w1) == {"i": [], "b": ["a"]}


def test_a_task_is_not_chained_to_a_worker_that_it_does_not_fit_or_that_refuses_its_run(script: BossScript) -> None:
    w1 = worker(script, "w1")
    script.push("r", task("a", runtime_s=0.01), task("large", after="a", resources={"cpus": 4.0}, runtime_s=0.01))
    assert orders(script, w1) == {"a": []}
    tasks = [task(id, runtime_s=0.01) for id in "xy"]
    script.push("s", *tasks)
    assert orders(script, w1) == {"x": [], "y": []}
    script.push("s", *tasks, task("z", after="x", runtime_s=0.01))
    script.returned(w1, "y")  # unasked: the worker gets no task of this run until its next heartbeat
    script.states(z="waiting").nothing_else()
    script.beats(w1)
    assert orders(script, w1) == {"y": [], "z": ["x"]}


def test_tasks_wait_where_their_predecessor_runs_if_the_other_workers_are_full(script: BossScript) -> None:
    w1, w2 = worker(script, "w1"), worker(script, "w2")
    script.push("s", task("long", runtime_s=900.0))
    first, other = (w1, w2) if _held(script, "w1") else (w2, w1)
    assert orders(script, first) == {"long": []}
    script.push("r", task("a", runtime_s=0.01), *[task(id, after="a", runtime_s=0.01) for id in "bc"])
    assert orders(script, other) == {"a": [], "b": ["a"], "c": ["a"]}


def test_a_large_task_of_the_same_priority_that_has_a_worker_reserved_goes_before_a_chain(script: BossScript) -> None:
    w1 = worker(script, "w1", 2.0)
    large = task("large", resources={"cpus": 2.0}, runtime_s=900.0)
    script.push("r", task("a", runtime_s=0.01), large, task("b", after="a", runtime_s=0.01))
    assert orders(script, w1) == {"a": []}
    script.ended(w1, "a")
    assert next(iter(orders(script, w1))) == "large"


def test_a_chain_waits_for_ready_tasks_of_runs_that_hold_less(script: BossScript) -> None:
    w1 = worker(script, "w1", 3.0)
    tasks = [task(id, runtime_s=0.01) for id in "abc"]
    script.push("r", *tasks)
    assert list(orders(script, w1)) == ["a", "b", "c"]
    script.push("s", *[task(id, runtime_s=900.0) for id in "xyz"])
    script.push("r", *tasks, task("d", after="a", runtime_s=0.01))
    script.ended(w1, "c")
    assert orders(script, w1) == {"x": []}
    script.states(y="ready", d="waiting")
