"""The one shape of errors that users see: what happened, what to do, the exit code."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

import boss
import datastore
import ecloud
import worker
from datastore import problem as problems
from datastore.problem import INPUT_WRONG, PART_AWAY, PartAway, Problem

INTERNAL = {
    "ecloud.formats.arrays.ArrayWrong",
    "ecloud.formats.sweep.conditions.ConditionWrong",
    "ecloud.formats.sweep.parameters._Wrong",
    "ecloud.model.wire.Unreadable",
    "ecloud.formats.fields.WrongKind",
    "boss.providers.opennebula.errors.No",
    "boss.providers.opennebula.errors.InTrouble",
    "boss.providers.opennebula.errors.NoSuch",
    "boss.providers.opennebula.errors.NotAllowed",
    "boss.providers.opennebula.errors.WrongState",
    "boss.store.statements.CommitRefused",
    "boss.store.store.Deposed",
    "boss.bootstrap.visit.Broken",
    "boss.bootstrap.visit.Refused",
    "boss.bootstrap.visit._OtherKey",
    "worker.debug.NotTried",
    "ecloud.cli.app.ReaderEnded",
    "boss.shell.tls_door.Unwelcome",
    "ecloud.python.payload.RemoteTraceback",
    "worker.launcher.AgentGone",
    "datastore.gate.Refused",
    "datastore.gate.BadFrame",
    "datastore.ssh.link.Again",
    "datastore.ssh.remote.Unreachable",
    "datastore.ssh.remote.Broken",
    "datastore.ssh.remote._OtherKey",
}
"""Caught where they are raised, or a fault of the program: users never see these. gate.py is one file alone."""


def test_a_remedy_follows_what_happened() -> None:
    assert str(Problem("no boss runs", "python admin.py start")) == "no boss runs: python admin.py start"
    assert str(Problem("db1: refused", "check it")) == "db1: refused; check it"
    assert Problem(["a is wrong", "b is wrong"], "correct both").lines == ["a is wrong", "b is wrong: correct both"]
    assert Problem("only this").lines == ["only this"]
    assert Problem(["a", "b"]).text == "a; b"


def test_a_class_sets_the_exit_code_and_one_error_may_differ() -> None:
    assert Problem("x").exit_code == INPUT_WRONG
    assert PartAway("x").exit_code == PART_AWAY
    assert PartAway("x", exit_code=INPUT_WRONG).exit_code == INPUT_WRONG
    assert PartAway("y").exit_code == PART_AWAY


def test_every_error_that_users_may_see_is_a_problem() -> None:
    others = set()
    for package in (boss, datastore, ecloud, worker):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.endswith("__main__"):
                continue
            found = importlib.import_module(module.name)
            others |= {
                f"{kind.__module__}.{kind.__qualname__}"
                for _, kind in inspect.getmembers(found, inspect.isclass)
                if issubclass(kind, Exception) and not issubclass(kind, Problem) and kind.__module__ == module.name
            }
    assert others - INTERNAL == set(), "derive it from datastore.problem.Problem, or list it as internal"


def test_an_installed_package_names_the_command_that_pip_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem("no boss runs here", "python admin.py start")
    assert str(problem) == "no boss runs here: python admin.py start"
    monkeypatch.setattr(problems, "IS_INSTALLED", True)
    assert str(problem) == "no boss runs here: ecloud start"
    assert problem.lines == ["no boss runs here: ecloud start"]
