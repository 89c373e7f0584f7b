"""A datastore whose clock is set while workers are at work: their access expires by that clock, and only they notice.

The machine's clock is the one that sshd and all that it starts see through a library that shifts it; the compiler of
this machine makes it, and without a compiler these tests are skipped.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from services import wait_until
from sshd import Sshd
from weather import PATIENCE_S, Weather

from ecloud.queries.lookup import task

HOUR_S = 3600
COMPILER = shutil.which("cc") or shutil.which("gcc")
CLOCK = r"""
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long shift;

static void look(void) {
    FILE *file = getenv("SHIFT_FILE") ? fopen(getenv("SHIFT_FILE"), "r") : NULL;
    if (!file) return;
    if (fscanf(file, "%ld", &shift) != 1) shift = 0;
    fclose(file);
}

__attribute__((constructor)) static void begin(void) { look(); }

int clock_gettime(clockid_t clock, struct timespec *now) {
    int told = syscall(SYS_clock_gettime, clock, now);
    if (clock == CLOCK_REALTIME) {
        if (getenv("SHIFT_SEEN_AT_ONCE")) look();
        now->tv_sec += shift;
    }
    return told;
}

time_t time(time_t *to) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to) *to = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *to, void *zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    to->tv_sec = now.tv_sec;
    to->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler to make a clock with")


class ShiftedSshd(Sshd):
    """On a machine whose clock can be set. A connection's sshd reads it when it begins, a gate all the time."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.shift = directory / "shift"
        self.set(0)
        source, library = directory / "clock.c", directory / "clock.so"
        source.write_text(CLOCK)
        assert COMPILER is not None
        subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
        seen = [f"LD_PRELOAD={library}", f"SHIFT_FILE={self.shift}"]
        within = " ".join(f'"{word}"' for word in [f"HOME={directory}", *seen, "SHIFT_SEEN_AT_ONCE=1"])
        super().__init__(directory, f"SetEnv {within}")
        self.sees = ["env", *seen]

    def set(self, ahead_s: int) -> None:
        """So far ahead of the real time from now on."""
        aside = self.shift.with_name("shift.new")
        aside.write_text(str(ahead_s))
        aside.replace(self.shift)


@pytest.fixture
def weather(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Weather]:
    # A path without a space: the loader takes it as the end of a library's name.
    monkeypatch.setattr("weather.Sshd", lambda directory: ShiftedSshd(tmp_path / "far"))
    weather = Weather(tmp_path)
    assert isinstance(weather.sshd, ShiftedSshd)
    weather.sshd.lacks += weather.sshd.sees
    try:
        weather.start()
        yield weather
    finally:
        weather.end()


@pytest.mark.parametrize("step_s", [5 * HOUR_S, -30 * HOUR_S])
def test_a_clock_that_is_set_costs_no_task_and_no_retry(weather: Weather, step_s: int) -> None:
    """Ahead, every certificate has ended; more than a day back, none is valid yet. The boss's own key always opens."""
    sshd = weather.sshd
    assert isinstance(sshd, ShiftedSshd)
    (weather.root / "given").write_text("input")
    run = weather.begin(weather.makes("before", requirements=["given"]), weather.makes("during", gate="during"))
    wait_until(lambda: task(weather.engine, "before", run).state == "succeeded", PATIENCE_S, "files come and go")
    weather.runs("during")
    connections = weather.proxy.connections
    sshd.set(step_s)
    if step_s < 0:
        sshd.cut()  # who is connected does not notice that the clock is back
    after = weather.begin(*(weather.makes(f"after{number}", requirements=["given"]) for number in range(6)))
    weather.open("during")
    weather.ends(after, *(f"after{number}" for number in range(6)))
    weather.ends(run, "before", "during")
    assert weather.proxy.connections > connections
    expired = (sshd.directory / "log").read_text()
    assert "expired" in expired or "not yet valid" in expired, "no certificate was refused: the clock was not set"
