"""`ClusterExecutor` on a private cluster: real boss, broker, workers and call hosts."""

from __future__ import annotations

import os
import pickle
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, as_completed, wait
from pathlib import Path
from typing import Any

import cloudpickle
import msgspec
import pytest
from services import wait_until

from datastore.problem import Problem
from ecloud import ClusterExecutor, RemoteError
from ecloud.client.client import Client
from ecloud.config.secrets import cluster_secret, derive_key
from ecloud.python.cluster import Cluster
from ecloud.python.payload import LARGE_BYTES
from ecloud.queries.status import open_database

cloudpickle.register_pickle_by_value(sys.modules[__name__])
PATIENCE_S = 60.0


@pytest.fixture
def executor(cluster: Cluster) -> Iterator[ClusterExecutor]:
    """An executor on it."""
    with ClusterExecutor(cluster.access) as executor:
        yield executor


def square(number: int) -> int:
    return number * number


def last(data: bytearray) -> int:
    return data[-1]


class Adder:
    """A function with an attribute that the program may change."""

    by = 0

    def __call__(self, number: int) -> int:
        return number + self.by


def total(*numbers: int) -> int:
    return sum(numbers)


def die(number: int) -> None:
    os.kill(os.getpid(), number)


def test_calls_have_values_and_failures(executor: ClusterExecutor) -> None:
    futures = [executor.submit(square, number) for number in range(200)]
    assert [future.result(PATIENCE_S) for future in futures] == [number * number for number in range(200)]
    failed = executor.submit(int, "x")
    error = failed.exception(PATIENCE_S)
    assert isinstance(error, ValueError)
    assert "Traceback" in str(error.__cause__)
    if sys.version_info >= (3, 11):  # earlier exceptions have no notes
        (note,) = error.__notes__
        assert re.fullmatch(rf"call int-\S+, attempt 1, worker \S+, host {socket.gethostname()}", note)
    with pytest.raises(ValueError, match="invalid literal"):
        failed.result()


def test_map_keeps_the_order_in_chunks_and_raises_where_a_call_failed(executor: ClusterExecutor) -> None:
    assert list(executor.map(square, range(5000))) == [number * number for number in range(5000)]
    assert list(executor.map(pow, range(100), range(100), chunksize=7)) == [number**number for number in range(100)]
    assert list(executor.map(square, [])) == []
    values = executor.map(int, ["1", "2", "x", "4"], chunksize=4)
    assert [next(values), next(values)] == [1, 2]
    with pytest.raises(ValueError, match="invalid literal"):
        next(values)


def test_map_with_a_buffer_takes_no_more_items_than_that(executor: ClusterExecutor) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    values = executor.map(square, items(), buffersize=5)
    assert next(values) == 0
    assert len(taken) <= 6
    values.close()  # type: ignore[attr-defined]


def test_the_standard_librarys_functions_take_its_futures(executor: ClusterExecutor) -> None:
    slow = executor.submit(time.sleep, 600)
    quick = executor.submit(square, 3)
    done, not_done = wait([slow, quick], PATIENCE_S, FIRST_COMPLETED)
    assert (done, not_done) == ({quick}, {slow})
    heard: list[Future[Any]] = []
    slow.add_done_callback(heard.append)
    assert slow.cancel()
    assert list(as_completed([slow, quick], PATIENCE_S)) == [*as_completed([slow, quick])]
    assert heard == [slow]
    with pytest.raises(CancelledError):
        slow.result()


def test_a_future_as_an_argument_is_its_value(executor: ClusterExecutor) -> None:
    first, second = executor.submit(square, 3), executor.submit(square, 4)
    third = executor.submit(total, first, second, 5)
    assert executor.submit(sum, [third, first]).result(PATIENCE_S) == 39
    failed = executor.submit(int, "x")
    error = executor.submit(total, failed).exception(PATIENCE_S)
    assert isinstance(error, RemoteError)
    assert str(error) == f"task {failed.id} failed"


