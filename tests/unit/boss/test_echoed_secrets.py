"""A login node or a host that repeats what it was sent, the worker's access file with it: no error carries a secret."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import msgspec
import pytest

from boss.bootstrap.bundle import Bundles
from boss.providers.provider import TryLater, Unanswered, VmOrder
from boss.providers.slurm import Commands, SlurmCloud
from boss.providers.slurm_jobs import JobOptions
from boss.providers.ssh_hosts import Failed, Shell, SshHosts
from ecloud.config.secrets import AccessFile

ACCESS = AccessFile("c", "127.0.0.1", 1883, "vm-1", "5b" * 16 + "c3" * 16, "ecloud", "Wq7-broker-zP3-password")
ORDER = VmOrder(1, "far", {"cpus": 1.0, "memory_mb": 500.0}, "1-1")
ENCODED = base64.b64encode(msgspec.json.encode(ACCESS)).decode()
PIECES = [ENCODED[at : at + 24] for at in range(120, len(ENCODED) - 24, 24)]


def tells(text: str) -> list[str]:
    """The secrets in a text, in any of the forms in which they were sent."""
    return [word for word in (ACCESS.key, ACCESS.password, *PIECES) if word in text]


class EchoingSlurm(Commands):
    """Its `sbatch` ends so and prints what it got."""

    def __init__(self, code: int, login: str = "") -> None:
        super().__init__(login)
        self.code = code
        self.sent = ""

    def run(self, words: Sequence[str], given: bytes = b"") -> tuple[int, str, str]:
        self.sent = given.decode()
        return self.code, self.sent, f"sbatch: error: Batch script is odd: {self.sent[-3000:]} {ACCESS.password}"


@pytest.mark.parametrize(("code", "login"), [(1, ""), (0, ""), (255, "login")])
def test_a_slurm_that_echoes_the_script(code: int, login: str) -> None:
    commands = EchoingSlurm(code, login)
    cloud = SlurmCloud(commands, "c", JobOptions("/usr/bin/python3", "/opt/ecloud"), lambda name: ACCESS)
    with pytest.raises((TryLater, Unanswered)) as found:
        cloud.start(ORDER)
    assert tells(commands.sent), "it was sent"
    assert tells(str(found.value)) == []


class EchoingHost(Shell):
    """It answers what it is asked, and repeats the script that should start a worker."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = ""

    def run(self, host: str, script: bytes) -> str:
        if ENCODED.encode() not in script:
            return "python 3.11 x86_64 glibc 2.36 /usr/bin/python3\ndisk 9000\nhome /h\ncode abc\n"
        self.sent = script.decode()
        raise Failed(f"{host}: sh: syntax error: {self.sent[-3000:]} {ACCESS.password}")


def test_a_host_that_echoes_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = EchoingHost()
    hosts = SshHosts(shell, "c", ["far"], 1, lambda name: ACCESS, Bundles.__new__(Bundles))
    monkeypatch.setattr(hosts, "_look", lambda names: hosts._taken.update({name: set() for name in names}))
    monkeypatch.setattr(Bundles, "get", lambda self, machine: msgspec.defstruct("Found", ["name"])(name="abc"))
    with pytest.raises(TryLater) as found:
        hosts.start(ORDER)
    assert tells(shell.sent), "it was sent"
    assert "far: sh: syntax error" in str(found.value)
    assert tells(str(found.value)) == []
