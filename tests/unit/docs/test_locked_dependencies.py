"""The lock files fit the ranges that people read: what `make install` and the tests install is what is declared."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from services import ROOT

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
PAIRS = {"requirements.lock": "requirements.txt", "requirements-dev.lock": "requirements-dev.txt"}
ENTRY = re.compile(r"^([^\s#-].*?) \\\n((?:    --hash=\S+(?: \\)?\n)+)", re.MULTILINE)
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}(?: \\)?")


def declared(name: str) -> Iterator[Requirement]:
    """The ranges in a file, with those of the files that it names."""
    for line in (ROOT / name).read_text().splitlines():
        if line.startswith("-r "):
            yield from declared(line[3:].strip())
        elif line and not line.startswith("#"):
            yield Requirement(line)


def locked(name: str) -> list[Requirement]:
    """The entries of a lock file."""
    return [Requirement(entry) for entry, _ in ENTRY.findall((ROOT / name).read_text())]


def is_meant(item: Requirement, python: str) -> bool:
    """Whether that Python on Linux needs it."""
    where = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
    }
    return item.marker is None or item.marker.evaluate(where)


def pins(name: str, python: str) -> dict[str, str]:
    """What is installed by a lock file on Linux, with that Python: versions by name."""
    found = {}
    for item in locked(name):
        if is_meant(item, python):
            (only,) = item.specifier
            assert only.operator == "=="
            assert canonicalize_name(item.name) not in found, f"{item.name} twice for Python {python}"
            found[canonicalize_name(item.name)] = only.version
    return found


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", PAIRS)
def test_each_declared_package_is_locked_within_its_range(lock: str, python: str) -> None:
    there = pins(lock, python)
    wrong = [
        str(item)
        for item in declared(PAIRS[lock])
        if is_meant(item, python) and not item.specifier.contains(there.get(item.name.lower(), "0"))
    ]
    assert wrong == [], f"{lock} lacks these for Python {python}: run make lock"


@pytest.mark.parametrize("python", PYTHONS)
def test_the_tests_run_with_what_users_install(python: str) -> None:
    assert pins("requirements.lock", python).items() <= pins("requirements-dev.lock", python).items()


@pytest.mark.parametrize("lock", PAIRS)
def test_every_file_that_pip_may_take_has_a_hash_and_no_place(lock: str) -> None:
    text = (ROOT / lock).read_text()
    for entry, hashes in ENTRY.findall(text):
        assert all(HASH.fullmatch(line.strip()) for line in hashes.splitlines()), entry
    entries = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    assert len(entries) == len(locked(lock)) > 20
    assert not re.search(r"https?:|file:|@|--index|--extra|--find", text), (
        "the place is the installing machine's matter"
    )
