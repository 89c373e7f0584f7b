"""Progress where there is no terminal: lines, now and then."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ecloud.python import progress
from ecloud.python.progress import Bar, counted


def test_lines_are_rare_and_the_last_one_has_all_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar("run-1")
    for done in range(1, 1_001):
        bar.update(done, 1_000, failed=2)
    bar.close()
    assert capsys.readouterr().err == "run-1: 1,000 of 1,000 done, 2 failed\n"


def test_each_line_has_the_present_numbers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    assert list(counted(iter("ab"), "f", ["xy", (number for number in range(2))])) == ["a", "b"]
    assert capsys.readouterr().err == "f: 1 of 2 done\nf: 2 of 2 done\nf: 2 of 2 done\n"
    assert list(counted(iter("a"), "f", [iter("x")])) == ["a"]
    assert capsys.readouterr().err.startswith("f: 1 done\n")


def test_a_closed_stderr_ends_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(os.devnull).open("w") as closed:
        monkeypatch.setattr(sys, "stderr", closed)
    bar = Bar("run-1", 2)
    bar.advance(2)
    bar.close()
