"""Output of `admin.py` from the database, as tables or as JSON. Works while the boss is down."""

from __future__ import annotations

import io
import shutil
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from datastore.problem import DONE, NOT_ALL_SUCCEEDED, PART_AWAY, Problem
from ecloud.cli import app
from ecloud.cli.tables import counts, print_json, print_json_line, print_status, print_table, print_text, some
from ecloud.config.settings import Settings, load_settings
from ecloud.model.text import amounts, byte_size, counted, duration, visible, when
from ecloud.queries import lookup
from ecloud.queries import status as queries

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from ecloud.queries.views import AttemptView, Status, TaskDetail, TaskLine

WATCH_EVERY_S = 2.0
RUNS_SHOWN = 10
STRANGERS_S = 20.0
TASK_STATES = ("waiting", "ready", "running", "succeeded", "failed", "aborted", "cancelled")
STDERR_LINES = 8


# --- the cluster --------------------------------------------------------------------------------------


def status(watch: bool, all_runs: bool, as_json: bool) -> int:
    """Print the status screen once or repeatedly."""
    engine = app.database(load_settings())
    shown = sys.maxsize if all_runs else RUNS_SHOWN
    console = app.console()
    if not watch:
        found = _status_now(engine)
        print_json(found) if as_json else print_status(console, found, shown)
        return DONE
    try:
        if as_json or not console.is_terminal:
            while True:
                found = _status_now(engine)
                print_json_line(found) if as_json else print_status(console, found, shown)
                sys.stdout.flush()
                time.sleep(WATCH_EVERY_S)
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                screen = _drawn(console, _status_now(engine), shown)
                live.update(Group(screen, Text("Ctrl-C ends this", "dim")), refresh=True)
                time.sleep(WATCH_EVERY_S)
    except KeyboardInterrupt:
        return DONE


def _drawn(console: Console, found: Status, shown: int) -> Text:
    """Draw the screen as a text on a separate console: text printed on the console of a `Live` would appear above the
    display."""
    paper = app.console(file=io.StringIO(), like=console)
    print_status(paper, found, shown)
    return Text.from_ansi(paper.file.getvalue())  # type: ignore[attr-defined]


def _status_now(engine: Engine) -> Status:
    found = _with_free_space(queries.status(engine), engine)
    if found.boss.leads and app.is_dead_neighbour(found.boss.holder):
        # By its row the boss leads until its lease ends, but its process on this machine has ended.
        found = msgspec.structs.replace(found, boss=msgspec.structs.replace(found.boss, leads=False))
    return found


def _with_free_space(found: Status, engine: Engine) -> Status:
    """Add the free space. A directory is queried now; over SSH this would be slow, so the boss's last value is shown
    with its age (`admin.py du` queries it)."""
    from ecloud.cli.files import datastore_address
    from ecloud.config.datastore_address import directory_of, is_ssh

    notes = queries.context(engine)
    address = datastore_address(load_settings(), notes)
    if is_ssh(address):
        seen_mb, _, seen_at = notes.get("datastore/free", "").partition(" ")
        if not seen_at:
            return found
        age_s = max(1.0, time.time() - float(seen_at))
        return msgspec.structs.replace(found, datastore_free_mb=float(seen_mb), datastore_seen_s=age_s)
    try:
        free_mb = shutil.disk_usage(directory_of(address)).free / 1e6
    except OSError:
        return found
    return msgspec.structs.replace(found, datastore_free_mb=free_mb)


def migrate(as_json: bool) -> int:
    """Migrate the tables to this code's revision."""
    from ecloud.db.database import database_url, make_engine, present_revision, where
    from ecloud.db.database import migrate as bring_forward
    from ecloud.db.schema import REVISION

    settings = load_settings()
    engine = make_engine(database_url(settings), app.ANSWER_S)
    if engine.url.get_backend_name() == "sqlite":
        try:
            settings.home_directory.make()
        except OSError as error:
            raise Problem(f"the home {settings.home} cannot be made: {error.strerror}") from None
    before = present_revision(engine)
    backup = bring_forward(engine, settings.home_directory.backups)
    if as_json:
        print_json({"before": before, "now": REVISION, "backup": backup})
    elif before == REVISION:
        print(f"{where(engine.url)} already has schema {REVISION}")
    else:
        print(
            f"{where(engine.url)} has schema {REVISION} now" + (f"; backup of the old file: {backup}" if backup else "")
        )
    return DONE


