"""Keys: one secret of the cluster, from which each peer's own key is derived by its name. Files of mode 600.

A key opens its peer's conversation with the boss, for what the role in its name allows (`ecloud/model/roles.py`). The
cluster's secret never leaves the boss's machine.
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
"""Who may read the boss's home speaks as this one."""


class AccessWrong(PartAway):
    """The access file can't be used: which, why, and where a good one comes from."""


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
    """For its reader; the boss goes by the name of the key."""

    @property
    def key_bytes(self) -> bytes:
        """The key itself."""
        return bytes.fromhex(self.key)


def write_private(path: Path, text: str | bytes) -> None:
    """Write a file that only its owner can read, whole or not at all."""
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
    """The cluster's secret, made at the first call. 32 bytes. Raises `AccessWrong` where it is damaged."""
    path = home.cluster_key
    if not path.exists():
        write_private(path, secrets.token_hex(SECRET_BYTES) + "\n")
    try:
        secret = bytes.fromhex(path.read_text().strip())
    except OSError as error:
        raise AccessWrong(f"the cluster's key {path} can't be read: {error.strerror}") from None
    except ValueError:
        secret = b""
    if len(secret) != SECRET_BYTES:  # a short key would let strangers in
        remedy = "put it back from a backup, or delete it: a new one is made, and all access files must be made anew"
        raise AccessWrong(f"the cluster's key {path} is damaged", remedy, INPUT_WRONG)
    return secret


def derive_key(secret: bytes, key_name: str) -> bytes:
    """The key of that name: keyed BLAKE2b, 32 bytes."""
    return hashlib.blake2b(b"peer:" + key_name.encode(), key=secret[:64], digest_size=32).digest()


def new_invite_name(role: Role) -> str:
    """A name for the key of an invitation. It tells the role, which the boss enforces."""
    return f"{role}-{secrets.token_hex(4)}"


def read_access(path: Path | str) -> AccessFile:
    """The access file at `path`. Raises `AccessWrong` with what to do."""
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
    """Write the access file, mode 600."""
    write_private(path, msgspec.json.format(msgspec.json.encode(access), indent=1) + b"\n")
