"""Twelve ways in which a boot fails, as a visit by SSH shows them: each is recognised, with what to do about it."""

from __future__ import annotations

from typing import Any

import pytest

from ecloud.model.boot_diagnosis import Cause, Visit, recognise
from ecloud.model.machine_needs import version

GOOD: dict[str, Any] = {
    "contact": "ok", "clock_s": 0.4, "python": "3.11", "vm": "7", "boot_nonce": "4-7", "disk_mb": 9000.0, "dns": True,
    "broker": True,
}  # fmt: skip


def cause(**found: Any) -> Cause | None:
    return recognise(Visit(**{**GOOD, **found}), 7, "4-7")


@pytest.mark.parametrize(
    ("found", "name", "words"),
    [
        # 1: first-boot updates
        (
            {"log": "E: Could not get lock /var/lib/dpkg/lock-frontend\nexit code 100"},
            "package lock",
            "Lock::Timeout=300",
        ),
        # 2: the name server is not ready, while the address answers
        ({"dns": False, "broker": None}, "dns", "Set DNS"),
        # 3: the clock, over SSH and in TLS
        ({"clock_s": -86_400.0}, "clock", "wrong by 86400 s (behind)"),
        ({"log": "certificate is not yet valid"}, "clock", "keep time"),
        # 4: host keys
        ({"contact": "closed", "said": "Error reading SSH protocol banner"}, "no host keys", "ssh-keygen -A"),
        # 5: our key is not installed yet
        ({"contact": "denied"}, "key refused", "is not installed (yet)"),
        # 6: its own start has not ended
        ({"starting": "one-context is activating"}, "still starting", "has not finished (one-context is activating)"),
        # 7: the disk was not grown
        ({"disk_mb": 12.0}, "disk", "has 12 MB free, 300 are needed: let the image grow"),
        # 8: the address is another's
        ({"vm": "3", "boot_nonce": "4-3"}, "another machine", "belongs to VM 3 (boot 4-3)"),
        ({"contact": "changed", "said": "SHA256:a instead of SHA256:b"}, "another machine", "nothing was sent"),
        # 9: no CONTEXT disk
        ({"context": False, "vm": "", "boot_nonce": ""}, "no context", "Install one-context"),
        ({"contact": "silent"}, "no context", "nothing answers at its address"),
        ({"contact": "shut"}, "no context", "no sshd listens there"),
        # 10: the start script
        ({"log": "a\nthere is no ECLOUD in /opt/ecloud of this image"}, "start script", "no ECLOUD in /opt/ecloud"),
        # 11: Python, and where nothing can be run
        ({"python": ""}, "python", "it has no Python"),
        ({"python": "3.9"}, "python", "its Python is 3.9"),
        ({"home": "programs in /x cannot be run: it is mounted with noexec"}, "home", "noexec"),
        # 12: SSH works, the broker cannot be reached
        ({"broker": False}, "broker", "cannot reach the broker"),
        ({"agent": True, "log": "connection refused"}, "broker", "its last output: connection refused"),
        # and what the boss itself could not do
        ({"contact": "broken", "said": "no answer in time"}, "broken visit", "broke off (no answer in time)"),
        ({"by_ssh": True, "problem": "no wheel of msgspec"}, "preparing", "no wheel of msgspec"),
    ],
)
def test_a_cause_is_recognised(found: dict[str, Any], name: str, words: str) -> None:
    recognised = cause(**found)
    assert recognised is not None
    assert recognised.name == name
    assert words in recognised.text
    assert len(recognised.name) <= 16


def test_a_start_under_way_explains_a_python_that_is_not_there_yet() -> None:
    recognised = cause(python="", starting="cloud-init is running")
    assert recognised is not None
    assert recognised.name == "still starting"


def test_nothing_is_recognised_where_the_boss_is_about_to_bring_the_code() -> None:
    assert cause(by_ssh=True) is None


def test_versions_compare_as_numbers() -> None:
    assert version("3.9") < version("3.10") < version("3.11")
    assert version("nonsense") < version("2.7")