# --- tasks --------------------------------------------------------------------------------------------


def tasks(states: Sequence[str], run: str, label: str, limit: int, newest: bool, as_json: bool) -> int:
    """Print tasks, one per line."""
    from ecloud.queries.queued import with_reasons
    from ecloud.queries.why import pools_of

    wrong = [state for state in states if state not in TASK_STATES]
    if wrong:
        raise Problem(f"there is no state {wrong[0]!r}; there are {', '.join(TASK_STATES)}")
    settings = load_settings()
    engine = app.database(settings)
    page = with_reasons(engine, queries.tasks(engine, states, run, label, limit, newest=newest), pools_of(settings))
    if as_json:
        print_json(page)
        return DONE
    now = time.time()
    rows = [
        (line.run, line.id, line.state, line.attempts, _took(line, now), line.worker, line.reason)
        for line in page.tasks
    ]
    if rows:
        print_table(
            app.console(), ("run", "task", "state", "tries", "time", "worker", "reason"), rows, ("tries", "time")
        )
    if page.more > 0:
        print(f"and {page.more:,} more: --limit {page.total} shows them")
    if not page.total:
        print("no such tasks")
    return DONE


def _took(line: TaskLine, now: float) -> str:
    if line.state == "running" and line.started_at is not None:
        return duration(now - line.started_at)
    return "" if line.run_s is None else duration(line.run_s)


def failed(run: str, limit: int, as_json: bool) -> int:
    """Print failed tasks with what the user needs to repair them."""
    found = queries.failures(app.database(load_settings()), run, limit)
    if as_json:
        print_json(found)
        return DONE
    console = app.console()
    for failure in found:
        name = Text(visible(f"{failure.run}:{failure.id}"), "bold red")
        console.print(
            name.append(
                Text(f"  ({counted(failure.attempts, 'attempt')}, worker {visible(failure.worker) or 'none'})", "")
            )
        )
        console.print(Text(f"  {visible(failure.error)}"))
        last = [line for line in failure.stderr.rstrip().split("\n") if line][-STDERR_LINES:]
        for line in last:
            console.print(Text(f"    {visible(line)}", "dim"))
    if not found:
        print("no task has failed")
    elif len(found) == limit:
        print(f"the first {limit}; --limit shows more")
    return DONE


def task(name: str, run: str, as_json: bool) -> int:
    """Print all details of a task."""
    detail = _detail(name, run)
    if as_json:
        print_json(detail)
        return DONE
    console = app.console()
    definition = detail.definition
    now = time.time()
    lines = [
        ("task", f"{detail.run}:{detail.id}"),
        ("state", _state(detail)),
        ("since", when(detail.changed_at, now)),
        ("elements", counts(detail.elements).plain if detail.elements else ""),
        ("commands", f"{len(definition.commands)}: " + " ; ".join(definition.commands)),
        ("asks for", amounts(definition.asks)),
        ("waits for", some([f"{n.id} ({n.state})" for n in detail.dependencies])),
        ("needed by", some([n.id for n in detail.dependents], total=detail.dependents_total)),
        ("requires", some([r.path for r in definition.requirements])),
        ("results", some([r.path for r in definition.results])),
        ("priority", str(definition.priority) if definition.priority else ""),
        ("timeout", duration(definition.timeout_s) if definition.timeout_s else ""),
        ("retries", f"{detail.retries_used} of {definition.retries.max} used" if definition.retries.max else ""),
        ("labels", ", ".join(definition.labels)),
        ("shell", definition.shell),
        ("container", definition.container.image if definition.container else ""),
    ]
    for title, text in lines:
        if text:
            console.print(Text(f"{title:<10} ", "bold").append(Text(visible(text)[:2000], "not bold")))
    for attempt in detail.attempts:
        _print_attempt(attempt, now)
    return DONE


