"""A call host: a warm Python interpreter that runs calls one after another. Run by the user's own Python, of 3.8 or
later; imports nothing but the standard library, and cloudpickle for the values.

    python callhost.py DIRECTORY TOKEN CLOUDPICKLE OUTPUT

Connects to the socket `calls.sock` in DIRECTORY, sends its token, and gets a second socket, from which it takes one
call after another. Each message there is one call, as a frame; the message `STREAMED` stands for a frame that is too
large for it, and follows on the first socket. The worker has the reading end, too, and so takes calls back that have
not begun: each message has one reader. A frame consists of two lengths of four bytes, little-endian, a JSON object, and
bytes. CLOUDPICKLE is the directory of the worker's cloudpickle, for a Python that lacks this package. Output of a call
goes to the files `OUTPUT.stdout` and `OUTPUT.stderr` there, which the worker reads after a crash. The host ends when
the worker closes the sockets.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pickle
import resource
import socket
import sys
import time
import traceback
from contextlib import suppress
from importlib import metadata
from typing import Any

INLINE_BYTES = 32 * 1024
TAIL_BYTES = 64 * 1024
FUNCTIONS_KEPT = 256
SHARED_KEPT = 32
VALUE_FILE = ".ecloud-value"
MESSAGE_BYTES = 64 * 1024
"""The largest message."""
STREAMED = b"s"


class Host:
    """One interpreter. Keeps the functions and shared objects that it unpickled."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._calls = control
        self._inbox = b""
        self._functions: dict[str, Any] = {}
        self._prepared: dict[bytes, BaseException | None] = {}
        self._shared: dict[str, Any] = {}
        self._projects: set[str] = set()

    def serve(self) -> None:
        """Run calls until the worker closes the socket."""
        while True:
            message = self._calls.recv(MESSAGE_BYTES)
            frame = self._read() if message == STREAMED else _frame(message)
            if frame is None:
                return
            head, body = frame
            begin_by = head.get("begin_by")
            if begin_by is not None and time.monotonic() > begin_by:
                self._write({"call": head["call"], "late": True}, b"")
            else:
                reply, value = self._call(head, body)
                self._write(reply, value)

    def greet(self, token: str) -> None:
        """Tell the worker which host this is, and receive the socket with the calls."""
        self._write({"token": token, "python": f"{sys.version_info[0]}.{sys.version_info[1]}"}, b"")
        _, ancillary, _, _ = self._control.recvmsg(1, socket.CMSG_SPACE(4))
        for _, _, data in ancillary:
            self._calls = socket.socket(fileno=int.from_bytes(data[:4], sys.byteorder))

    # --- frames ---------------------------------------------------------------------------------

    def _read(self) -> tuple[dict[str, Any], bytes] | None:
        """Read a frame from the first socket."""
        while True:
            frame = _frame(self._inbox)
            if frame is not None:
                self._inbox = b""  # one at a time is under way
                return frame
            data = self._control.recv(1 << 20)
            if not data:
                return None
            self._inbox += data

    def _write(self, head: dict[str, Any], body: bytes) -> None:
        text = json.dumps(head).encode()
        lengths = len(text).to_bytes(4, "little") + len(body).to_bytes(4, "little")
        self._control.sendall(lengths + text + body)

    # --- one call -------------------------------------------------------------------------------

    def _call(self, head: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        """Run a call; return the reply and its bytes: the pickled value or failure, then the last output on stdout and
        stderr."""
        code_end = head["code"]
        arguments_end = code_end + head["arguments"]
        setup = body[arguments_end : arguments_end + head["setup"]]
        values_at = arguments_end + head["setup"]
        values: dict[str, Any] = {}
        for name, size in head.get("values", {}).items():
            values[name] = body[values_at : values_at + size]
            values_at += size
        values.update(head.get("files", {}))
        os.chdir(head["directory"])
        os.environ.update(head["env"])
        began = time.monotonic()
        reply = {"call": head["call"], "ok": False, "error": "", "broken": False}
        value = b""
        try:
            self._prepare(head, setup)
        except BaseException as error:
            reply["broken"] = True
            reply["error"] = "the initializer failed: " + _sentence(error)
            value = _of_many(head, _failure(error))
        else:
            try:
                function = self._function(head, body[:code_end])
                arguments = self._arguments(head, body[code_end:arguments_end], values)
                result = _run_many(function, arguments) if head["many"] else function(*arguments[0], **arguments[1])
                value = _pickled_value(result, head["name"])
                reply["ok"] = not head["many"] or result[1] is None
                if not reply["ok"]:
                    reply["error"] = result[2]
                    if len(value) > INLINE_BYTES:
                        value = pickle.dumps(([], *result[1:]), protocol=4)
            except BaseException as error:
                reply["error"] = _sentence(error)
                value = _of_many(head, _failure(error))
        stdout, stderr = _taken_output()
        reply["run_s"] = round(time.monotonic() - began, 6)
        reply["rss_kib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        reply["sizes"] = [len(value), len(stdout), len(stderr)]
        if reply["ok"] and len(value) > INLINE_BYTES:
            with open(VALUE_FILE, "wb") as file:
                file.write(value)
            reply["sizes"][0] = 0
            reply["is_in_file"] = True
            value = b""
        return reply, value + stdout + stderr

    def _prepare(self, head: dict[str, Any], setup: bytes) -> None:
        """Add modules of the user's project to `sys.path` and run the initializer: once in each interpreter."""
        project = head.get("project")
        if project and project not in self._projects:
            self._projects.add(project)
            sys.path.insert(0, project)
        if setup:
            if setup not in self._prepared:
                try:
                    function, arguments = pickle.loads(setup)
                    function(*arguments)
                    self._prepared[setup] = None
                except BaseException as error:
                    self._prepared[setup] = error
            failed = self._prepared[setup]
            if failed is not None:
                raise failed

    def _function(self, head: dict[str, Any], code: bytes) -> Any:
        name = head["function"]
        function = self._functions.get(name)
        if function is None:
            if not code:
                with open(head["function_file"], "rb") as file:
                    code = file.read()
            function = _unpickled(code, "function " + head["name"])
            if len(self._functions) >= FUNCTIONS_KEPT:
                del self._functions[next(iter(self._functions))]
            self._functions[name] = function
        return function

    def _arguments(self, head: dict[str, Any], data: bytes, values: dict[str, Any]) -> Any:
        if not data:
            with open(head["arguments_file"], "rb") as file:
                data = file.read()
        return _unpickled(data, "arguments of " + head["name"], values, self._shared, head.get("objects", ""))


def _frame(data: bytes) -> tuple[dict[str, Any], bytes] | None:
    """Return the frame; None if it is incomplete."""
    if len(data) < 8:
        return None
    head_end = 8 + int.from_bytes(data[:4], "little")
    end = head_end + int.from_bytes(data[4:8], "little")
    return (json.loads(data[8:head_end]), data[head_end:end]) if len(data) >= end else None


class _Unpickler(pickle.Unpickler):
    """Replaces references to values of other calls and to shared objects by these values and objects."""

    def __init__(self, data: bytes, values: dict[str, Any], shared: dict[str, Any], objects: str) -> None:
        super().__init__(io.BytesIO(data))
        self._objects = objects
        self._values = values
        self._shared = shared

    def persistent_load(self, name: Any) -> Any:
        kind, what = name
        if kind == "value":
            return _value_of(self._values[what])
        if what not in self._shared:
            if len(self._shared) >= SHARED_KEPT:
                del self._shared[next(iter(self._shared))]
            self._shared[what] = _load_shared(os.path.join(self._objects, what))
        return self._shared[what]


def _value_of(held: Any) -> Any:
    """Return the value of another call, from its pickle or from the file of that name."""
    if isinstance(held, str):
        with open(held, "rb") as file:
            held = file.read()
    return pickle.loads(held)


def _load_shared(name: str) -> Any:
    with open(name, "rb") as file:
        sizes = json.loads(file.readline())
        data = file.read(sizes[0])
        buffers = [bytearray(file.read(size)) for size in sizes[1:]]
    return pickle.loads(data, buffers=buffers)


def _unpickled(
    data: bytes,
    what: str,
    values: dict[str, Any] | None = None,
    shared: dict[str, Any] | None = None,
    objects: str = "",
) -> Any:
    """Unpickle. Raises `ModuleNotFoundError` that names the missing module, its host, and what to do."""
    try:
        return _Unpickler(data, values or {}, {} if shared is None else shared, objects).load()
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the {what} needs module {error.name!r}, which the worker's Python {sys.executable} on "
            f"{socket.gethostname()} does not have: install it there, set ECLOUD_PYTHON of the worker to a Python that "
            "has it, or import it below the project's directory",
            name=error.name,
        ) from error


def _run_many(function: Any, items: Any) -> tuple[list[Any], bytes | None, str]:
    """Call the function for several items: (values before the first failure, that failure as `_failure` pickles it or
    None, its sentence)."""
    values = []
    for arguments in items:
        try:
            values.append(function(*arguments))
        except BaseException as error:
            return values, _failure(error), _sentence(error)
    return values, None, ""


def _of_many(head: dict[str, Any], failure: bytes) -> bytes:
    """Return a failure that precedes all of several calls, in the form of `_run_many`."""
    return pickle.dumps(([], failure, ""), protocol=4) if head["many"] else failure


def _pickled_value(value: Any, name: str) -> bytes:
    with suppress(Exception):
        return pickle.dumps(value, protocol=5)
    try:
        import cloudpickle

        return bytes(cloudpickle.dumps(value, protocol=5))
    except Exception as error:
        kind = type(value).__name__
        raise TypeError(f"the value of {name} (of type {kind}) cannot be pickled: {error}") from None


def _failure(error: BaseException) -> bytes:
    """A failure as bytes that can be unpickled anywhere: (the pickled exception or b"", its traceback, texts about this
    machine by name)."""
    try:
        trace = "".join(traceback.format_exception(type(error), error, _own_trace(error)))
    except BaseException:  # its own `__str__` raises
        trace = "".join(traceback.format_tb(_own_trace(error))) + type(error).__name__ + "\n"
    print(trace, file=sys.stderr, end="")
    about = {"host": socket.gethostname()}
    kind = type(error).__name__
    try:
        data = pickle.dumps(error, protocol=5)
        pickle.loads(data)
    except BaseException:
        try:
            import cloudpickle

            data = cloudpickle.dumps(error, protocol=5)
            pickle.loads(data)
        except BaseException as problem:
            data = b""
            about["unreadable"] = f"not raised as {kind}, which cannot be pickled and unpickled: {_sentence(problem)}"
    if len(data) > INLINE_BYTES // 2:
        about["unreadable"] = f"not raised as {kind}: its pickle has {len(data):,} bytes, above {INLINE_BYTES // 2:,}"
        data = b""
    if isinstance(error, ImportError) and error.name:
        about.update(_package(error))
    return pickle.dumps((data, trace[-INLINE_BYTES // 3 :], about), protocol=4)


def _package(error: ImportError) -> dict[str, str]:
    """Describe the package of an import that failed: its version here, empty if it is not installed, and the Python."""
    name = str(error.name).partition(".")[0]
    version = ""
    with suppress(Exception):
        # A package may have another name than its module: the client knows that name where it has the package.
        distributions = getattr(metadata, "packages_distributions", None)  # of Python 3.10 and later
        names = distributions().get(name, [name]) if distributions is not None else [name]
        version = metadata.version(names[0])
    python = f"{sys.version_info[0]}.{sys.version_info[1]} ({sys.executable})"
    return {"module": name, "version": version, "python": python}


def _own_trace(error: BaseException) -> Any:
    """Return the traceback without the frames of this file, unless it has no others."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace or error.__traceback__


def _sentence(error: BaseException) -> str:
    try:
        text = str(error)
    except BaseException:
        text = "its text is not available"
    return type(error).__name__ + (": " + text if text else "")


def _taken_output() -> list[bytes]:
    """Return the last output of the call, and empty the files."""
    taken = []
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        with suppress(Exception):
            stream.flush()
        size = os.fstat(descriptor).st_size
        if size:
            taken.append(os.pread(descriptor, TAIL_BYTES, max(0, size - TAIL_BYTES)))
            os.ftruncate(descriptor, 0)
        else:
            taken.append(b"")
    return taken


def _find_cloudpickle(place: str) -> None:
    """Add the worker's cloudpickle to the path if this Python has none."""
    spec = importlib.util.find_spec("cloudpickle")
    if spec is None and place:
        file = os.path.join(place, "__init__.py")
        spec = importlib.util.spec_from_file_location("cloudpickle", file, submodule_search_locations=[place])
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["cloudpickle"] = module
        spec.loader.exec_module(module)


def main() -> None:
    place, token, cloudpickle_place, output = sys.argv[1:5]
    directory = os.open(place, os.O_PATH)
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    control.connect(f"/proc/self/fd/{directory}/calls.sock")  # the path of a socket is limited to 107 bytes
    os.close(directory)
    for descriptor, name in ((1, ".stdout"), (2, ".stderr")):
        path = os.path.join(place, output + name)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC, 0o600)
        os.dup2(file, descriptor)
        os.close(file)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # for those who follow the output
    sys.path[0:1] = []  # remove this file's own directory
    _find_cloudpickle(cloudpickle_place)
    host = Host(control)
    host.greet(token)
    host.serve()


if __name__ == "__main__":
    main()
