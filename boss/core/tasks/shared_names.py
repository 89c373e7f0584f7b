"""Result names that become known only when tasks run (matches of globs, files in merged directories), and which task
published which.

If two tasks of one run publish the same name, the second would overwrite the first: it fails instead, and its reason
names both. Owns the names published since the boss started, or since the run last changed: because of this limit some
conflicts are missed, but no task fails wrongly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ecloud.formats.paths import is_glob, matches_pattern, pattern_of
from ecloud.model.tasks import ManifestEntry, Result

MAX_NAMES = 1_000_000
"""Names remembered for all runs, about 150 MB. Beyond it, the run that published first is forgotten."""


class SharedNames:
    """Published names by run."""

    def __init__(self) -> None:
        self._publishers: dict[int, dict[str, str]] = {}
        self._names: dict[int, dict[str, tuple[str, ...]]] = {}
        self._count = 0

    def claim(self, run_no: int, task: str, manifest: Sequence[ManifestEntry], results: Iterable[Result]) -> str | None:
        """A sentence if another task of the run has published one of these names; else they are this task's."""
        names = shared_names(manifest, results)
        if not names:
            return None
        publishers = self._publishers.setdefault(run_no, {})
        for name in names:
            other = publishers.get(name, task)
            if other != task:
                return (
                    f"result {name!r} of task {task} was published by task {other} of the same run: "
                    "results that globs match, or that share a merged directory, need different names"
                )
        before = self._names.setdefault(run_no, {})
        for name in before.get(task, ()):
            del publishers[name]
        self._count += len(names) - len(before.get(task, ()))
        before[task] = names
        publishers.update(dict.fromkeys(names, task))
        while self._count > MAX_NAMES and len(self._names) > 1:
            self.forget(next(iter(self._names)))
        return None

    def forget(self, run_no: int) -> None:
        """The run changes: its tasks may publish these names again."""
        self._publishers.pop(run_no, None)
        self._count -= sum(map(len, self._names.pop(run_no, {}).values()))

    def check(self) -> None:
        """Check invariants, for tests."""
        assert self._count == sum(len(names) for tasks in self._names.values() for names in tasks.values())
        for run_no, tasks in self._names.items():
            named = {name: task for task, names in tasks.items() for name in names}
            assert self._publishers[run_no] == named, run_no


def shared_names(manifest: Sequence[ManifestEntry], results: Iterable[Result]) -> tuple[str, ...]:
    """Files of the manifest that a glob matched, or that go into a merged directory. Omits explicitly named results."""
    globs = [(() if result.path == "." else tuple(result.path.split("/")), pattern_of(result.local))
             for result in results if is_glob(result.local)]  # fmt: skip
    merged = [result.path + "/" for result in results if result.merge]
    if not (globs or merged):
        return ()
    found: dict[str, None] = {}
    for entry in manifest:
        if entry.kind == "directory":
            continue
        parts = entry.path.split("/")
        if any(entry.path.startswith(top) for top in merged) or any(
            tuple(parts[: len(top)]) == top
            and parts[len(top) : len(top) + len(pattern)] != pattern
            and matches_pattern(parts[len(top) :], pattern)
            for top, pattern in globs
        ):
            found[entry.path] = None
    return tuple(found)