def _print_attempt(attempt: AttemptView, now: float) -> None:
    console = app.console()
    where = visible(f"{attempt.worker}{f' on {attempt.host}' if attempt.host else ''}")
    ended = attempt.cause or attempt.state
    line = f"attempt {attempt.number}: {ended} at worker {where}, given {when(attempt.assigned_at, now)}"
    console.print(Text(f"\n{line}", "bold"))
    if attempt.error or attempt.reason:
        console.print(Text(f"  {visible(attempt.error or attempt.reason)}"))
    times = [
        ("fetching", attempt.fetch_bytes, attempt.fetch_s),
        ("running", None, attempt.run_s),
        ("storing", attempt.store_bytes, attempt.store_s),
    ]
    parts = [
        f"{word} {f'{byte_size(count)} in ' if count else ''}{duration(seconds)}"
        for word, count, seconds in times
        if seconds
    ]
    if attempt.cached_bytes:
        parts[0] += f" ({byte_size(attempt.cached_bytes)} of it from its cache)"
    parts += [f"peak memory {attempt.max_rss_mb:.0f} MB"] if attempt.max_rss_mb else []
    parts += [f"{counted(len(attempt.results), 'result')}, {byte_size(attempt.store_bytes)}"] if attempt.results else []
    if parts:
        console.print(f"  {', '.join(parts)}")
    for stream, text in (("stdout", attempt.stdout), ("stderr", attempt.stderr)):
        for row in text.rstrip().split("\n")[-STDERR_LINES:] if text.strip() else ():
            console.print(Text(f"  {stream}: {visible(row)}", "dim"))


def task_commands(name: str, run: str, as_json: bool) -> int:
    """Print a task's commands, ready to paste."""
    from ecloud.cli.files import own_datastore
    from ecloud.cli.long_bodies import commands_of

    commands = commands_of(_detail(name, run).definition, own_datastore)
    print_json(commands) if as_json else print("\n".join(commands))
    return DONE


def _state(detail: TaskDetail) -> str:
    """The state and its reason, which may begin with the state's own name."""
    if not detail.reason or detail.reason.startswith(f"{detail.state}: "):
        return detail.reason or detail.state
    return f"{detail.state}: {detail.reason}"


def task_status(name: str, run: str, as_json: bool) -> int:
    """Print a task's state in one line."""
    detail = _detail(name, run)
    if as_json:
        print_json({"run": detail.run, "id": detail.id, "state": detail.state, "reason": detail.reason})
    else:
        print(visible(_state(detail)))
    return DONE


def task_dependencies(name: str, run: str, as_json: bool) -> int:
    """Print a task's neighbours in the graph."""
    detail = _detail(name, run)
    if as_json:
        print_json({"dependencies": detail.dependencies, "dependents": detail.dependents})
        return DONE
    rows = [("waits for", n.id, n.state, n.on, n.reason) for n in detail.dependencies]
    rows += [("needed by", n.id, n.state, n.on, n.reason) for n in detail.dependents]
    if rows:
        print_table(app.console(), ("", "task", "state", "on", "reason"), rows)
    else:
        print("it waits for nothing, and nothing waits for it")
    return DONE


def _detail(name: str, run: str) -> TaskDetail:
    return lookup.task(app.database(load_settings()), name, run)


