"""The access of workers to a datastore: by its clock, for as long as it is renewed, and no longer."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from services import Daemon, wait_until
from sshd import CLUSTER, GATE, PYTHON, Sshd
from weather import Weather

from boss.shell.storage import UNSURE_S, Storage
from datastore import keys
from datastore.keys import LIVES_S, make_key, public_line
from datastore.port import DatastoreAway
from datastore.ssh.access import Access
from datastore.ssh.datastore import SshDatastore
from ecloud.config.datastore_address import authority, boss_key
from ecloud.config.home import Home
from ecloud.queries.lookup import task

HOUR_S = 3600.0


class Signing:
    """A boss's storage of a datastore whose gate has a clock of its own."""

    def __init__(self, sshd: Sshd, directory: Path, ahead_s: float) -> None:
        self.sshd = sshd
        self.home = Home(directory / "home")
        self.root = directory / "root"
        self.root.mkdir()
        self.ahead = directory / "ahead"
        self.ahead.write_text(str(ahead_s))
        gate = directory / "gate.py"
        gate.write_text(
            f"import time\nreal = time.time\n"
            f"time.time = lambda: real() + float(open({str(self.ahead)!r}).read())\n"
            f"exec(compile(open({str(GATE)!r}).read(), 'gate', 'exec'))\n"
        )
        self.storage = Storage(self.home, CLUSTER)
        self.key = directory / "key"
        self.public = make_key(self.key, "worker")
        line = authority(self.home, CLUSTER).authorized_line()
        with sshd.authorized_keys.open("a") as file:
            file.write(f"{public_line(boss_key(self.home))}\n{line}\n")
        self.storage.use(str(sshd.address(self.root)), keys.public_line(sshd.host_key), PYTHON, str(gate))

    def close(self) -> None:
        assert isinstance(self.storage.publisher, SshDatastore)
        self.storage.publisher.close()

    def worker(self, certificate: str) -> SshDatastore:
        path = self.key.with_name("key-cert.pub")
        path.write_text(certificate + "\n")
        return SshDatastore(self.sshd.address(self.root), Access(self.key, self.sshd.known_hosts, path), patience_s=0.5)

    def valid(self, certificate: str) -> tuple[float, float]:
        """From and until when, in seconds from now."""
        path = self.key.with_name("shown-cert.pub")
        path.write_text(certificate + "\n")
        told = subprocess.run(["ssh-keygen", "-L", "-f", str(path)], capture_output=True, text=True, check=True).stdout
        found = re.search(r"Valid: from (\S+) to (\S+)", told)
        assert found
        first, last = (time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S")) - time.time() for text in found.groups())
        return first, last


@pytest.fixture
def signing(own_sshd: Sshd, tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    signing = Signing(own_sshd, tmp_path, request.param)
    yield signing
    signing.close()


@pytest.mark.parametrize("signing", [5 * HOUR_S], indirect=True)
def test_a_datastore_whose_clock_is_hours_ahead_accepts_workers(signing: Signing) -> None:
    certificate, lives_s = signing.storage.sign("w1", signing.public)
    assert lives_s == LIVES_S
    worker = signing.worker(certificate)
    assert worker.listing() == []
    worker.close()
    first, last = signing.valid(certificate)
    assert first < -HOUR_S
    assert last == pytest.approx(5 * HOUR_S + LIVES_S, abs=300)


@pytest.mark.parametrize("signing", [-30 * HOUR_S], indirect=True)
def test_for_one_whose_clock_is_a_day_behind_it_is_good_by_that_clock(signing: Signing) -> None:
    certificate, _ = signing.storage.sign("w1", signing.public)
    first, last = signing.valid(certificate)
    assert first < -31 * HOUR_S
    assert last == pytest.approx(-30 * HOUR_S + LIVES_S, abs=300)


@pytest.mark.parametrize("signing", [5 * HOUR_S], indirect=True)
def test_while_it_is_away_access_is_granted_for_a_short_time_and_then_by_its_clock(
    signing: Signing, monkeypatch: pytest.MonkeyPatch
) -> None:
    signing.sshd.stop()
    certificate, lives_s = signing.storage.sign("w1", signing.public)
    assert lives_s == UNSURE_S
    assert signing.valid(certificate)[1] == pytest.approx(LIVES_S, abs=300)
    signing.sshd.start()
    monkeypatch.setattr("boss.shell.storage.UNSURE_S", 0.0)
    signing.storage._clock._again_at_s = 0.0
    certificate, lives_s = signing.storage.sign("w1", signing.public)
    assert lives_s == LIVES_S
    worker = signing.worker(certificate)
    assert worker.listing() == []
    worker.close()
    signing.sshd.stop()  # once known, it is remembered
    assert signing.storage.sign("w2", signing.public)[1] == LIVES_S


@pytest.mark.parametrize("signing", [0.0], indirect=True)
def test_a_clock_that_was_set_is_read_again_when_access_is_refused(
    signing: Signing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends_in_s(refused: bool) -> float:
        return signing.valid(signing.storage.sign("w1", signing.public, refused)[0])[1]

    assert ends_in_s(refused=False) == pytest.approx(LIVES_S, abs=300)
    signing.ahead.write_text(str(5 * HOUR_S))
    assert ends_in_s(refused=False) == pytest.approx(LIVES_S, abs=300), "no message reports it yet"
    assert ends_in_s(refused=True) == pytest.approx(5 * HOUR_S + LIVES_S, abs=300)
    assert ends_in_s(refused=False) == pytest.approx(5 * HOUR_S + LIVES_S, abs=300)
    # A worker that is refused for another reason does not make the boss connect again and again.
    signing.ahead.write_text("0")
    assert ends_in_s(refused=True) == pytest.approx(5 * HOUR_S + LIVES_S, abs=300)
    monkeypatch.setattr(signing.storage._clock, "_anew_at_s", 0.0)
    assert ends_in_s(refused=True) == pytest.approx(LIVES_S, abs=300)


@pytest.mark.parametrize("signing", [0.0], indirect=True)
def test_access_and_its_connections_end_together(signing: Signing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boss.shell.storage.LIVES_S", 3.0)
    worker = signing.worker(signing.storage.sign("w1", signing.public)[0])
    assert worker.listing() == []

    def is_over() -> bool:
        try:
            return bool(worker.listing())
        except DatastoreAway as error:
            return "it expired" in str(error)

    wait_until(is_over, what="neither the open connection nor a new one is accepted")
    worker.close()


@pytest.mark.parametrize("signing", [0.0], indirect=True)
def test_a_gate_that_admits_no_clients_is_replaced_by_one_command(signing: Signing, tmp_path: Path) -> None:
    assert signing.storage.sign_for_client("laptop", signing.public)[1] == LIVES_S
    earlier = tmp_path / "earlier.py"
    earlier.write_text(GATE.read_text().replace('["staged", "client"]', '["staged"]'))
    address = str(signing.sshd.address(signing.root))
    signing.storage.use(address, keys.public_line(signing.sshd.host_key), PYTHON, str(earlier))
    with pytest.raises(DatastoreAway, match=r"admits no clients.*set_datastore"):
        signing.storage.sign_for_client("laptop", signing.public)


# --- renewal ------------------------------------------------------------------------------------------


class BriefDaemon(Daemon):
    """A boss that grants access for three seconds."""

    program = (
        "-c",
        "import runpy; from boss.shell import storage; storage.LIVES_S = 3.0\n"
        "runpy.run_module('boss', run_name='__main__')",
    )


def test_access_is_renewed_through_a_task_that_outlives_it_many_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weather.Daemon", BriefDaemon)
    weather = Weather(tmp_path)
    try:
        weather.start()
        seen: set[str] = set()
        (weather.root / "given").touch()
        run = weather.begin(weather.makes("long", gate="long", requirements=["given"]))
        weather.runs("long")
        (holder,) = (weather.agent_of(attempt.worker) for attempt in task(weather.engine, "long").attempts)
        certificate = weather.place / "daemon" / f"a{weather.agents.index(holder)}" / "ssh/certificate.pub"

        def is_renewed() -> bool:
            seen.add(certificate.read_text())
            return len(seen) >= 5

        wait_until(is_renewed, 60, "it was renewed again and again")
        weather.open("long")
        weather.ends(run, "long")
        # Killed: no process renews its access, which therefore expires.
        holder.kill()
        holder.wait()
        home = certificate.parent
        dead = SshDatastore(
            weather.sshd.address(weather.root), Access(home / "key", home / "known_hosts", certificate), patience_s=0.2
        )

        def is_shut_out() -> bool:
            try:
                dead.listing()
            except DatastoreAway as error:
                return "it expired" in str(error)
            return False

        wait_until(is_shut_out, 60, "its access has ended")
        dead.close()
    finally:
        weather.end()
