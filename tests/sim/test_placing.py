"""Placing passes over shapes for which there is no room: the same is decided without that."""

from __future__ import annotations

import pytest

from boss.core.placement.placement import Placement
from sim import simulation


def test_what_is_passed_over_would_have_found_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = range(1, 26)
    passed = 0
    give_up = Placement._give_up

    def counted(self: Placement, shape: object) -> None:
        nonlocal passed
        give_up(self, shape)  # type: ignore[arg-type]
        passed += len(self._hopeless) > 1

    monkeypatch.setattr(Placement, "_give_up", counted)
    usual = [simulation.run(seed).trace_hash for seed in seeds]
    assert passed, "nothing was passed over"
    monkeypatch.setattr(Placement, "_give_up", lambda self, shape: None)
    assert [simulation.run(seed).trace_hash for seed in seeds] == usual