def logs(name: str, run: str, attempt: int | None, is_raw: bool, as_json: bool) -> int:
    """Print a task's output, as far as it is kept."""
    from ecloud.cli.task_output import print_text
    from ecloud.cli.whole_output import print_whole

    detail = _detail(name, run)
    found = [view for view in detail.attempts if attempt is None or view.number == attempt]
    if not found:
        raise Problem(f"task {name} has had {counted(len(detail.attempts), 'attempt')}: {detail.state}")
    view = found[-1]
    if as_json:
        print_json({"attempt": view.number, "state": view.state, "stdout": view.stdout, "stderr": view.stderr})
        return DONE
    if view.cause is None:
        print(f"attempt {view.number} is {view.state}: -f shows its output so far", file=sys.stderr)
    whole = print_whole(detail, view, is_raw)
    for stream, text, to in (("stdout", view.stdout, sys.stdout), ("stderr", view.stderr, sys.stderr)):
        if stream not in whole:
            print_text(text, to, is_raw)
    return DONE


def follow(name: str, run: str, is_raw: bool, as_json: bool) -> int:
    """Print a task's output as it is written, then its end. Returns exit code 1 if it did not succeed."""
    from ecloud.cli.task_output import outputs
    from ecloud.config.secrets import cluster_secret

    settings = load_settings()
    home = settings.home_directory
    if not home.cluster_key.exists():
        raise Problem(f"{home.cluster_key} is missing: output is followed where the boss runs", exit_code=PART_AWAY)
    is_heard, streams = False, outputs(is_raw)
    with app.boss(settings) as client:
        for lines in client.logs(name, cluster_secret(home), run):
            is_heard = True
            if as_json:
                print_json(lines)
                continue
            streams["stderr" if lines.stream == "stderr" else "stdout"].write(lines.text)
    for output in streams.values():
        output.end()
    detail = _detail(name, run)
    last = detail.last_attempt
    if not is_heard and last is not None:
        logs(name, run, last.number, is_raw, as_json)  # it had ended before; print the kept output
    print(f"{detail.state}" + (f": {visible(last.error)}" if last is not None and last.error else ""), file=sys.stderr)
    return DONE if detail.state == "succeeded" else NOT_ALL_SUCCEEDED


def why(subject: str, run: str, all_layers: bool, as_json: bool) -> int:
    """Print one sentence, or all the layers."""
    from ecloud.queries.why import pools_of
    from ecloud.queries.why import why as explain

    settings = load_settings()
    with app.asking_why(settings) as ask:
        reasons = explain(app.database(settings), subject, run, pools_of(settings), ask=ask)
    if as_json:
        print_json(reasons)
        return DONE
    console = app.console()
    print_text(console, Text(visible(reasons.sentence)))
    for layer in reasons.layers if all_layers else ():
        print_text(console, Text(f"  {visible(layer)}"))
    return DONE


# --- workers, VMs, context ----------------------------------------------------------------------------


def workers(everyone: bool, as_json: bool) -> int:
    """Print workers and their tasks."""
    states = ("up", "draining", "lost", "gone") if everyone else ("up", "draining", "lost")
    found = queries.workers(app.database(load_settings()), states)
    if as_json:
        print_json(found)
        return DONE
    now = time.time()
    rows = []
    for worker in found:
        doing = some(worker.running, 3) if worker.running else "idle"
        doing += f", {worker.queued} queued" if worker.queued else ""
        address = worker.addresses[0] if worker.addresses else worker.host
        vm = "" if worker.vm_no is None else str(worker.vm_no)
        offers = amounts({name: amount for name, amount in worker.resources.items() if amount})
        doing = doing if worker.state in ("up", "draining") and not worker.trouble else worker.trouble or worker.reason
        if worker.state == "draining" and worker.reason and not worker.trouble:
            doing += f" ({worker.reason})"
        since = duration(now - worker.since)
        rows.append((worker.worker, address, vm, worker.state, since, offers, doing))
    if rows:
        print_table(app.console(), ("worker", "address", "VM", "state", "since", "offers", "doing"), rows, ("VM",))
    else:
        print("no workers")
    return DONE


