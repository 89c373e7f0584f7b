"""Work whose results tell whether it was done right: each task's file is a hash over its name and the files of the
tasks it depends on, so one wrong or missing byte anywhere is seen in all that follows.

Owns the tasks and their checks: on files below the datastore's root, and on the rows of the database.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services import Daemon

from datastore.port import STAGING
from ecloud.db.database import make_engine
from ecloud.model.tasks import Dependency, Requirement, Result, TaskDefinition

FARTHEST = 40
"""A task depends on some of the tasks just before it: the graph is deep and wide."""


@dataclass
class Load:
    """Tasks, and what must be in which file at the end."""

    tasks: list[TaskDefinition] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Of the tasks."""
        return [task.id for task in self.tasks]


def random_load(seed: int, count: int, longest_s: float) -> Load:
    """`count` tasks drawn from a seed: most take a fraction of `longest_s`, most need files of others."""
    chance = random.Random(seed)
    load = Load()
    for index in range(count):
        near = load.names[-FARTHEST:]
        above = sorted(chance.sample(near, min(len(near), chance.choice([0, 1, 1, 1, 2, 3]))))
        load.tasks.append(hashing_task(f"t{index:05}", above, round(chance.uniform(0.0, longest_s), 3)))
        text = f"t{index:05}\n" + "".join(load.hashes[name] + "\n" for name in above)
        load.hashes[f"t{index:05}"] = hashlib.sha256(text.encode()).hexdigest()
    return load


def hashing_task(name: str, above: list[str], sleep_s: float) -> TaskDefinition:
    """A task that hashes its name and the files of those above it. It also says which attempt it was."""
    return TaskDefinition(
        id=name,
        commands=(
            f"sleep {sleep_s:g}",
            f"{{ echo {name}; {f'cat {chr(32).join(above)}' if above else 'true'}; }} | sha256sum | cut -c-64 > hash",
            "echo $ECLOUD_ATTEMPT > attempt",
        ),
        dependencies=tuple(map(Dependency, above)),
        requirements=tuple(Requirement(f"hash/{other}", other) for other in above),
        results=(Result("hash", f"hash/{name}"), Result("attempt", f"attempt/{name}")),
        runtime_s=sleep_s,
    )


# --- the database ---------------------------------------------------------------------------------


def rows(daemon: Daemon, query: str) -> list[tuple[Any, ...]]:
    """What the daemon's tables hold."""
    engine = make_engine(daemon.database_url)  # type: ignore[attr-defined]
    try:
        with engine.connect() as connection:
            return [tuple(map(_readable, row)) for row in connection.exec_driver_sql(query)]
    finally:
        engine.dispose()


def _readable(value: Any) -> Any:
    # Texts that are compared by byte are bytes to the driver.
    return value.decode() if isinstance(value, bytes) else value


def states(daemon: Daemon) -> Counter[str]:
    """How many tasks are in which state."""
    return Counter(dict(rows(daemon, "SELECT state, COUNT(*) FROM tasks GROUP BY state")))  # type: ignore[arg-type]


def succeeded(daemon: Daemon) -> int:
    """How many tasks have, where none has failed."""
    counts = states(daemon)
    bad = {state: counts[state] for state in ("failed", "aborted", "cancelled") if counts[state]}
    assert not bad, f"{bad}: {wrong_attempts(daemon)}"
    return counts["succeeded"]


def wrong_attempts(daemon: Daemon) -> list[tuple[Any, ...]]:
    """Attempts that ended otherwise than in success, the first few."""
    query = "SELECT t.id, a.number, a.worker, a.cause, a.error, a.stderr FROM attempts a JOIN tasks t USING (task_no)"
    return rows(daemon, f"{query} WHERE a.state = 'ended' AND a.cause <> 'success' LIMIT 5")


def each_attempt_has_one_outcome(daemon: Daemon, count: int) -> Counter[str]:
    """Every task: one attempt that succeeded, the last; all before it lost or given back. How many ended in which."""
    found = rows(daemon, "SELECT task_no, number, state, cause FROM attempts ORDER BY task_no, number")
    of_task: dict[int, list[tuple[int, str, str | None]]] = {}
    for task_no, number, state, cause in found:
        of_task.setdefault(task_no, []).append((number, state, cause))
    assert len(of_task) == count
    for task_no, attempts in of_task.items():
        assert [number for number, _, _ in attempts] == list(range(1, len(attempts) + 1)), (task_no, attempts)
        assert attempts[-1][1:] == ("ended", "success"), (task_no, attempts)
        assert all(state in ("lost", "returned") for _, state, _ in attempts[:-1]), (task_no, attempts)
    return Counter(state for _, _, state, _ in found)


# --- the files ------------------------------------------------------------------------------------


def results_are_right(daemon: Daemon, root: Path, load: Load) -> None:
    """Every file holds what it must, of the recorded attempt, and there is no other. `root`: the datastore's."""
    wrong = [name for name, text in load.hashes.items() if _text(root / "hash" / name) != text]
    assert not wrong, f"{len(wrong)} results are wrong: {wrong[:5]}"
    # $ECLOUD_ATTEMPT leaves out attempts that were given back before they started; all others count.
    query = "SELECT t.id, a.number, a.state, a.cause FROM attempts a JOIN tasks t USING (task_no)"
    counted: Counter[str] = Counter()
    recorded: dict[str, int] = {}
    for name, number, state, cause in rows(daemon, query):
        counted[name] += state != "returned"
        if cause == "success":
            recorded[name] = number
    found = {name: _text(root / "attempt" / name) for name in load.hashes}
    others = {
        name: (text, recorded[name])
        for name, text in found.items()
        if not counted[name] <= int(text or 0) <= recorded[name]
    }
    assert not others, f"files of an attempt that is not the recorded one (of which, recorded): {others}"
    for directory in ("hash", "attempt"):
        assert {path.name for path in (root / directory).iterdir()} == set(load.hashes)


def staged(root: Path) -> list[str]:
    """What is left in the staging area of the datastore."""
    staging = root / STAGING
    return sorted(str(path.relative_to(staging)) for path in staging.rglob("*"))


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        return f"{error}"
