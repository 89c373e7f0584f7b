"""The worker's core, told as stories: what it hears, and exactly what it does and says."""

from __future__ import annotations

import pytest
from worker_script import WorkerScript, names_of, order

from ecloud.model import wire
from ecloud.model.tasks import Cause, Outcome
from worker.core.attempts import (
    FLUSH_COUNT,
    FLUSH_S,
    FLUSH_STEADY_COUNT,
    FLUSH_STEADY_S,
    SHORT_S,
    STAGING_MOST,
    STARTED_S,
)
from worker.core.events import AttemptReturned, CommandsEnded, GpusMeasured
from worker.core.worker_core import HOME_COPIED


def test_it_joins_runs_and_reports() -> None:
    script = WorkerScript()
    hello = script.connect().hello()
    assert (hello.kind, hello.nonce, hello.home) == ("worker", "w1-1", "home-1")
    assert hello.resources["cpus"] == 1.0
    script.welcome(hello)
    script.beats()
    script.orders(1, 2).begins(1).nothing_else()
    script.wait(FLUSH_S).nothing_else()
    script.wait(STARTED_S).says_started(1).nothing_else()
    script.ends(1).spools(1).begins(2).nothing_else()
    script.wait(FLUSH_S).says_ended(1).nothing_else()
    script.wait(STARTED_S).says_started(2).nothing_else()
    script.stores(1).forgets(1).nothing_else()
    script.ends(2, cause=Cause.EXIT, exit_code=3).spools(2).says_ended(2).nothing_else()
    script.stores(2).forgets(2).nothing_else()


def test_hello_describes_the_process_its_machine_and_what_it_can_do() -> None:
    told = {
        "software": "2.0", "host": "node7", "addresses": ("10.0.0.7",), "boot_id": "b", "machine": "m",
        "machine_part": "job 5", "machine_has": {"cpus": 8.0}, "pid": 77, "vm": "vm/3", "boot_nonce": "n",
        "labels": ("big",), "ssh_key": "ssh-ed25519 AAAA",
    }  # fmt: skip
    hello = WorkerScript(**told).connect().hello()
    assert {name: getattr(hello, name) for name in told} == told
    assert (hello.chains, hello.asks_values) == (True, True), "else the boss sends neither chains nor large values"


def test_hello_is_repeated_with_a_new_nonce_and_only_the_latest_counts() -> None:
    script = WorkerScript()
    first = script.connect().hello()
    second = script.wait(1.0).hello()
    assert (first.nonce, second.nonce) == ("w1-1", "w1-2")
    script.welcome(first).nothing_else()
    script.orders(1).nothing_else()
    script.welcome(second).beats()
    script.wait(1.9).nothing_else()


def test_the_wait_between_hellos_doubles_up_to_ten_seconds_and_starts_anew_with_a_connection() -> None:
    script = WorkerScript()
    script.connect().hello()
    waits = []
    for _ in range(6):
        before = script.now
        while not script.done.says:
            deadline = script.core.next_deadline()
            assert deadline is not None
            script.wait(deadline - script.now)
        script.hello()
        waits.append(script.now - before)
    assert waits == pytest.approx([1, 2, 4, 8, 10, 10])
    script.lose().wait(100).nothing_else()
    script.connect().hello()
    script.wait(1.0).hello()


def test_orders_of_an_older_session_are_not_obeyed() -> None:
    script = WorkerScript().on_duty()
    old_session = script.session
    script.lose().connect()
    script.hear(wire.StartTasks((order(1),)), session=old_session, number=7)
    hello = script.hello()
    assert hello.attempts == ()
    script.nothing_else()
    script.welcome(hello).beats()
    script.hear(wire.StartTasks((order(1),)), session=old_session, number=8).nothing_else()
    script.orders(1).begins(1)


def test_a_message_counts_once_in_its_order_and_from_this_boss_alone() -> None:
    script = WorkerScript(cpus=4).on_duty()
    script.orders(1).begins(1)
    script.hear(wire.StartTasks((order(2),)), number=script.number).nothing_else()
    script.hear(wire.StartTasks((order(2),)), number=1).nothing_else()
    script.hear(wire.StartTasks((order(2),)), epoch=2, number=50).nothing_else()
    script.orders(2).begins(2)
    script.wait(5.0).forget_all()
    assert (script.core.ignored["number"], script.core.ignored["session"]) == (2, 1)


