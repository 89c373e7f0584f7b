"""Workers that lie, and names that would drive a terminal: the run continues with the others, and every command
escapes control characters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from doors import Doors
from services import Daemon, wait_until, watch_to_the_end
from stranger import (
    ESCAPE,
    Stranger,
    a_run_succeeds,
    is_calm,
    is_heard_out,
    nothing_changes,
    shows_no_escapes,
    worker_of,
)

from ecloud.model.tasks import Cause, ManifestEntry, Outcome, Result, TaskDefinition
from ecloud.model.transfer_status import HeldInput, Moving
from ecloud.model.wire import (
    AttemptName,
    Goodbye,
    Heartbeat,
    HeldAttempt,
    Hello,
    MovingChanged,
    OutcomesStored,
    PushOptions,
    Refused,
    Request,
    StartedAttempt,
    StartTasks,
    TasksEnded,
    TasksReturned,
    TasksStarted,
)

INVITED = "invite-0badc0de"
HUGE = 1e308
ODD_MOVING = Moving(-1, 2**63 - 1, 2**63 - 1, -(2**63), 2**63 - 1, tuple(range(-5, 100_000)), HUGE)
ODD_OFFERS: list[dict[str, float]] = [
    {},
    {"cpus": HUGE, "memory_mb": HUGE, "gpus": HUGE, ESCAPE: HUGE},
    {"cpus": -HUGE, "memory_mb": -1.0},
    {"cpus": 5e-324},
    {f"thing-{index}": 1.0 for index in range(20_000)},
]
SMALL = TaskDefinition("small", ("echo done > out",), results=(Result("out", "small/out"),), resources={"cpus": 0.001})


def odd_names(peer: str) -> dict[str, Any]:
    """What a worker says of itself, each of it foreign text."""
    texts = dict.fromkeys(("software", "host", "boot_id", "vm", "boot_nonce"), ESCAPE)
    odd = {"home": peer + ESCAPE, "addresses": (ESCAPE, "x" * 100_000), "labels": (ESCAPE,), "pid": -1, "lives_s": HUGE}
    return {**texts, **odd}


# --- workers that lie -----------------------------------------------------------------------------


def test_names_that_mean_something_elsewhere_are_refused(besieged: Daemon, tmp_path: Path) -> None:
    with nothing_changes(besieged, tmp_path):
        for peer in ("..", "-oProxyCommand=x", "a b", "%s{}", "put"):
            with Stranger(besieged, peer, INVITED) as liar:
                liar.say(Hello("n", "worker"))
                assert liar.hears(Refused).code == "peer"


@pytest.mark.parametrize("peers", [("liar", "x" * 64)])
def test_outcomes_of_tasks_that_it_never_had_change_nothing(
    peers: tuple[str, ...], besieged: Daemon, tmp_path: Path
) -> None:
    manifest = (ManifestEntry("before/0", 6), ManifestEntry("../../escape", 1), ManifestEntry("/etc/passwd", 1))
    names = [(1, 1), (1, 2), (2, 2**31 - 1), (-(2**63), -(2**31)), (2**63 - 1, 1)]
    with nothing_changes(besieged, tmp_path):
        for peer in peers:
            with Stranger(besieged, peer, INVITED) as liar:
                liar.hello("worker", **odd_names(peer))
                held = tuple(HeldAttempt(*name, ESCAPE) for name in names)
                liar.say(Heartbeat(2**63 - 1, held, -1, -HUGE, HUGE, ESCAPE))
                kept = tuple(HeldInput(f"{ESCAPE}{number}", 2**63 - number) for number in range(1, 100_000))
                liar.say(Heartbeat(2**63 - 1, moving=ODD_MOVING, inputs=kept))
                liar.say(MovingChanged(ODD_MOVING))
                shows_no_escapes(Doors(tmp_path / "place", besieged).admin("status").text)
                liar.say(TasksStarted(tuple(StartedAttempt(*name, -HUGE) for name in names)))
                for cause in (Cause.SUCCESS, Cause.EXIT):
                    told = {"stdout": ESCAPE, "error": ESCAPE, "manifest": manifest, "run_s": -HUGE}
                    odd = [Outcome(*name, cause, 2**31 - 1, -1, **told) for name in names]
                    liar.say(TasksEnded(tuple(odd)))
                    assert len(liar.hears(OutcomesStored).attempts) == len(names)
                liar.say(TasksReturned(tuple(AttemptName(*name) for name in names), ""))
                liar.say(StartTasks(()))
                liar.say(Request("r", "end_vms"))
                liar.say(Goodbye(ESCAPE))
    assert (besieged.home.datastore / "before/0").read_text() == "hello\n"
    a_run_succeeds(besieged, "after")


def test_an_offer_that_no_machine_can_make_stops_no_other_worker(besieged: Daemon, tmp_path: Path) -> None:
    for index, offer in enumerate(ODD_OFFERS):
        small = msgspec.structs.replace(SMALL, id=f"small-{index}")
        with Stranger(besieged, f"liar-{index}", INVITED) as liar:
            with nothing_changes(besieged, tmp_path):
                liar.hello("worker", resources=offer, **odd_names(f"liar-{index}"))
                liar.say(Heartbeat(0))
            with besieged.client() as client:
                client.push([small], PushOptions(f"run-{index}"))
                liar.say(Heartbeat(2**60))
                liar.say(Goodbye("enough"))
                assert watch_to_the_end(client, f"run-{index}").states == {"succeeded": 1}, offer
    a_run_succeeds(besieged, "after")
    is_calm(besieged)


def test_odd_outcomes_of_a_task_that_it_has_harm_its_task_alone(besieged: Daemon, tmp_path: Path) -> None:
    """It takes tasks and tells of times, files and outputs that cannot be. Those tasks fail, nothing else happens."""
    odd: list[dict[str, Any]] = [
        {"cause": Cause.SUCCESS, "run_s": HUGE, "manifest": (ManifestEntry("../../escape", 1),)},
        {"cause": Cause.SUCCESS, "run_s": -HUGE, "manifest": (ManifestEntry("before/0", -1, "x", ESCAPE, -1),)},
        {
            "cause": Cause.EXIT,
            "run_s": HUGE,
            "fetch_s": -HUGE,
            "max_rss_mb": HUGE,
            "exit_code": -(2**31),
            "error": ESCAPE,
        },
        {"cause": Cause.SIGNAL, "signal": 2**31 - 1, "stdout": ESCAPE * 100_000, "stderr": ESCAPE, "command": ESCAPE},
        {"cause": Cause.STOPPED, "run_s": -1.0},
    ]
    tasks = [TaskDefinition(f"o{index}", ("true",), resources={"lies": 1.0}) for index in range(len(odd))]
    with Stranger(besieged, "liar", INVITED) as liar, besieged.client() as client:
        liar.hello("worker", resources={"cpus": 100.0, "memory_mb": HUGE, "lies": 100.0}, **odd_names("liar"))
        liar.say(Heartbeat(0))
        client.push(tasks, PushOptions("odd"))
        ends = 0
        while ends < len(odd) + 1:  # the one that was stopped is given out again
            for order in liar.hears(StartTasks).attempts:
                liar.say(TasksStarted((StartedAttempt(order.task_no, order.number, HUGE),)))
                said = odd[ends] if ends < len(odd) else {"cause": Cause.EXIT, "exit_code": 1}
                liar.say(TasksEnded((Outcome(order.task_no, order.number, **said),)))
                ends += 1
        assert watch_to_the_end(client, "odd").states == {"failed": len(odd)}
        liar.say(Goodbye())
    assert (besieged.home.datastore / "before/0").read_text() == "hello\n"
    assert not list(tmp_path.rglob("escape"))
    doors = Doors(tmp_path / "place", besieged)
    for action in (["show_failed"], ["show_task", "odd:o2"], ["why", "odd:o0"], ["logs", "odd:o3"]):
        shows_no_escapes(doors.admin(*action).text)
    a_run_succeeds(besieged, "after")
    is_calm(besieged)


def test_a_worker_publishes_nothing_that_its_task_does_not_declare(besieged: Daemon, tmp_path: Path) -> None:
    """It really staged what it reports: under the name of another task's result, and under a name of no task."""
    result = (Result("out", "mine/out"),)
    tasks = [TaskDefinition(id, ("true",), results=result, resources={"lies": 1.0}) for id in ("first", "second")]
    tasks[1] = msgspec.structs.replace(tasks[1], results=(Result("*.dat", "mine"),))
    names = iter(["before/0", "mine/out.exe"])
    with Stranger(besieged, "liar", INVITED) as liar, besieged.client() as client:
        liar.hello("worker", resources={"cpus": 100.0, "memory_mb": 1e6, "lies": 100.0}, **odd_names("liar"))
        liar.say(Heartbeat(0))
        client.push(tasks, PushOptions("theft"))
        ends = 0
        while ends < len(tasks):
            for order in liar.hears(StartTasks).attempts:
                name = next(names)
                staged = besieged.home.datastore / f".ecloud/staging/liar/{order.task_no}-{order.number}" / name
                staged.parent.mkdir(parents=True)
                staged.write_text("stolen")
                liar.say(TasksStarted((StartedAttempt(order.task_no, order.number, 0.0),)))
                manifest = (ManifestEntry(name, staged.stat().st_size),)
                liar.say(TasksEnded((Outcome(order.task_no, order.number, Cause.SUCCESS, manifest=manifest),)))
                ends += 1
        assert watch_to_the_end(client, "theft").states == {"failed": 2}
        liar.say(Goodbye())
    assert (besieged.home.datastore / "before/0").read_text() == "hello\n"
    assert not (besieged.home.datastore / "mine").exists()
    told = Doors(tmp_path / "place", besieged).admin("why", "theft:first").text.replace("\n", " ")
    assert "its worker staged 'before/0', which is not a result that the task declares" in told
    a_run_succeeds(besieged, "after")
    is_calm(besieged)


