"""What `set_datastore` prints where an account accepts no key."""

from __future__ import annotations

import pytest

from datastore.ssh.access import SshAddress
from ecloud.cli import app
from ecloud.cli.set_datastore import _Lines


def test_the_lines_for_the_other_machine_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    lines = _Lines(SshAddress.parse("files@db1:/srv"), "ssh-ed25519 AAAA boss", "cert-authority BBBB")
    assert app.report(lines.refused("does not accept the boss's key", False), "ecloud") == 3
    text = capsys.readouterr().err
    block, told = text[: text.index("\nEND\n") + 5], text[text.index("\nEND\n") + 5 :].splitlines()
    assert block.splitlines() == [
        "mkdir -p -m 700 ~/.ssh && cat >> ~/.ssh/authorized_keys <<'END'",
        "ssh-ed25519 AAAA boss",
        "cert-authority BBBB",
        "END",
    ]
    assert told[0] == "ecloud: files@db1 does not accept the boss's key"
    assert told[1].startswith("ecloud: run the lines above there as files")
