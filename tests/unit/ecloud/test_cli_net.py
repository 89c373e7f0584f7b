"""The net below all commands: whatever goes wrong is one sentence and an exit code; no traceback."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import click
import pytest
from rich.console import Console

from datastore.problem import PART_AWAY, Problem
from ecloud.cli import app
from ecloud.cli.main import main
from ecloud.cli.push_action import with_local_number
from ecloud.cli.tables import PLAIN_BAR, STYLES, state_bar
from ecloud.config import home as homes
from ecloud.config.home import Home
from ecloud.config.settings import child_environment, settings_path


def ending(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """How a command ends that raises `error`: its exit code and its stderr."""

    @click.command(cls=app.Command)
    def command() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["x.py"])
    return app.run(command, "x.py"), capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (Problem("a is wrong", "correct it"), 2, "x.py: a is wrong: correct it\n"),
        (Problem(["[/opt/tool]", "[red]"], exit_code=PART_AWAY), 3, "x.py: [/opt/tool]\nx.py: [red]\n"),
        (PermissionError(13, "Permission denied", "/srv/x"), 2, "x.py: /srv/x: Permission denied\n"),
        (OSError(28, "No space left on device"), 2, "x.py: No space left on device\n"),
        (ModuleNotFoundError("No module named 'pymysql'", name="pymysql"), 3, "lacks pymysql: "),
        (UnicodeEncodeError("utf-8", "a\udcff", 1, 2, "surrogates not allowed"), 2, "is not valid UTF-8"),
        (MemoryError(), 3, "is out of memory"),
        (ZeroDivisionError("division by zero"), 70, "x.py: a fault of ECLOUD: ZeroDivisionError: division by zero ("),
        (RecursionError("too deep"), 70, "a fault of ECLOUD: RecursionError: too deep"),
        (KeyboardInterrupt(), 130, ""),
        (click.UsageError("no such option: --x"), 2, "x.py: no such option: --x; x.py --help lists the options\n"),
    ],
)
def test_every_error_is_a_sentence_and_a_code(
    error: BaseException, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found, told = ending(error, monkeypatch, capsys)
    assert found == code
    assert words in told
    assert "Traceback" not in told


def test_a_removed_working_directory_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    try:
        code, told = ending(Problem("never reached"), monkeypatch, capsys)
    finally:
        os.chdir(tmp_path)
    assert (code, "the working directory was removed" in told) == (2, True)


def test_an_account_without_a_home_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(homes.Path, "expanduser", nowhere)
    with pytest.raises(Problem, match="set HOME or ECLOUD_HOME"):
        Home("~/.ecloud")


def test_markup_in_names_is_printed_as_it_is() -> None:
    paper = app.console(file=io.StringIO())
    paper.print("[/opt/tool] [red]x :smile:")
    assert paper.file.getvalue() == "[/opt/tool] [red]x :smile:\n"  # type: ignore[attr-defined]


def test_a_bar_without_colours_tells_the_states_apart() -> None:
    assert state_bar({"succeeded": 2, "failed": 1, "waiting": 1}, 8, coloured=False).plain == "####..!!"
    assert set(PLAIN_BAR) == set(STYLES)
    assert all(character.isascii() for character in PLAIN_BAR.values())
    assert state_bar({}, 4, coloured=False).plain == "...."


def test_a_drawn_screen_is_as_wide_as_its_terminal() -> None:
    terminal = Console(file=io.StringIO(), width=80, force_terminal=True)
    assert app.console(file=io.StringIO(), like=terminal).width == 80


def test_the_leader_of_record_whose_process_is_gone_does_not_lead() -> None:
    host = os.uname().nodename
    assert not app.is_dead_neighbour(f"pid {os.getpid()} on {host}")
    assert app.is_dead_neighbour(f"pid 999999999 on {host}")
    assert not app.is_dead_neighbour("pid 999999999 on another-host"), "nothing is known of other machines"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_program(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ecloud", "completion", shell])
    assert app.run(main, "ecloud") == 0
    assert "_ECLOUD_COMPLETE" in capsys.readouterr().out


def test_local_may_stand_alone() -> None:
    assert with_local_number(["--local", "--wait"]) == ["--local=0", "--wait"]
    assert with_local_number(["--local", "3", "x"]) == ["--local", "3", "x"]
    assert with_local_number(["--local", "x.json"]) == ["--local=0", "x.json"]


def test_settings_are_looked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, config = tmp_path / "work", tmp_path / "config"
    (config / "ecloud").mkdir(parents=True)
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(config))
    monkeypatch.delenv("ECLOUD_SETTINGS", raising=False)
    (config / "ecloud" / "settings.py").write_text("")
    assert settings_path() == config / "ecloud" / "settings.py"
    (work / "settings.py").write_text("")
    assert settings_path() == work / "settings.py"
    assert child_environment()["ECLOUD_SETTINGS"] == str(work / "settings.py")
    monkeypatch.setenv("ECLOUD_SETTINGS", "named.py")
    assert settings_path() == work / "named.py", "absolute: the boss runs in another directory"
