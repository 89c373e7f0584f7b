"""Two tasks of one run whose globs match the same name: the second fails, and its error names the first."""

from __future__ import annotations

import msgspec
from boss_script import BossScript, task

from boss.core.model.effects import DropStages, PromoteFiles
from boss.core.tasks.shared_names import SharedNames, shared_names
from ecloud.model.tasks import ManifestEntry, Result, TaskDefinition

GLOB = (Result("*.png", "out"),)


def globs(name: str) -> TaskDefinition:
    return msgspec.structs.replace(task(name), results=GLOB)


def files(*names: str) -> tuple[ManifestEntry, ...]:
    return tuple(ManifestEntry(name, 1, "aa") for name in names)


def test_the_second_of_two_tasks_fails_and_both_are_named() -> None:
    script = BossScript()
    w1 = script.worker("w1", cpus=3)
    script.push("r", globs("a"), globs("b"), globs("c"))
    script.starts(w1, "a", "b", "c").started(w1, "a", "b", "c")
    script.ended(w1, "a", manifest=files("out/x.png"))
    assert script.call(PromoteFiles).promotions[0].manifest == files("out/x.png")
    script.ended(w1, "b", manifest=files("out/y.png", "out/x.png")).states(b="failed")
    assert script.store.tasks[script.names["b"]].reason == (
        "result 'out/x.png' of task b was published by task a of the same run: "
        "results that globs match, or that share a merged directory, need different names"
    )
    assert script.call(DropStages).stages == (f"w1/{script.names['b']}-1",)
    script.ended(w1, "c", manifest=files("out/z.png"))
    assert script.call(PromoteFiles).promotions[0].manifest == files("out/z.png")


def test_the_same_task_may_publish_again_and_others_what_it_no_longer_does() -> None:
    names = SharedNames()
    assert names.claim(1, "a", files("out/x.png", "out/y.png"), GLOB) is None
    assert names.claim(2, "b", files("out/x.png"), GLOB) is None, "another run"
    assert "task a" in (names.claim(1, "b", files("out/y.png"), GLOB) or "")
    assert names.claim(1, "a", files("out/x.png"), GLOB) is None
    assert names.claim(1, "b", files("out/y.png"), GLOB) is None
    names.check()
    names.forget(1)
    assert names.claim(1, "c", files("out/x.png", "out/y.png"), GLOB) is None
    names.check()


def test_which_names_are_shared() -> None:
    merged = Result("data", "data", merge=True)
    found = shared_names(
        (ManifestEntry("out", kind="directory"), *files("out/x.png", "out/d/x.png", "named", "data/a", "out/*.png")),
        (*GLOB, Result("named", "named"), merged),
    )
    assert found == ("out/x.png", "data/a"), "a file that is called like the pattern is named exactly"