def test_a_call_that_needs_a_dropped_one_fails_with_that_reason(
    executor: ClusterExecutor, cluster: Cluster, tmp_path: Path
) -> None:
    go = tmp_path / "go"

    def wait_for_go() -> int:
        while not go.exists():
            time.sleep(0.01)
        return 1

    first, slow = executor.submit(square, 3), executor.submit(wait_for_go)
    needy = executor.submit(total, first, slow)
    assert first.result(PATIENCE_S) == 9
    with Client(cluster.access) as client:
        client.connect()
        assert client.request("drop_tasks", ids=[f"{executor.run}:{first.id}"]).count == 1
    go.touch()
    with pytest.raises(
        RemoteError, match=f"needs the values of calls that were dropped: {first.id}; submit them again"
    ):
        needy.result(PATIENCE_S)


def test_values_too_large_for_a_message_travel_through_the_datastore(executor: ClusterExecutor) -> None:
    large = executor.submit(bytes, 1_000_000)
    assert executor.submit(len, large).result(PATIENCE_S) == 1_000_000
    assert large.result(PATIENCE_S) == bytes(1_000_000)
    assert executor.submit(len, b"x" * 100_000).result(PATIENCE_S) == 100_000


@pytest.mark.parametrize(
    ("function", "argument", "cause", "text"),
    [
        (die, signal.SIGSEGV, "signal", "the interpreter of the call die was ended by SIGSEGV"),
        (os._exit, 3, "exit", "the call _exit ended its interpreter with exit code 3"),
    ],
)
def test_a_death_costs_the_call_in_progress_only(
    executor: ClusterExecutor, function: Any, argument: int, cause: str, text: str
) -> None:
    before = [executor.submit(square, number) for number in range(20)]
    deadly = executor.submit(function, argument)
    after = [executor.submit(square, number) for number in range(20)]
    error = deadly.exception(PATIENCE_S)
    assert isinstance(error, RemoteError)
    assert (error.cause, str(error)) == (cause, text)
    assert [future.result(PATIENCE_S) for future in (*before, *after)] == [n * n for n in range(20)] * 2


def test_a_call_that_takes_too_long_is_ended(executor: ClusterExecutor) -> None:
    error = executor.options(timeout_s=0.3).submit(time.sleep, 600).exception(PATIENCE_S)
    assert str(error) == "the call sleep ran longer than timeout_s = 0.3 s"


def test_a_failure_is_tried_again_as_a_task_is(executor: ClusterExecutor, tmp_path: Path) -> None:
    def second_time(place: Path) -> str:
        if not place.exists():
            place.write_text("tried")
            raise OSError("not yet")
        return place.read_text()

    assert executor.options(retries=1).submit(second_time, tmp_path / "mark").result(PATIENCE_S) == "tried"


def test_what_a_call_prints_is_kept_of_its_attempt(cluster: Cluster) -> None:
    with ClusterExecutor(cluster.access, run="printing") as executor:
        executor.options(key="loud").submit(print, "hello").result(PATIENCE_S)
    assert cluster.local is not None
    with open_database(cluster.local.settings).connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT t.id, a.stdout FROM attempts a JOIN tasks t ON t.task_no = a.task_no JOIN runs r "
            "ON r.run_no = t.run_no WHERE r.name = 'printing'"
        ).all()
    assert [tuple(row) for row in rows] == [("loud", "hello\n")]


def speak(go: str) -> None:
    print("one")
    while not os.path.exists(go):
        time.sleep(0.01)
    print("two")


def test_the_output_of_a_running_call_can_be_followed(cluster: Cluster, tmp_path: Path) -> None:
    assert cluster.local is not None
    heard = ""
    with ClusterExecutor(cluster.access) as executor:
        future = executor.submit(speak, str(tmp_path / "go"))
        wait_until(future.running, PATIENCE_S)
        client = Client(cluster.access)
        client.connect(PATIENCE_S)
        for lines in client.logs(future.id, cluster_secret(cluster.local.home), executor.run):
            heard += lines.text if lines.stream == "stdout" else ""
            if heard:
                (tmp_path / "go").touch()
        client.close()
    assert heard == "one\ntwo\n"


