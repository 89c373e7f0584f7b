"""Tasks that share big inputs go where these are, and no task waits for it."""

from __future__ import annotations

from typing import Any

import pytest
from boss_script import BossScript, Peer, task
from hypothesis import given, settings
from hypothesis import strategies as st

from boss.core.placement.placement import BEHIND
from boss.core.tasks.input_locality import KEPT, SHARED_MOST
from ecloud.model import wire
from ecloud.model.tasks import Requirement, TaskDefinition
from ecloud.model.transfer_status import BIG_INPUT_BYTES as BIG_BYTES
from ecloud.model.transfer_status import INPUTS_TOLD, HeldInput


def needs(id: str, *paths: str, **fields: Any) -> TaskDefinition:
    """A task with these requirements."""
    return task(id, requirements=tuple(Requirement(path, path) for path in paths), **fields)


def ends(script: BossScript, peer: Peer, id: str, fetched: int = BIG_BYTES) -> BossScript:
    """The task ends, and had fetched this many bytes."""
    return script.ended(peer, id, fetch_bytes=fetched).stored(peer, id)


@pytest.fixture
def script() -> BossScript:
    return BossScript(ahead_s=0.0)  # nothing is queued ahead


def two_workers_that_fetched(script: BossScript, fetched: int = BIG_BYTES) -> tuple[Peer, Peer]:
    """w1 has `a`, w2 has `b`; two more tasks need `b`, then two more `a`."""
    w1, w2 = script.worker("w1"), script.worker("w2")
    rest = [needs("b2", "b"), needs("b3", "b"), needs("a2", "a"), needs("a3", "a")]
    script.push("r", needs("a1", "a"), needs("b1", "b"), *rest)
    script.starts(w1, "a1").starts(w2, "b1").started(w1, "a1").started(w2, "b1").wait(1)
    ends_first = script.ended(w2, "b1", fetch_bytes=fetched).stored(w2, "b1")
    ends_first.starts(w2, "b2")
    return w1, w2


def test_a_worker_with_room_takes_the_task_whose_inputs_it_has(script: BossScript) -> None:
    w1, w2 = two_workers_that_fetched(script)
    ends(script, w1, "a1").starts(w1, "a2")
    ends(script, w2, "b2").starts(w2, "b3").nothing_else()


def test_of_two_with_room_it_goes_to_the_one_that_has_its_inputs(script: BossScript) -> None:
    w1, w2 = script.worker("w1"), script.worker("w2")
    script.push("r", needs("x"), needs("a1", "a"), needs("a2", "a", after="x a1"))
    script.starts(w1, "x").starts(w2, "a1")
    ends(script, w2, "a1")
    script.ended(w1, "x").stored(w1, "x").starts(w2, "a2").nothing_else()


def test_small_inputs_change_no_order(script: BossScript) -> None:
    w1, _ = two_workers_that_fetched(script, fetched=BIG_BYTES - 1)
    ends(script, w1, "a1", fetched=BIG_BYTES - 1).starts(w1, "b3")


def test_inputs_of_unknown_size_keep_their_order_where_they_start_and_wait_where_they_are_fetched() -> None:
    script = BossScript(ahead_s=1.0)
    w1, w2 = script.worker("w1"), script.worker("w2")
    ids = ["a1", "b1", "b2", "a2", "b3", "a3"]
    script.push("r", *(needs(id, id[0], runtime_s=0.5) for id in ids))
    script.starts(w1, "a1", "a2", "a3").starts(w2, "b1", "b2", "b3").nothing_else()


def test_the_same_small_file_for_all_changes_nothing() -> None:
    script = BossScript(ahead_s=1.0)
    w1, w2 = script.worker("w1"), script.worker("w2")
    script.push("r", *(needs(f"t{number}", "small", runtime_s=0.5) for number in range(4)))
    script.starts(w1, "t0", "t2").starts(w2, "t1", "t3").nothing_else()


