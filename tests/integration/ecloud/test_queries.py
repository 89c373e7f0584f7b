"""What people ask of a filled store, on both kinds of database: counts, lists, and why a task stands as it does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from sqlalchemy.engine import Engine

from boss.core.model.rows import AttemptRow, BootRow, PoolRow, RunRow, StoredTasks, VmRow, WorkerRow, Writes
from boss.core.tasks.merging import new_task
from boss.store.store import Store
from ecloud.db.database import make_engine, migrate
from ecloud.model.boot_diagnosis import Visit
from ecloud.model.tasks import AttemptState, Cause, Condition, Dependency, Outcome, TaskDefinition, TaskState
from ecloud.model.vm_states import VmState
from ecloud.model.wire import Hello
from ecloud.queries import status as queries
from ecloud.queries.lookup import NoSuchTask, task
from ecloud.queries.views import Reasons, Status
from ecloud.queries.why import NoSuchThing, why
from ecloud.queries.why_task import Pool

SUCCESS, FAILURE = Condition.SUCCESS, Condition.FAILURE
POOLS = (Pool("local", {"cpus": 1.0, "memory_mb": 2_000.0}, 2), Pool("whole", {"cpus": 4.0, "memory_mb": 8_000.0}, 1))


class Cluster:
    """A store that is filled as a boss would fill it; `now` is when people ask."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        # A server tells a leader's silence by its own clock: the story happens at the present time.
        self.now = time.time()
        self.store = Store(engine)
        self.store.lead("pid 7 on node0", self.now)
        self._tasks = 0

    def write(self, **fields: Any) -> None:
        """Commit a batch, 100 s ago; the boss has been heard since."""
        self.store.commit(self.store.last_batch() + 1, Writes(**fields), self.now - 100)
        self.store.renew(self.now)

    def run(self, run_no: int, name: str, **fields: Any) -> None:
        """A run."""
        self.write(runs={run_no: RunRow(run_no, name, self.now - 1_000, **fields)})

    def task(
        self, id: str, state: TaskState, run_no: int = 1, after: dict[int, Condition] | None = None, **more: Any
    ) -> int:
        """A task in a state; its number. `attempt`: its only one. Other fields are the row's or the definition's."""
        self._tasks += 1
        attempt: AttemptRow | None = more.pop("attempt", None)
        row_fields = {name: more.pop(name) for name in ("reason", "not_before", "retries_used") if name in more}
        dependencies = tuple(Dependency(str(number), on) for number, on in (after or {}).items())
        definition = TaskDefinition(id, ("true",), dependencies=dependencies, **more)
        task = new_task(definition, self._tasks, run_no, keep_dir=False)
        task.row = msgspec.structs.replace(
            task.row,
            state=state,
            dependencies=tuple((after or {}).items()),
            attempts=attempt.number if attempt is not None else 0,
            **row_fields,
        )
        attempts = {}
        if attempt is not None:
            outcome = attempt.outcome and msgspec.structs.replace(
                attempt.outcome, task_no=self._tasks, number=attempt.number
            )
            attempt = msgspec.structs.replace(attempt, task_no=self._tasks, run_no=run_no, outcome=outcome)
            attempts = {(self._tasks, attempt.number): attempt}
        self.write(stored=StoredTasks([task]), attempts=attempts)
        return self._tasks

    def attempt(self, worker: str, state: AttemptState, number: int = 1, **outcome: Any) -> AttemptRow:
        """An attempt that began 60 s ago; with an outcome it ended 5 s ago."""
        ended = Outcome(0, number, **outcome) if outcome else None
        started_at = None if state is AttemptState.ASSIGNED else self.now - 58
        ended_at = self.now - 5 if state is AttemptState.ENDED else None
        return AttemptRow(0, number, 0, worker, state, self.now - 60, started_at, ended_at, "", ended)

    def worker(self, name: str, state: str = "up", cpus: float = 1.0, **fields: Any) -> None:
        """A worker on a host of its own."""
        hello = Hello("n", "worker", host=f"host-of-{name}", home=f"home-of-{name}", resources={"cpus": cpus}, pid=5)
        row = WorkerRow(name, "client", state, self.now - 600, self.now - 1, hello, **fields)
        self.write(workers={name: row})

    def vm(self, vm_no: int, state: str, **fields: Any) -> None:
        """A VM of pool local, asked for 200 s ago."""
        fields = {"pool": "local", "since": self.now - 100, "intended_at": self.now - 200, **fields}
        self.write(vms={vm_no: VmRow(vm_no, state=VmState(state), size={"cpus": 1.0}, **{"boot_nonce": "n", **fields})})

    def status(self) -> Status:
        """Everything on one screen."""
        return queries.status(self.engine, self.now)

    def why(self, subject: str, run: str = "") -> Reasons:
        """Why it stands where it stands."""
        return why(self.engine, subject, run, POOLS, self.now)


