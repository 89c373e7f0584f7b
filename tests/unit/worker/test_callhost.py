"""A call host, spoken with as its worker does: one real interpreter, one socket."""

from __future__ import annotations

import fcntl
import json
import pickle
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from services import wait_until

from ecloud.model.tasks import INLINE_BYTES
from worker import callhost
from worker.shell.call_hosts import CALLHOST, MESSAGE_BYTES, STREAMED, VALUE_FILE, _cloudpickle, _frame, _framed


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
        self.calls, self.unread = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        socket.send_fds(self.control, [b"c"], [self.unread.fileno()])

    @staticmethod
    def _open(place: Path) -> int:
        import os

        return os.open(place, os.O_PATH)

    def read(self) -> tuple[dict[str, Any], bytes]:
        head_bytes, body_bytes = (int.from_bytes(self.file.read(4), "little") for _ in range(2))
        return json.loads(self.file.read(head_bytes)), self.file.read(body_bytes)

    def call(self, function: Any, *arguments: Any, **head: Any) -> tuple[dict[str, Any], bytes, str, str]:
        """Call it; the reply, the value's pickle, stdout and stderr."""
        self.send(self.frame(function, *arguments, **head))
        return self.reply()

    def frame(self, function: Any, *arguments: Any, **head: Any) -> bytes:
        """The frame of such a call."""
        code = cloudpickle.dumps(function)
        data = pickle.dumps(arguments[0] if head.get("many") else (arguments, {}))
        setup = head.pop("setup_bytes", b"")
        message = {
            "call": [1, 1], "name": "f", "function": str(hash(code)), "many": False, "directory": str(self.place),
            "env": {}, "code": len(code), "arguments": len(data), "setup": len(setup), **head,
        }  # fmt: skip
        return _framed(message, (code, data, setup))

    @property
    def is_drained(self) -> bool:
        """Whether the host has read all calls."""
        return fcntl.ioctl(self.unread, termios.FIONREAD, bytes(4)) == bytes(4)

    def send(self, frame: bytes) -> None:
        """Send a call: as one message, or announced by one."""
        if len(frame) <= MESSAGE_BYTES:
            self.calls.send(frame)
        else:
            self.calls.send(STREAMED)
            self.control.sendall(frame)

    def reply(self) -> tuple[dict[str, Any], bytes, str, str]:
        """The next reply."""
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
    double.calls.close()
    double.unread.close()
    assert double.process.wait(30) == 0


def test_both_sides_have_the_same_limits() -> None:
    assert (callhost.MESSAGE_BYTES, callhost.STREAMED) == (MESSAGE_BYTES, STREAMED)
    assert callhost.VALUE_FILE == VALUE_FILE
    assert callhost.INLINE_BYTES == INLINE_BYTES


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
    data, trace, about = pickle.loads(value)
    assert (reply["ok"], reply["error"], repr(pickle.loads(data))) == (False, "ValueError: no", "ValueError('no')")
    assert about == {"host": socket.gethostname()}
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
    assert (reply["is_in_file"], value) == (True, b"")
    assert pickle.loads((host.place / VALUE_FILE).read_bytes()) == b"x" * 100_000


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
    host.send(_framed(message, (code,)))
    error = host.read()[0]["error"]
    assert "needs module 'no_such_module', which the worker's Python" in error
    assert "ECLOUD_PYTHON" in error


def test_calls_wait_at_the_host_and_one_that_is_taken_back_never_begins(host: HostDouble, tmp_path: Path) -> None:
    def first() -> None:
        import pathlib
        import time

        while not pathlib.Path("go").exists():
            time.sleep(0.01)

    def later(word: str) -> None:
        import pathlib

        pathlib.Path(word).write_text("")

    host.send(host.frame(first))
    wait_until(lambda: host.is_drained, 30)
    for number, word in enumerate("abc", 2):
        host.send(host.frame(later, word, call=[number, 1]))
    taken = bytearray().join(host.unread.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT) for _ in range(2))
    for number in (2, 3):
        frame = _frame(taken)
        assert frame is not None
        assert frame[0]["call"] == [number, 1]
    (tmp_path / "go").write_text("")
    assert [host.reply()[0]["call"] for _ in range(2)] == [[1, 1], [4, 1]]
    assert sorted(path.name for path in tmp_path.iterdir() if len(path.name) == 1) == ["c"]


def test_a_call_that_would_begin_too_late_does_not_begin(host: HostDouble, tmp_path: Path) -> None:
    def touch() -> None:
        import pathlib

        pathlib.Path("ran").write_text("")

    host.send(host.frame(touch, begin_by=time.monotonic() - 1.0))
    assert host.read()[0] == {"call": [1, 1], "late": True}
    assert not (tmp_path / "ran").exists()