# --- keys that open less --------------------------------------------------------------------------


def test_the_key_of_a_machine_gives_no_orders(besieged: Daemon, tmp_path: Path) -> None:
    with Stranger(besieged, "climber", "vm-1") as climber, nothing_changes(besieged, tmp_path):
        climber.session = "none"
        climber.say(Request("r", "end_vms"))
        assert climber.hears(Refused).code == "session"
        with pytest.raises(AssertionError, match="Welcome"):
            climber.hello("client", patience_s=2.0)


def test_a_stranger_takes_nobodys_name(besieged: Daemon, tmp_path: Path) -> None:
    """Another key does not open the conversation of a worker that is on duty."""
    worker = worker_of(besieged)
    with Stranger(besieged, worker, INVITED) as thief, nothing_changes(besieged, tmp_path):
        thief.hello("worker")
        thief.say(Heartbeat(0))
        thief.say(Goodbye("I am not here"))
        with Stranger(besieged, "another") as another:
            is_heard_out(another)
    besieged.restart()
    with Stranger(besieged, worker, INVITED) as thief:  # the next boss remembers whose name it is
        thief.hello("worker")
        thief.say(Goodbye("I am not here"))
        is_heard_out(thief)
    assert worker_of(besieged) == worker
    a_run_succeeds(besieged, "after")


