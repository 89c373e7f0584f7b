"""Commands that need the database, if it does not exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from ecloud.config.settings import load_settings
from ecloud.db.database import DatabaseAway
from ecloud.queries.status import open_database


def test_who_has_an_access_file_reads_where_the_database_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings({"home": str(tmp_path), "database_url": ""})
    monkeypatch.delenv("ECLOUD_ACCESS", raising=False)
    with pytest.raises(DatabaseAway, match=r"no boss has run here yet; python admin\.py start"):
        open_database(settings)
    monkeypatch.setenv("ECLOUD_ACCESS", "my.access")
    with pytest.raises(DatabaseAway) as raised:
        open_database(settings)
    assert str(raised.value) == (
        f"this command reads the cluster's database, and the SQLite file {tmp_path}/ecloud.db does not exist: run it "
        "on the boss's machine, or set DATABASE_URL in the settings to the boss's database"
    )
