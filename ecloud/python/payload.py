"""The content of a call's messages: pickles of functions, arguments, values and failures. Makes and reads them.

Does no communication. A pickle that cannot be made or read raises one sentence that names the call.
"""

from __future__ import annotations

import hashlib
import io
import linecache
import pickle
import re
import types
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future
from importlib import metadata
from typing import Any, ClassVar, NamedTuple, Protocol

import cloudpickle

from datastore.problem import Problem

PROTOCOL = 5
INITIALIZER_FAILED = "the initializer failed: "
"""How such an error begins, as `worker/callhost.py` says it."""
MAX_NAME_CHARS = 80
_PLAIN = frozenset({int, float, bool, type(None), complex})
LARGE_BYTES = 1 << 20
"""An object of this size that is passed twice is shared."""


class RemoteError(Problem):
    """A call failed without an exception that can be raised here: its interpreter was ended, or its exception cannot be
    unpickled. The text gives the reason. `cause`: as of a task, such as `signal` or `timeout`."""

    def __init__(self, text: str, cause: str = "") -> None:
        super().__init__(text)
        self.cause = cause

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.text, self.cause)


class InitializerFailed(RemoteError, BrokenExecutor):
    """The initializer raised an exception, which is the `__cause__`: no call of this executor can run."""


class RemoteTraceback(Exception):
    """The traceback of an exception on the worker: the `__cause__` of the exception here."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0].rstrip()}\n"""'


class PickledFunction(NamedTuple):
    """`key`: SHA-256 of `data`; `fingerprint`: the same in each process, while the source is unchanged."""

    data: bytes
    key: str
    fingerprint: str
    name: str


class PickledArguments(NamedTuple):
    """`futures`: calls of this executor whose values take their places among the arguments, by id; `shared`: names of
    shared objects that do."""

    data: bytes
    futures: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()


def _is_plain(item: Any) -> bool:
    """Whether it holds neither a future nor anything large: pickled the fastest way."""
    kind = type(item)
    return kind in _PLAIN or (kind in (str, bytes) and len(item) < LARGE_BYTES)


def name_of(function: Any) -> str:
    """Return a readable name of a function, at most `MAX_NAME_CHARS` characters."""
    while hasattr(function, "func") and not hasattr(function, "__qualname__"):
        function = function.func  # functools.partial
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    name = "".join(character if character.isprintable() and character not in ":/" else "_" for character in name)
    return name[-MAX_NAME_CHARS:]


def pickle_function(function: Callable[..., Any]) -> PickledFunction:
    """Pickle a function. Raises `TypeError`: it cannot be called or pickled."""
    if not callable(function):
        raise TypeError(f"{function!r} cannot be called: pass a function, not its value")
    name = name_of(function)
    try:
        file = io.BytesIO()
        _CodePickler(file, protocol=PROTOCOL).dump(function)
        data = file.getvalue()
    except Exception as error:
        raise TypeError(f"the function {name} cannot be pickled: {_words(error)}") from None
    return PickledFunction(data, hashlib.sha256(data).hexdigest(), _fingerprint(function), name)


def _fingerprint(function: Any) -> str:
    digest = hashlib.sha256(f"{getattr(function, '__module__', '')}.{name_of(function)}".encode())
    inner = getattr(function, "__func__", function)
    inner = getattr(inner, "func", inner)
    code = getattr(inner, "__code__", None)
    if isinstance(code, types.CodeType):
        _digest_code(digest, code)
    return digest.hexdigest()[:32]


def _digest_code(digest: Any, code: types.CodeType) -> None:
    digest.update(code.co_code)
    digest.update(repr((code.co_names, code.co_varnames, code.co_freevars)).encode())
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            _digest_code(digest, constant)
        else:
            digest.update(repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant).encode())


class Names(Protocol):
    """What is named among arguments instead of being pickled."""

    def call_of(self, future: Future[Any]) -> str:
        """The id of a future's call. Raises `ForeignFuture`."""

    def shared_of(self, item: Any) -> str | None:
        """The name of a shared object; None for what is pickled as it is."""


def _reduced_code(code: types.CodeType) -> tuple[Any, tuple[Any, ...]]:
    """A code object as cloudpickle takes it apart, with the name of its file, which tracebacks show."""
    make, parts = cloudpickle.Pickler.dispatch_table[types.CodeType](code)
    return make, tuple([code.co_filename if part == "<dynamic-code>" else part for part in parts])


class _CodePickler(cloudpickle.Pickler):  # type: ignore[misc]
    dispatch_table: ClassVar[Any] = ChainMap({types.CodeType: _reduced_code}, cloudpickle.Pickler.dispatch_table)


class _Pickler(_CodePickler):
    """Names futures of this executor and shared objects instead of pickling them."""

    def __init__(self, file: io.BytesIO, names: Names) -> None:
        super().__init__(file, protocol=PROTOCOL)
        self._names = names
        self.futures: dict[str, None] = {}
        self.shared: dict[str, None] = {}

    def persistent_id(self, item: Any) -> tuple[str, str] | None:
        """Return the reference of an object that is not pickled."""
        if isinstance(item, Future):
            name = self._names.call_of(item)
            self.futures[name] = None
            return "value", name
        shared = self._names.shared_of(item)
        if shared is not None:
            self.shared[shared] = None
            return "shared", shared
        return None


