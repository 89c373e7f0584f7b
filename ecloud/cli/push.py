"""Implementation of `push_tasks.py`: reads a list, pushes it to a cluster or runs it here, watches it, prints a
summary."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from datastore.port import DatastoreAway, Publisher
from datastore.problem import DONE, INTERRUPTED, NOT_ALL_SUCCEEDED, Problem
from ecloud.cli import app
from ecloud.cli.run_summary import tell_end
from ecloud.cli.task_source import Source, read
from ecloud.config import this_host
from ecloud.config.settings import Settings, default_pools, load_settings

if TYPE_CHECKING:
    from ecloud.cli.local_cluster import LocalCluster
    from ecloud.cli.progress import Progress
    from ecloud.cli.stale import Stale
    from ecloud.client.client import Client
    from ecloud.formats import TaskList
    from ecloud.model.wire import RunAccepted, RunChanged

DEFAULT_DATASTORE = "ecloud-data"
PAGES_AFTER_S = 8.0
"""A local run that a user watches for this long gets web pages; shorter ones are not slowed down by them."""


class Wish(msgspec.Struct, frozen=True):
    """The options of `push_tasks.py`. `local`: workers on this machine, 0 for one per core, None for the cluster."""

    source: Source
    wait: bool = False
    local: int | None = None
    datastore: str | None = None
    merge_strategy: str = "keep_succeeded"
    skip_existing: bool = False
    rerun_changed: bool = False
    create_workers: int | None = None
    upload: str | None = None
    after: str | None = None
    keep_dirs: bool = False
    vm_hours: float | None = None
    monitor: bool = False
    dry_run: bool = False
    as_json: bool = False


class RunDropped(Problem):
    """The watched run was dropped."""

    exit_code = NOT_ALL_SUCCEEDED


def push(wish: Wish) -> int:
    """Carry out the options; returns the exit code. Raises the errors that `app.problem_of` knows."""
    if wish.local is None and wish.datastore is not None:
        raise Problem("--datastore goes with --local; the cluster's is set with python admin.py set_datastore")
    if wish.local is not None and wish.create_workers is not None:
        raise Problem("--create_workers starts workers of the cluster; with --local set their number by --local N")
    if wish.local is not None and wish.after is not None:
        raise Problem("--after names a run of the cluster; with --local there is only this run")
    if wish.monitor and wish.local is None:
        raise Problem("--monitor goes with --local; for a cluster use python admin.py monitor")
    if wish.rerun_changed and wish.local is not None:
        raise Problem("--rerun_changed checks earlier successes of the cluster; with --local every task runs")
    if wish.rerun_changed and os.environ.get("ECLOUD_ACCESS"):
        raise Problem("--rerun_changed reads the database of the boss: run it on the boss's machine")
    if wish.upload is not None and not Path(wish.upload).is_dir():
        raise Problem(f"--upload {wish.upload}: there is no such directory")
    settings = load_settings()
    # These options need single tasks: to check which results exist, or to show their dependencies.
    source = msgspec.structs.replace(wish.source, plain_arrays=wish.skip_existing or wish.dry_run)
    tasks = read(source, settings)
    for note in tasks.notes:
        print(f"note: {note}", file=sys.stderr)
    if wish.dry_run:
        return show_plan(tasks, wish)
    if wish.local is not None:
        return _run_here(wish, tasks)
    return _push_to_cluster(wish, tasks, settings)


def show_plan(tasks: TaskList, wish: Wish) -> int:
    """Print what would run, without running it."""
    from ecloud.cli.dry_run import survey
    from ecloud.cli.tables import print_json, some
    from ecloud.model.text import counted, duration, visible

    plan = survey(tasks.tasks)
    if wish.as_json:
        print_json({"run": tasks.name, **msgspec.structs.asdict(plan)})
        return DONE
    print(
        f"run {tasks.name}: {counted(plan.tasks, 'task')}, {counted(plan.dependencies, 'dependency', 'dependencies')}"
    )
    for which, task in zip(("first", "last"), (tasks.tasks[0], tasks.tasks[-1])):
        print(f"{which}: {task.id}: {visible(' … '.join(task.commands))[:200]}")
    if plan.inits:
        print(f"init tasks, once in each worker: {plan.inits}")
    levels = ", ".join(f"{count:,}" for count in plan.levels[:20]) + (", …" if len(plan.levels) > 20 else "")
    print(f"levels: {len(plan.levels)} ({levels}); width: {plan.width:,} at once")
    guess = f" ({counted(plan.guessed, 'task')} without runtime_s counted as 1 s)" if plan.guessed else ""
    print(f"critical path: {duration(plan.critical_s)} of {duration(plan.total_s)} in all{guess}")
    print(f"  {some(plan.critical_path, 12)}")
    print(f"files: {plan.requirements:,} required, {plan.results:,} made")
    if plan.missing_inputs:
        print(f"must be in the datastore before: {some(plan.missing_inputs, 8)}")
    return DONE


# --- on the cluster ---------------------------------------------------------------------------------


def _push_to_cluster(wish: Wish, tasks: TaskList, settings: Settings) -> int:
    from ecloud.cli.progress import Progress
    from ecloud.formats.arrays import count_of

    with app.boss(settings) as client, Progress(app.console(to_stderr=True), count_of(tasks.tasks)) as progress:
        client.on_trouble = progress.trouble
        try:
            if wish.after is not None:
                _wait_for_end(wish.after, client)
            _prepare(wish, tasks, settings, client)
            tasks = _with_short_bodies(tasks, settings, client)
            accepted = _hand_over(wish, tasks, client, progress)
            stale = _look_for_stale(wish, accepted, client, settings)
            if stale is not None and stale.redone:
                kept = max(0, accepted.states.get("succeeded", 0) - stale.redone)
                accepted = msgspec.structs.replace(accepted, states={**accepted.states, "succeeded": kept})
            if wish.create_workers:
                answer = client.request("instantiate_worker", n=wish.create_workers)
                print(f"workers: {answer.text}", file=sys.stderr)
        except KeyboardInterrupt:
            print("\ninterrupted before the boss answered: pushing the same file again is harmless", file=sys.stderr)
            return INTERRUPTED
        if not wish.wait:
            progress.close()
            _tell_accepted(accepted, wish, stale)
            return DONE
        try:
            last = _watch(client, accepted, progress)
        except KeyboardInterrupt:
            text = (
                f"\nrun {accepted.run} continues; to watch it: python admin.py status --watch, "
                f"to stop it: python admin.py cancel --run {shlex.quote(accepted.run)}"
            )
            print(app.as_typed(text), file=sys.stderr)
            return INTERRUPTED
        except RunDropped as dropped:
            if wish.as_json:
                from ecloud.cli.tables import print_json

                print_json({"run": accepted.run, "states": {}, "dropped": True, "error": str(dropped)})
            raise
        progress.close()
        return tell_end(tasks, accepted, last, progress, wish.as_json, settings, client)


def _wait_for_end(run: str, client: Client) -> None:
    """Wait until all tasks of a run have ended, whatever their states. Raises `RequestRefused`."""
    told = False
    for picture in client.watch(run):
        if picture.over:
            return
        if not told:
            told = True
            print(f"waiting for run {run} to end", file=sys.stderr, flush=True)


def _prepare(wish: Wish, tasks: TaskList, settings: Settings, client: Client) -> None:
    """Upload or make files that must be in the datastore before the tasks."""
    if wish.upload is None and not tasks.uploads and not (wish.source.scale is not None and tasks.initial_inputs):
        return
    from ecloud.cli.files import make_initial_inputs, open_datastore, upload
    from ecloud.model.text import counted

    datastore = open_datastore(settings, client.datastore_address, client.request)
    if wish.upload is not None:
        sent, there = upload(Path(wish.upload), datastore)
        print(f"uploaded {counted(sent, 'file')}, {there:,} were there", file=sys.stderr)
    if tasks.uploads:
        sent, there = upload(Path(), datastore, only=tasks.uploads)
        print(f"uploaded {counted(sent, 'file')}, {there:,} were there", file=sys.stderr)
    if wish.source.scale is not None and tasks.initial_inputs:
        made = make_initial_inputs(tasks.initial_inputs, wish.source.scale, datastore)
        print(f"made {made:,} initial input files", file=sys.stderr)


def _with_short_bodies(tasks: TaskList, settings: Settings, client: Client) -> TaskList:
    """The list for a cluster whose broker and database may take short messages and rows only."""
    from ecloud.cli.files import open_datastore
    from ecloud.cli.long_bodies import move_long_bodies

    def opened() -> Publisher:
        return open_datastore(settings, client.datastore_address, client.request)

    return msgspec.structs.replace(tasks, tasks=move_long_bodies(tasks.tasks, opened))


def _hand_over(wish: Wish, tasks: TaskList, client: Client, progress: Progress) -> RunAccepted:
    from ecloud.formats.arrays import split_arrays
    from ecloud.model.wire import PushOptions

    options = PushOptions(tasks.name, wish.merge_strategy, wish.skip_existing, wish.keep_dirs, wish.vm_hours)
    return client.push(split_arrays(tasks.tasks), options, progress.pushed)


def _look_for_stale(wish: Wish, accepted: RunAccepted, client: Client, settings: Settings) -> Stale | None:
    """Find tasks that are kept as succeeded but whose files have changed; None if this cannot be checked."""
    from ecloud.cli.stale import tell_or_redo
    from ecloud.db.database import DatabaseAway, SchemaWrong

    if not accepted.decisions.get("kept") or os.environ.get("ECLOUD_ACCESS"):
        return None
    try:
        return tell_or_redo(client, settings, accepted.run, wish.rerun_changed)
    except (DatabaseAway, SchemaWrong, DatastoreAway) as error:
        if wish.rerun_changed:
            raise
        print(f"earlier successes were not checked: {error}", file=sys.stderr)
        return None


def _tell_accepted(accepted: RunAccepted, wish: Wish, stale: Stale | None) -> None:
    from ecloud.cli.tables import counts, print_json

    if wish.as_json:
        document = {"run": accepted.run, "states": accepted.states, "decisions": accepted.decisions}
        print_json(document if stale is None else {**document, "changed": stale.changed, "gone": stale.gone})
        return
    decisions = ", ".join(f"{count:,} {name}" for name, count in accepted.decisions.items() if count)
    print(f"run {accepted.run}: {decisions or 'nothing to do'}; now {counts(accepted.states).plain}")
    print("to watch it: python admin.py status --watch")


def _watch(
    client: Client, accepted: RunAccepted, progress: Progress, look: Callable[[], None] = lambda: None
) -> RunChanged:
    """Show progress until the run has ended or is held; calls `look` regularly. Raises `Problem` if the run is dropped
    meanwhile."""
    from ecloud.client.client import RequestRefused

    try:
        for picture in client.watch(accepted.run):
            progress.changed(picture)
            look()
            if picture.over or picture.held:
                return picture
    except RequestRefused as refused:
        if refused.code != "no_such_run":
            raise
        text = f"run {accepted.run} was deleted while you watched it"
        raise RunDropped(text, "push it again to run it") from None
    raise AssertionError("a watch ends only with a run")


# --- here -------------------------------------------------------------------------------------------


def _run_here(wish: Wish, tasks: TaskList) -> int:
    from ecloud.cli.local_cluster import LocalCluster

    workers = wish.local or int(this_host.cpus())
    _require_room(tasks, workers)
    datastore = Path(wish.datastore or DEFAULT_DATASTORE)
    cluster = LocalCluster(datastore, workers, wish.keep_dirs)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        return _run_on(cluster, wish, tasks)
    except KeyboardInterrupt:
        print("\nstopping (Ctrl-C again: immediately)", file=sys.stderr)
        _tell_interrupted(cluster, wish, tasks)
        return INTERRUPTED
    finally:
        _stop(cluster)
        if wish.keep_dirs and cluster.kept.exists():
            print(f"working directories in {cluster.kept}", file=sys.stderr)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _stop(cluster: LocalCluster) -> None:
    try:
        cluster.stop()
    except KeyboardInterrupt:
        cluster.stop()  # the interrupted call has killed the boss; this call cleans up


def _run_on(cluster: LocalCluster, wish: Wish, tasks: TaskList) -> int:
    from ecloud.cli.progress import Progress
    from ecloud.client.client import Client
    from ecloud.formats.arrays import count_of

    with (
        Progress(app.console(to_stderr=True), count_of(tasks.tasks)) as progress,
        Client(cluster.start(), progress.trouble, cluster.require) as client,
    ):
        client.connect()
        _prepare(wish, tasks, cluster.settings, client)
        accepted = _hand_over(wish, tasks, client, progress)
        last = _watch(client, accepted, progress, _Pages(cluster, progress, wish.monitor).look)
        progress.close()
        output = _kept_output(cluster, last.run, Path(wish.datastore or DEFAULT_DATASTORE))
        return tell_end(
            tasks, accepted, last, progress, wish.as_json, cluster.settings, client, output,
            is_removed=True,
        )  # fmt: skip


class _Pages:
    """The web pages of a local cluster: started on request, or after a user has watched for a while."""

    def __init__(self, cluster: LocalCluster, progress: Progress, wanted: bool) -> None:
        self._cluster = cluster
        self._progress = progress
        self._after_s = 0.0 if wanted else PAGES_AFTER_S
        self._is_wanted = wanted or sys.stderr.isatty()
        self._told = False

    def look(self) -> None:
        """Start the pages when it is time, and print their address once."""
        if self._told or not self._is_wanted or self._progress.elapsed_s < self._after_s:
            return
        self._cluster.start_monitor()
        if url := self._cluster.monitor_url():
            self._told = True
            self._progress.note(f"monitor: {url}")


def _kept_output(cluster: LocalCluster, run: str, directory: Path) -> Path | None:
    """Return the file with the tasks' output; None if there is no output or it cannot be kept."""
    from ecloud.cli.local_output import keep_output
    from ecloud.db.database import DatabaseAway, SchemaWrong
    from ecloud.queries.status import open_database

    try:
        return keep_output(open_database(cluster.settings), run, directory)
    except (OSError, DatabaseAway, SchemaWrong) as error:
        print(f"the tasks' output could not be kept: {error}", file=sys.stderr)
        return None


