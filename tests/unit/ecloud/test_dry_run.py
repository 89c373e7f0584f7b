"""What `--dry_run` says of a list: levels, width and the critical path."""

from __future__ import annotations

from ecloud.cli.dry_run import survey
from ecloud.model.tasks import Dependency, Requirement, Result, TaskDefinition


def task(name: str, *after: str, seconds: float | None = None, **fields: object) -> TaskDefinition:
    return TaskDefinition(name, dependencies=tuple(map(Dependency, after)), runtime_s=seconds, **fields)  # type: ignore[arg-type]


def test_levels_and_critical_path() -> None:
    plan = survey([task("a", seconds=1), task("b", "a", seconds=5), task("c", "a"), task("d", "b", "c", seconds=2)])
    assert (plan.levels, plan.width) == ([1, 2, 1], 2)
    assert (plan.critical_path, plan.critical_s, plan.total_s) == (["a", "b", "d"], 8.0, 9.0)
    assert (plan.guessed, plan.dependencies, plan.first, plan.last) == (1, 4, "a", "d")


def test_tasks_without_edges_are_in_the_first_level() -> None:
    plan = survey([task("a"), task("b", "a"), task("x"), task("long", seconds=60)])
    assert plan.levels == [3, 1]
    assert plan.critical_path == ["long"]


def test_no_edges_at_all_and_init_tasks_apart() -> None:
    plan = survey([task("i", init=True), task("a"), task("b")])
    assert (plan.levels, plan.inits, plan.tasks, plan.critical_s) == ([2], 1, 2, 1.0)
    assert survey([task("i", init=True)]).levels == []


def test_inputs_that_no_task_makes() -> None:
    wants = tuple(Requirement(path, path) for path in ("made/x", "made", "out", "up/file", "lone"))
    plan = survey(
        [task("m", results=(Result("made", "made"), Result("o", "out/y"))), task("u", "m", requirements=wants)]
    )
    assert plan.missing_inputs == ["up/file", "lone"]
