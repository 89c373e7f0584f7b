"""What travels of a call: pickles of functions, arguments, values and failures, and how each is read again.

Nothing here speaks with anybody. A pickle that cannot be made or read raises one sentence that names the call.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import types
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import cloudpickle

from datastore.problem import Problem

PROTOCOL = 5
MAX_NAME_CHARS = 80
_PLAIN = frozenset({int, float, str, bytes, bool, type(None), complex})


class RemoteError(Problem):
    """A call failed, and no exception of it can be raised here: its interpreter was ended, or its exception cannot be
    unpickled. The text says what happened. `cause`: as of a task, such as `signal` or `timeout`."""

    def __init__(self, text: str, cause: str = "") -> None:
        super().__init__(text)
        self.cause = cause

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.text, self.cause)


class RemoteTraceback(Exception):
    """The traceback of an exception where it was raised: the `__cause__` of the exception here."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0].rstrip()}\n"""'


class PickledFunction(NamedTuple):
    """`key`: SHA-256 of `data`; `fingerprint`: the same in each process, as long as the source is the same."""

    data: bytes
    key: str
    fingerprint: str
    name: str


class PickledArguments(NamedTuple):
    """`futures`: calls of this executor whose values take their places among the arguments, by id."""

    data: bytes
    futures: tuple[str, ...] = ()


def name_of(function: Any) -> str:
    """How people name a function, at most `MAX_NAME_CHARS` characters."""
    while hasattr(function, "func") and not hasattr(function, "__qualname__"):
        function = function.func  # functools.partial
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    name = "".join(character if character.isprintable() and character not in ":/" else "_" for character in name)
    return name[-MAX_NAME_CHARS:]


def pickle_function(function: Callable[..., Any]) -> PickledFunction:
    """Raises `TypeError`: it cannot be called or pickled."""
    if not callable(function):
        raise TypeError(f"{function!r} cannot be called: pass a function, not its value")
    name = name_of(function)
    try:
        data = cloudpickle.dumps(function, protocol=PROTOCOL)
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


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Names futures of this executor instead of pickling them."""

    def __init__(self, file: io.BytesIO, call_of: Callable[[Future[Any]], str]) -> None:
        super().__init__(file, protocol=PROTOCOL)
        self._call_of = call_of
        self.futures: dict[str, None] = {}

    def persistent_id(self, item: Any) -> tuple[str, str] | None:
        """The name of what is not pickled."""
        if isinstance(item, Future):
            name = self._call_of(item)
            self.futures[name] = None
            return "value", name
        return None


def pickle_arguments(
    name: str, arguments: Sequence[Any], keywords: Mapping[str, Any], call_of: Callable[[Future[Any]], str]
) -> PickledArguments:
    """Pickle the arguments of a call of `name`. `call_of` gives the id of a future's call, and raises `TypeError` for
    a future of another executor. Raises `TypeError` that names the argument."""
    if not keywords and all(type(item) in _PLAIN for item in arguments):
        return PickledArguments(pickle.dumps((tuple(arguments), {}), PROTOCOL))
    try:
        return pickle_with_futures((tuple(arguments), dict(keywords)), call_of)
    except ForeignFuture:
        raise
    except Exception as error:
        which = _culprit(arguments, keywords, call_of)
        raise TypeError(f"{which} of {name} cannot be pickled: {_words(error)}") from None


class ForeignFuture(Problem, TypeError):
    """A future of another executor among the arguments: its value is not on the cluster. Pass its `result()`."""


def pickle_items(
    name: str, items: Sequence[tuple[Any, ...]], call_of: Callable[[Future[Any]], str]
) -> PickledArguments:
    """Pickle the arguments of several calls of `name` that travel as one. Raises as `pickle_arguments`."""
    if all(type(part) in _PLAIN for item in items for part in item):
        return PickledArguments(pickle.dumps(items, PROTOCOL))
    try:
        return pickle_with_futures(items, call_of)
    except ForeignFuture:
        raise
    except Exception as error:
        for item in items:
            pickle_arguments(name, item, {}, call_of)
        raise TypeError(f"the arguments of {name} cannot be pickled: {_words(error)}") from None


def pickle_with_futures(value: Any, call_of: Callable[[Future[Any]], str]) -> PickledArguments:
    """Raises whatever pickling raises."""
    file = io.BytesIO()
    pickler = _Pickler(file, call_of)
    pickler.dump(value)
    return PickledArguments(file.getvalue(), tuple(pickler.futures))


def _culprit(arguments: Sequence[Any], keywords: Mapping[str, Any], call_of: Callable[[Future[Any]], str]) -> str:
    named = [(f"argument {number}", item) for number, item in enumerate(arguments, 1)]
    named += [(f"argument {name}", item) for name, item in keywords.items()]
    for which, item in named:
        try:
            pickle_with_futures(item, call_of)
        except Exception:
            return f"{which} (of type {type(item).__name__})"
    return "an argument"


def _words(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    if "generator" in text:
        text += "; pass a list"
    return text


def value_of(data: bytes, name: str) -> Any:
    """The value of a call. Raises `RemoteError` where it cannot be unpickled here."""
    try:
        return pickle.loads(data)
    except Exception as error:
        raise RemoteError(f"the value of {name} cannot be unpickled here: {type(error).__name__}: {error}") from error


def failure_of(data: bytes, text: str, cause: str, note: str) -> BaseException:
    """The exception of a failed call, with its remote traceback as `__cause__`. Never raises."""
    error: BaseException = RemoteError(text, cause)
    trace = ""
    if data:
        try:
            pickled, trace = pickle.loads(data)
            if pickled:
                found = pickle.loads(pickled)
                if isinstance(found, BaseException):
                    error = found
        except BaseException as problem:
            error = RemoteError(f"{text} (its exception cannot be unpickled here: {problem})", cause)
    if trace:
        error.__cause__ = RemoteTraceback(trace)
    if hasattr(error, "add_note"):
        error.add_note(note)
    return error
