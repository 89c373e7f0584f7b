"""The one list of what a machine needs, and that everyone who checks a machine asks it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest

from boss.providers import ssh_hosts
from boss.providers.ssh_hosts_scripts import read_probe
from ecloud.config.settings import ROOT
from ecloud.model import boot_diagnosis
from ecloud.model.boot_diagnosis import Visit
from ecloud.model.machine_needs import CLOCK, DISK, HOME, LEAST_DISK_MB, PYTHON, MachineFacts, lacks

GOOD = MachineFacts(python="3.11", disk_mb=9000.0, clock_s=-59.0)


@pytest.mark.parametrize(
    ("facts", "need", "text"),
    [
        ({"python": ""}, PYTHON, "it has no Python; ECLOUD needs 3.10 or later"),
        ({"python": "3.9"}, PYTHON, "its Python is 3.9; ECLOUD needs 3.10 or later"),
        ({"python": "unknown"}, PYTHON, "its Python is unknown; ECLOUD needs 3.10 or later"),
        ({"disk_mb": LEAST_DISK_MB - 1}, DISK, "it has 299 MB free, 300 are needed"),
        ({"home": "noexec"}, HOME, "a worker cannot use its home there: noexec"),
        ({"clock_s": 61.0}, CLOCK, "its clock is wrong by 61 s (ahead)"),
        ({"clock_s": -90.0}, CLOCK, "its clock is wrong by 90 s (behind)"),
    ],
)
def test_each_need_is_named_alone(facts: dict[str, Any], need: str, text: str) -> None:
    (lack,) = lacks(dataclasses.replace(GOOD, **facts))
    assert (lack.need, lack.text) == (need, text)


def test_a_good_machine_and_unknown_facts_lack_nothing() -> None:
    assert list(lacks(GOOD)) == []
    assert list(lacks(MachineFacts())) == []


def test_every_need_has_a_remedy_for_hosts_and_a_cause_for_vms() -> None:
    bad = MachineFacts("2.7", 1.0, "noexec", 1e6)
    needs = [lack.need for lack in lacks(bad)]
    assert needs == [PYTHON, DISK, HOME, CLOCK]
    assert set(ssh_hosts.REMEDIES) == set(needs)
    for need, visit in {
        PYTHON: Visit("ok", python="2.7"),
        DISK: Visit("ok", python="3.11", disk_mb=1.0),
        HOME: Visit("ok", python="3.11", home="noexec"),
        CLOCK: Visit("ok", python="3.11", clock_s=1e6),
    }.items():
        cause = boot_diagnosis.recognise(visit, 1, "")
        assert cause is not None
        assert cause.name == need


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("python 3.9 x86_64 glibc 2.28 /usr/bin/python3\ndisk 5000\n", "its Python is 3.9; ECLOUD needs 3.10 or later"),
        ("python \ndisk 5000\n", "it has no Python; ECLOUD needs 3.10 or later"),
        ("python 3.12 x86_64 glibc 2.36 /opt/my conda/bin/python3\ndisk 5000\n", ""),
    ],
)
def test_a_host_tells_its_python_even_if_it_is_too_old(said: str, text: str) -> None:
    probe = read_probe(said)
    assert "".join(lack.text for lack in lacks(probe.facts())) == text
    assert bool(probe.python) == (not text)


def test_the_list_needs_no_package() -> None:
    """`worker/debug.py` reads it on machines whose Python lacks the packages."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import ecloud.model.machine_needs, sys; sys.exit('msgspec' in sys.modules)"],
        cwd=ROOT,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0
