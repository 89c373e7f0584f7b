"""A call host, spoken with as its worker does: one real interpreter, one socket."""

from __future__ import annotations

import json
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from worker.shell.call_hosts import CALLHOST, _cloudpickle


class HostDouble:
    """The worker's side of one host."""

    def __init__(self, place: Path) -> None:
        self.place = place
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"/proc/self/fd/{self._open(place)}/calls.sock")
        listener.listen(1)
        argv = [sys.executable, str(CALLHOST), str(place), "7", _cloudpickle(), "call-7"]
        self.process = subprocess.Popen(argv)
        listener.settimeout(30)
        self.control, _ = listener.accept()
        self.control.settimeout(30)
        listener.close()
        self.file = self.control.makefile("rb")
        assert self.read()[0]["token"] == "7"

    @staticmethod
    def _open(place: Path) -> int:
        import os

        return os.open(place, os.O_PATH)

    def read(self) -> tuple[dict[str, Any], bytes]:
        head_bytes, body_bytes = (int.from_bytes(self.file.read(4), "little") for _ in range(2))
        return json.loads(self.file.read(head_bytes)), self.file.read(body_bytes)

    def call(self, function: Any, *arguments: Any, **head: Any) -> tuple[dict[str, Any], bytes, str, str]:
        """Call it; the reply, the value's pickle, stdout and stderr."""
        code = cloudpickle.dumps(function)
        data = pickle.dumps(arguments[0] if head.get("many") else (arguments, {}))
        setup = head.pop("setup_bytes", b"")
        message = {
            "call": [1, 1], "name": "f", "function": str(hash(code)), "many": False, "directory": str(self.place),
            "env": {}, "code": len(code), "arguments": len(data), "setup": len(setup), **head,
        }  # fmt: skip
        text, body = json.dumps(message).encode(), code + data + setup
        lengths = len(text).to_bytes(4, "little") + len(body).to_bytes(4, "little")
        self.control.sendall(lengths + text + body)
        reply, told = self.read()
        value, out, err = reply["sizes"]
        return reply, told[:value], told[value : value + out].decode(), told[value + out : value + out + err].decode()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[HostDouble]:
    """A host that ends when its worker hangs up."""
    double = HostDouble(tmp_path)
    yield double
    double.file.close()
    double.control.close()
    assert double.process.wait(30) == 0


def test_a_value_and_the_output_of_each_call(host: HostDouble) -> None:
    def say(word: str) -> str:
        print(word)
        print("aside", file=sys.stderr)
        return word.upper()

    reply, value, out, err = host.call(say, "one")
    assert (reply["ok"], pickle.loads(value), out, err) == (True, "ONE", "one\n", "aside\n")
    assert host.call(say, "two")[2] == "two\n"  # nothing of the call before


def test_a_failure_brings_its_traceback_and_the_exception(host: HostDouble) -> None:
    def fail() -> None:
        raise ValueError("no")

    reply, value, _, err = host.call(fail)
    data, trace = pickle.loads(value)
    assert (reply["ok"], reply["error"], repr(pickle.loads(data))) == (False, "ValueError: no", "ValueError('no')")
    assert trace.startswith("Traceback")
    assert "in fail" in trace
    assert "_call" not in trace  # no frame of the host's own
    assert err == trace


def test_an_exception_that_cannot_be_pickled_leaves_its_text(host: HostDouble) -> None:
    def fail() -> None:
        class Odd(Exception):
            def __init__(self, one: int, two: int) -> None:
                super().__init__(f"{one} {two}")

        raise Odd(1, 2)

    reply, value, _, _ = host.call(fail)
    assert reply["error"] == "Odd: 1 2"
    assert pickle.loads(value)[0] == b""


def test_a_large_value_goes_to_a_file(host: HostDouble) -> None:
    reply, value, _, _ = host.call(lambda: b"x" * 100_000)
    assert value == b""
    assert pickle.loads(Path(reply["file"]).read_bytes()) == b"x" * 100_000


def test_of_many_calls_in_one_the_first_failure_ends_it(host: HostDouble) -> None:
    def inverse(number: float) -> float:
        return 1 / number

    reply, value, _, _ = host.call(inverse, [(1,), (2,)], many=True)
    assert pickle.loads(value) == ([1.0, 0.5], None, "")
    reply, value, _, _ = host.call(inverse, [(1,), (0,), (2,)], many=True)
    values, failure, text = pickle.loads(value)
    assert (reply["ok"], values, text) == (False, [1.0], "ZeroDivisionError: division by zero")
    assert failure


def test_an_initializer_runs_once_and_its_failure_spoils_each_call(host: HostDouble) -> None:
    def begin(place: Path) -> None:
        with (place / "begun").open("a") as file:
            file.write("x")

    setup = cloudpickle.dumps((begin, (host.place,)))
    host.call(abs, -1, setup_bytes=setup)
    host.call(abs, -1, setup_bytes=setup)
    assert (host.place / "begun").read_text() == "x"
    bad = cloudpickle.dumps((begin, (host.place / "missing",)))
    for _ in range(2):
        reply = host.call(abs, -1, setup_bytes=bad)[0]
        assert reply["broken"]
        assert reply["error"].startswith("the initializer failed: FileNotFoundError")


def test_a_module_that_is_missing_is_named_with_place_and_remedy(host: HostDouble) -> None:
    code = b"cno_such_module\nthing\n."
    message = {"call": [1, 1], "name": "f", "function": "x", "many": False, "directory": str(host.place), "env": {},
               "code": len(code), "arguments": 0, "setup": 0, "arguments_file": ""}  # fmt: skip
    text = json.dumps(message).encode()
    host.control.sendall(len(text).to_bytes(4, "little") + len(code).to_bytes(4, "little") + text + code)
    error = host.read()[0]["error"]
    assert "module 'no_such_module' is not installed" in error
    assert "ECLOUD_PYTHON" in error
