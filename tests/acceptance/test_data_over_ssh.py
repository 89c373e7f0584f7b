"""A datastore on another machine: set up with one command, used by boss and workers, closed to everybody else."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from doors import Doors, ended
from services import Daemon, wait_until
from sshd import Sshd

from datastore.keys import make_key, public_line
from ecloud.datastores import boss_key


@pytest.fixture
def far(own_sshd: Sshd, daemons: Callable[..., Daemon], tmp_path: Path) -> Doors:
    """A cluster whose boss may get into the machine where files are to be."""
    daemon = daemons().start()
    with own_sshd.authorized_keys.open("a") as file:
        file.write(public_line(boss_key(daemon.home)) + "\n")
    (tmp_path / "root").mkdir()
    return Doors(tmp_path / "place", daemon)


def address(sshd: Sshd, root: Path) -> str:
    return str(sshd.address(root))


def set_up(far: Doors, sshd: Sshd, root: Path) -> None:
    """One command."""
    assert str(root) in far.admin("set_datastore", address(sshd, root)).out


PIPELINE = [
    {"id": "make", "commands": "mkdir out; seq 1000 > out/a; echo 2 > 'out/b c'", "results": [["out", "made"]]},
    *(
        {
            "id": f"use{i}",
            "dependencies": ["make"],
            "requirements": [["made", "in"]],
            "commands": f"wc -l < in/a > n{i}; cat 'in/b c' >> n{i}",
            "results": [[f"n{i}", f"counts/n{i}"]],
        }
        for i in range(6)
    ),
]


def test_files_travel_over_ssh(far: Doors, own_sshd: Sshd, tmp_path: Path) -> None:
    root = tmp_path / "root"
    set_up(far, own_sshd, root)
    context = far.admin("show_context", "--json").json
    assert context["datastore_address"] == address(own_sshd, root)
    assert context["datastore_host_key"].startswith("SHA256:")
    done = far.push(far.write("t.json", PIPELINE), "--wait")
    assert "7 succeeded" in done.out
    assert "counts/n0" in done.out
    assert {path.name: path.read_text() for path in (root / "counts").iterdir()} == {
        f"n{i}": "1000\n2\n" for i in range(6)
    }
    assert [entry["path"] for entry in far.admin("ls", "counts", "--json").json] == [f"counts/n{i}" for i in range(6)]
    far.admin("get", "counts/n3", "here")
    assert (far.place / "here").read_text() == "1000\n2\n"
    assert far.admin("doctor").code == 0
    wait_until(
        lambda: not [p for p in (root / ".ecloud" / "staging").rglob("*") if p.is_file()], what="staging is empty"
    )


def test_a_datastore_that_is_away_is_waited_for_and_costs_no_retry(far: Doors, own_sshd: Sshd, tmp_path: Path) -> None:
    set_up(far, own_sshd, tmp_path / "root")
    gate = far.place / "gate"
    tasks = [
        {
            "id": "late",
            "commands": f"while [ ! -e '{gate}' ]; do sleep 0.1; done; echo 1 > r",
            "results": ["r"],
        },
        {"id": "after", "commands": "cat r", "dependencies": ["late"], "requirements": ["r"]},
    ]
    far.push(far.write("t.json", tasks))
    wait_until(lambda: far.admin("show_task_status", "late", "--json").json["state"] == "running")
    own_sshd.stop()
    gate.write_text("")
    wait_until(lambda: "stored" in far.admin("why", "late", "--all").out, 60, "why says what is waited for")
    own_sshd.start()
    assert ended(far, "t") == {"late": "succeeded", "after": "succeeded"}
    assert len(far.admin("show_task", "late", "--json").json["attempts"]) == 1


def test_another_host_key_is_refused_loudly(far: Doors, own_sshd: Sshd, tmp_path: Path) -> None:
    root = tmp_path / "root"
    set_up(far, own_sshd, root)
    own_sshd.stop()
    own_sshd.new_host_key()
    own_sshd.start()
    refused = far.admin("set_datastore", address(own_sshd, root), code=3)
    assert "REFUSED" in refused.err
    assert "--new_host_key" in refused.err
    far.admin("set_datastore", address(own_sshd, root), "--new_host_key")
    assert "1 succeeded" in far.push(far.write("t.json", PIPELINE[:1]), "--wait").out


def test_who_is_not_authorised_is_told_the_line_to_add(
    own_sshd: Sshd, daemons: Callable[..., Daemon], tmp_path: Path
) -> None:
    doors = Doors(tmp_path / "place", daemons().start())
    refused = doors.admin("set_datastore", address(own_sshd, tmp_path), code=3)
    assert "authorized_keys" in refused.err
    assert "ssh-ed25519" in refused.err
    assert doors.admin("set_datastore", "nobody@127.0.0.1:1:/x", code=3).err
    assert doors.admin("set_datastore", "user@host:relative", code=2).err


def test_a_workers_key_opens_no_shell(far: Doors, own_sshd: Sshd, tmp_path: Path) -> None:
    set_up(far, own_sshd, tmp_path / "root")
    far.push(far.write("t.json", PIPELINE[:1]), "--wait")
    assert far.daemon is not None
    (key,) = set(far.daemon.home.workers.glob("*/home/ssh/key")) or {tmp_path / "none"}
    stranger = tmp_path / "stranger"
    make_key(stranger, "stranger")
    for file in (key, stranger):
        words = ["ssh", "-F", "none", "-i", str(file), "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no"]
        words += ["-o", "BatchMode=yes", "-o", "UserKnownHostsFile=/dev/null", "-p", str(own_sshd.port), "127.0.0.1"]
        done = subprocess.run([*words, "id"], capture_output=True, timeout=30)
        assert done.returncode == 255
        assert b"uid=" not in done.stdout