def test_inputs_of_one_task_alone_are_not_remembered(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", needs("a1", "own"), needs("a2", "other"))
    ends(script.starts(w1, "a1"), w1, "a1").starts(w1, "a2")
    assert not script.boss.fleet.workers["w1"].fetched


def test_a_busy_holder_is_not_waited_for(script: BossScript) -> None:
    w1, w2 = two_workers_that_fetched(script)
    ends(script, w1, "a1").starts(w1, "a2")
    ends(script, w1, "a2").starts(w1, "a3")
    ends(script, w1, "a3").starts(w1, "b3").nothing_else()  # w2 has b, and is busy
    assert ends(script, w2, "b2").said == []


def test_a_holder_that_is_drained_or_gone_is_passed_over(script: BossScript) -> None:
    w1, w2, w3 = (script.worker(name) for name in ("w1", "w2", "w3"))
    script.push("r", *(needs(f"a{number}", "a") for number in (1, 2, 3)), needs("x"))
    script.starts(w1, "a1").starts(w2, "a2").starts(w3, "a3")
    ends(script, w2, "a2").starts(w2, "x")
    script.ask("drain_worker", workers=["w2"])
    script.take(w2, wire.Drain)
    ends(script, w3, "a3")
    script.push("s", needs("a4", "a"), needs("a5", "a"))
    script.starts(w3, "a4")
    script.hear(w3, wire.Goodbye("its machine ends"))
    assert not any(
        "w3" in part.holders
        for node in script.boss.book.graph.nodes.values()
        for part in (node.inputs.parts if node.inputs else ())
    )
    ends(script, w1, "a1").starts(w1, "a5").nothing_else()


def test_one_with_a_gpu_is_not_filled_for_the_sake_of_files(script: BossScript) -> None:
    rare, plain = script.worker("w1", gpus=1.0), script.worker("w2")
    script.push("r", needs("x"), needs("a1", "a", resources={"gpus": 1.0}), needs("a2", "a", after="a1"))
    script.starts(plain, "x").starts(rare, "a1")
    script.ended(plain, "x").stored(plain, "x")
    ends(script, rare, "a1").starts(plain, "a2").nothing_else()


def test_a_new_boss_knows_what_tasks_share_and_hears_who_has_it(script: BossScript) -> None:
    w1, w2 = two_workers_that_fetched(script)
    script.start()
    for peer, path in ((w1, "a"), (w2, "b")):
        script.hello(peer, resources={"cpus": 1.0}, home=f"home-{peer.name}")
        script.beats(peer, inputs=(HeldInput(path, BIG_BYTES),))
    ends(script, w1, "a1").starts(w1, "a2")
    ends(script, w2, "b2").starts(w2, "b3").nothing_else()


def test_what_a_worker_keeps_from_an_earlier_run_draws_tasks_of_a_later_one(script: BossScript) -> None:
    w1, w2 = script.worker("w1"), script.worker("w2")
    script.beats(w2, inputs=(HeldInput("old", BIG_BYTES),))
    script.push("r", needs("x"), needs("y", "old"))
    script.starts(w1, "x").starts(w2, "y").nothing_else()
    script.push("s", needs("z"), needs("again", "old"))
    ends(script, w1, "x").starts(w1, "z")
    ends(script, w2, "y").starts(w2, "again").nothing_else()


def test_what_a_worker_let_go_is_forgotten_and_what_it_is_fetching_is_not(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", needs("a1", "a"), needs("a2", "a"), needs("b1", "b"), needs("b2", "b"))
    ends(script.starts(w1, "a1"), w1, "a1").starts(w1, "a2")
    script.beats(w1, inputs=(HeldInput("c", BIG_BYTES),))
    assert fetched(script, "w1") == ["c", "a"], "it runs a task that fetches a"
    ends(script, w1, "a2").starts(w1, "b1")
    script.beats(w1, inputs=(HeldInput("d", BIG_BYTES), HeldInput("c", BIG_BYTES)))
    assert fetched(script, "w1") == ["c", "d", "b"], "and now one that fetches b"
    script.beats(w1)
    assert fetched(script, "w1") == ["c", "d", "b"], "nothing changed"


def test_who_has_one_of_two_inputs_goes_before_who_has_none_and_who_has_the_larger_before_both(
    script: BossScript,
) -> None:
    w1, w2, w3 = (script.worker(name) for name in ("w1", "w2", "w3"))
    script.beats(w2, inputs=(HeldInput("a", BIG_BYTES),)).beats(w3, inputs=(HeldInput("b", 5 * BIG_BYTES),))
    script.push("r", needs("t1", "a", "b", "small"), needs("t2", "a", "b"), needs("t3", "a", "b"))
    script.starts(w3, "t1").starts(w2, "t2").starts(w1, "t3").nothing_else()


def test_a_worker_says_anything_and_little_is_believed(script: BossScript) -> None:
    w1 = script.worker("w1")
    told = [HeldInput(f"p{number}", BIG_BYTES) for number in range(1_000)]
    script.beats(w1, inputs=tuple(told))
    assert len(fetched(script, "w1")) == INPUTS_TOLD
    script.beats(w1, inputs=(HeldInput("huge", 2**63 - 1), HeldInput("none", -1), HeldInput("small", 5)))
    assert fetched(script, "w1") == []
    assert "p1" not in script.boss.book.graph.known_inputs, "no worker has it"
    script.push("r", needs("t", *(f"q{number}" for number in range(50))), needs("u", *(f"q{k}" for k in range(50))))
    (node,) = [node for node in script.boss.book.graph.nodes.values() if node.id == "t"]
    assert node.inputs is not None
    assert len(node.inputs.parts) == SHARED_MOST


def fetched(script: BossScript, worker: str) -> list[str]:
    """Paths that the worker is believed to have, the latest last."""
    return [part.path for part in script.boss.fleet.workers[worker].fetched]


def test_a_path_that_is_published_anew_is_fetched_anew_and_nothing_else(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", needs("a1", "a"), needs("a2", "a"))
    ends(script.starts(w1, "a1"), w1, "a1").starts(w1, "a2")
    script.push("s", task("make", results=("a",)), needs("a3", "a", after="make"))
    ends(script, w1, "a2", fetched=2 * BIG_BYTES).starts(w1, "make")


def test_a_bounded_number_of_inputs_is_remembered_of_each_worker(script: BossScript) -> None:
    w1 = script.worker("w1")
    names = [f"{path}{k}" for path in range(KEPT + 5) for k in "xy"]
    script.push("r", *(needs(name, name[:-1]) for name in names))
    for name in names:
        ends(script.starts(w1, name), w1, name)
    assert len(script.boss.fleet.workers["w1"].fetched) == KEPT


def test_priority_goes_before_files(script: BossScript) -> None:
    w1, _ = two_workers_that_fetched(script)
    script.push("urgent", needs("b4", "b", priority=5), needs("c", "c", priority=5))
    ends(script, w1, "a1").starts(w1, "b4")
    ends(script, w1, "b4").starts(w1, "c")


def _order_at(script: BossScript, peer: Peer, last: str, count: int) -> list[str]:
    """What the worker is given, one after another."""
    by_no = {}
    order = []
    for _ in range(count):
        ends(script, peer, last)
        orders = script.take(peer, wire.StartTasks).attempts
        by_no.update({number: id for id, number in script.names.items()})
        last = by_no[orders[0].task_no]
        peer.holds[(orders[0].task_no, orders[0].number)] = "queued"
        order.append(last)
    return order


def test_a_task_whose_inputs_a_busy_worker_has_gets_its_turn(script: BossScript) -> None:
    w1, w2 = script.worker("w1"), script.worker("w2")
    many = [needs(f"a{number}", "a") for number in range(2, 200)]
    script.push("r", needs("b1", "b"), needs("a1", "a"), needs("b2", "b"), needs("b3", "b"), *many)
    script.starts(w1, "b1").starts(w2, "a1")
    ends(script, w1, "b1").starts(w1, "b2")  # and works on it for ever
    order = _order_at(script, w2, "a1", 150)
    assert order.index("b3") == BEHIND - 1
    assert [id for id in order if id != "b3"] == [f"a{number}" for number in range(2, 151)]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_comes_no_worker_idles_while_a_task_waits_and_none_is_passed_too_often(data: st.DataObject) -> None:
    script = BossScript(ahead_s=0.0)
    workers = [script.worker(f"w{number}") for number in range(data.draw(st.integers(1, 4)))]
    pushed: list[str] = []
    begun: list[str] = []
    running: dict[str, str] = {}

    def look() -> None:
        by_no = {number: id for id, number in script.names.items()}
        for peer in workers:
            while any(
                s.envelope.peer == peer.name and isinstance(s.envelope.message, wire.StartTasks) for s in script.said
            ):
                for order in script.take(peer, wire.StartTasks).attempts:
                    assert peer.name not in running
                    running[peer.name] = by_no[order.task_no]
                    begun.append(by_no[order.task_no])
                    peer.holds[(order.task_no, order.number)] = "running"
            script.beats(peer)
        waiting = [id for id in pushed if id not in begun]
        assert not waiting or len(running) == len(workers), "a worker idles while a task waits"
        for id in waiting:
            passed = sum(pushed.index(other) > pushed.index(id) for other in begun)
            assert passed < BEHIND, f"{id} was passed {passed} times"

    for _ in range(data.draw(st.integers(1, 25))):
        if data.draw(st.booleans()) or not running:
            ids = [f"t{len(pushed) + k}" for k in range(data.draw(st.integers(2, 12)))]
            script.push("r", *(needs(id, data.draw(st.sampled_from("abcd"))) for id in ids))
            pushed += ids
        else:
            peer = script.peers[data.draw(st.sampled_from(sorted(running)))]
            ends(script, peer, running.pop(peer.name))
        look()
    while running:
        peer = script.peers[min(running)]
        ends(script, peer, running.pop(peer.name))
        look()
    assert sorted(begun) == sorted(pushed)


def test_several_inputs_of_unknown_size_that_were_large_together_draw_the_tasks_that_share_them(
    script: BossScript,
) -> None:
    w1, w2 = script.worker("w1"), script.worker("w2")
    script.push("r", needs("x"), needs("ab1", "a", "b"), needs("ab2", "a", "b", after="x ab1"))
    script.starts(w1, "x").starts(w2, "ab1")
    script.ended(w1, "x").stored(w1, "x")  # it is the first in turn
    ends(script, w2, "ab1", fetched=2 * BIG_BYTES).starts(w2, "ab2").nothing_else()


def test_a_worker_reports_its_cache_whatever_its_tasks_need(script: BossScript) -> None:
    w1 = script.worker("w1", cpus=2.0)
    script.push("r", needs("plain"), needs("dropped"))
    script.starts(w1, "plain", "dropped").started(w1, "plain", "dropped")
    script.ask("drop_tasks", ids=["dropped"])
    script.beats(w1, inputs=(HeldInput("c", BIG_BYTES),))
    assert fetched(script, "w1") == ["c"]


def test_a_worker_is_found_by_a_large_input_although_a_small_one_is_named_first(script: BossScript) -> None:
    w1, w2 = script.worker("w1"), script.worker("w2")
    script.beats(w2, inputs=(HeldInput("large", BIG_BYTES),))
    script.push("r", needs("x"), needs("a1", "a small"), needs("t", "a small", "large", after="x a1"))
    script.starts(w1, "x").starts(w2, "a1")
    script.ended(w1, "x").stored(w1, "x")
    ends(script, w2, "a1", fetched=5).starts(w2, "t").nothing_else()


def test_tasks_with_the_same_inputs_share_one_note_of_them(script: BossScript) -> None:
    """A hundred thousand tasks with eight inputs each would need hundreds of megabytes."""
    script.push("r", *(needs(f"t{number}", "a", "b") for number in range(3)))
    assert len({id(node.inputs) for node in script.boss.book.graph.nodes.values()}) == 1
