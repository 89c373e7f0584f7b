"""Decisions are numbered: each number once, in the file's name and in its heading."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

FILES = sorted((Path(__file__).parents[3] / "docs" / "decisions").glob("*.md"))


def test_each_number_is_used_once() -> None:
    numbers = Counter(path.name[:4] for path in FILES)
    assert [number for number, count in numbers.items() if count > 1] == []


def test_each_heading_has_the_number_of_its_file() -> None:
    headings = {path.name: path.read_text().splitlines()[0] for path in FILES}
    assert [name for name, line in headings.items() if not line.startswith(f"# {int(name[:4])}. ")] == []
