"""Whether a requirement is still what a task had: by size, time and content."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from datastore import stamps
from datastore.directory import DirectoryDatastore
from datastore.stamps import is_same, stamp


class Site:
    """A directory datastore, and what a worker fetched of it."""

    def __init__(self, place: Path) -> None:
        self.root, self.fetched = place / "root", place / "fetched"
        self.root.mkdir()
        self.store = DirectoryDatastore(self.root)

    def had(self, name: str) -> str:
        shutil.rmtree(self.fetched, ignore_errors=True)
        self.fetched.mkdir()
        self.store.fetch(name, self.fetched / "copy")
        return stamp(self.fetched / "copy")

    def is_same(self, kept: str, name: str) -> bool:
        (entry,) = self.store.stat([name])
        assert entry is not None
        return is_same(kept, entry, self.store)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_file_by_its_content_whatever_its_time(site: Site) -> None:
    path = site.root / "a"
    path.write_text("one")
    kept = site.had("a")
    assert site.is_same(kept, "a")
    os.utime(path, (1, 1))
    assert site.is_same(kept, "a")
    path.write_text("two")
    os.utime(path, (2, 2))  # the clock of files may not have moved since "one" was written
    assert not site.is_same(kept, "a")
    path.write_text("longer")
    assert not site.is_same(kept, "a")


def test_a_large_file_by_size_and_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamps, "HASHED_BYTES", 2)
    path = site.root / "a"
    path.write_text("one")
    kept = site.had("a")
    assert site.is_same(kept, "a")
    os.utime(path, (1, 1))
    assert not site.is_same(kept, "a")


def test_a_directory_by_what_it_holds(site: Site) -> None:
    (site.root / "d/sub").mkdir(parents=True)
    (site.root / "d/sub/x").write_text("x")
    kept = site.had("d")
    assert site.is_same(kept, "d")
    (site.root / "d/y").write_text("y")
    assert not site.is_same(kept, "d")
    (site.root / "d/y").unlink()
    assert site.is_same(kept, "d")
    (site.root / "d/sub/x").write_text("z2")
    assert not site.is_same(kept, "d")


def test_a_file_in_place_of_a_directory(site: Site) -> None:
    (site.root / "d").mkdir()
    kept = site.had("d")
    (site.root / "d").rmdir()
    (site.root / "d").write_text("x")
    assert not site.is_same(kept, "d")