def _require_room(tasks: TaskList, workers: int) -> None:
    """Check that this machine can run every task; otherwise the run would wait forever. Raises `Problem`, which names
    every such task."""
    from ecloud.model.text import amounts
    from ecloud.queries.why import pools_of

    offers = [pool.offers for pool in pools_of(Settings(pools=default_pools(workers)))]
    problems = []
    for task in tasks.tasks:
        if not any(all(offer.get(name, 0.0) >= amount for name, amount in task.asks.items()) for offer in offers):
            problems.append(f"task {task.id}: resources: it asks for {amounts(task.asks)}")
    if problems:
        largest = amounts(offers[-1])
        rest = [f"and {len(problems) - 20:,} more"] if len(problems) > 20 else []
        advice = f"the largest worker here has {largest}; use --local N with a larger N for a worker with N cpus"
        raise Problem([*problems[:20], *rest, advice])


def _tell_interrupted(cluster: LocalCluster, wish: Wish, tasks: TaskList) -> None:
    from ecloud.cli.tables import counts
    from ecloud.queries.status import open_database, run_status

    with contextlib.suppress(Exception):
        states = run_status(open_database(cluster.settings), tasks.name).states
        print(f"run {tasks.name}: {counts(states).plain}", file=sys.stderr)
        output = _kept_output(cluster, tasks.name, cluster.datastore)
        if output:
            print(f"what the tasks printed: {output}", file=sys.stderr)
    print(
        f"results so far are in {cluster.datastore.absolute()}; to continue: the same command with --skip_existing "
        "(tasks whose results all exist are not run again)",
        file=sys.stderr,
    )
