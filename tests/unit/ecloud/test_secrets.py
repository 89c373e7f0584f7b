"""Keys and the files that hold them: for their owner alone, whole or not at all, a sentence where one is damaged."""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec
import pytest

from ecloud.config.home import Home
from ecloud.config.secrets import (
    AccessFile,
    AccessWrong,
    cluster_secret,
    derive_key,
    new_invite_name,
    read_access,
    write_access,
    write_private,
)
from ecloud.model.roles import Role

ACCESS = AccessFile("c" * 16, "broker.example", 8883, "client", "ab" * 32, "user", "secret", "-----BEGIN…", True)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").make()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_home_and_what_is_in_it_are_for_the_owner_alone(home: Home) -> None:
    for path in (home.path, home.secrets, home.broker, home.workers, home.backups):
        assert mode(path) == 0o700, path


def test_secrets_that_others_could_read_are_closed_again(home: Home) -> None:
    home.secrets.chmod(0o755)
    home.make()
    assert mode(home.secrets) == 0o700


def test_the_clusters_secret_is_made_once(home: Home) -> None:
    secret = cluster_secret(home)
    assert len(secret) == 32
    assert cluster_secret(home) == secret
    assert mode(home.cluster_key) == 0o600
    assert cluster_secret(Home(home.path.parent / "other").make()) != secret


@pytest.mark.parametrize("damage", ["", "zz", "abcd"])
def test_a_damaged_secret_is_said(damage: str, home: Home) -> None:
    home.cluster_key.write_text(damage)
    with pytest.raises(AccessWrong, match=r"cluster\.key is damaged: restore it from a backup"):
        cluster_secret(home)


def test_keys_differ_by_name_and_by_cluster() -> None:
    names = ["client", "vm-1", "vm-11", "invite-0", "invite-00", ""]
    keys = {derive_key(secret, name) for secret in (b"1" * 32, b"2" * 32) for name in names}
    assert len(keys) == 12
    assert {len(key) for key in keys} == {32}
    assert derive_key(b"1" * 32, "client") == derive_key(b"1" * 32, "client")


def test_invitations_have_names_of_their_own() -> None:
    names = {new_invite_name(Role.SUBMIT) for _ in range(100)}
    assert len(names) == 100
    assert all(name.startswith("submit-") and len(name) == 15 for name in names)


def test_a_private_file_is_whole_and_leaves_nothing_beside_it(home: Home) -> None:
    path = home.secrets / "file"
    write_private(path, "one")
    path.chmod(0o644)
    write_private(path, b"two")
    assert path.read_text() == "two"
    assert mode(path) == 0o600
    assert list(home.secrets.iterdir()) == [path]


def test_what_can_not_be_written_leaves_the_old_file(home: Home) -> None:
    path = home.secrets / "file"
    write_private(path, "one")
    with pytest.raises(TypeError):
        write_private(path, 3)  # type: ignore[arg-type]
    with pytest.raises(UnicodeEncodeError):
        write_private(path, "\ud800")
    assert path.read_text() == "one"
    assert list(home.secrets.iterdir()) == [path]


# --- access files ---------------------------------------------------------------------------------


def test_an_access_file_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "access"
    write_access(path, ACCESS)
    assert read_access(path) == ACCESS
    assert read_access(str(path)).key_bytes == b"\xab" * 32
    assert mode(path) == 0o600


def test_an_access_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(AccessWrong) as problem:
            read_access(path)
        assert str(problem.value) == (
            f"access file {path}: {reason}; make one on the boss's machine: python admin.py invite"
        )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        msgspec.json.encode({"host": "h"}),
        msgspec.json.encode(ACCESS).replace(b"8883", b'"8883"'),
        msgspec.json.encode(ACCESS).replace(b"ab" * 32, b"ab" * 31),
        msgspec.json.encode(ACCESS).replace(b"ab" * 32, b"zz" * 32),
        msgspec.json.encode(ACCESS).replace(b"client", b"\\ud800"),
    ],
)
def test_a_damaged_access_file_is_said(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "access"
    path.write_bytes(data)
    with pytest.raises(AccessWrong) as problem:
        read_access(path)
    assert str(problem.value).startswith(f"access file {path} is damaged: ")
    assert "python admin.py invite" in str(problem.value)
    assert "ab" * 16 not in str(problem.value), "no key in a message"
