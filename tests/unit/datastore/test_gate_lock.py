"""Of one client only one gate writes: a gate whose client came again is ended, and its follower waits for its lock."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from datastore import gate
from datastore.gate import Refused, Staging, Tree

REQUEST = {"client": "aa", "stage": "w1/1-1", "items": [["directory", "made"]]}


@pytest.fixture
def held(tmp_path: Path) -> int:
    """The lock of the client, held by another process's handle (here: another handle)."""
    owner = tmp_path / ".ecloud/staging/w1"
    owner.mkdir(parents=True)
    handle = os.open(owner / ".client-aa", os.O_CREAT | os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    os.write(handle, b"12345\n")
    return handle


def test_a_gate_writes_nothing_while_another_of_its_client_has_the_lock(
    tmp_path: Path, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "HOLD_S", 0.1)
    asked_to_end: list[bytes] = []
    monkeypatch.setattr(gate, "end_gate", asked_to_end.append)
    with pytest.raises(Refused, match="another connection of this client still writes"):
        Staging(Tree(str(tmp_path)), "w1").put(REQUEST, memoryview(b""))
    assert set(asked_to_end) == {b"12345"}
    assert not (tmp_path / ".ecloud/staging/w1/1-1").exists()
    os.close(held)


def test_a_gate_continues_when_the_one_before_has_ended(
    tmp_path: Path, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def end(told: bytes) -> None:
        seen.append((tmp_path / ".ecloud/staging/w1/1-1").exists())
        if len(seen) == 3:
            os.close(held)

    monkeypatch.setattr(gate, "end_gate", end)
    staging = Staging(Tree(str(tmp_path)), "w1")
    assert staging.put(REQUEST, memoryview(b"")) == {}
    assert seen == [False] * 3
    assert (tmp_path / ".ecloud/staging/w1/1-1/made").is_dir()
    assert (tmp_path / ".ecloud/staging/w1/.client-aa").read_text() == f"{os.getpid()}\n"
    staging.end()


def test_a_lock_that_its_holder_removed_on_leaving_is_none(
    tmp_path: Path, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate that waited for it locks the file that the next one of this client will find."""
    lock = tmp_path / ".ecloud/staging/w1/.client-aa"

    def leave(told: bytes) -> None:
        if lock.exists() and lock.read_text() == "12345\n":
            lock.unlink()
            os.close(held)

    monkeypatch.setattr(gate, "end_gate", leave)
    staging = Staging(Tree(str(tmp_path)), "w1")
    assert staging.put(REQUEST, memoryview(b"")) == {}
    assert lock.read_text() == f"{os.getpid()}\n"
    with lock.open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    staging.end()
    assert not lock.exists()


@pytest.mark.parametrize(
    ("size", "at", "count"),
    [
        (1 << 50, 0, -(1 << 50)),
        (1 << 50, 1 << 49, -(1 << 21)),
        (10, -1, 5),
        (10, 8, -4),
        (10, 8, 4),
    ],
)
def test_a_claimed_hole_or_piece_that_can_not_be_is_refused_at_once(
    tmp_path: Path, size: int, at: int, count: int
) -> None:
    staging = Staging(Tree(str(tmp_path)), "w1")
    item = ["piece", "a", size, 0o644, 1, at, count, ""]
    with pytest.raises(gate.BadFrame, match="a piece of"):
        staging.put({"client": "aa", "stage": "w1/1-1", "items": [item]}, memoryview(b"x"))
    assert [path for path in (tmp_path / ".ecloud").rglob("*") if path.is_file() and path.stat().st_size > 100] == []
    staging.end()
