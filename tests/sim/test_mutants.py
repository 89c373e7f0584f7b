"""Does the checker see? Each protection is switched off in turn, and some seed must find it out."""

from __future__ import annotations

import pytest

from sim import mutants, simulation
from sim.mutants import MUTANTS, SEEDS

QUICK = ("lease", "numbers", "write-then-speak", "intent", "spool-until-stored", "epoch", "promotion-by-boss")
"""Found within a few seeds: these are always checked, all of them by `make test-long` and `make sim-mutants`."""


@pytest.mark.parametrize("name", [name for name in MUTANTS if name in QUICK])
def test_a_mutant_is_found_within_a_few_seeds(name: str) -> None:
    assert mutants.hunt(name, 20).invariant in MUTANTS[name].found_by


@pytest.mark.long
@pytest.mark.parametrize("name", MUTANTS)
def test_what_is_switched_off_is_found(name: str) -> None:
    found = mutants.hunt(name, SEEDS)
    assert found.found is not None, f"{name} survived {SEEDS} seeds: the checker is blind, or the protection is useless"
    assert found.invariant in MUTANTS[name].found_by, found.found.problem


def test_after_a_hunt_everything_is_as_it_was() -> None:
    before = simulation.run(3).trace_hash
    mutants.hunt("numbers", 5)
    assert simulation.run(3).trace_hash == before
