"""The machine with the files in bad weather. Whatever happens: no torn or stale file is under a
final name, no task has succeeded without its results, `why` tells the reason meanwhile, and after the repair everything
continues, and no retry is used."""

from __future__ import annotations

import pytest
from services import wait_until
from weather import LINE, PATIENCE_S, Weather, lines_of

from ecloud.queries.lookup import task


def test_a_machine_that_restarts_under_two_hundred_uploads(weather: Weather) -> None:
    ids = [f"up{number}" for number in range(200)]
    run = weather.begin(*(weather.makes(id) for id in ids))
    for share in (20, 90):
        wait_until(lambda share=share: len(weather.made()) > share, PATIENCE_S, "some are there")
        weather.sshd.stop()
        weather.nothing_is_torn()
        weather.sshd.start()
    weather.ends(run, *ids)


@pytest.mark.parametrize("size", [100_000_000, pytest.param(1_000_000_000, marks=pytest.mark.long)])
def test_sshd_killed_while_a_result_is_on_its_way(weather: Weather, size: int) -> None:
    """Up and down: the second task fetches what the first one made."""
    big, reads = f"big{size}", f"reads{size}"
    lines, third = lines_of(big, size), size // 3
    weather.proxy.bytes_per_s = size / 8  # so that sshd is stopped before all has arrived
    before = weather.proxy.passed
    run = weather.begin(weather.makes(big, lines))
    wait_until(lambda: weather.proxy.passed - before > third, PATIENCE_S, "a third has gone up")
    weather.sshd.stop()
    weather.why(big, "results cannot be stored", "the datastore", "onnection")
    assert big not in weather.made()
    weather.proxy.bytes_per_s = 0.0
    weather.sshd.start()
    weather.ends(run, big, lines=lines)
    weather.proxy.bytes_per_s = size / 8
    begun = weather.proxy.passed
    # A push of its own: a task that is chained to the one it reads from takes its input on the worker.
    read = {"id": reads, "commands": "wc -c < in", "requirements": [[f"made/{big}", "in"]], "retries": 0}
    run = weather.begin(read)
    wait_until(lambda: weather.proxy.passed - begun > third, PATIENCE_S, "a third has gone down")
    weather.sshd.stop()
    weather.why(reads, "the datastore", "onnection")
    weather.proxy.bytes_per_s = 0.0
    weather.sshd.start()
    weather.ends(run, reads)
    # A worker that waits for long gives the task back, and the other one fetches a copy of its own.
    readers = {attempt.worker for attempt in task(weather.engine, reads).attempts}
    assert begun - before < size * 1.2, "the upload resumed"
    assert weather.proxy.passed - begun < size * (len(readers) + 0.2), "the download resumed"
    (weather.root / "made" / big).unlink()


def test_a_disk_that_is_full_at_nine_tenths(weather: Weather) -> None:
    lines = lines_of("full", size := 3_000_000)
    run = weather.begin(weather.makes("full", lines, gate="full"))
    weather.runs("full")
    weather.room_for(size * 9 // 10)
    weather.open("full")
    weather.why("full", "results cannot be stored", "the datastore", "No space left")
    assert "full" not in weather.made()
    weather.room_for(None)
    weather.ends(run, "full", lines=lines)


def test_permission_denied_where_results_go(weather: Weather) -> None:
    """What is staged cannot be published, and what is published cannot be read."""
    closed = weather.root / "closed"
    closed.mkdir()
    (closed / "input").write_text("input\n")
    write = weather.makes("write", gate="write")
    write["results"] = [["out", "closed/write"]]
    run = weather.begin(write)
    weather.runs("write")
    closed.chmod(0o500)
    weather.open("write")
    weather.why("write", "results are being put into the datastore", "Permission denied")
    assert not (closed / "write").exists()
    closed.chmod(0o000)
    weather.begin({"id": "read", "commands": "cat in", "requirements": [["closed/input", "in"]], "retries": 0})
    weather.why("read", "Permission denied")
    closed.chmod(0o700)
    wait_until(lambda: task(weather.engine, "read").state == "succeeded", PATIENCE_S, "read succeeded")
    wait_until(lambda: task(weather.engine, "write", run).state == "succeeded", PATIENCE_S, "write succeeded")
    assert (closed / "write").read_text() == LINE.format(id="write", attempt=1) * 100


def test_another_host_key_is_refused_until_an_operator_accepts_it(weather: Weather) -> None:
    run = weather.begin(weather.makes("trusts", gate="trusts"))
    weather.runs("trusts")
    weather.sshd.stop()
    weather.sshd.new_host_key()
    weather.sshd.start()
    weather.open("trusts")
    weather.why("trusts", "REFUSED: the host key of the datastore", "SHA256:", "set_datastore", "--new_host_key")
    assert "trusts" not in weather.made()
    weather.doors.admin("set_datastore", weather.address, "--new_host_key")
    weather.ends(run, "trusts")