def test_a_welcome_of_a_deposed_boss_has_no_effect() -> None:
    script = WorkerScript()
    script.epoch = 5
    script.on_duty().lose().connect()
    hello = script.hello()
    script.epoch = 4
    script.welcome(hello).nothing_else()
    script.epoch = 5
    script.welcome(hello).beats()
    script.lose().connect()
    script.epoch = 6
    script.welcome().beats()


def test_a_boss_that_does_not_know_the_session_is_greeted_again() -> None:
    script = WorkerScript().on_duty()
    unknown = wire.Refused("session", "send Hello", about="1-99")
    script.hear(unknown, session="1-99", number=0).nothing_else()
    about_ours = wire.Refused("session", "send Hello", about=script.session)
    hello = script.hear(about_ours, number=0).hello()
    script.nothing_else()
    script.welcome(hello).beats()


def test_heartbeats_tell_everything_that_is_held() -> None:
    script = WorkerScript(cpus=1).on_duty()
    script.orders(1, 2, 3).ends(1).forget_all().wait(5.0)
    heartbeat = script.beats(t1="ended", t2="running", t3="queued")
    assert (heartbeat.orders_seen, heartbeat.spooled) == (2, 1)
    script.forget_all().wait(5.0)
    assert script.beats(t1="ended", t2="running", t3="queued").orders_seen == 3


def test_the_boss_changes_the_interval_of_heartbeats_with_each_answer() -> None:
    script = WorkerScript().connect().welcome(heartbeat_s=5.0)
    script.hear(wire.HeartbeatAnswered(script.envelope(wire.Heartbeat).number, heartbeat_s=20.0))
    script.wait(5.0).beats()
    script.wait(19.0).nothing_else()
    script.wait(1.0)
    script.hear(wire.HeartbeatAnswered(script.envelope(wire.Heartbeat).number))
    script.wait(19.0).nothing_else()
    script.wait(1.0).beats()


def test_without_a_lease_nothing_is_started_but_what_runs_continues() -> None:
    script = WorkerScript(cpus=1).on_duty(lease_s=12.0)
    script.orders(1, 2).begins(1)
    script.wait(30.0).forget_all()
    script.ends(1).spools(1).begins()
    script.forget_all().wait(5.0).answers_heartbeat()
    script.begins(2)


def test_the_lease_counts_from_when_the_answered_heartbeat_was_sent() -> None:
    script = WorkerScript(cpus=1).connect().welcome(lease_s=12.0)
    first = script.envelope(wire.Heartbeat)
    script.orders(1, 2).begins(1)
    script.wait(11.0).forget_all()
    script.hear(wire.HeartbeatAnswered(first.number))  # late: renews nothing, it was sent with the Welcome
    script.wait(2.0).forget_all()
    script.ends(1).begins()


def test_an_outcome_is_repeated_until_it_is_answered() -> None:
    script = WorkerScript().on_duty()
    script.orders(1).ends(1).says_ended(1).begins(1).spools(1)
    script.wait(5.0).beats(t1="ended")
    script.nothing_else()
    script.wait(5.0).says_ended(1).beats(t1="ended")
    script.stores(1).forgets(1)
    script.stores(1).nothing_else()  # the answer to the repetition
    script.wait(20.0)
    script.forget_all().wait(5.0).beats()


def test_a_new_session_hears_every_outcome_again_and_the_inventory_tells_what_runs() -> None:
    script = WorkerScript(cpus=2).on_duty()
    script.orders(1, 2, 3).ends(1).wait(FLUSH_S).says_ended(1)
    script.forget_all().lose().ends(2).spools(2).begins().connect()
    hello = script.hello()
    assert {(held.task_no, held.state) for held in hello.attempts} == {(1, "ended"), (2, "ended"), (3, "running")}
    script.welcome(hello).says_ended(1, 2).beats(t1="ended", t2="ended", t3="running")
    script.wait(1.0).nothing_else()