def test_a_call_that_nothing_can_run_is_explained_once(
    executor: ClusterExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    future = executor.options(resources={"gpus": 8}).submit(square, 3)
    wait_until(lambda: executor.status().waits, PATIENCE_S)
    assert "needs 8 gpus" in executor.status().waits
    assert "needs 8 gpus" in repr(executor)
    assert [record.message.count("needs 8 gpus") for record in caplog.records if "wait:" in record.message] == [1]
    assert future.cancel()


def test_a_python_that_the_cluster_lacks_is_refused_at_submit(
    executor: ClusterExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecloud.python.executor.PYTHON", "3.99")
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    text = rf"this program runs Python 3\.99, and the cluster offers Python .*{re.escape(here)}"
    with pytest.raises(Problem, match=text):
        executor.submit(square, 3)
    with pytest.raises(Problem, match=text):
        executor.map(square, [3])
    monkeypatch.undo()
    assert executor.submit(square, 3).result(PATIENCE_S) == 9


def test_an_interpreter_is_prepared_once_and_replaced_after_its_calls(cluster: Cluster, tmp_path: Path) -> None:
    def begin(place: Path) -> None:
        (place / str(os.getpid())).touch()

    with ClusterExecutor(cluster.access, initializer=begin, initargs=(tmp_path,), max_calls=3) as executor:
        pids = [executor.submit(os.getpid).result(PATIENCE_S) for _ in range(12)]
    assert {str(pid) for pid in pids} == {path.name for path in tmp_path.iterdir()}
    assert max(pids.count(pid) for pid in pids) <= 3


def test_an_initializer_that_fails_is_reported(cluster: Cluster) -> None:
    def begin() -> None:
        raise RuntimeError("no licence")

    with ClusterExecutor(cluster.access, initializer=begin) as executor:
        error = executor.submit(square, 1).exception(PATIENCE_S)
    assert isinstance(error, BrokenExecutor)
    assert str(error) == "the initializer failed: RuntimeError: no licence"
    assert isinstance(error.__cause__, RuntimeError)


def test_bad_inputs_are_one_sentence_each_and_the_executor_continues(cluster: Cluster) -> None:
    executor = ClusterExecutor(cluster.access)
    with pytest.raises(TypeError, match=r"argument 2 \(of type generator\) of pow cannot be pickled: .*; pass a list"):
        executor.submit(pow, 1, (number for number in range(3)))
    with pytest.raises(TypeError, match=r"argument 1 \(of type lock\) of square cannot be pickled"):
        executor.submit(square, threading.Lock())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="3 cannot be called"):
        executor.submit(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="is a future of another executor"):
        executor.submit(square, Future())
    with pytest.raises(ValueError, match="cpus = -1"):
        executor.options(resources={"cpus": -1})
    with pytest.raises(TypeError, match="known are key, resources"):
        executor.options(colour="red")
    error = executor.submit(threading.Lock).exception(PATIENCE_S)
    assert isinstance(error, TypeError)
    assert str(error).startswith("the value of ")
    assert executor.submit(square, 2).result(PATIENCE_S) == 4
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(square, 1)


def test_a_run_is_taken_up_by_another_program(cluster: Cluster) -> None:
    with ClusterExecutor(cluster.access, run="long") as first:
        first.options(key="nine").submit(square, 3)
        first.options(key="large").submit(bytes, 100_000)
        failed = first.options(key="bad").submit(int, "x")
        failed.exception(PATIENCE_S)
    with ClusterExecutor(cluster.access) as second:
        assert [future.id for future in second.attach("long").futures()] == ["nine", "large", "bad"]
        assert second.future("nine").result(PATIENCE_S) == 9
        assert second.future("large").result(PATIENCE_S) == bytes(100_000)
        assert isinstance(second.future("bad").exception(PATIENCE_S), ValueError)
        with pytest.raises(KeyError):
            second.future("other")
        assert second.submit(total, second.future("nine"), 1).result(PATIENCE_S) == 10
    with ClusterExecutor(cluster.access) as third, pytest.raises(Problem, match="there is no run 'none'"):
        third.attach("none")


def test_values_of_an_attached_run_are_requested_together(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with ClusterExecutor(cluster.access, run="many-values") as executor:
        futures = [executor.options(key=f"call-{number}").submit(square, number) for number in range(600)]
        wait(futures, PATIENCE_S)
    with ClusterExecutor(cluster.access) as executor:
        executor.attach("many-values")
        asked = []
        ask = executor._link.ask
        monkeypatch.setattr(executor._link, "ask", lambda *verb, **more: (asked.append(verb), ask(*verb, **more))[1])
        values = [executor.future(f"call-{number}").result(PATIENCE_S) for number in range(600)]
    assert values == [number * number for number in range(600)]
    assert len(asked) == 3


def test_calls_with_keys_are_made_once_and_again_where_they_failed_or_changed(
    cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def note(place: Path, name: str) -> int:
        with (place / name).open("a") as file:
            file.write("x")
        if not (place / "may").exists():
            raise ValueError("not yet")
        return (place / name).stat().st_size

    def changed(place: Path, name: str) -> int:
        return note(place, name) + 100

    def run(function: Any, **options: Any) -> list[Any]:
        with ClusterExecutor(cluster.access, run="keyed", **options) as executor:
            if function is changed:
                executor.attach()
            futures = [executor.options(key=name).submit(function, tmp_path, name) for name in ("a", "b")]
            return [future.exception(PATIENCE_S) or future.result() for future in futures]

    assert [str(error) for error in run(note)] == ["not yet", "not yet"]
    (tmp_path / "may").touch()
    assert run(note) == [2, 2]
    assert run(note) == [2, 2]
    changed.__qualname__ = note.__qualname__  # the same function, as a user edits it
    assert run(changed) == [2, 2]
    assert "the function of call a of run keyed has changed: its value is kept" in caplog.text
    assert run(changed, code_changed="redo") == [103, 103]


def test_keys_whose_names_a_file_cannot_have_do_not_share_a_value(executor: ClusterExecutor) -> None:
    keys = ("Müller", "Möller", "a/1", "a_1", "x", ".x")
    futures = {key: executor.options(key=key).submit(lambda text: text * 20_000, key) for key in keys}
    assert {key: future.result(PATIENCE_S) for key, future in futures.items()} == {key: key * 20_000 for key in keys}


def test_what_the_program_changes_between_two_calls_is_sent_as_it_is(executor: ClusterExecutor) -> None:
    data, adder = bytearray(LARGE_BYTES), Adder()
    found = []
    for number in range(4):
        data[:] = bytes([number]) * LARGE_BYTES
        adder.by = number
        found.append((executor.submit(last, data), executor.submit(adder, 10)))
    assert [one.result(PATIENCE_S) for one, _ in found] == [0, 1, 2, 3]
    assert [other.result(PATIENCE_S) for _, other in found] == [10, 11, 12, 13]


def test_a_map_that_cannot_submit_an_item_cancels_the_items_before(cluster: Cluster, tmp_path: Path) -> None:
    with ClusterExecutor(cluster.access) as executor:
        executor.submit(int).result(PATIENCE_S)
        with pytest.raises(TypeError, match="cannot be pickled"):
            executor.map(lambda item: time.sleep(60), [*range(10), threading.Lock()], chunksize=1)
        began = time.monotonic()
    assert time.monotonic() - began < PATIENCE_S


def test_a_callback_may_wait_for_what_the_link_receives(cluster: Cluster) -> None:
    asked: list[Any] = []
    with ClusterExecutor(cluster.access) as executor:
        future = executor.submit(time.sleep, 0.2)
        future.add_done_callback(lambda done: asked.append(executor._link.request("pythons")))
    assert asked, "shutdown waits for callbacks"


def test_an_object_that_is_shared_is_unpickled_once_in_each_interpreter(executor: ClusterExecutor) -> None:
    def place_of(item: bytes) -> tuple[int, int]:
        return os.getpid(), id(item)

    large = bytes(2_000_000)
    futures = [executor.submit(place_of, executor.share(large)) for _ in range(20)]
    places = {future.result(PATIENCE_S) for future in futures}
    assert len(places) == len({pid for pid, _ in places})


def test_a_call_that_waits_for_a_cancelled_one_fails_and_later_calls_run(executor: ClusterExecutor) -> None:
    for _ in range(20):  # cancelled before, while or after they are pushed
        cancelled = executor.submit(time.sleep, 600)
        cancelled.cancel()
        first = executor.submit(total, cancelled)
        second = executor.submit(total, first)
        error = first.exception(PATIENCE_S)
        assert isinstance(error, RemoteError)
        assert str(error) == f"task {cancelled.id} cancelled"
        assert isinstance(second.exception(PATIENCE_S), RemoteError)
    assert executor.submit(square, 3).result(PATIENCE_S) == 9


def test_calls_that_are_cancelled_while_others_are_pushed_do_not_run(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    with ClusterExecutor(cluster.access, run="cancelled") as executor:
        futures = [executor.submit(time.sleep, 600) for _ in range(300)]
        executor._link.flush()
        futures += [executor.submit(time.sleep, 600) for _ in range(3_000)]
        assert all(future.cancel() for future in futures)
    with ClusterExecutor(cluster.access) as executor:
        found = executor.attach("cancelled").futures()
        assert len(found) >= 300
        assert [future.id for future in found if not future.cancelled()] == []
    assert "the boss refuses cancel" not in caplog.text


def test_a_revoked_access_file_fails_the_calls_of_a_program_and_ends_its_wait(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cluster.local is not None
    key = derive_key(cluster_secret(cluster.local.home), "submit-1").hex()
    access = msgspec.structs.replace(cluster.access, key_name="submit-1", key=key)
    executor = ClusterExecutor(access, run="revoked")
    future = executor.submit(time.sleep, 600)
    executor._link.flush()
    with Client(cluster.access) as client:
        client.connect(PATIENCE_S)
        client.request("revoke_key", name="submit-1")
    with pytest.raises(RemoteError, match="its access file was revoked: "):
        future.result(PATIENCE_S)
    executor.shutdown()
    with pytest.raises(RuntimeError):
        executor.submit(abs, 1)
    assert "its access file was revoked: " in caplog.text
    monkeypatch.setattr("ecloud.python.link.CONNECT_S", 1.0)
    with pytest.raises(Problem, match=r"the boss does not \(tried for 1 s\).*or have revoked this access file"):
        ClusterExecutor(access)
    with ClusterExecutor(cluster.access) as executor:
        assert executor.attach("revoked").futures()[0].cancel()


def test_the_status_counts_all_calls_that_ended(cluster: Cluster) -> None:
    with ClusterExecutor(cluster.access) as executor:
        for count in range(40, 401, 40):
            wait([executor.submit(square, number) for number in range(40)], PATIENCE_S)
            assert {state: number for state, number in executor.status().items() if number} == {"succeeded": count}
        executor.submit(square, 1)
    assert executor.status()["succeeded"] == 401


def test_futures_and_executors_are_not_pickled(executor: ClusterExecutor) -> None:
    future = executor.submit(square, 3)
    with pytest.raises(TypeError, match="a future is an argument of its executor's calls: elsewhere pass"):
        pickle.dumps(future)
    for unpicklable in (executor, executor.options(retries=1)):
        with pytest.raises(TypeError, match="an executor cannot be pickled: make one where it is used"):
            pickle.dumps(unpicklable)
    with pytest.raises(TypeError, match=r"argument 1 .* of square cannot be pickled: an executor cannot be pickled"):
        executor.submit(square, executor)  # type: ignore[arg-type]


def test_a_call_that_depends_on_a_failed_one_names_its_exception_as_the_cause(executor: ClusterExecutor) -> None:
    first = executor.submit(total, executor.submit(int, "x"))
    second = executor.submit(total, first)
    for future in (first, second):
        error = future.exception(PATIENCE_S)
        assert isinstance(error, RemoteError)
        assert re.fullmatch(r"task int-\S+ failed", str(error))
        assert isinstance(error.__cause__, ValueError)


def test_a_key_that_is_submitted_again_before_its_call_ended_gives_the_same_future(executor: ClusterExecutor) -> None:
    keyed = executor.options(key="twice")
    first = keyed.submit(square, 3)
    assert [first.result(PATIENCE_S), keyed.submit(square, 3).result(PATIENCE_S)] == [9, 9]
    slow = executor.options(key="slow").submit(time.sleep, 0.5)
    assert executor.options(key="slow").submit(time.sleep, 0.5) is slow
    assert slow.result(PATIENCE_S) is None


class Speechless(Exception):
    """Its text cannot be made."""

    def __str__(self) -> str:
        raise ValueError("no text")


class ExitsWhenRead:
    """Unpickling it ends the program."""

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.exit, (3,)


def raise_speechless() -> None:
    raise Speechless


def test_exceptions_without_text_and_values_that_exit_harm_no_interpreter(executor: ClusterExecutor) -> None:
    error = executor.submit(raise_speechless).exception(PATIENCE_S)
    assert type(error).__name__ == "Speechless"
    assert "in raise_speechless" in str(error.__cause__)
    read = executor.submit(ExitsWhenRead)
    with pytest.raises(RemoteError, match="cannot be unpickled here: SystemExit: 3"):
        read.result(PATIENCE_S)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"retries": "2"}, "retries = '2': expected a whole number"),
        ({"retries": 1.5}, "retries = 1.5: expected a whole number"),
        ({"timeout_s": "5"}, "timeout_s = '5': expected a number of seconds, or None"),
        ({"timeout_s": 0}, "timeout_s: 0: seconds, more than 0, at most ten years"),
        ({"resources": "gpus"}, "resources = 'gpus': expected numbers by name"),
        ({"resources": {"gpus": "two"}}, "resources = {'gpus': 'two'}: expected numbers by name"),
        ({"env": {"A": 1}}, "env = {'A': 1}: expected strings by name"),
        ({"priority": "high"}, "priority = 'high': expected a whole number"),
        ({"key": 5}, "key '5': expected a string of at most 200 printable characters"),
    ],
)
def test_options_of_the_wrong_kind_are_named(executor: ClusterExecutor, options: dict[str, Any], text: str) -> None:
    with pytest.raises((TypeError, ValueError)) as raised:
        executor.options(**options)
    assert str(raised.value).startswith(text)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"run": 5}, "run = '5': expected a string"),
        ({"run": "a\nb"}, "run = 'a\\nb': expected a string"),
        ({"max_calls": 0}, "max_calls = 0: expected a whole number, at least 1"),
        ({"max_workers": "two"}, "max_workers must be greater than 0"),
        ({"resources": "gpus"}, "resources = 'gpus': expected numbers by name"),
        ({"initializer": print, "initargs": (threading.Lock(),)}, "the initializer or initargs cannot be pickled: "),
    ],
)
def test_wrong_arguments_of_an_executor_are_named_before_a_cluster_starts(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises((TypeError, ValueError)) as raised:
        ClusterExecutor(**arguments)
    assert str(raised.value).startswith(text)


def test_an_executor_that_is_shut_down_answers_at_once(cluster: Cluster) -> None:
    with ClusterExecutor(cluster.access, run="shut") as executor:
        executor.options(key="one").submit(int, "x").exception(PATIENCE_S)
    with ClusterExecutor(cluster.access) as later:
        failed = later.attach("shut").future("one")
    with pytest.raises(RuntimeError, match="after shutdown"):
        later.attach()
    with pytest.raises(RuntimeError, match="after shutdown"):
        later.share(b"x")
    began = time.monotonic()
    with pytest.raises(Problem, match="was closed by shutdown"):
        failed.result()
    assert time.monotonic() - began < 5.0


def test_what_another_executor_shared_is_refused_at_submit(cluster: Cluster, executor: ClusterExecutor) -> None:
    with ClusterExecutor(cluster.access) as other:
        item = other.share([1, 2])
        with pytest.raises(TypeError, match="was shared by another executor: share it with this one"):
            executor.submit(len, item)
        assert other.submit(len, item).result() == 2


class TwoArguments(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} {second}")


def raise_two_arguments() -> None:
    raise TwoArguments(1, 2)


def test_an_exception_that_cannot_be_unpickled_says_why(executor: ClusterExecutor) -> None:
    with pytest.raises(RemoteError) as raised:
        executor.submit(raise_two_arguments).result()
    assert str(raised.value).startswith(
        "TwoArguments: 1 2 (not raised as TwoArguments, which cannot be pickled and unpickled: TypeError: "
    )
    assert "missing 1 required positional argument: 'second'" in str(raised.value)


def test_an_object_that_cannot_be_shared_is_named(executor: ClusterExecutor) -> None:
    with pytest.raises(TypeError, match=r"the object to share \(of type lock\) cannot be pickled"):
        executor.share(threading.Lock())
