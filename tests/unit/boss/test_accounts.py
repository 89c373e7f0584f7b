"""Accounts that workers run under: what is refused, what their processes see, and where their homes may be."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from boss.providers.accounts import Account, account_of, private_place
from datastore.problem import Problem
from ecloud.config.settings import PoolSettings

ME = pwd.getpwuid(os.geteuid()).pw_name


def test_without_a_name_there_is_none() -> None:
    assert account_of(PoolSettings("p")) is None


def test_the_account_of_the_boss_itself_is_refused() -> None:
    with pytest.raises(Problem, match="is the account of the boss, whose secrets its tasks could read"):
        account_of(PoolSettings("p", run_as=ME))


def test_a_boss_that_is_not_root_cannot_change_accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(Problem, match="run_as = 'nobody' needs a boss that runs as root"):
        account_of(PoolSettings("p", run_as="nobody"))


def test_of_the_boss_s_environment_only_what_programs_need_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BROKER_PASSWORD", "ECLOUD_SETTINGS", "LC_ALL", "ONE_AUTH"):
        monkeypatch.setenv(name, "value")
    seen = Account("tasks", 4711, 4711, (4711,), "/nonexistent").environment
    assert not {"BROKER_PASSWORD", "ECLOUD_SETTINGS", "ONE_AUTH"} & seen.keys()
    assert (seen["LC_ALL"], seen["HOME"], seen["USER"], seen["PATH"]) == (
        "value", "/nonexistent", "tasks", os.environ["PATH"],
    )  # fmt: skip


def test_homes_are_where_others_can_set_no_link(tmp_path: Path) -> None:
    place = private_place(tmp_path / "workers", "cluster")
    assert place.stat().st_mode & 0o777 == 0o711
    assert private_place(tmp_path / "workers", "cluster") == place
    place.chmod(0o777)
    with pytest.raises(PermissionError):
        private_place(tmp_path / "workers", "cluster")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "workers/link").symlink_to(elsewhere)
    with pytest.raises(PermissionError):
        private_place(tmp_path / "workers", "link")
