"""Runs with tasks that nothing can run: those who watch them hear the reason, and `status` knows it."""

from __future__ import annotations

from boss_script import BossScript, task

from ecloud.model import wire


def test_who_watches_hears_what_a_task_lacks() -> None:
    script = BossScript()
    script.worker("w1", cpus=2)
    script.push("r", task("gpu", resources={"gpus": 1.0}), task("lic", resources={"matlab": 1.0}))
    script.ask("watch", run="r")
    picture = script.take(script.client(), wire.RunChanged)
    assert picture.waits == (
        "task gpu needs 1 gpu; the largest worker has 0 gpus, no pool has any; "
        "nothing can run 1 other task of the run either"
    )
    assert [text for name, text in script.store.load().context.items() if name.startswith("unrunnable/")] == [
        picture.waits
    ]


def test_the_reason_goes_when_a_worker_comes_that_can_run_it() -> None:
    script = BossScript()
    script.worker("w1")
    script.push("r", task("gpu", resources={"gpus": 1.0}))
    script.wait(2.0)
    assert script.boss.unrunnable.texts
    script.worker("w2", gpus=1.0)
    script.wait(2.0)
    assert not script.boss.unrunnable.texts
    assert not [name for name in script.store.load().context if name.startswith("unrunnable/")]


def test_a_task_that_only_waits_its_turn_is_no_such_task() -> None:
    script = BossScript().pool("p", maximum=1, cpus=4.0)
    script.worker("w1")
    script.push("r", task("a"), task("b"), task("later", resources={"cpus": 4.0}))
    script.wait(2.0)
    assert not script.boss.unrunnable.texts