def test_outcomes_are_reported_in_batches() -> None:
    script = WorkerScript(cpus=FLUSH_COUNT + 1).on_duty()
    script.orders(*range(1, FLUSH_COUNT + 2)).begins(*range(1, FLUSH_COUNT + 2))
    for task_no in range(1, FLUSH_COUNT):
        script.ends(task_no)
    script.spools(*range(1, FLUSH_COUNT)).nothing_else()
    script.ends(FLUSH_COUNT).spools(FLUSH_COUNT)
    script.says_ended(*range(1, FLUSH_COUNT + 1)).nothing_else()
    # The one that runs began a moment ago: it may end before it is worth a word.
    script.wait(FLUSH_S).nothing_else()
    script.wait(STARTED_S).says_started(FLUSH_COUNT + 1).nothing_else()


def test_while_many_tasks_wait_outcomes_of_short_ones_are_written_to_disk_together_before_they_are_sent() -> None:
    script = WorkerScript().on_duty()
    script.orders(*range(1, FLUSH_STEADY_COUNT + 10)).begins(1)
    script.ends(1).begins(2).ends(2, run_s=SHORT_S).begins(3).ends(3).begins(4)
    script.spools(2).nothing_else()  # it was not short
    script.wait(FLUSH_STEADY_S).spools(1, 3).says_ended(1, 2, 3).nothing_else()
    script.ends(4).begins(5).nothing_else().lose().spools(4)


