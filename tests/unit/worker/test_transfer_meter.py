"""Transfers as shown to users: counted by the worker, summed by the boss, printed in a line."""

from __future__ import annotations

import pytest

from datastore.ssh.connection import Connection
from datastore.ssh.sshd_limits import understand
from ecloud.cli.doctor import _lanes
from ecloud.cli.transfer_text import moving_line
from ecloud.model.transfer_status import Moving
from worker.shell.meter import Meter

MB = 1_000_000


def test_nothing_moves_at_first_and_at_the_end() -> None:
    meter = Meter()
    assert meter.read() is None
    with meter.moving("fetch", 1, 5):
        pass
    assert meter.read() is None


def test_bytes_on_their_way_are_reported_and_never_more_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "moved_bytes", 700)
    meter = Meter()
    with meter.moving("fetch", 3, 10 * MB):
        Connection.moved_bytes += 4 * MB
        told = meter.read()
        assert told is not None
        assert (told.fetching, told.storing, told.bytes, told.moved_bytes) == (3, 0, 10 * MB, 4 * MB)
        with meter.moving("store", 1, 2 * MB):  # was there already: nothing moves
            pass
        Connection.moved_bytes += 20 * MB
        told = meter.read()
        assert told is not None
        assert (told.bytes, told.moved_bytes) == (12 * MB, 12 * MB)
    with meter.moving("store", 1, 0):  # a directory of unknown size
        Connection.moved_bytes += 3 * MB
        told = meter.read()
        assert told is not None
        assert (told.storing, told.bytes, told.moved_bytes) == (1, 3 * MB, 3 * MB)


@pytest.mark.parametrize(
    ("moving", "line"),
    [
        (Moving(3, 0, 4000 * MB, 1200 * MB, 85 * MB), "fetching 3 files, 1.2 of 4 GB, 85 MB/s"),
        (Moving(1, 2, 4 * MB, 300_000, 0), "fetching 1 file, storing 2 files, 300 kB of 4 MB"),
        (Moving(0, 1, 4 * MB, 4 * MB, 1000), "storing 1 file, 4 MB, 1 kB/s"),
    ],
)
def test_a_line_says_what_moves(moving: Moving, line: str) -> None:
    assert moving_line(moving) == line


LISTENER = "sh\0-c\nsshd: user [priv]\0\0\nsshd: /usr/sbin/sshd -D [listener] 1 of 10-100 startups\0\nCONFIGURATION\n"


@pytest.mark.parametrize(
    ("told", "startups"),
    [
        (LISTENER + "MaxStartups 5\n", 10),
        ("CONFIGURATION\n#MaxStartups 3\n  MaxStartups 20:30:60\n", 20),
        ("CONFIGURATION\nPort 22\n", 10),
        ("CONFIGURATION\n", None),
        ("This service allows sftp connections only.\n", None),
    ],
)
def test_what_an_sshd_takes_in_at_once_is_read_or_unknown(told: str, startups: int | None) -> None:
    limits = understand(told)
    assert (limits.startups if limits else None) == startups


def test_more_lanes_than_the_sshd_accepts_are_reported_with_what_to_change() -> None:
    limits = understand(LISTENER)
    assert _lanes(8, limits).is_ok
    told = _lanes(20, limits)
    assert "TRANSFER_LANES 20; MaxStartups 10, by its sshd" in told.text
    assert "TRANSFER_LANES = 8 in settings.py, or MaxStartups 22:30:220" in told.remedy
    unknown = _lanes(20, None)
    assert unknown.is_ok
    assert "unknown" in unknown.text
