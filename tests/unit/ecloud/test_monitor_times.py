"""Times inside sentences: the monitor marks them, so that a browser shows them in the viewer's zone."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import datetime

import pytest

from ecloud.model.text import when
from ecloud.web.rendering import sentence


@pytest.fixture(params=["UTC", "Europe/Berlin", "Asia/Kolkata", "America/Sao_Paulo"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The zone of the server's clock."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", request.param)
        time.tzset()
        yield request.param
    time.tzset()


def test_each_time_in_a_sentence_is_a_time_of_the_page(zone: str) -> None:
    now = float(int(time.time()))
    for at in (now, now - 86_400.0, 1_781_500_000.0, 1_797_000_000.0):
        page = sentence(f"pool <b> starts no VM since {when(at, now)}: full")
        found = re.fullmatch(r'pool &lt;b&gt; starts no VM since <time datetime="(\S+)">(.+)</time>: full', str(page))
        assert found, page
        assert datetime.fromisoformat(found[1]).timestamp() == at
        assert found[2] == when(at, now)


@pytest.mark.parametrize(
    "text", ["at 25:00:00 UTC", "at 12:00:00 XYZ", "2026-13-01 12:00:00 XYZ", "a 1:2:3", "12:00:00 UTCx"]
)
def test_what_only_looks_like_a_time_stays_text(text: str) -> None:
    assert sentence(text) == text
