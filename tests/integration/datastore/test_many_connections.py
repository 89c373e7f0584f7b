"""Many workers come at the same moment to one sshd that takes in few: those with a lane get in, all get their turn."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sshd import Sshd

from boss.core.workers.transfer_slots import Said, TransferSlots
from ecloud.model import wire

WORKERS = 40
STARTUPS = 4


class Boss:
    """The rule with a lock round it: who is granted a lane hears it at once."""

    def __init__(self, lanes: int) -> None:
        self.transfer_slots = TransferSlots(self._say, lanes, 1 << 40)
        self.most = 0
        self._lock = threading.Lock()
        self._granted = {f"w{number}": threading.Event() for number in range(WORKERS)}

    def _say(self, worker: str, message: wire.Message) -> Said:
        self._granted[worker].set()
        return Said("s", 1)

    def take(self, worker: str) -> None:
        """Ask, and wait for the turn."""
        with self._lock:
            self.transfer_slots.on_wanted(worker, 1000, 0.0)
            self.transfer_slots.grant(0.0)
        assert self._granted[worker].wait(120), f"{worker} starves"
        with self._lock:
            self.most = max(self.most, len(self.transfer_slots.lanes))

    def give_back(self, worker: str) -> None:
        with self._lock:
            self.transfer_slots.on_ended(worker, self.transfer_slots.lanes[worker].number)
            self.transfer_slots.grant(0.0)


def test_forty_workers_that_start_at_once_are_not_turned_away(tmp_path: Path) -> None:
    """Without lanes most of them would be: this sshd closes every connection beyond four that have not logged in."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "input").write_bytes(bytes(1000))
    server = Sshd(tmp_path / "sshd", f"MaxStartups {STARTUPS}:100:{STARTUPS}").start()
    boss = Boss(STARTUPS - 1)
    try:
        # No patience: who is turned away once fails.
        stores = {f"w{n}": server.worker(tmp_path / "root", f"w{n}", patience_s=0.0) for n in range(WORKERS)}

        def work(worker: str) -> int:
            boss.take(worker)
            moved = stores[worker].fetch("input", tmp_path / worker)
            stores[worker].close()
            boss.give_back(worker)
            return moved

        with ThreadPoolExecutor(WORKERS) as pool:
            assert list(pool.map(work, stores)) == [1000] * WORKERS
        assert boss.most <= STARTUPS - 1
        assert not boss.transfer_slots.lanes
        assert not boss.transfer_slots.waiting
        assert "MaxStartups" not in (server.directory / "log").read_text()
    finally:
        server.close()
