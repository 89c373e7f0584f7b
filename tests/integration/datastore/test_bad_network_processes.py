"""The processes on both sides of the files die or freeze at the worst moment. See `test_bad_weather`."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path

from services import wait_until
from weather import PATIENCE_S, Weather, lines_of

from ecloud.queries.lookup import task

FILES = 1500
TRIES = 5
"""How often the boss may be faster than the test."""


def staged(weather: Weather) -> list[Path]:
    """Stages that are there, the clients' locks left out."""
    staging = weather.root / ".ecloud" / "staging"
    return [path for path in staging.glob("*/*") if not path.name.startswith(".")]


def test_a_boss_killed_while_it_publishes(weather: Weather) -> None:
    """Some of a task's files are under their final names, some are not: no client sees them until all are."""
    for number in range(TRIES):
        run, published = killed_while_it_publishes(weather, f"many{number}")
        was_running = task(weather.engine, f"many{number}").state == "running"
        if was_running:
            assert task(weather.engine, f"count-many{number}").state == "waiting"
        weather.daemon.start()
        weather.is_over(run, 2)
        assert {path.read_text() for path in published.iterdir()} == {"1\n"}
        assert len(list(published.iterdir())) == FILES
        if was_running:
            return
    raise AssertionError("the boss was always faster")


def killed_while_it_publishes(weather: Weather, name: str) -> tuple[str, Path]:
    """Kill the boss when the first file of task `name` is published: its run, and where its files go."""
    write = f'i=0; while [ $i -lt {FILES} ]; do echo "$ECLOUD_ATTEMPT" > f$i; i=$((i+1)); done'
    many = {"id": name, "commands": write, "results": [["f*", name]], "retries": 0}
    count = {"id": f"count-{name}", "commands": f"test $(ls in | wc -l) -eq {FILES}", "dependencies": [name]}
    run = weather.begin(many, {**count, "requirements": [[name, "in"]], "retries": 0})
    published, staging = weather.root / name, weather.root / ".ecloud/staging"
    wait_until(
        lambda: published.exists() or len(list(staging.glob(f"*/*/{name}/*"))) == FILES, PATIENCE_S, "all is staged"
    )
    deadline = time.monotonic() + PATIENCE_S
    while not published.exists() and time.monotonic() < deadline:
        pass  # a matter of milliseconds
    weather.sshd.cut()
    weather.daemon.kill()
    return run, published


def test_a_worker_frozen_in_the_middle_of_its_upload(weather: Weather) -> None:
    """It is given up, its task is done by the other one, and when it thaws a day later it disturbs nothing."""
    lines = lines_of("slow", size := 40_000_000)
    before = weather.proxy.passed
    run = weather.begin(weather.makes("slow", lines))
    wait_until(lambda: weather.proxy.passed - before > size // 4, PATIENCE_S, "a quarter of it has passed")
    holder = task(weather.engine, "slow").attempts[0].worker
    frozen = weather.agent_of(holder)
    frozen.send_signal(signal.SIGSTOP)
    weather.sshd.stop()
    try:
        weather.why("slow", "silent for")
        weather.sshd.start()
        weather.ends(run, "slow", lines=lines)
        second = task(weather.engine, "slow").attempts[-1]
        assert second.worker != holder
    finally:
        frozen.send_signal(signal.SIGCONT)
    wait_until(lambda: holder in weather.workers(), PATIENCE_S, "it is on duty again")
    after = weather.begin(*(weather.makes(f"after{number}") for number in range(8)))
    weather.ends(after, *(f"after{number}" for number in range(8)))
    weather.is_whole(run, "slow", lines)
    wait_until(lambda: not staged(weather), PATIENCE_S, f"its unused stage is swept: {staged(weather)}")


def test_a_worker_killed_while_it_fetches_a_directory(weather: Weather) -> None:
    """Started again, it continues with the complete files and the incomplete one."""
    size, files = 1_000_000, 30
    inputs = weather.root / "inputs"
    inputs.mkdir()
    for number in range(files):
        (inputs / f"{number:02}").write_bytes(os.urandom(size))
    weather.kill_agent(1)
    wait_until(lambda: len(weather.workers()) == 1, PATIENCE_S, "one worker is left")
    weather.proxy.bytes_per_s, before = 10e6, weather.proxy.passed
    uses = {"id": "uses", "commands": "cat in/* | sha256sum > out", "requirements": [["inputs", "in"]]}
    run = weather.begin({**uses, "results": [["out", "sums"]], "retries": 0})
    wait_until(
        lambda: weather.proxy.passed - before > 0.6 * files * size, PATIENCE_S, "more than half of it has passed"
    )
    weather.kill_agent(0)
    weather.proxy.bytes_per_s, before = 0.0, weather.proxy.passed
    weather.start_agent(0)
    weather.is_over(run, 1)
    assert task(weather.engine, "uses", run).retries_used == 0
    assert weather.proxy.passed - before < 0.7 * files * size, "what was whole travelled again"
    whole = hashlib.sha256(b"".join((inputs / f"{number:02}").read_bytes() for number in range(files)))
    assert (weather.root / "sums").read_text().split()[0] == whole.hexdigest()
    weather.start_agent(1)
    wait_until(lambda: len(weather.workers()) == 2, PATIENCE_S, "both are on duty again")
