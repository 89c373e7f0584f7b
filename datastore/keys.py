"""Keys and certificates of a datastore over SSH, made with OpenSSH's `ssh-keygen` and `ssh-keyscan`.

The boss holds an authority's key. One line in the datastore's `authorized_keys` trusts certificates signed by it, and
nothing else. Each worker's key is signed for an hour and for one command: the gate with that worker's name.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from datastore.port import DatastoreAway
from datastore.problem import PartAway

LIVES_S = 3600.0
"""How long a worker's certificate is valid."""
EARLIER_S = 86_400.0
"""A certificate is valid from this long ago, so that a datastore with a slow clock accepts it."""
KEYGEN_S = 30.0
KEY_TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512", "ssh-rsa")
"""Kinds of host keys, preferred first."""


class KeyToolFailed(PartAway):
    """ssh-keygen is missing or failed. The text has its message."""


def _run(*words: str) -> str:
    try:
        done = subprocess.run(
            words, capture_output=True, check=False, timeout=KEYGEN_S, stdin=subprocess.DEVNULL, text=True
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KeyToolFailed(f"{words[0]} cannot be run ({error}): install the OpenSSH client") from error
    if done.returncode != 0:
        raise KeyToolFailed(f"{words[0]}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def make_key(path: Path, comment: str) -> str:
    """Make an Ed25519 key at `path` (mode 600) if there is none. Returns its public line. Raises `KeyToolFailed`."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path))
    return public_line(path)


def public_line(path: Path) -> str:
    """The public line of a private key, recomputed if its file is lost."""
    public = path.with_name(path.name + ".pub")
    if not public.exists():
        public.write_text(_run("ssh-keygen", "-y", "-f", str(path)))
    return public.read_text().strip()


def fingerprint(line: str) -> str:
    """`SHA256:…` of a public or host key line, as ssh shows it. Raises `ValueError`."""
    for word in line.split():
        if word.startswith("AAAA"):
            try:
                blob = base64.b64decode(word, validate=True)
            except binascii.Error as error:
                raise ValueError(f"not a public key: {line}") from error
            return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    raise ValueError(f"not a public key: {line}")


# --- certificates -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Authority:
    """The boss's key that signs for one datastore. `principal`: the cluster; its certificates open no other
    cluster's."""

    key: Path
    principal: str

    @classmethod
    def make(cls, key: Path, cluster_id: str) -> Authority:
        """The authority of a cluster. Makes its key if there is none."""
        make_key(key, f"ecloud-{cluster_id}")
        return cls(key, f"ecloud-{cluster_id}")

    def authorized_line(self) -> str:
        """The line for the datastore's `authorized_keys`: certificates only, and only their command."""
        words = public_line(self.key).split()
        return f'cert-authority,restrict,principals="{self.principal}" {words[0]} {words[1]} {self.principal}'

    def sign(self, public: str, name: str, command: str, lives_s: float = LIVES_S, ahead_s: float = 0.0) -> str:
        """A certificate (one line) for a worker's public key that runs only `command`.

        `ahead_s`: how far the datastore's clock is ahead of this one; its gate reports its clock.
        """
        now = time.time() + ahead_s
        valid = f"{_stamp(now - EARLIER_S)}:{_stamp(now + lives_s)}"
        with tempfile.TemporaryDirectory(prefix="ecloud-sign-") as directory:
            subject = Path(directory) / "key.pub"
            subject.write_text(_checked(public) + "\n")
            _run(
                "ssh-keygen", "-q", "-s", str(self.key), "-I", f"{self.principal}-{name}", "-n", self.principal,
                "-V", valid, "-z", str(time.time_ns() // 1000), "-O", "clear", "-O", f"force-command={command}",
                str(subject),
            )  # fmt: skip
            return (Path(directory) / "key-cert.pub").read_text().strip()


def _checked(public: str) -> str:
    """The public key as one line. Checks what a worker sent before ssh-keygen reads it."""
    words = public.split()
    if len(words) < 2 or "\n" in public.strip() or words[0] not in ("ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa"):
        raise ValueError("this is not a signed public key")
    fingerprint(words[1])
    return f"{words[0]} {words[1]}"


def _stamp(epoch_s: float) -> str:
    # Local time, as ssh-keygen reads it; older versions know no suffix for UTC.
    return time.strftime("%Y%m%d%H%M%S", time.localtime(epoch_s))


# --- host keys --------------------------------------------------------------------------------------


def read_host_key(host: str, port: int, timeout_s: float = 10.0) -> str:
    """The key that a host shows now (`type base64`), to be shown to a person and pinned. Raises `DatastoreAway`."""
    words = ["ssh-keyscan", "-T", str(int(timeout_s)), "-p", str(port), "-t", "ed25519,ecdsa,rsa", "--", host]
    try:
        told = subprocess.run(
            words, capture_output=True, check=False, timeout=4 * timeout_s, stdin=subprocess.DEVNULL, text=True
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DatastoreAway(f"the host key of {host}:{port} cannot be read: {error}") from error
    keys = [line.split()[1:3] for line in told.stdout.splitlines() if line and not line.startswith("#")]
    for wanted in KEY_TYPES:
        for key in keys:
            if len(key) == 2 and key[0] == wanted:
                return " ".join(key)
    reason = (told.stderr.strip() or "nothing answers").splitlines()[-1]  # the message is the same for each kind of key
    raise DatastoreAway(f"no SSH server shows its key at {host}:{port}: {reason}")


def write_known_hosts(path: Path, alias: str, host_key: str) -> None:
    """Write a known_hosts file with one key, for `StrictHostKeyChecking=yes`. Atomic."""
    fingerprint(host_key)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".new")
    aside.write_text(f"{alias} {' '.join(host_key.split()[:2])}\n")
    aside.replace(path)
