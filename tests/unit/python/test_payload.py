"""What a client makes of the failures that call hosts pickle."""

from __future__ import annotations

import pickle
from importlib import metadata

from ecloud.python.payload import failure_of, pickle_function


def failed_import(module: str, version: str) -> BaseException:
    there = {"module": module, "version": version, "host": "node7", "python": "3.11 (/opt/python)"}
    error = ModuleNotFoundError(f"No module named {module!r}", name=module)
    return failure_of(pickle.dumps((pickle.dumps(error), "", there)), "failed", "exit", "call f-1")


def test_a_failed_import_names_the_versions_of_its_package_here_and_there() -> None:
    here = metadata.version("msgspec")
    error = failed_import("msgspec", "")
    assert isinstance(error, ModuleNotFoundError)
    assert str(error).startswith(
        f"No module named 'msgspec' (package msgspec: version {here} here, not installed on node7, Python 3.11 "
        "(/opt/python)); install"
    )
    assert "ECLOUD_PYTHON" in str(error)
    assert "version 0.1 on node7" in str(failed_import("msgspec", "0.1"))


def test_a_package_may_have_another_name_than_its_module() -> None:
    assert "package paho-mqtt: version" in str(failed_import("paho", ""))
    assert "package no_such_module: not installed here" in str(failed_import("no_such_module", ""))


def test_a_remote_traceback_names_the_file_of_the_program_and_shows_its_lines() -> None:
    def broken() -> None:
        raise ValueError("here")  # the line that is shown

    there = pickle.loads(pickle_function(broken).data)
    assert there.__code__.co_filename == __file__
    line = broken.__code__.co_firstlineno + 1
    told = f'Traceback (most recent call last):\n  File "{__file__}", line {line}, in broken\nValueError: here\n'
    error = failure_of(pickle.dumps((b"", told)), "ValueError: here", "exit", "call 1")
    assert '    raise ValueError("here")  # the line that is shown\nValueError: here' in str(error.__cause__)
