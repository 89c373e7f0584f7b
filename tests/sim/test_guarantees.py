"""docs/guarantees.md names what there is: every invariant and every mutant, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from sim.invariants import INVARIANTS
from sim.mutants import MUTANTS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guarantees.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| promise")
]


def named(column: int) -> set[str]:
    return {name for row in ROWS for name in re.findall(r"`([a-z-]+)`", row[column])}


def test_the_table_names_every_invariant_and_every_mutant() -> None:
    assert named(1) == set(INVARIANTS)
    assert named(2) == set(MUTANTS)


def test_a_mutant_stands_beside_an_invariant_that_finds_it() -> None:
    for _, invariants, mutants in ROWS:
        beside = set(re.findall(r"`([a-z-]+)`", invariants))
        for mutant in re.findall(r"`([a-z-]+)`", mutants):
            assert beside & set(MUTANTS[mutant].found_by), f"{mutant} is found by {MUTANTS[mutant].found_by}"


def test_each_invariant_is_checked_somewhere() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "sim").glob("*.py") if path.name != "invariants.py")
    assert not [name for name in INVARIANTS if f'"{name}"' not in sources]