def test_a_message_stays_below_its_limits() -> None:
    big = "x" * (wire.BATCH_BYTES // 3)
    script = WorkerScript(cpus=4).on_duty()
    script.orders(1, 2, 3, 4)
    script.forget_all().ends(1, 2, 3, 4, stdout=big)
    script.says_ended(1, 2).says_ended(3, 4)
    count = wire.BATCH_COUNT + 1
    spooled = tuple(Outcome(task_no, 1, Cause.SUCCESS) for task_no in range(1, count + 1))
    heir = WorkerScript(spooled=spooled)
    heir.on_duty()
    heir.says_ended(*range(1, count)).says_ended(count)


def test_a_repeated_order_for_a_held_attempt_has_no_effect() -> None:
    script = WorkerScript(cpus=1).on_duty()
    script.orders(1, 2, 3).begins(1).ends(1).begins(2).forget_all()
    script.orders(1, 2, 3).nothing_else()
    script.wait(FLUSH_S).forget_all().wait(5.0).beats(t1="ended", t2="running", t3="queued")


def test_the_first_that_fits_starts() -> None:
    script = WorkerScript(cpus=2).on_duty()
    script.orders(
        order(1, cpus=1.5), order(2, cpus=1), order(9, cpus=1), order(3, cpus=0.5), order(4, cpus=0.5)
    )  # fmt: skip
    script.begins(1, 3)
    script.ends(3).begins(4)
    script.ends(1).begins(2)
    script.ends(2).begins(9)


def test_what_can_never_fit_is_given_back() -> None:
    script = WorkerScript(cpus=2).on_duty()
    script.orders(order(1, cpus=3), order(2, licence=1), order(3))
    script.returns(1, 2, reason="").begins(3).nothing_else()  # a reason would be the worker's trouble


def test_parts_of_a_gpu_are_put_together_and_whole_ones_wait() -> None:
    script = WorkerScript(cpus=8, gpus=("0", "1")).on_duty()
    script.orders(order(1, gpus=0.5), order(2, gpus=0.25), order(3, gpus=1), order(4, gpus=0.5), order(5, gpus=0.25))
    given = {start.order.task_no: start.gpus for start in script.done.starts}
    assert given == {1: ("0",), 2: ("0",), 3: ("1",), 5: ("0",)}


def test_gpus_are_given_by_index_once() -> None:
    script = WorkerScript(cpus=8, gpus=("0", "1", "3")).on_duty()
    script.orders(order(1, gpus=2), order(2), order(3, gpus=2), order(4, gpus=1))
    given = {start.order.task_no: start.gpus for start in script.done.starts}
    assert given == {1: ("0", "1"), 2: (), 4: ("3",)}
    script.begins(1, 2, 4).ends(1)
    assert script.done.starts[0].gpus == ("0", "1")
    script.begins(3)
    without = WorkerScript(cpus=1).on_duty().orders(1)
    assert without.done.starts[0].gpus is None


def test_a_gpu_that_does_not_answer_is_offered_no_more_until_it_does() -> None:
    script = WorkerScript(cpus=8, gpus=("0", "1")).on_duty()
    script.orders(order(1, gpus=1), order(2, gpus=1), order(3, gpus=2), order(4, gpus=1)).begins(1, 2)
    script.handle(GpusMeasured(("0", "1"))).nothing_else()
    script.handle(GpusMeasured(("1",)))
    hello = script.hello()
    assert hello.resources["gpus"] == 1.0
    script.welcome(hello).returns(3).answers_heartbeat().ends(1).spools(1).nothing_else()
    script.ends(2).spools(2)  # that on the GPU which is left
    assert script.done.starts[-1].gpus == ("1",)
    script.begins(4)
    script.handle(GpusMeasured(("0", "1")))
    assert script.hello().resources["gpus"] == 2.0


def test_when_a_gpu_is_lost_the_others_of_a_task_are_given_once_it_has_ended() -> None:
    script = WorkerScript(cpus=8, gpus=("0", "1", "3")).on_duty()
    script.orders(order(1, gpus=2), order(2, gpus=1)).begins(1, 2)
    script.handle(GpusMeasured(("0", "1"))).welcome().forget_all()
    script.orders(order(3, gpus=2)).ends(2).begins().ends(1)
    assert script.done.starts[0].gpus == ("0", "1")
    script.begins(3)


def test_init_tasks_go_one_by_one_before_their_run() -> None:
    script = WorkerScript(cpus=4).on_duty()
    script.orders(order(1, init=True), order(2, init=True), order(3, after_init=(1, 2)), order(4, run_no=2))
    script.begins(1, 4)
    script.ends(1).begins(2)
    script.ends(2).begins(3)
    script.ends(3).orders(order(5, after_init=(1, 2))).begins(5)


def test_when_an_init_task_fails_its_run_is_given_back_and_others_continue() -> None:
    script = WorkerScript(cpus=1).on_duty()
    script.orders(order(1, init=True), order(2, after_init=(1,)), order(3, run_no=2)).begins(1)
    script.ends(1, cause=Cause.EXIT).returns(2, reason="init").begins(3)
    script.orders(order(4, after_init=(1,)), order(5, after_init=(9,)))
    script.ends(3).returns(4, 5, reason="init")


def test_an_init_task_that_could_not_run_has_prepared_nothing() -> None:
    script = WorkerScript().on_duty()
    script.orders(order(7, init=True), order(2, after_init=(7,))).begins(7)
    script.cannot_run(7, "disk full").returns(7, reason="disk full")
    script.trouble("").returns(2, reason="init").begins()


def test_an_init_of_another_process_does_not_count() -> None:
    script = WorkerScript().on_duty()
    script.orders(order(1, init=True)).ends(1).forget_all()
    heir = script.reborn().on_duty()
    heir.orders(order(2, after_init=(1,))).returns(2, reason="init").begins()


def test_queued_work_is_given_back_when_asked_and_running_work_is_not() -> None:
    script = WorkerScript(cpus=1).on_duty()
    script.orders(1, 2, 3).begins(1)
    script.hear(wire.ReturnTasks(names_of(1, 2, 9))).returns(2).nothing_else()
    script.ends(1).begins(3)


def test_stop_ends_what_runs_returns_what_waits_and_leaves_what_ended() -> None:
    script = WorkerScript(cpus=2).on_duty()
    script.orders(1, 2, 3).ends(1).begins(1, 2, 3).forget_all()
    script.orders(4)
    script.hear(wire.StopTasks(names_of(1, 2, 4, 9), 3.0, "cancelled")).returns(4)
    assert (script.done.stops[0].grace_s, script.done.stops[0].reason) == (3.0, "cancelled")
    script.stops(2).nothing_else()
    script.hear(wire.StopTasks(names_of(2), 3.0)).nothing_else()
    script.ends(2, cause=Cause.STOPPED).spools(2)


def test_what_the_machine_cannot_run_is_given_back_without_blame() -> None:
    script = WorkerScript(cpus=1).on_duty()
    script.orders(1, 2).begins(1)
    script.cannot_run(1, "disk full").returns(1, reason="disk full")
    assert script.beats(t2="queued").trouble == "disk full"
    script.begins().nothing_else()
    script.trouble("")
    script.begins(2)
    assert script.beats(t2="queued").trouble == ""
    script.wait(STARTED_S).says_started(2).nothing_else()


def test_trouble_before_the_welcome_is_reported_with_the_first_heartbeat() -> None:
    script = WorkerScript().connect().trouble("disk full")
    hello = script.wait(0.5).hello()
    script.nothing_else().welcome(hello)
    assert script.beats().trouble == "disk full"
    script.nothing_else()


def test_term_gives_back_what_waits_and_leaves_when_the_rest_is_reported() -> None:
    script = WorkerScript(cpus=1).on_duty()
    script.orders(1, 2).forget_all()
    assert script.term().returns(2, reason="").take(wire.DrainWanted).reason == wire.ORDERED_TO_LEAVE
    script.nothing_else()
    script.hear(wire.Drain("", True)).nothing_else()
    script.orders(3).returns(3, reason=wire.DRAINING).take(wire.DrainWanted)
    script.ends(1).says_ended(1).spools(1).begins()
    script.stores(1).forgets(1).leaves().take(wire.Goodbye)
    script.nothing_else()


def test_a_new_boss_learns_that_the_worker_leaves_before_the_end_of_the_task_that_the_shutdown_ended() -> None:
    """It counts SIGTERM as the task's failure otherwise."""
    script = WorkerScript(cpus=1).on_duty()
    script.orders(1).begins(1).term().forget_all().lose()
    script.ends(1, cause=Cause.SIGNAL, signal=15).connect().welcome()
    said = [type(envelope.message) for envelope in script.done.says]
    assert said.index(wire.DrainWanted) < said.index(wire.TasksEnded)


def test_what_waits_for_access_to_the_datastore_starts_when_another_needs_none() -> None:
    script = WorkerScript().on_duty(datastore=wire.DatastoreAccess("u@host:/root", host_key="ssh-ed25519 AAAA"))
    script.orders(1).nothing_else().lose().connect()
    script.welcome(datastore=wire.DatastoreAccess("/srv/data")).begins(1)


def test_a_drained_worker_rests_until_it_is_undrained() -> None:
    script = WorkerScript(cpus=1).on_duty()
    script.orders(1, 2).forget_all()
    script.hear(wire.Drain("maintenance")).returns(2)
    script.ends(1).stores(1).forget_all()
    script.wait(4.0).nothing_else()
    script.orders(3).returns(3, reason=wire.DRAINING).nothing_else()  # and does not ask to leave
    script.hear(wire.Undrain()).orders(4).begins(4)


def test_what_ran_and_is_given_back_is_reported_as_started_first() -> None:
    """Else the boss would give its ECLOUD_ATTEMPT to the next one."""
    script = WorkerScript().on_duty()
    script.orders(1).begins(1)
    script.handle(AttemptReturned(1, 1, "the machine shuts down", ran=True))
    assert [named.task_no for named in script.take(wire.TasksStarted).attempts] == [1]
    assert script.take(wire.TasksReturned).attempts == names_of(1)
    script.nothing_else()


def test_it_leaves_without_a_boss_once_what_runs_has_ended() -> None:
    script = WorkerScript(cpus=1).on_duty()
    script.orders(1).forget_all().lose()
    script.term().wait(60.0).nothing_else()
    script.ends(1).spools(1).nothing_else()
    script.wait(60.0).leaves().nothing_else()
    heir = script.reborn()
    heir.on_duty().says_ended(1)


@pytest.mark.parametrize("how", ["term twice", "exit"])
def test_at_once_means_at_once(how: str) -> None:
    script = WorkerScript(cpus=1).on_duty()
    script.orders(1).forget_all()
    if how == "exit":
        script.hear(wire.Exit("enough"))
    else:
        script.term().term().take(wire.DrainWanted)
    script.leaves().take(wire.Goodbye)
    script.nothing_else()


def test_a_worker_whose_home_is_a_copy_leaves_and_says_why() -> None:
    script = WorkerScript(cpus=1).on_duty()
    script.hear(wire.Refused("home_unsure", "say Hello again"))
    script.nothing_else()
    script.hear(wire.Refused("home", "worker w0 on one uses this home, and this one is a copy"))
    script.leaves(code=HOME_COPIED).take(wire.Goodbye)
    script.nothing_else()


def test_the_heir_of_a_home_tells_what_was_left() -> None:
    script = WorkerScript(cpus=2).on_duty()
    script.orders(1, 2).ends(1)
    heir = script.reborn()
    hello = heir.connect().hello()
    assert [(held.task_no, held.state) for held in hello.attempts] == [(1, "ended")]
    assert hello.home == "home-1"
    heir.welcome(hello).says_ended(1).beats(t1="ended")
    heir.stores(1).forgets(1).nothing_else()


def test_a_worker_that_heard_no_boss_for_long_leaves() -> None:
    script = WorkerScript(boss_gone_exit_s=100.0).on_duty()
    script.wait(99.0).forget_all()
    script.wait(2.0).leaves()


def test_a_machine_that_is_about_to_end_asks_to_be_drained() -> None:
    script = WorkerScript(lives_s=160.0).on_duty(lease_s=1000.0)
    script.orders(1, 2).begins(1).forget_all()
    script.wait(99.0).forget_all()
    assert script.wait(2.0).returns(2).take(wire.DrainWanted).reason == wire.MACHINE_ENDS


def test_each_hello_says_how_long_the_machine_still_lives() -> None:
    script = WorkerScript(lives_s=160.0).connect()
    assert script.hello().lives_s == 160.0
    script.lose().wait(40.0).connect()
    assert script.hello().lives_s == 120.0
    script.lose().wait(300.0).connect()
    assert script.hello().lives_s == 0.0


def test_the_wait_for_a_lease_costs_nothing() -> None:
    script = WorkerScript(cpus=1).on_duty(lease_s=12.0)
    script.orders(1, 2).begins(1).forget_all().lose().wait(1000.0)
    deadline = script.core.next_deadline()
    assert deadline is None or deadline > script.now


def test_while_small_results_are_staged_another_has_the_place() -> None:
    script = WorkerScript(cpus=1.0, gpus=("0",)).on_duty()
    script.orders(order(1), order(2)).begins(1).nothing_else()
    script.handle(CommandsEnded(1, 1)).begins(2).nothing_else()
    script.handle(CommandsEnded(1, 1)).nothing_else()
    assert {(item.task_no, item.state) for item in script.core.inventory} == {(1, "running"), (2, "running")}
    script.ends(2).spools(2).wait(FLUSH_S).says_ended(2).nothing_else()
    script.wait(STARTED_S).says_started(1).nothing_else()
    script.ends(1).spools(1).says_ended(1).nothing_else()
    assert script.core.attempts.free == dict(script.core.config.resources)


def test_a_bounded_number_stage_without_a_place() -> None:
    script = WorkerScript(cpus=1.0).on_duty()
    script.orders(*range(1, STAGING_MOST + 3)).begins(1)
    for task_no in range(1, STAGING_MOST + 1):
        script.handle(CommandsEnded(task_no, 1)).begins(task_no + 1)
    script.handle(CommandsEnded(STAGING_MOST + 1, 1)).begins()
    script.ends(1).begins()
    script.handle(CommandsEnded(STAGING_MOST + 1, 1)).begins(STAGING_MOST + 2)


def test_a_worker_reports_what_it_heard_last_and_starts_again_if_the_boss_lacks_it() -> None:
    script = WorkerScript(heard=(1, 5)).connect()
    assert (script.core.epoch, script.core.batch) == (1, 5)
    script.welcome(script.hello()).answers_heartbeat()
    script.hear(wire.Undrain(), batch=9).hear(wire.Undrain(), batch=8)
    script.lose().connect()
    hello = script.hello()
    assert (hello.epoch, hello.batch) == (1, 9)
    script.epoch = 30
    script.welcome(hello, other_history=True)
    assert script.done.leave is not None
    assert script.done.leave.anew
    assert "restored from a backup" in script.done.leave.reason
    script.leaves(code=0)
