"""A database server behind TLS: what `DATABASE_URL` may say of it, and what `doctor` finds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from databases import MariaDb
from services import Authority

from ecloud.cli import doctor_trust
from ecloud.db.database import DatabaseAway, make_engine, migrate


class MariaDbWithTls(MariaDb):
    """A server with a certificate of that authority."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        super().__init__()

    def _start_first(self) -> None:
        self._common += [f"--ssl-cert={self.authority.certificate}", f"--ssl-key={self.authority.key}"]
        super()._start_first()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Signs the server's certificate."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(authority: Authority) -> Iterator[MariaDbWithTls]:
    """One for all tests here."""
    server = MariaDbWithTls(authority)
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server counts as one on another machine."""
    monkeypatch.setattr(doctor_trust, "LOOPBACK", ())


def found(url: str) -> tuple[str, str]:
    engine = make_engine(url)
    try:
        with engine.connect() as connection:
            return doctor_trust.database_encryption(connection)
    finally:
        engine.dispose()


def test_a_connection_to_an_unknown_server_is_found_encrypted_or_not(server: MariaDbWithTls) -> None:
    text, remedy = found(server.new_url())
    assert text.endswith("but its certificate is not verified")
    assert "ssl_ca=" in remedy
    text, remedy = found(f"{server.new_url()}?ssl_disabled=true")
    assert text == "the connection to 127.0.0.1 is not encrypted"
    assert "ssl_ca=" in remedy


def test_with_the_authority_the_connection_is_encrypted_and_the_server_known(
    server: MariaDbWithTls, authority: Authority
) -> None:
    url = f"{server.new_url()}?ssl_ca={authority.ca}"
    text, remedy = found(url)
    assert text.startswith("the connection to 127.0.0.1 is encrypted (TLS")
    assert text.endswith("and its certificate verified")
    assert not remedy
    engine = make_engine(url)
    migrate(engine)
    engine.dispose()


def test_a_server_of_another_authority_is_refused(server: MariaDbWithTls, tmp_path: Path) -> None:
    engine = make_engine(f"{server.new_url()}?ssl_ca={Authority(tmp_path / 'other').ca}")
    with pytest.raises(DatabaseAway, match="certificate"):
        migrate(engine)
    engine.dispose()


def test_a_server_on_this_machine_needs_none(server: MariaDbWithTls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_trust, "LOOPBACK", ("127.0.0.1",))
    assert found(server.new_url()) == ("the connection does not leave this machine", "")
