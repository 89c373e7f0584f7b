"""What a worker may publish: what its task declares, and nothing else."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from boss.core.tasks.manifests import declared_results, not_staged, undeclared
from ecloud.model.tasks import ManifestEntry, Result, TaskDefinition
from worker.shell.results import matches


def told(path: str, *results: tuple[str, str]) -> bool:
    return undeclared([ManifestEntry(path)], [Result(*result) for result in results]) is None


@pytest.mark.parametrize(("path", "result"), [
    ("out", ("out", "out")), ("final/out", ("out", "final/out")), ("made/a/b", ("dir", "made")),
    ("x.dat", ("*.dat", ".")), ("parts/x.dat", ("*.dat", "parts")), ("parts/x.dat/deep", ("*.dat", "parts")),
    ("c/x.png", ("a/b/*.png", "c")), ("c/d/x.png", ("a/*/x.png", "c")), ("all/a/b/c.txt", ("**/*.txt", "all")),
    ("all/c.txt", ("**/*.txt", "all")), ("all/a/b", ("**", "all")), ("f1", ("f[12]", ".")),
    ("f[12]", ("f[12]", ".")), ("d/f[12]", ("f[12]", "d")), ("renamed", ("f[12]", "renamed")),
    ("r[1]/x", ("r[1]", ".")),
])  # fmt: skip
def test_what_a_result_explains(path: str, result: tuple[str, str]) -> None:
    assert told(path, ("else", "else"), result)


@pytest.mark.parametrize(("path", "result"), [
    ("other", ("out", "out")),
    ("outer", ("out", "out")), ("out", ("out", "final/out")), ("final", ("out", "final/out")),
    ("x.exe", ("*.dat", ".")), ("other/x.dat", ("*.dat", "parts")), ("parts/y", ("*.dat", "parts")),
    ("made/../other", ("dir", "made")), ("../out", ("*", ".")), ("c/d/x.png", ("a/b/*.png", "c")),
    ("all/c.exe", ("**/*.txt", "all")), ("f3", ("f[12]", ".")), ("", ("*", "d")),
])  # fmt: skip
def test_what_it_does_not(path: str, result: tuple[str, str]) -> None:
    assert not told(path, result)


def lacks(paths: list[str], *results: Result) -> str | None:
    return not_staged([ManifestEntry(path) for path in paths], results)


@pytest.mark.parametrize(("paths", "result"), [
    (["out"], ("out", "out")), (["final/out"], ("out", "final/out")), (["made", "made/a"], ("dir", "made")),
    (["made/a"], ("dir", "made")), (["x.dat"], ("*.dat", ".")), (["parts/x.dat"], ("*.dat", "parts")),
    (["c/d/x.png"], ("a/*/x.png", "c")), (["all/a/b/c.txt"], ("**/*.txt", "all")), (["renamed"], ("f[12]", "renamed")),
    (["anything"], ("dir", ".")),
])  # fmt: skip
def test_a_success_with_something_of_a_result_has_it(paths: list[str], result: tuple[str, str]) -> None:
    assert lacks(["else", *paths], Result("else", "else"), Result(*result)) is None


@pytest.mark.parametrize(("paths", "result"), [
    ([], ("out", "out")), (["out"], ("out", "final/out")), (["outer"], ("out", "out")),
    (["final"], ("out", "final/out")),
    (["out/deep"], ("o", "out/deeper")), ([], ("*.dat", ".")), (["x.exe"], ("*.dat", ".")),
    (["x.dat"], ("*.dat", "parts")), (["parts/x.exe"], ("*.dat", "parts")), (["parts2/x.dat"], ("*.dat", "parts")),
    (["all/c.exe"], ("**/*.txt", "all")),
])  # fmt: skip
def test_a_success_with_nothing_of_a_result_is_none(paths: list[str], result: tuple[str, str]) -> None:
    sentence = f"its worker reported success without result {result[0]!r}, which the task declares"
    assert lacks(["else", *paths], Result("else", "else"), Result(*result)) == sentence
    assert lacks(["else", *paths], Result(*result), Result("else", "else")) == sentence, "in any order"


def test_a_directory_that_is_merged_with_others_may_be_empty() -> None:
    assert lacks([], Result("dir", "made", merge=True)) is None
    assert lacks([], Result("dir", "made", merge=True), Result("out", "out")) is not None


def test_no_entry_needs_no_result_and_without_results_none_may_be_there() -> None:
    assert undeclared([], []) is None
    assert undeclared([ManifestEntry("out")], []) == (
        "its worker staged 'out', which is not a result that the task declares"
    )


def test_the_results_in_a_stored_definition() -> None:
    results = (Result("a", "b"), Result("*.dat", "parts"))
    assert declared_results(msgspec.json.encode(TaskDefinition("1", ("true",), results=results))) == results
    assert declared_results(msgspec.json.encode(TaskDefinition("2", ("true",)))) == ()


@pytest.mark.parametrize("pattern", ["*", "*/*", "**", "**/*.c", "a/**", "a/*", "[ab]/x.c", "a/b/?.c"])
@pytest.mark.parametrize("to", [".", "there", "the/re"])
def test_whatever_a_worker_finds_is_explained(tmp_path: Path, pattern: str, to: str) -> None:
    for name in ("x.c", "a/x.c", "a/b/y.c", "a/b/c/z.c", "b/x.c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    result = Result(pattern, to)
    found = [path.rstrip("/") for _, path in matches(result, tmp_path) if path]
    assert found
    assert [path for path in found if undeclared([ManifestEntry(path)], [result])] == []
