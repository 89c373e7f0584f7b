"""Keys. Each peer's key is derived from the cluster's secret and the peer's name. Files have mode 600.

A key lets its peer talk to the boss, within the role in its name (`ecloud/model/roles.py`). The cluster's secret never
leaves the boss's machine.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from pathlib import Path

import msgspec

from datastore.problem import INPUT_WRONG, PartAway
from ecloud.config.home import Home
from ecloud.model.roles import Role

SECRET_BYTES = 32
CLIENT_KEY_NAME = "client"
"""The key name of every user who can read the boss's home."""


class AccessWrong(PartAway):
    """The access file cannot be used: which file, why, and where to get a good one."""


class AccessFile(msgspec.Struct, frozen=True):
    """What a peer needs to reach its boss. `ca`: PEM text, empty without TLS. `key`: hex."""

    cluster_id: str
    host: str
    port: int
    key_name: str
    key: str
    user: str = ""
    password: str = ""
    ca: str = ""
    tls: bool = False
    role: str = ""
    """For the file's reader; the boss uses the key's name."""

    @property
    def key_bytes(self) -> bytes:
        """The key as bytes."""
        return bytes.fromhex(self.key)


def write_private(path: Path, text: str | bytes) -> None:
    """Write a file that only its owner can read, atomically."""
    data = text.encode() if isinstance(text, str) else text
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def cluster_secret(home: Home) -> bytes:
    """The cluster's secret, 32 bytes, created at the first call. Raises `AccessWrong` if it is damaged."""
    path = home.cluster_key
    if not path.exists():
        write_private(path, secrets.token_hex(SECRET_BYTES) + "\n")
    try:
        secret = bytes.fromhex(path.read_text().strip())
    except OSError as error:
        raise AccessWrong(f"the cluster's key {path} cannot be read: {error.strerror}") from None
    except ValueError:
        secret = b""
    if len(secret) != SECRET_BYTES:  # a short key would be easy to guess
        remedy = (
            "restore it from a backup, or delete it: the boss makes a new one, and all access files must be made again"
        )
        raise AccessWrong(f"the cluster's key {path} is damaged", remedy, INPUT_WRONG)
    return secret


def derive_key(secret: bytes, key_name: str) -> bytes:
    """The key of that name: keyed BLAKE2b, 32 bytes."""
    return hashlib.blake2b(b"peer:" + key_name.encode(), key=secret[:64], digest_size=32).digest()


def new_invite_name(role: Role) -> str:
    """A new name for the key of an invitation. It contains the role, which the boss enforces."""
    return f"{role}-{secrets.token_hex(4)}"


def read_access(path: Path | str) -> AccessFile:
    """Read an access file. Raises `AccessWrong` with what to do."""
    remedy = "make one on the boss's machine: python admin.py invite"
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise AccessWrong(f"access file {path}: {error.strerror}", remedy) from None
    try:
        access = msgspec.json.decode(data, type=AccessFile)
        if len(access.key_bytes) != 32:
            raise ValueError("its key is not 32 bytes long")
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise AccessWrong(f"access file {path} is damaged: {error}", remedy) from None
    return access


def write_access(path: Path, access: AccessFile) -> None:
    """Write an access file, mode 600."""
    write_private(path, msgspec.json.format(msgspec.json.encode(access), indent=1) + b"\n")