def vms(everyone: bool, as_json: bool) -> int:
    """Print VMs, and the reason for each; marks VMs in clouds that look like this cluster's but do not belong to it."""
    settings = load_settings()
    engine = app.database(settings)
    found = queries.vms(engine, everyone)
    strangers = _strangers(settings, engine)
    if as_json:
        print_json([*found, *({"stranger": True, **stranger} for stranger in strangers)])
        return DONE
    now = time.time()
    rows: list[tuple[object, ...]] = [
        (vm.vm_no, vm.pool, vm.state, duration(now - vm.since), vm.cloud_id, vm.worker, vm.reason) for vm in found
    ]
    for vm in strangers:
        what = f"{vm['name']} of {vm['owner']}: {vm['why']}; ECLOUD never touches it"
        rows.append(("-", "", "stranger", "", vm["cloud_id"], "", what))
    if rows:
        print_table(app.console(), ("VM", "pool", "state", "since", "cloud's id", "worker", "reason"), rows, ("VM",))
    else:
        print("no VMs")
    return DONE


def _strangers(settings: Settings, engine: Engine) -> list[dict[str, str]]:
    """Return suspicious VMs of every cloud that answers; warns about clouds that do not."""
    from ecloud.cli import cloud_probe

    if not cloud_probe.has_clouds(settings):
        return []
    try:
        said = cloud_probe.ask("--strangers", queries.context(engine).get("cluster_id", ""), limit_s=STRANGERS_S)
    except cloud_probe.CloudsAway as error:
        said = [{"problem": f"the cloud {error}"}]
    for item in said:
        if item.get("problem"):
            print(
                f"the check for other owners' VMs with names like ours failed: {visible(item['problem'])}",
                file=sys.stderr,
            )
    return [item for item in said if not item.get("problem")]


def ledger(run: str, as_json: bool) -> int:
    """Print the use of every VM-second. Raises `NoSuchRun`, `DatabaseAway`."""
    from ecloud.db.database import database_now
    from ecloud.model.vm_life import PARTS
    from ecloud.queries.ledger import ledger

    engine = app.database(load_settings())
    with queries.snapshot(engine) as connection:
        now = database_now(connection)
    found = ledger(engine, run, now)
    if as_json:
        print_json(found)
        return DONE
    if not found.vms:
        print(f"no VM ran a task of run {run}" if run else "no VMs yet")
        return DONE
    rows = [
        (pool.pool or "all", pool.vms, *(f"{seconds:.1f}" for seconds in (*pool.parts.values(), pool.life_s)))
        for pool in [*found.pools, found.total]
    ]
    if found.run is not None:
        taken = found.run
        rows.append((f"run {run}", taken.vms, *(f"{s:.1f}" for s in (*taken.parts.values(), taken.taken_s))))
    columns = ("of", "VMs", *(f"{part} s" for part in PARTS), "in all s")
    print_table(app.console(), columns, rows, columns[1:])
    if lost := [f"vm/{vm.vm_no}" for vm in found.vms if vm.written_off]:
        print(f"the end of {counted(len(lost), 'VM')} was never confirmed, counted until written off: {some(lost)}")
    if found.run is not None:
        useful = found.run.parts["running"] + found.run.parts["staging"]
        print(
            f"run {visible(run)} took {found.run.taken_s / 3600:.3g} VM-hours of {counted(found.run.vms, 'VM')}; "
            f"{100 * useful / max(found.run.taken_s, 1e-6):.0f} % of it ran its tasks or moved their files"
        )
    return DONE


def context(as_json: bool) -> int:
    """Print the cluster's context."""
    from datastore.keys import fingerprint
    from ecloud.cli.files import datastore_address

    settings = load_settings()
    found = queries.context(app.database(settings))
    # entries with "/" are internal to the boss
    found = {name: value for name, value in found.items() if "/" not in name}
    wanted = settings.datastore_template
    if wanted and not settings.datastore and not found.get("datastore_address"):
        found["datastore_machine"] = f"that of DATASTORE_TEMPLATE ({wanted}) is not set yet: python admin.py start"
    else:
        found.setdefault("datastore_address", datastore_address(settings, found))
    if found.get("datastore_host_key"):
        found["datastore_host_key"] = fingerprint(found["datastore_host_key"])
    print_json(found) if as_json else print_table(app.console(), ("key", "value"), sorted(found.items()))
    return DONE