@pytest.fixture
def story(engine: Engine) -> Cluster:
    """A boss that leads, and nothing else."""
    return Cluster(engine)


@pytest.fixture(scope="module", params=["sqlite", "mariadb"])
def film(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A filled store for those who only look."""
    sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path_factory.mktemp('film')}/film.db"
    engine = make_engine(url if sqlite else request.getfixturevalue("mariadb").new_url())
    migrate(engine)
    yield fill(Cluster(engine))
    engine.dispose()


@pytest.fixture
def own_film(story: Cluster) -> Cluster:
    """The same for those who change it."""
    return fill(story)


def fill(story: Cluster) -> Cluster:
    """Run `film` half-way, run `held` that waits for an operator, run `old` that has ended; four workers, three VMs."""
    busy = AttemptState.STARTED
    ended = AttemptState.ENDED
    story.run(1, "film")
    story.task("prepare", TaskState.RUNNING, init=True, attempt=story.attempt("w1", ended, cause=Cause.SUCCESS))
    good = story.attempt("w1", ended, cause=Cause.SUCCESS, exit_code=0, run_s=2.5)
    cut = story.task("cut", TaskState.SUCCEEDED, attempt=good)
    mix = story.task("mix", TaskState.RUNNING, labels=("audio",), attempt=story.attempt("w1", busy))
    show = story.task("show", TaskState.WAITING, after={mix: SUCCESS, cut: SUCCESS})
    story.task("archive", TaskState.WAITING, after={show: SUCCESS})
    bad = story.attempt(
        "w3", ended, 2, cause=Cause.EXIT, exit_code=3, error="command 1 of 1 ended with exit code 3",
        command="grade --fast", stderr="reading\n\nno such colour: ultra\n",
    )  # fmt: skip
    colour = story.task("colour", TaskState.FAILED, attempt=bad, reason="exit code 3", retries_used=1)
    poster = story.task("poster", TaskState.ABORTED, after={colour: SUCCESS}, reason="task colour failed")
    story.task("print", TaskState.ABORTED, after={cut: SUCCESS, poster: SUCCESS}, reason="task colour failed")
    story.task("alone", TaskState.CANCELLED, reason="cancelled")
    story.task("big", TaskState.READY, resources={"cpus": 64.0}, labels=("audio", "large"))
    story.task("next", TaskState.READY, priority=5)
    flaky = story.attempt("w1", ended, cause=Cause.EXIT, exit_code=1, error="exit code 1")
    story.task("again", TaskState.READY, not_before=story.now + 30, attempt=flaky, retries_used=1)
    story.task("given", TaskState.READY, attempt=story.attempt("w1", AttemptState.ASSIGNED))
    story.run(2, "held", held="init task x failed in 3 worker processes: no disk")
    story.task("next", TaskState.READY, run_no=2)
    story.run(3, "old", ended_at=story.now - 500)
    story.task("fine", TaskState.SUCCEEDED, run_no=3, reason="skipped: its results exist")
    story.worker("w1", vm_no=1)
    story.worker("w2", "draining", cpus=2.0, reason="ordered to leave")
    story.worker("w3", "lost", reason="nothing heard for 60 s")
    story.worker("w4", trouble="the disk is full")
    story.vm(1, "running", worker="w1", cloud_id="c-1", hello_at=story.now - 90, reason="2 tasks are ready")
    story.vm(2, "booting", cloud_id="c-2", reason="1 task is ready")
    story.vm(3, "gone", reason="it ended while it booted", gone_at=story.now - 50)
    return story


# --- status -------------------------------------------------------------------------------------


def test_an_empty_store_has_nothing_to_say_but_who_leads(story: Cluster) -> None:
    status = story.status()
    assert set(status.tasks.values()) == {0}
    assert (status.runs, status.vms, status.troubles, status.left_s) == ([], {}, [], None)
    assert status.workers == {"up": 0, "draining": 0}
    assert status.boss.leads
    assert status.boss.holder == "pid 7 on node0"


def test_a_status_counts_everything(film: Cluster) -> None:
    status = film.status()
    assert status.tasks == {
        "waiting": 2, "ready": 5, "running": 1, "succeeded": 2, "failed": 1, "aborted": 2, "cancelled": 1,
    }  # fmt: skip
    assert status.init_tasks == {"running": 1}
    assert status.workers == {"up": 2, "draining": 1, "lost": 1}
    assert status.vms == {"running": 1, "booting": 1, "gone": 1}
    assert status.troubles == ["worker w4: the disk is full"]
    assert [run.name for run in status.runs] == ["held", "film", "old"]  # what is not over first, then the newest
    assert status.boss.leads
    assert status.left_s is None  # it is unknown when the held run continues


def test_a_run_tells_how_much_is_left(film: Cluster) -> None:
    run = queries.run_status(film.engine, "film", film.now)
    assert (run.total, run.left) == (13 - 1, 2 + 4 + 1)
    assert run.rate_per_s is not None
    assert run.left_s == pytest.approx(run.left / run.rate_per_s)
    assert run.left_from == "at the present rate"
    held = queries.run_status(film.engine, "held", film.now)
    assert held.left_s is None
    assert "held" in held.left_from
    old = queries.run_status(film.engine, "old", film.now)
    assert (old.left, old.ended_at) == (0, film.now - 500)


def test_without_a_rate_the_users_guesses_tell_how_much_is_left(story: Cluster) -> None:
    story.run(1, "r")
    story.task("a", TaskState.RUNNING, runtime_s=60.0, attempt=story.attempt("w1", AttemptState.STARTED))
    story.task("b", TaskState.READY, runtime_s=30.0)
    run = queries.run_status(story.engine, "r", story.now)
    assert (run.left_s, run.left_from) == (90.0, "by runtime_s of its tasks")


def test_a_boss_that_is_silent_or_has_resigned_does_not_lead(own_film: Cluster) -> None:
    later = queries.status(own_film.engine, own_film.now + 120)
    assert not later.boss.leads
    assert later.boss.silent_s == pytest.approx(120, abs=60)
    assert "no boss" in queries.run_status(own_film.engine, "film", own_film.now + 120).left_from
    own_film.store.resign()
    assert not own_film.status().boss.leads


def test_by_default_the_databases_clock_tells_whether_the_boss_is_heard(own_film: Cluster) -> None:
    own_film.store.renew(time.time())
    assert queries.status(own_film.engine).boss.leads


def test_a_run_that_is_not_there_is_refused_with_near_names(own_film: Cluster) -> None:
    with pytest.raises(queries.NoSuchRun, match="'flim'; near to it: film"):
        queries.run_status(own_film.engine, "flim")
    own_film.write(dropped_runs=[3])
    with pytest.raises(queries.NoSuchRun, match="archived after KEEP_RUNS_DAYS; its tasks were: 1 succeeded"):
        queries.run_status(own_film.engine, "old")


# --- lists --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ({"states": ["failed"]}, "colour"),
        ({"states": ["failed", "aborted"]}, "colour poster print"),
        ({"states": ["ready"], "run": "held"}, "next"),
        ({"run": "old"}, "fine"),
        ({"label": "audio"}, "mix big"),
        ({"label": "audio", "states": ["ready"]}, "big"),
        ({"label": "audi"}, ""),
        ({"label": "%"}, ""),
        ({"label": "\udcff"}, ""),
        ({"run": "film", "states": ["ready"], "newest": True}, "given again next big"),
    ],
)
def test_tasks_are_found_by_state_run_and_label(film: Cluster, filters: dict[str, Any], ids: str) -> None:
    page = queries.tasks(film.engine, **filters)
    assert " ".join(line.id for line in page.tasks) == ids
    assert (page.total, page.more) == (len(page.tasks), 0)


def test_a_page_of_tasks_tells_how_many_more_there_are(film: Cluster) -> None:
    page = queries.tasks(film.engine, run="film", limit=3, offset=2)
    assert ([line.id for line in page.tasks], page.total, page.more) == (["mix", "show", "archive"], 13, 10)
    mix, show, _ = page.tasks
    assert (mix.run, mix.worker, mix.labels, mix.attempts, mix.ended_at) == ("film", "w1", ("audio",), 1, None)
    assert mix.started_at == film.now - 58
    assert (show.worker, show.started_at) == ("", None)


def test_failures_bring_what_a_person_needs_to_repair_them(film: Cluster) -> None:
    (failure,) = queries.failures(film.engine)
    assert (failure.run, failure.id, failure.exit_code, failure.attempts) == ("film", "colour", 3, 1)
    assert (failure.command, failure.worker) == ("grade --fast", "w3")
    assert failure.error == "command 1 of 1 ended with exit code 3"
    assert failure.stderr.endswith("no such colour: ultra\n")
    assert queries.failures(film.engine, run="held") == []


def test_workers_tell_what_they_do(film: Cluster) -> None:
    w1, w2, w3, w4 = queries.workers(film.engine)
    assert (w1.worker, w1.host, w1.running, w1.queued, w1.vm_no) == ("w1", "host-of-w1", ["film:mix"], 1, 1)
    assert (w2.state, w2.reason, w2.resources) == ("draining", "ordered to leave", {"cpus": 2.0})
    assert (w3.state, w3.running) == ("lost", [])
    assert w4.trouble == "the disk is full"
    assert [view.worker for view in queries.workers(film.engine, ["lost"])] == ["w3"]


def test_what_an_older_process_of_a_home_was_given_is_its_heirs(own_film: Cluster) -> None:
    hello = Hello("n", "worker", home="home-of-w1", resources={"cpus": 1.0})
    gone = WorkerRow("w1", "client", "gone", own_film.now, own_film.now, hello)
    own_film.write(workers={"w1": gone, "w9": WorkerRow("w9", "client", "up", own_film.now, own_film.now, hello)})
    heir = next(view for view in queries.workers(own_film.engine) if view.worker == "w9")
    assert (heir.running, heir.queued) == (["film:mix"], 1)


def test_vms_that_are_gone_are_listed_when_asked_for(film: Cluster) -> None:
    assert [(vm.vm_no, vm.state) for vm in queries.vms(film.engine)] == [(1, "running"), (2, "booting")]
    gone = queries.vms(film.engine, gone=True)[-1]
    assert (gone.vm_no, gone.state, gone.hello_at) == (3, "gone", None)


def test_a_task_is_shown_whole(film: Cluster) -> None:
    detail = task(film.engine, "film:show")
    assert [(other.id, other.state, other.on) for other in detail.dependencies] == [
        ("cut", "succeeded", "success"), ("mix", "running", "success"),
    ]  # fmt: skip
    assert [other.id for other in detail.dependents] == ["archive"]
    cut = task(film.engine, "cut", "film").last_attempt
    assert cut is not None
    assert (cut.cause, cut.exit_code, cut.run_s, cut.host) == ("success", 0, 2.5, "host-of-w1")


@pytest.mark.parametrize(
    ("name", "run", "says"),
    [
        ("nxt", "", "near to it: next"),
        ("next", "", "in 2 runs: specify which, film:next, held:next"),
        ("cut", "held", "'cut' in run 'held'"),
    ],
)
def test_a_task_that_is_not_clear_is_refused(film: Cluster, name: str, run: str, says: str) -> None:
    with pytest.raises(NoSuchTask, match=says):
        task(film.engine, name, run)


# --- why ----------------------------------------------------------------------------------------


def test_waiting_names_what_is_waited_for_and_what_holds_that_up(film: Cluster) -> None:
    runs = "task mix runs on worker w1 on host-of-w1 for 58 s now"
    assert film.why("show").sentence == f"task show waits for task mix (running) to succeed; {runs}"
    archive = film.why("archive")
    assert archive.sentence == f"task archive waits for task show (waiting) to succeed; at the root, {runs}"
    assert (archive.subject, archive.state, archive.layers) == ("task archive", "waiting", ())


def test_waiting_on_what_no_worker_can_run_prints_that(story: Cluster) -> None:
    story.run(1, "r")
    big = story.task("big", TaskState.READY, resources={"gpus": 8.0})
    quick = story.task("quick", TaskState.RUNNING, attempt=story.attempt("w1", AttemptState.STARTED))
    story.task("last", TaskState.WAITING, after={quick: SUCCESS, big: FAILURE})
    story.worker("w1")
    reasons = story.why("last")
    assert "waits for task big (ready) to fail and for 1 other task; task big needs 8 gpus" in reasons.sentence
    assert "it waits for task quick (running) to succeed" in reasons.layers


def test_ready_without_any_worker(story: Cluster) -> None:
    story.run(1, "r")
    story.task("a", TaskState.READY)
    assert story.why("a").sentence == "task a waits: no worker is up; pool local can start one that fits"
    rest = ("3 boots in a row failed", story.now - 60, story.now + 60)
    story.write(pools={"local": PoolRow("local", *rest)})
    assert story.why("a").sentence.endswith("pool whole can start one that fits")
    story.write(pools={"whole": PoolRow("whole", *rest)})
    rests = story.why("a").sentence
    assert rests.startswith("task a waits: no worker is up; pool local starts no VM since ")
    assert ": 3 boots in a row failed; the boss retries at " in rests
    story.write(pools={"local": PoolRow("local"), "whole": PoolRow("whole")})
    story.vm(1, "intended")
    story.vm(2, "gone", reason="the cloud refused: no addresses left")
    reasons = story.why("a")
    assert reasons.layers == (
        "VM 1 of pool local was requested 1 min 40 s ago",
        "the last VM of pool local did not start: the cloud refused: no addresses left",
    )
    alone = why(story.engine, "a", now=story.now)  # where no pool may start anything
    assert alone.sentence == "task a needs 1 cpu; no worker is up, no pool has any"


def test_ready_but_no_worker_has_so_much(film: Cluster) -> None:
    assert film.why("big").sentence == (
        "task big needs 64 cpus; the largest worker has 2 cpus, the largest pool offers 4 cpus"
    )


def test_ready_behind_others(film: Cluster) -> None:
    reasons = film.why("next", "film")
    assert reasons.sentence == "task next waits its turn: 1 worker that fits it is busy"
    takers, boots = reasons.layers
    assert takers == (
        "some of the workers that it fits take no tasks: w2 is draining (ordered to leave); "
        "w4 reports: the disk is full"
    )
    assert boots.startswith("pool local has its maximum of 2 VMs since ")
    assert boots.endswith("; VM 2 of pool local has been booting for 1 min 40 s")
    given = film.why("given")
    assert given.sentence == (
        "task given was given to worker w1 on host-of-w1 1 min ago and waits there behind 1 running task"
    )


def test_ready_in_a_run_that_is_held(film: Cluster) -> None:
    assert film.why("held:next").sentence == (
        "task next waits because its run is held: init task x failed in 3 worker processes: no disk"
    )


def test_ready_while_its_retry_is_not_due(film: Cluster) -> None:
    assert film.why("again").sentence == "task again is tried again in 30 s: attempt 1 failed: exit code 1"


def test_ready_where_no_worker_takes_tasks(story: Cluster) -> None:
    story.run(1, "r")
    story.task("a", TaskState.READY)
    story.worker("w1", trouble="the datastore is away")
    assert story.why("a").sentence == (
        "task a waits: none of the workers that it fits takes tasks now: w1 reports: the datastore is away"
    )


def test_ready_where_the_init_task_failed(story: Cluster) -> None:
    story.run(1, "r")
    bad = story.attempt("w1", AttemptState.ENDED, cause=Cause.EXIT, error="no module")
    story.task("prepare", TaskState.READY, init=True, attempt=bad)
    story.task("a", TaskState.READY)
    story.worker("w1")
    assert "init task failed on every worker that it fits: prepare on w1: no module" in story.why("a").sentence
    assert "runs in each worker process" in story.why("prepare").sentence


def test_running(film: Cluster) -> None:
    assert film.why("mix").sentence == "task mix runs on worker w1 on host-of-w1 for 58 s now"


def test_running_at_a_worker_that_something_hinders(story: Cluster) -> None:
    story.run(1, "r")
    story.worker("w1", trouble="the datastore is away")
    story.task("a", TaskState.RUNNING, attempt=story.attempt("w1", AttemptState.ASSIGNED))
    assert story.why("a").sentence.endswith(" now; the worker reports: the datastore is away")


def test_running_while_results_are_put_into_the_datastore(story: Cluster) -> None:
    story.run(1, "r")
    promoting = story.attempt("w1", AttemptState.PROMOTING, cause=Cause.SUCCESS, run_s=1.0)
    story.task("a", TaskState.RUNNING, attempt=promoting)
    sentence = story.why("a").sentence
    assert "its results are being put into the datastore; this takes long" in sentence


def test_failed_brings_the_command_and_its_last_output(film: Cluster) -> None:
    reasons = film.why("colour")
    assert reasons.sentence == "task colour failed: command 1 of 1 ended with exit code 3"
    where, command, tail = reasons.layers
    assert where.startswith("attempt 2 on worker w3 on host-of-w3 ended at ")
    assert where.endswith("retries used: 1")
    assert command == "the command was: grade --fast"
    assert tail == "its last error output: reading | no such colour: ultra"


def test_aborted_names_the_culprit_however_far_up_it_is(film: Cluster) -> None:
    because = "was aborted because task colour failed: command 1 of 1 ended with exit code 3"
    assert film.why("poster").sentence == f"task poster {because}"
    reasons = film.why("print")
    assert reasons.sentence == f"task print {because}"
    assert reasons.layers[0] == "the chain of causes: colour (failed) <- poster (aborted) <- print"
    assert "the command was: grade --fast" in reasons.layers


def test_aborted_because_what_should_have_failed_did_not(story: Cluster) -> None:
    story.run(1, "r")
    well = story.task("well", TaskState.SUCCEEDED)
    reason = "task well succeeded; this one runs only if it does not"
    story.task("mend", TaskState.ABORTED, after={well: FAILURE}, reason=reason)
    assert story.why("mend").sentence == f"task mend was aborted: {reason}"


def test_cancelled_and_succeeded(film: Cluster) -> None:
    assert film.why("alone").sentence.startswith("task alone was cancelled at ")
    assert film.why("cut").sentence.startswith("task cut succeeded in 2.5 s on worker w1 at ")
    assert film.why("fine").sentence == "task fine succeeded: skipped: its results exist"


@pytest.mark.parametrize("id", ["show", "mix", "next", "given", "big", "again"])
def test_no_boss_is_a_reason_of_whatever_is_unfinished_and_told_once(own_film: Cluster, id: str) -> None:
    own_film.store.resign()
    reasons = own_film.why(id, "film")
    told = [text for text in (reasons.sentence, *reasons.layers) if "no boss leads" in text]
    assert len(told) == 1
    assert "python admin.py start" in told[0]
    if id in ("next", "big", "again"):
        assert told == [reasons.sentence]  # nothing else matters before that


def test_without_a_boss_the_reasons_of_ended_tasks_are_complete(own_film: Cluster) -> None:
    own_film.store.resign()
    for id in ("colour", "print", "alone", "cut"):
        reasons = own_film.why(id)
        assert "no boss" not in " ".join((reasons.sentence, *reasons.layers))


@pytest.mark.parametrize(
    ("subject", "state", "says"),
    [
        (
            "worker/w1",
            "up",
            "worker w1 on host-of-w1 has been up for 10 min and runs film:mix; 1 more task waits there",
        ),
        ("worker/w2", "draining", "worker w2 on host-of-w2 is draining: ordered to leave"),
        ("worker/w3", "lost", "worker w3 on host-of-w3 has been lost for 10 min: nothing heard for 60 s"),
        ("worker/w4", "up", "worker w4 on host-of-w4 starts no tasks now: the disk is full"),
        ("vm/1", "running", "VM 1 of pool local has been running for 1 min 40 s as worker w1: 2 tasks are ready"),
        (
            "vm/c-2",
            "booting",
            "VM 2 of pool local has been booting for 1 min 40 s; no worker of it has reported yet",
        ),
        (
            "vm/3",
            "gone",
            "VM 3 of pool local has been gone for 1 min 40 s: it ended while it booted; its worker never reported",
        ),
    ],
)
def test_why_a_worker_or_vm_is_as_it_is(film: Cluster, subject: str, state: str, says: str) -> None:
    reasons = film.why(subject)
    assert (reasons.state, reasons.sentence) == (state, says)


@pytest.mark.parametrize(
    ("subject", "says"),
    [
        ("worker/x", "no worker 'x'"),
        ("worker/\udcff", "no worker"),
        ("worker/w", "4 workers are called w"),
        ("vm/77", "no VM '77'"),
    ],
)
def test_a_worker_or_vm_that_is_not_there(film: Cluster, subject: str, says: str) -> None:
    with pytest.raises(NoSuchThing, match=says):
        film.why(subject)


def test_what_the_cloud_will_not_do_is_shouted_about(story: Cluster) -> None:
    story.vm(1, "ending", cloud_id="c-1", ending_at=story.now - 100, end_asked=12)
    story.vm(2, "ending", cloud_id="c-2", ending_at=story.now - 100, end_asked=2)
    assert story.status().cloud_troubles == [
        "VM 1 of pool local (c-1 in its cloud) does not end: requested 12 times in 1 min 40 s; end it by hand "
        "in the cloud if it costs money; python admin.py forget_vm vm/1 counts and asks no longer"
    ]
    assert "its end was requested 12 times" in story.why("vm/1").layers
    closed = PoolRow("local", "3 boots in a row failed", story.now - 60, story.now + 60, 5, 94.0, 120.0)
    story.write(pools={"local": closed})
    trouble = story.status().cloud_troubles[0]
    assert trouble.startswith("pool local starts no VM since ")
    assert ": 3 boots in a row failed; the boss retries at " in trouble


def test_why_speaks_from_the_record_of_boots(story: Cluster) -> None:
    story.run(1, "r")
    story.task("a", TaskState.READY)
    story.write(pools={"local": PoolRow("local", "", None, None, 5, 94.0, 120.0)})
    story.vm(1, "booting")
    assert "VM 1 of pool local has been booting for 1 min 40 s; usual time 1 min 34 s" in story.why("a").layers
    story.vm(2, "intended")
    boots = "; 2 VMs of pool local boot, the first for 3 min 20 s; usual time 1 min 34 s"
    (layer,) = story.why("a").layers
    assert layer.startswith("pool local has its maximum of 2 VMs since ")
    assert layer.endswith(boots)
    story.vm(3, "gone", started_at=story.now - 199, gone_at=story.now, cause="failed", said="no such image 7")
    story.vm(4, "gone", cloud_id="3")
    assert story.why("vm/3").subject == "VM 3", "our number goes before a cloud's"
    layers = story.why("vm/3").layers
    assert any(layer.endswith("created by its cloud after 1 s, gone after 3 min 20 s") for layer in layers)
    assert "its cloud could not run it" in layers
    assert "its cloud last reported: no such image 7" in layers


def test_why_speaks_from_a_visit_to_a_vm_that_does_not_come_up(story: Cluster) -> None:
    story.run(1, "r")
    story.task("a", TaskState.READY)
    story.vm(1, "booting", boot_nonce="4-1")
    visit = Visit("ok", clock_s=90.2, python="3.9", vm="1", boot_nonce="4-1", log="one\ntwo: \udcff\n")
    steps = {"address": story.now - 80, "ssh": story.now - 70}
    story.write(boots={1: BootRow(1, "10.0.0.7", "ssh-ed25519 AAAA", steps)})
    assert story.why("vm/1").sentence == (
        "VM 1 of pool local has been booting for 1 min 40 s; its last step: accepted the boss by SSH 1 min 10 s ago; "
        "no worker of it has reported yet"
    )
    story.write(boots={1: BootRow(1, "10.0.0.7", "ssh-ed25519 AAAA", steps, visit)})
    reasons = story.why("vm/1")
    assert reasons.sentence.startswith("VM 1 of pool local has been booting for 1 min 40 s; its Python is 3.9; E")
    assert any("its Python is 3.9; ECLOUD needs 3.10 or later" in layer for layer in reasons.layers)
    assert "its clock is 1 min 30 s ahead of the boss's" in reasons.layers
    assert "the last lines of its start log: one | two: ?" in reasons.layers
    assert any("seen running at its address after" in layer for layer in reasons.layers)
    assert any("VM 1: its Python is 3.9" in layer for layer in story.why("a").layers)
    # The record is kept when the VM is gone, and silent where its worker came up after all.
    story.vm(1, "gone", boot_nonce="4-1", cause="python")
    assert any("its Python is 3.9" in layer for layer in story.why("vm/1").layers)
    story.vm(1, "running", boot_nonce="4-1", hello_at=story.now)
    assert not any("its Python is 3.9" in layer for layer in story.why("vm/1").layers)
