"""`top` as its user meets it: keys move through the lists, and nothing is changed before a yes."""

from __future__ import annotations

import msgspec
from rich.console import Console

from ecloud.cli.top_screen import Order, Picture, Screen
from ecloud.queries.browse import TaskRow
from ecloud.queries.views import BossStatus, RunStatus, Status, VmView, WorkerView

NOW = 1_000_000.0


def picture(runs: int = 3, tasks: int = 40, workers: int = 2, vms: int = 1) -> Picture:
    made = [
        RunStatus(f"run-{no}", no, NOW - 60, None, "", {"succeeded": 5, "failed": 1, "running": 2}, {}, 1.5, 60.0, "")
        for no in range(1, runs + 1)
    ]
    boss = BossStatus(True, "pid 1")
    status = Status({"running": 2}, {}, {"up": workers}, {"running": vms}, made, boss, None, ["w1 x"])
    rows = [TaskRow(no, "run-1", f"task-{no}", "running", "", 1, NOW) for no in range(1, tasks + 1)]
    views = [
        WorkerView(f"w{no}", "up", NOW, NOW - 2, "node", (), 1, None, "k", {"cpus": 1.0}, (), None, "", "", ["r:t"], 1)
        for no in range(1, workers + 1)
    ]
    machines = [
        VmView(no, "small", "running", NOW, {}, "7", "w1", False, "busy", NOW, NOW, None) for no in range(7, 7 + vms)
    ]
    return Picture(status, views, machines, rows)


def screen(**counts: int) -> Screen:
    made = Screen()
    made.show(picture(**counts))
    return made


def text(made: Screen, width: int = 100, height: int = 30) -> str:
    console = Console(width=width, height=height, force_terminal=False)
    with console.capture() as captured:
        console.print(made.draw(width, height, NOW))
    return captured.get()


def press(made: Screen, *keys: str) -> Order | None:
    order = None
    for key in keys:
        order = made.on_key(key)
    return order


def test_it_fits_every_terminal_and_shows_what_is_chosen() -> None:
    for width, height in ((60, 16), (100, 30), (200, 60)):
        made = screen(runs=50, tasks=100, workers=80)
        shown = text(made, width, height)
        assert len(shown.splitlines()) <= height, (width, height)
        assert all(len(line.rstrip()) <= width for line in shown.splitlines())
        press(made, "tab", *["down"] * 60)
        assert "task-61" in text(made, width, height), "the chosen line is on the screen"


def test_choosing_another_run_lists_its_tasks() -> None:
    made = screen()
    assert made.run == "run-1"
    press(made, "down")
    assert made.run == "run-2"
    press(made, "up", "up", "up")
    assert made.run == "run-1"


def test_why_asks_about_a_task_a_worker_or_a_vm() -> None:
    made = screen()
    assert press(made, "w") is None, "of a run there is nothing to say"
    assert press(made, "tab", "down", "w") == Order("why", "run-1", "task-2")
    assert press(made, "tab", "w") == Order("why", subject="worker/w1")
    assert press(made, "tab", "w") == Order("why", subject="vm/7")


def test_nothing_is_cancelled_without_a_yes() -> None:
    made = screen()
    press(made, "tab")
    assert press(made, "c") is None
    assert "Cancel task task-1 of run run-1? y / n" in text(made)
    assert press(made, "n") is None
    assert press(made, "c", "y") == Order("cancel", "run-1", "task-1")
    assert press(made, "escape", "r", "q") is None, "q is no yes"
    assert press(made, "r", "y") == Order("retry_failed", "run-1")
    assert press(made, "tab", "tab", "c") is None, "a worker is not cancelled"
    assert press(made, "y") is None


def test_an_answer_covers_the_lists_until_a_key_and_long_ones_scroll() -> None:
    made = screen()
    made.answer("\n".join(f"line {no}" for no in range(100)))
    assert "line 0" in text(made)
    press(made, "down", "down")
    assert text(made).startswith("line 2\n")
    assert press(made, "q") is None, "the first q only closes the answer"
    assert "run-1" in text(made)
    assert press(made, "q") == Order("quit")


def test_what_would_act_on_a_terminal_is_shown_as_it_is() -> None:
    made = screen()
    made.answer("\x1b[2Jgone")
    assert "\x1b" not in text(made)


def test_lists_that_shrink_or_end_keep_a_valid_choice() -> None:
    made = screen(tasks=40)
    press(made, "tab", *["down"] * 39)
    made.show(picture(runs=0, tasks=0, workers=0, vms=0))
    assert press(made, "l") is None
    assert press(made, "c") is None
    assert "boss" in text(made)


def test_long_offers_take_no_room_from_the_names_of_workers() -> None:
    made = screen()
    assert made.picture is not None
    offers = {"cpus": 1.0, "memory_mb": 12_600.0, **{f"python3.{minor}": 1_000.0 for minor in range(8, 14)}}
    made.picture.workers[:] = [
        msgspec.structs.replace(view, worker="wtm7yzbosr6", resources=offers) for view in made.picture.workers
    ]
    shown = text(made, 80, 24)
    assert "wtm7yzbosr6" in shown
    assert shown.rstrip().endswith("q quit")
