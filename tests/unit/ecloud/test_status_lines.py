"""Lines of `status` on narrow and wide terminals: no word is cut, and the bar leaves room for what it shows."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ecloud.cli.tables import print_status
from ecloud.queries.views import BossStatus, RunStatus, Status

STATES = {"waiting": 200_000, "ready": 300_000, "running": 20, "succeeded": 100_000}
REASON = "task big needs 64 cpus; the largest worker has 1 cpu, the largest pool offers 1 cpu"


def lines(width: int, run: RunStatus, on_terminal: bool = True) -> list[str]:
    paper = io.StringIO()
    console = Console(file=paper, width=width, force_terminal=on_terminal, color_system=None, soft_wrap=True)
    boss = BossStatus(True, "pid 1 on vm", silent_s=3.4)
    print_status(console, Status(STATES, {}, {"up": 2}, {"running": 2}, [run], boss, None, [REASON]), 10)
    return paper.getvalue().splitlines()


def run_of(name: str, left_s: float | None = None, left_from: str = f"unknown: {REASON}") -> RunStatus:
    return RunStatus(name, 1, 0.0, None, "", STATES, {}, None, left_s, left_from)


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("name", ["look", "a-run-with-quite-a-long-name"])
def test_no_line_is_cut_in_a_word(width: int, name: str) -> None:
    found = lines(width, run_of(name))
    assert [line for line in found if len(line.rstrip()) > width] == []
    assert any("time left unknown" in line for line in found)
    words = " ".join(found).split()
    assert [word for word in (*REASON.split(), "200,000", "succeeded") if word not in words] == []


def test_on_a_wide_terminal_the_time_left_stands_in_the_same_line() -> None:
    (line,) = (line for line in lines(200, run_of("look", 60.0, "by the rate of ends")) if "look" in line)
    assert "1 min left" in line


def test_in_a_pipe_a_run_is_one_line() -> None:
    (line,) = (line for line in lines(60, run_of("look"), on_terminal=False) if "look" in line)
    assert line.endswith("time left unknown")
