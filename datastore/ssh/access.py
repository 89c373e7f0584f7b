"""Address and access of a datastore on another machine, and the OpenSSH command that connects to it. Runs nothing."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ALIAS = "ecloud-datastore"
"""The datastore's name in its known_hosts file, whatever its address is."""
CIPHERS = "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes256-ctr,aes128-ctr"
"""With the processor's AES these are 40 % faster than the default for large files."""
CONNECT_S = 20
ALIVE_S = 15
_ADDRESS = re.compile(
    r"(?P<user>[A-Za-z0-9_][\w.-]*)@(?:\[(?P<six>[0-9A-Fa-f:.%]+)\]|(?P<host>[A-Za-z0-9_][\w.-]*))"
    r"(?::(?P<port>\d{1,5}))?:(?P<root>/[^\0\n]*)"
)


@dataclass(frozen=True)
class SshAddress:
    """`user@host[:port]:/root`; an IPv6 address in brackets."""

    user: str
    host: str
    port: int
    root: str

    @classmethod
    def parse(cls, text: str) -> SshAddress:
        """Raises `ValueError` with a sentence."""
        found = _ADDRESS.fullmatch(text)
        port = int(found["port"] or 22) if found else 0
        if not found or not 0 < port < 65536:
            raise ValueError(f"{text!r} is not an address of a datastore: user@host[:port]:/root")
        root = found["root"].rstrip("/") or "/"
        if ".." in root.split("/"):
            raise ValueError(f"the root {root!r} of a datastore must not contain ..")
        return cls(found["user"], found["six"] or found["host"], port, root)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == 22 else f":{self.port}"
        return f"{self.user}@{host}{port}:{self.root}"


@dataclass(frozen=True)
class Access:
    """What opens a datastore. `gate`: the command that starts it (a certificate brings its own)."""

    key: Path
    known_hosts: Path
    certificate: Path | None = None
    gate: str = ""


def gate_command(python: str, gate: str, root: str, *who: str, until_s: float | None = None) -> str:
    """The shell command that starts the gate. `who`: `boss`, `client`, or `worker` and its name. `until_s`: epoch
    seconds."""
    words = ["exec", python, "-IS", gate, "--root", root]
    if until_s is not None:
        words += ["--until", str(int(until_s))]
    return shlex.join([*words, *who])


def ssh_command(address: SshAddress, access: Access) -> list[str]:
    """The OpenSSH client with all options given: no configuration file of the user or the machine changes what it
    does."""
    options = {
        "BatchMode": "yes", "IdentitiesOnly": "yes", "IdentityAgent": "none", "IdentityFile": _quoted(access.key),
        "UserKnownHostsFile": _quoted(access.known_hosts), "GlobalKnownHostsFile": "none", "HostKeyAlias": ALIAS,
        "StrictHostKeyChecking": "yes", "UpdateHostKeys": "no", "CheckHostIP": "no", "VerifyHostKeyDNS": "no",
        "PreferredAuthentications": "publickey", "ClearAllForwardings": "yes", "ForwardAgent": "no",
        "ControlMaster": "no", "ControlPath": "none", "PermitLocalCommand": "no", "EscapeChar": "none",
        "ConnectTimeout": str(CONNECT_S), "ServerAliveInterval": str(ALIVE_S), "ServerAliveCountMax": "4",
        "Ciphers": CIPHERS, "Compression": "no", "LogLevel": "ERROR",
    }  # fmt: skip
    if access.certificate is not None:
        options["CertificateFile"] = _quoted(access.certificate)
    words = ["ssh", "-F", "none", "-T"]
    for name, value in options.items():
        words += ["-o", f"{name}={value}"]
    return [*words, "-p", str(address.port), "-l", address.user, "--", address.host, access.gate or "gate"]


def _quoted(path: Path) -> str:
    """A path as a value of ssh's options: with spaces, and with percent signs taken literally."""
    return '"' + str(path.absolute()).replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"') + '"'