def pickle_arguments(
    name: str, arguments: Sequence[Any], keywords: Mapping[str, Any], names: Names
) -> PickledArguments:
    """Pickle the arguments of a call of `name`. Raises `TypeError` that names the argument."""
    if not keywords and all(map(_is_plain, arguments)):
        return PickledArguments(pickle.dumps((tuple(arguments), {}), PROTOCOL))
    try:
        return pickle_with_futures((tuple(arguments), dict(keywords)), names)
    except ForeignFuture:
        raise
    except Exception as error:
        which = _culprit(arguments, keywords, names)
        raise TypeError(f"{which} of {name} cannot be pickled: {_words(error)}") from None


class ForeignFuture(Problem, TypeError):
    """A future, or a shared object, of another executor among the arguments: its value is not there for this one."""


def pickle_items(name: str, items: Sequence[tuple[Any, ...]], names: Names) -> PickledArguments:
    """Pickle the arguments of several calls of `name` that travel as one. Raises as `pickle_arguments`."""
    if all(_is_plain(part) for item in items for part in item):
        return PickledArguments(pickle.dumps(items, PROTOCOL))
    try:
        return pickle_with_futures(items, names)
    except ForeignFuture:
        raise
    except Exception as error:
        for item in items:
            pickle_arguments(name, item, {}, names)
        raise TypeError(f"the arguments of {name} cannot be pickled: {_words(error)}") from None


def pickle_with_futures(value: Any, names: Names) -> PickledArguments:
    """Raises whatever pickling raises."""
    file = io.BytesIO()
    pickler = _Pickler(file, names)
    pickler.dump(value)
    return PickledArguments(file.getvalue(), tuple(pickler.futures), tuple(pickler.shared))


def _culprit(arguments: Sequence[Any], keywords: Mapping[str, Any], names: Names) -> str:
    named = [(f"argument {number}", item) for number, item in enumerate(arguments, 1)]
    named += [(f"argument {name}", item) for name, item in keywords.items()]
    for which, item in named:
        try:
            pickle_with_futures(item, names)
        except Exception:
            return f"{which} (of type {type(item).__name__})"
    return "an argument"


def _words(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    if "generator" in text:
        text += "; pass a list"
    return text


def value_of(data: bytes, name: str) -> Any:
    """Unpickle the value of a call. Raises `RemoteError` if it cannot be unpickled here."""
    try:
        return pickle.loads(data)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a value may also call `sys.exit`
        raise RemoteError(f"the value of {name} cannot be unpickled here: {type(error).__name__}: {error}") from error


def _with_versions(text: str, there: Mapping[str, str]) -> str:
    """Add to the text of a failed import the versions of its package, here and `there`, and the remedy."""
    module = there["module"]
    names = metadata.packages_distributions().get(module, [module])
    try:
        here = f"version {metadata.version(names[0])} here"
    except metadata.PackageNotFoundError:
        here = "not installed here"
    version = f"version {there['version']}" if there["version"] else "not installed"
    text += f" (package {names[0]}: {here}, {version} on {there['host']}, Python {there['python']})"
    if "ECLOUD_PYTHON" not in text:
        text += "; install the same version there, or set ECLOUD_PYTHON of the worker to a Python that has it"
    return text


def _with_source(trace: str) -> str:
    """The traceback with the lines of files that this machine has and the worker lacks."""
    lines = trace.split("\n")
    told: list[str] = []
    for line, following in zip(lines, [*lines[1:], ""]):
        told.append(line)
        frame = re.fullmatch(r'  File "(.+)", line (\d+), in .+', line)
        if frame and not following.startswith("    "):
            source = linecache.getline(frame[1], int(frame[2])).strip()
            told += [f"    {source}"] if source else []
    return "\n".join(told)


def failure_of(data: bytes, text: str, cause: str, note: str) -> BaseException:
    """Return the exception of a failed call, with its remote traceback as `__cause__`. Never raises."""
    error: BaseException = RemoteError(text, cause)
    trace = ""
    if data:
        try:
            pickled, trace, *more = pickle.loads(data)
            there = more[0] if more else {}  # workers of earlier versions tell nothing, or only of failed imports
            note += f", host {there['host']}" if "host" in there else ""
            if "unreadable" in there:
                error = RemoteError(f"{text} ({there['unreadable']})", cause)
            if pickled:
                found = pickle.loads(pickled)
                if isinstance(found, BaseException):
                    error = found
            if "module" in there and isinstance(error, ImportError):
                error.msg = _with_versions(error.msg, there)
        except BaseException as problem:
            error = RemoteError(f"{text} (its exception cannot be unpickled here: {problem})", cause)
    if trace:
        error.__cause__ = RemoteTraceback(_with_source(trace))
    if text.startswith(INITIALIZER_FAILED):
        broken = InitializerFailed(text, cause)
        broken.__cause__ = error
        error = broken
    if hasattr(error, "add_note"):
        error.add_note(note)
    return error
