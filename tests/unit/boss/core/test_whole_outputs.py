"""Outputs of failed attempts are published, none of their other results, and the task fails for its own reason."""

from __future__ import annotations

import msgspec
from boss_script import BossScript, task

from boss.core.model.effects import DropStages, PromoteFiles
from boss.core.model.events import FilesPromoted
from ecloud.model.tasks import Cause, ManifestEntry, TaskDefinition


def kept(name: str, **fields: object) -> TaskDefinition:
    return msgspec.structs.replace(task(name, results=(f"out-{name}",), **fields), stdout="logs/%t.%a")


def test_a_failed_attempt_publishes_its_output_alone_and_fails_afterwards() -> None:
    script = BossScript()
    w1 = script.worker("w1", cpus=3)
    script.push("r", kept("a"), kept("b"), kept("c"))
    script.starts(w1, "a", "b", "c").started(w1, "a", "b", "c")
    script.ended(w1, "a", cause=Cause.EXIT, error="exit 3", manifest=(ManifestEntry("logs/a.1", 1, "aa"),))
    call = script.call(PromoteFiles)
    assert call.promotions[0].manifest == (ManifestEntry("logs/a.1", 1, "aa"),)
    script.handle(FilesPromoted(((*script.key("a"), None),)))
    script.states(a="failed")
    assert script.store.tasks[script.names["a"]].reason == "exit 3"
    script.ended(w1, "b", cause=Cause.EXIT, error="exit 4", manifest=(ManifestEntry("out-b", 1, "aa"),)).states(
        b="failed"
    )
    assert script.store.tasks[script.names["b"]].reason == "exit 4", "results of a failure are dropped"
    assert script.call(DropStages).stages == (f"w1/{script.names['b']}-1",)
    script.ended(w1, "c", manifest=(ManifestEntry("logs/c.2", 1, "aa"),)).states(c="failed")
    assert "not a result that" in script.store.tasks[script.names["c"]].reason, "the output of another attempt"
