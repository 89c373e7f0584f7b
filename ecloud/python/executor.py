"""`ClusterExecutor`: the standard library's executor, on a cluster.

    with ClusterExecutor() as executor:
        future = executor.submit(pow, 2, 10)
        squares = list(executor.map(square, range(1000)))

Calls are tasks of a run: what tasks have (resources, retries, priority, `why`, the ledger), calls have too.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import re
import secrets
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from pathlib import Path
from types import FunctionType
from typing import Any

import cloudpickle
import msgspec

from datastore.problem import Problem, as_typed
from ecloud.config.secrets import AccessFile
from ecloud.formats import check
from ecloud.model.calls import calls_directory, file_name, python_resource
from ecloud.model.tasks import (
    INLINE_BYTES,
    MAX_ID_CHARS,
    Call,
    Container,
    Dependency,
    Retries,
    TaskDefinition,
    TaskState,
)
from ecloud.model.text import counted as number_of
from ecloud.model.wire import CallEnded, RequestDone
from ecloud.python.cluster import Cluster
from ecloud.python.future import CallFuture
from ecloud.python.link import Link
from ecloud.python.mapping import Mapped
from ecloud.python.objects import Objects
from ecloud.python.payload import (
    PROTOCOL,
    ForeignFuture,
    PickledFunction,
    RemoteError,
    pickle_arguments,
    pickle_function,
    pickle_items,
)
from ecloud.python.progress import Bar, counted
from ecloud.python.project import Project, ProjectUnusable, root_of_program
from ecloud.python.sharing import Shared, Sharing

log = logging.getLogger("ecloud")
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
MAX_KEY_CHARS = 200
QUIET_WAIT_S = 1.0
"""At the end of the program: how long the wait for calls is silent."""


class Options(msgspec.Struct, frozen=True):
    """What calls request. `resources`: amounts by name, by default 1 of `cpus`; `retries`: number of failures after
    which a call is tried again; `timeout_s`: limit for one attempt."""

    resources: Mapping[str, float] = {}
    retries: int = 0
    timeout_s: float | None = None
    priority: int = 0
    container: Container | None = None
    env: dict[str, str] = {}
    runtime_s: float | None = None


class Status(dict[str, int]):
    """The number of calls in each state. `waits`: why no worker runs those that are ready; empty if they only wait for
    their turn."""

    def __init__(self, states: Mapping[str, int], waits: str = "") -> None:
        super().__init__(states)
        self.waits = waits

    def __repr__(self) -> str:
        return super().__repr__() + (f" ({self.waits})" if self.waits else "")


class PythonMissing(Problem):
    """No worker and no pool of the cluster has the version of Python of this program."""


_EXPECTED = {
    "resources": "numbers by name, as in {'gpus': 1}",
    "retries": "a whole number",
    "timeout_s": "a number of seconds, or None",
    "priority": "a whole number",
    "container": "the name of an image, or a Container",
    "env": "strings by name",
    "runtime_s": "a number of seconds, or None",
}
"""What each option is, as its refusal says it."""


class ClusterExecutor(Executor):
    """Runs functions on a cluster. `access`: an access file; without one the cluster of this machine, or a private one
    with `max_workers` workers that ends with this executor.

    `run`: the name of the run that its calls belong to; a new one if it is empty. `initializer(*initargs)` is called
    once in each interpreter, and interpreters are replaced after `max_calls` calls. `on_client_lost`: what happens to
    calls that have not ended when this program ends: `finish` lets them continue, `cancel` cancels them, even if the
    program was killed. `code_changed`: what happens to a call with a `key` that succeeded before if its function has
    changed since: `keep` its value, or `redo` it. `progress`: show how many calls have ended.
    Raises `Problem`, `PartAway` where the cluster cannot be used.
    """

    def __init__(
        self,
        access: AccessFile | str | os.PathLike[str] | None = None,
        *,
        run: str | None = None,
        resources: Mapping[str, float] | None = None,
        retries: int = 0,
        timeout_s: float | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_calls: int = 10_000,
        on_client_lost: str = "finish",
        code_changed: str = "keep",
        max_workers: int | None = None,
        progress: bool = False,
    ) -> None:
        if max_workers is not None and (not isinstance(max_workers, int) or max_workers <= 0):
            raise ValueError("max_workers must be greater than 0")
        if run is not None and (not isinstance(run, str) or len(run) > MAX_ID_CHARS or not run.isprintable()):
            raise ValueError(
                f"run = {str(run)[:40]!r}: expected a string of at most {MAX_ID_CHARS} printable characters"
            )
        if code_changed not in ("keep", "redo"):
            raise ValueError(f"code_changed = {code_changed!r}: keep or redo")
        if on_client_lost not in ("finish", "cancel"):
            raise ValueError(f"on_client_lost = {on_client_lost!r}: finish or cancel")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._token = secrets.token_hex(2)
        self._numbers = 0
        self.run = run or f"{_program()}-{time.strftime('%Y%m%d-%H%M%S')}-{self._token}"
        if not isinstance(max_calls, int) or max_calls < 1:
            raise ValueError(f"max_calls = {max_calls!r}: expected a whole number, at least 1")
        self._usual = Options({} if resources is None else resources, retries, timeout_s)
        _require_good(self._usual)
        self._max_calls = max_calls
        self._code_changed = code_changed
        self._attached: dict[str, CallFuture] = {}
        self._fingerprints: dict[str, str] = {}
        self._on_client_lost = on_client_lost
        self._setup = b""
        if initializer is not None:
            try:
                self._setup = cloudpickle.dumps((initializer, tuple(initargs)), protocol=PROTOCOL)
            except Exception as error:
                raise TypeError(f"the initializer or initargs cannot be pickled: {error}") from None
            if len(self._setup) > INLINE_BYTES:
                raise ValueError(
                    f"initializer and initargs have {len(self._setup):,} bytes pickled; at most {INLINE_BYTES:,}: let "
                    "the initializer load its data from a file"
                )
        self._functions: weakref.WeakKeyDictionary[FunctionType, PickledFunction] = weakref.WeakKeyDictionary()
        self._is_shut = False
        self._is_closed = False
        self._close_lock = threading.Lock()
        self._maps: weakref.WeakSet[Mapped] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._cluster = Cluster(access, max_workers)
        self._link = Link(
            self._cluster.access, self.run, self._cluster.require, code_changed == "redo", on_client_lost == "cancel"
        )
        self._pythons: tuple[str, ...] | None = None
        """The Pythons that the cluster offers, as resources; None before the first submit."""
        try:
            self._link.start()
        except BaseException:
            self._cluster.close()
            raise
        self._objects = Objects(
            lambda: self._cluster.datastore(self._link.datastore_address, self._link.request),
            calls_directory(self.run),
        )
        self._sharing = Sharing(self._objects)
        self._project = Project(root_of_program())
        self._needs_project = initializer is not None and self._project.is_needed(initializer)
        self._initializer_needs_project = initializer is not None and self._project.needs(initializer)
        self._is_project_left_out = False
        self._looked_at: tuple[int, Any] | None = None
        self._link.fetch = self._fetch
        self._bar = Bar(self.run) if progress else None
        if self._bar is not None:
            self._link.on_progress = self._bar.update
        self._at_exit = _shut_at_exit(self)

    # --- submitting ---------------------------------------------------------------------------------

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> CallFuture:
        """Call `fn(*args, **kwargs)` on the cluster. A future of this executor among the arguments stands for its
        value: the call waits for it, and the value does not pass through this program.

        Raises `TypeError` if an argument or the function cannot be pickled, `RuntimeError` after `shutdown`.
        """
        return self._submit(self._usual, "", fn, args, kwargs)

    def options(self, key: str = "", **options: Any) -> OptionsOf:
        """Return an executor for calls with other options: `resources`, `retries`, `timeout_s`, `priority`,
        `container`, `env`, `runtime_s`. `key`: the id of the call in its run, so that the same call is not made
        twice."""
        container = options.get("container")
        if isinstance(container, str):
            options["container"] = Container(container)
        try:
            wanted = msgspec.structs.replace(self._usual, **options)
        except TypeError:
            known = ", ".join(("key", *Options.__struct_fields__))
            raise TypeError(f"options({', '.join(options)}): known are {known}") from None
        _require_good(wanted)
        if not isinstance(key, str) or len(key) > MAX_KEY_CHARS or not key.isprintable():
            raise ValueError(
                f"key {str(key)[:40]!r}: expected a string of at most {MAX_KEY_CHARS} printable characters"
            )
        return OptionsOf(self, wanted, key)

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | str = "auto",
        buffersize: int | None = None,
        progress: bool = False,
    ) -> Iterator[Any]:
        """Yield the values of `fn` for each set of items, in order. `chunksize`: items in one call; `auto` measures how
        long one takes. `buffersize`: items taken from the iterables ahead of the requested values.

        Raises `TimeoutError` while iterating, if a value is not available `timeout` seconds after this call.
        """
        return self._map(self._usual, fn, iterables, timeout, chunksize, buffersize, progress)

    def _map(
        self,
        options: Options,
        fn: Callable[..., Any],
        iterables: tuple[Iterable[Any], ...],
        timeout: float | None,
        chunksize: int | str,
        buffersize: int | None,
        progress: bool,
    ) -> Iterator[Any]:
        if chunksize != "auto" and (not isinstance(chunksize, int) or chunksize < 1):
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and (not isinstance(buffersize, int) or buffersize < 1):
            raise ValueError("buffersize must be None or > 0")
        self._require_open()
        if options.container is None:
            self._require_python()
        function, project = self._pickled(fn), self._project_of(fn)

        def submit(items: list[tuple[Any, ...]]) -> CallFuture:
            return self._push(options, "", function, project, (items,), {}, many=True, also_shut=True)

        size = None if chunksize == "auto" else int(chunksize)
        mapped = Mapped(submit, self._link, zip(*iterables), size, buffersize, timeout)
        self._maps.add(mapped)
        return counted(mapped.values(), function.name, iterables) if progress else mapped.values()

    def _submit(
        self, options: Options, key: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> CallFuture:
        self._require_open()
        if options.container is None:
            self._require_python()
        return self._push(options, key, self._pickled(fn), self._project_of(fn), args, kwargs)

    def _require_open(self) -> None:
        self._link.require_own_process()
        if self._is_shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if self._link.failure is not None:
            raise RemoteError(f"the cluster can no longer be used: {self._link.failure}")

    def _require_python(self) -> None:
        """Raise `PythonMissing` if no worker and no pool has this version of Python. Asks the boss once, and again
        whenever the last answer lacked it."""
        wanted = python_resource(PYTHON)
        if self._pythons is not None and wanted in self._pythons:
            return
        answer, _ = self._link.ask("pythons")
        self._pythons = answer.names if isinstance(answer, RequestDone) else ()
        if self._pythons and wanted not in self._pythons:
            there = ", ".join(name.removeprefix("python") for name in self._pythons)
            raise PythonMissing(
                f"this program runs Python {PYTHON}, and the cluster offers Python {there}: pickled functions need the "
                "same minor version",
                f"run the program with Python {there}, or name a Python {PYTHON} in ECLOUD_PYTHON of the workers, or "
                f'in a pool (python = "{PYTHON}")',
            )

    def _pickled(self, fn: Callable[..., Any]) -> PickledFunction:
        if not isinstance(fn, FunctionType):
            return pickle_function(fn)  # an object, a bound method or a partial: what it holds may change
        known = self._functions.get(fn)
        if known is None:
            known = self._functions[fn] = pickle_function(fn)
        return known

    def _project_of(self, fn: Callable[..., Any]) -> str:
        """The name of the archive of the user's modules, where the call may need it."""
        known = (len(sys.modules), getattr(fn, "__code__", None))
        if known != self._looked_at:
            self._needs_project = self._needs_project or self._project.is_needed(fn)
            self._looked_at = known
        if not self._needs_project:
            return ""
        try:
            data, name = self._project.archive()
        except ProjectUnusable as problem:
            if self._initializer_needs_project or self._project.needs(fn):
                raise
            if not self._is_project_left_out:
                log.warning("calls are sent without the modules of this program: %s", problem)
                self._is_project_left_out = True
            return ""
        return self._objects.put([data], name)

    def _push(
        self,
        options: Options,
        key: str,
        function: PickledFunction,
        project: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        many: bool = False,
        also_shut: bool = False,
    ) -> CallFuture:
        if many:
            arguments = pickle_items(function.name, args[0], self)
        else:
            arguments = pickle_arguments(function.name, args, kwargs, self)
        code, code_file = self._objects.placed(function.data, function.key)
        data, data_file = self._objects.placed(arguments.data)
        shared = [*arguments.shared, *filter(None, (code_file, project))]
        id = key or self._new_id(function.name)
        call = Call(
            name=function.name,
            function=function.key,
            code=code,
            function_file=code_file,
            arguments=data,
            arguments_file=data_file,
            value=f"{self._objects.directory}/{file_name(id)}.%a",
            needs=arguments.futures,
            many=many,
            fingerprint=function.fingerprint,
            python=PYTHON,
            setup=self._setup,
            project=project,
            shared=tuple(shared),
            max_calls=self._max_calls,
        )
        definition = TaskDefinition(
            id=id,
            dependencies=tuple([Dependency(name) for name in arguments.futures]),
            requirements=tuple([self._objects.requirement(name) for name in filter(None, (*shared, data_file))]),
            # A container has a Python of its own, which its call host checks.
            resources={**options.resources, **({} if options.container else {python_resource(PYTHON): 1.0})},
            priority=options.priority,
            timeout_s=options.timeout_s,
            retries=Retries(options.retries) if options.retries else Retries(),
            env=options.env,
            labels=(function.name,),
            runtime_s=options.runtime_s,
            container=options.container,
            call=call,
        )
        if key and self._fingerprints.get(key, function.fingerprint) != function.fingerprint:
            what = "its value is kept" if self._code_changed == "keep" else "it is done again"
            log.warning("the function of call %s of run %s has changed: %s", key, self.run, what)
        future = CallFuture(self._link, id, many)
        with self._lock:
            if not also_shut:
                self._require_open()
            if key:
                known = self._attached.get(key)
                if known is not None and self._link.pending.get(key) is known:
                    return known  # it has not ended: it is not made a second time
                self._attached[key] = future
            self._link.submit(future, definition)
        return future

    def _new_id(self, name: str) -> str:
        self._numbers += 1
        return f"{name}-{self._token}-{self._numbers}"

    def call_of(self, future: Future[Any]) -> str:
        """The id of a future's call. Raises `TypeError` for a future of another executor."""
        if isinstance(future, CallFuture) and future._link is self._link:
            return future.id
        raise ForeignFuture(f"{future!r} is a future of another executor: pass its result()")

    def shared_of(self, item: Any) -> str | None:
        """The name of a shared object; None for one that is not."""
        return self._sharing.name_of(item)

    def share(self, item: Any) -> Shared:
        """An argument for many calls: pickled once, moved once to each worker, unpickled once in each interpreter.
        Calls must not change it. Raises `TypeError`, `DatastoreAway`, `RuntimeError` after `shutdown`."""
        self._require_open()
        return self._sharing.share(item)

    def _fetch(self, ended: CallEnded) -> bytes:
        if ended.path:
            return self._objects.read(ended.path)
        return self._link._fetch(ended)

    # --- runs that outlive a program ----------------------------------------------------------------

    def attach(self, run: str | None = None) -> ClusterExecutor:
        """Take up a run that this or another program began: `future` and `futures` give its calls, and calls that are
        submitted belong to it. Raises `Problem` where there is no such run, `RuntimeError` after a submit to another.
        """
        self._require_open()
        if run is not None and run != self.run:
            if self._numbers or self._attached:
                raise RuntimeError(f"this executor has calls in run {self.run}: attach another executor to {run}")
            self.run = self._link.run = run
            self._objects.directory = calls_directory(run)
        for call in self._link.list_calls():
            self._fingerprints[call.id] = call.fingerprint
            if call.id not in self._attached:
                future = self._attached[call.id] = CallFuture.of_listed(self._link, call)
                if future.done():
                    self._link.listed[call.id] = None
                if call.state == TaskState.FAILED:
                    self._link.note_failed(future)
        self._link.watch(future for future in self._attached.values() if not future.done())
        return self

    def future(self, key: str) -> CallFuture:
        """The future of a call of an attached run, or of one that was submitted with this `key`. Raises `KeyError`."""
        return self._attached[key]

    def futures(self) -> list[CallFuture]:
        """Of all calls of an attached run, and of those submitted with a key, in order."""
        return list(self._attached.values())

    # --- asking -------------------------------------------------------------------------------------

    def status(self) -> Status:
        """The number of calls of the run in each state, and why calls wait, as last reported by the boss."""
        self._link.wait_for_report()
        return Status(self._link.states, self._link.waits)

    @property
    def workers(self) -> int:
        """The number of workers on duty, as last reported by the boss; 0 before the first report."""
        return self._link.workers

    def __repr__(self) -> str:
        counts = Counter({"pending": len(self._link.pending), "ended": self._link.done_count})
        text = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        if self._link.waits and self._link.pending:
            text += f"; {self._link.waits}"
        return f"<ClusterExecutor run {self.run}: {text}>"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("an executor cannot be pickled: make one where it is used")

    # --- the end ------------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. `wait`: return when all have ended; otherwise the end of the program waits for them.
        Ctrl-C interrupts this wait; `on_client_lost` decides whether calls continue. Does nothing in a process that
        this one forked."""
        if self._link.is_foreign:
            return
        try:
            with self._lock:
                self._is_shut = True
            if cancel_futures:
                self._cancel_all()
            if not wait:
                threading.Thread(target=self._finish, name="ecloud-shutdown", daemon=True).start()
                return
            self._wait_for_all()
        except KeyboardInterrupt:
            self._leave()
            raise
        self._close()

    def _finish(self) -> None:
        self._wait_for_all()
        self._close()

    def _end(self) -> None:
        """At the end of the program: wait for the calls, also after `shutdown(wait=False)`. Ctrl-C leaves them."""
        try:
            with self._lock:
                self._is_shut = True
            if self._on_client_lost == "cancel":
                self._cancel_all()
            self._wait_for_all(QUIET_WAIT_S)
            self._close()
        except KeyboardInterrupt:
            self._leave()

    def _cancel_all(self) -> None:
        for mapped in tuple(self._maps):
            mapped.drop()
        for future in tuple(self._link.pending.values()):
            future.cancel()

    def _wait_for_all(self, quiet_s: float = math.inf) -> None:
        """`quiet_s`: after this time, say what is waited for."""
        said_at = time.monotonic() + quiet_s
        while True:
            with self._link.condition:
                if not (self._link.pending or any(self._maps)) or not self._link.is_open:
                    return
                self._link.condition.wait(0.2)
            if time.monotonic() >= said_at:
                said_at = math.inf
                left = number_of(len(self._link.pending), "call")
                them = "it" if len(self._link.pending) == 1 else "them"
                what = f"ends {them}" if self._cluster.local is not None else f"leaves {them}; {self._advice}"
                print(f"waiting for {left} of run {self.run}; Ctrl-C {what}", file=sys.stderr, flush=True)

    @property
    def _advice(self) -> str:
        """What the user can do with calls that continue."""
        return f"to get their values: ClusterExecutor().attach({self.run!r}).futures(); to stop them: " + as_typed(
            f"python admin.py cancel --run {self.run}"
        )

    def _leave(self) -> None:
        """Handle Ctrl-C: tell the user what happens to the calls, and close."""
        if self._cluster.local is None and self._on_client_lost == "finish":
            for mapped in tuple(self._maps):
                mapped.submit_all()
        left = number_of(len(self._link.pending), "call")
        is_one = len(self._link.pending) == 1
        if self._cluster.local is not None:
            print(f"\ninterrupted: the private cluster ends, and {left} with it", file=sys.stderr)
        elif self._on_client_lost == "cancel":
            self._cancel_all()
            print(f"\ninterrupted: {left} {'is' if is_one else 'are'} cancelled", file=sys.stderr)
        else:
            continues = "continues" if is_one else "continue"
            print(f"\ninterrupted: {left} of run {self.run} {continues}; {self._advice}", file=sys.stderr)
        self._close()

    def _close(self) -> None:
        with self._close_lock:
            if self._is_closed:
                return
            if self._cluster.local is None and not self._link.flush() and self._link.failure is None:
                log.warning("the boss has not confirmed the last calls of run %s: they may be lost", self.run)
            self._link.wait_for_report()
            self._link.close()
            if self._bar is not None:
                self._bar.close()
            self._cluster.close()
            self._at_exit.detach()
            self._is_closed = True

    def __exit__(self, kind: Any, value: Any, trace: Any) -> bool | None:
        if kind is not None and issubclass(kind, KeyboardInterrupt) and not self._link.is_foreign:
            self._is_shut = True
            self._leave()
        else:
            self.shutdown(wait=True)
        return None


class OptionsOf(Executor):
    """An executor with other options, as `ClusterExecutor.options` returns it. Its `shutdown` does nothing."""

    def __init__(self, executor: ClusterExecutor, options: Options, key: str = "") -> None:
        self._executor = executor
        self._options = options
        self._key = key

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> CallFuture:
        """See `ClusterExecutor.submit`."""
        return self._executor._submit(self._options, self._key, fn, args, kwargs)

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | str = "auto",
        buffersize: int | None = None,
        progress: bool = False,
    ) -> Iterator[Any]:
        """See `ClusterExecutor.map`."""
        return self._executor._map(self._options, fn, iterables, timeout, chunksize, buffersize, progress)


def _require_good(options: Options) -> None:
    """Raises `TypeError`, `ValueError` that name what is wrong."""
    for field in msgspec.structs.fields(Options):
        value = getattr(options, field.name)
        try:
            msgspec.convert(value, field.type)
        except msgspec.ValidationError:
            raise TypeError(f"{field.name} = {value!r}: expected {_EXPECTED[field.name]}") from None
    definition = TaskDefinition(
        "options",
        resources=dict(options.resources),
        retries=Retries(options.retries),
        timeout_s=options.timeout_s,
        priority=options.priority,
        container=options.container,
        env=options.env,
        runtime_s=options.runtime_s,
    )
    problems = check([definition])
    if problems:
        raise ValueError("; ".join(re.sub("^task options[:,] ", "", problem) for problem in problems))


def _program() -> str:
    main = sys.modules.get("__main__")
    name = Path(getattr(main, "__file__", None) or "python").stem
    return file_name(name)[:60]


def _shut_at_exit(executor: ClusterExecutor) -> Any:
    """Shut the executor down at the end of the program, unless the user did; its calls end first."""
    reference = weakref.ref(executor)

    def shut() -> None:
        found = reference()
        if found is None or found._link.is_foreign:
            return
        try:
            found._end()
        except Problem as problem:
            print(problem, file=sys.stderr)
        except KeyboardInterrupt:  # one more: nothing is waited for
            pass

    atexit.register(shut)
    return _Registered(shut)


class _Registered:
    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    def detach(self) -> None:
        atexit.unregister(self._function)