# --- what terminals are shown ---------------------------------------------------------------------


def every_door_shows_no_escapes(doors: Doors, *tasks: str) -> None:
    """All that a person may type, as text and as JSON."""
    actions = [["status"], ["show_tasks"], ["show_failed"], ["show_queued"], ["show_in_progress"], ["show_succeeded"]]
    actions += [["doctor"], ["show_workers"], ["show_workers", "--all"], ["show_vms"], ["show_context"]]
    for action in ("show_task", "why", "logs", "show_task_commands", "show_task_status"):
        actions += [[action, task] for task in tasks]
    for action in actions:
        done = doors.admin(*action, code=None)
        assert done.text, action
        shows_no_escapes(done.text)


def test_no_terminal_acts_on_what_tasks_print_and_workers_are_called(besieged: Daemon, tmp_path: Path) -> None:
    doors = Doors(tmp_path / "place", besieged)
    printed = "printf '\\033[2J\\033]0;owned\\007\\302\\233\\342\\200\\256'"
    tasks = [
        {"id": "fails", "commands": [f"{printed}; {printed} >&2; exit 3"]},
        {"id": "\u202eright to left \u009b", "commands": [f"{printed}"]},
        {"id": "below", "commands": "true", "dependencies": "fails"},
    ]
    refused = doors.push(doors.write("odd.json", tasks), code=2)
    shows_no_escapes(refused.text)
    tasks[1]["id"] = "prints"
    with Stranger(besieged, "w-liar", INVITED) as liar:
        liar.hello("worker", resources={"cpus": 0.0}, **odd_names("liar"))
        liar.say(Heartbeat(0, trouble=ESCAPE))
        failed = doors.push(doors.write("shown.json", tasks), "--wait", code=1)
        shows_no_escapes(failed.text)
        wait_until(lambda: "liar" in doors.admin("show_workers").text, what="the liar is on duty")
        every_door_shows_no_escapes(doors, "fails", "prints")
        shows_no_escapes(doors.admin("why", "worker/w-liar", code=None).text)
        liar.say(Goodbye(ESCAPE))
    is_calm(besieged)
