"""HOOK_COMMAND, run for real: what it gets, and that its outcome does not matter to the boss."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from boss.core.model.effects import TellPerson
from boss.shell.hook import Hook


def eventually(what: Callable[[], bool], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_the_command_gets_the_text_by_stdin_and_environment(tmp_path: Path) -> None:
    out = tmp_path / "out"
    hook = Hook(f'(cat; echo "$ECLOUD_CAUSE $ECLOUD_CLUSTER $ECLOUD_TEXT") > {out}.new; mv {out}.new {out}', "c1")
    hook.tell(TellPerson("end/big", "VM 7 does not end; $(touch never) 'quoted'"))
    eventually(out.exists)
    text = "VM 7 does not end; $(touch never) 'quoted'"
    assert out.read_text() == f"{text}\nend/big c1 {text}\n"
    hook.close()


def test_a_hook_that_fails_or_hangs_is_logged_and_the_next_alert_calls_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "boss")
    out = tmp_path / "out"
    command = f"case $ECLOUD_CAUSE in fails) echo no mail here >&2; exit 3;; hangs) sleep 300;; *) touch {out};; esac"
    hook = Hook(command, limit_s=1.0)
    for cause in ("fails", "hangs", "works"):
        hook.tell(TellPerson(cause, f"{cause} happened"))
    eventually(out.exists)
    assert "HOOK_COMMAND for fails ended with 3: no mail here" in caplog.messages
    assert "HOOK_COMMAND for hangs had not ended after 1 s and was killed" in caplog.messages
    assert "works happened" in caplog.messages
    hook.close()


def test_a_command_that_is_not_there_is_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    hook = Hook("no-such-program --now")
    hook.tell(TellPerson("budget", "it is used up"))
    eventually(lambda: any("for budget ended with 127" in message for message in caplog.messages))
    hook.close()


def test_without_a_command_alerts_are_in_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    hook = Hook("")
    hook.tell(TellPerson("budget", "it is used up"))
    assert caplog.messages == ["it is used up"]
    hook.close()
