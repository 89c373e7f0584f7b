"""A datastore on another machine: set up with one command, used by boss and workers, closed to all others."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from doors import Doors, ended
from pages import Page
from services import ROOT, Daemon, wait_until
from sshd import Sshd, bare

from datastore.keys import make_key, public_line
from ecloud.config.datastore_address import boss_key


@pytest.fixture
def far(own_sshd: Sshd, daemons: Callable[..., Daemon], tmp_path: Path) -> Doors:
    """A cluster whose boss may get into the machine where files are to be."""
    return let_in(own_sshd, daemons, tmp_path)


def let_in(sshd: Sshd, daemons: Callable[..., Daemon], tmp_path: Path) -> Doors:
    daemon = daemons().start()
    with sshd.authorized_keys.open("a") as file:
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


def test_a_machine_without_python_is_refused_with_what_to_install(
    daemons: Callable[..., Daemon], tmp_path: Path
) -> None:
    server = bare(tmp_path / "bare sshd").start()
    try:
        far = let_in(server, daemons, tmp_path)
        before = far.admin("show_context", "--json").json["datastore_address"]
        told = far.admin("set_datastore", address(server, tmp_path / "root"), code=3).err.replace("\n", " ")
        assert "127.0.0.1 has no python3 of 3.6 or newer, which a datastore needs" in told
        assert "apt-get install python3" in told
        assert list((tmp_path / "root").iterdir()) == [], "nothing is left there"
        assert far.admin("show_context", "--json").json["datastore_address"] == before
    finally:
        server.close()


def test_an_account_for_sftp_alone_is_refused(daemons: Callable[..., Daemon], tmp_path: Path) -> None:
    server = Sshd(tmp_path / "sftp sshd", "ForceCommand internal-sftp").start()
    try:
        far = let_in(server, daemons, tmp_path)
        told = far.admin("set_datastore", address(server, tmp_path / "root"), code=3).err.replace("\n", " ")
        assert "a datastore needs an account with a shell" in told
    finally:
        server.close()


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


def test_another_datastore_is_used_at_once(far: Doors, own_sshd: Sshd, tmp_path: Path) -> None:
    def where(name: str) -> str:
        task = {"id": "t", "commands": "echo 1 > r", "results": [["r", f"{name}.txt"]]}
        assert "1 succeeded" in far.push(far.write(f"{name}.json", [task]), "--wait").out
        places = {"far": tmp_path / "root", "other": tmp_path / "other", "usual": far.daemon.home.datastore}
        return ", ".join(place for place, path in places.items() if (path / f"{name}.txt").exists())

    assert far.daemon is not None
    set_up(far, own_sshd, tmp_path / "root")
    assert where("a") == "far"
    wait_until(lambda: "free, seen" in far.admin("status").out, what="its free space is shown with its age")
    far.admin("set_datastore", tmp_path / "other")
    assert where("b") == "other"
    set_up(far, own_sshd, tmp_path / "root")
    assert where("c") == "far"
    dropped = far.admin("drop_context").out
    assert f"the datastore is dir:{far.daemon.home.datastore} from now on" in dropped.replace("\n", " ")
    assert where("d") == "usual"
    gate = far.place / "gate"
    task = {"id": "long", "commands": f"while [ ! -e '{gate}' ]; do sleep 0.1; done"}
    far.push(far.write("busy.json", [task]))
    wait_until(lambda: far.admin("show_task_status", "long", "--json").json["state"] == "running")
    assert "are running and use the current datastore" in far.admin("set_datastore", tmp_path / "other", code=2).err
    gate.write_text("")
    assert ended(far, "busy") == {"long": "succeeded"}


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


def test_both_lines_are_printed_ready_to_paste_where_the_boss_is_not_authorised(
    own_sshd: Sshd, daemons: Callable[..., Daemon], tmp_path: Path
) -> None:
    doors = Doors(tmp_path / "place", daemons().start())
    (tmp_path / "root").mkdir()
    where = address(own_sshd, tmp_path / "root")
    refused = doors.admin("set_datastore", where, code=3).err
    pasted = "\n".join(line.removeprefix("admin.py: ") for line in refused.splitlines())
    begin = pasted.index("mkdir -p -m 700")
    script = pasted[begin : pasted.index("\nEND\n", begin) + 5]
    home = own_sshd.directory
    subprocess.run(["sh", "-c", script], env={**os.environ, "HOME": str(home)}, check=True, timeout=30)
    assert doors.admin("set_datastore", where).code == 0
    assert doors.admin("set_datastore", "nobody@127.0.0.1:1:/x", code=3).err
    assert doors.admin("set_datastore", "user@host:relative", code=2).err


def test_it_says_what_it_writes_into_authorized_keys_and_only_the_first_time(
    far: Doors, own_sshd: Sshd, tmp_path: Path
) -> None:
    where = address(own_sshd, tmp_path / "root")
    written = [line for line in far.admin("set_datastore", where).err.splitlines() if "wrote into" in line]
    [line] = written
    assert "~/.ssh/authorized_keys of" in line
    assert line.split("certificates: ")[1] in own_sshd.authorized_keys.read_text().splitlines()
    assert "wrote into" not in far.admin("set_datastore", where).err


def test_a_line_that_did_not_help_is_taken_back(daemons: Callable[..., Daemon], tmp_path: Path) -> None:
    """sshd reads another file than ~/.ssh/authorized_keys."""
    server = Sshd(tmp_path / "sshd", f'AuthorizedKeysFile "{tmp_path}/elsewhere"').start()
    try:
        daemon = daemons().start()
        (tmp_path / "root").mkdir()
        (tmp_path / "elsewhere").write_text(public_line(boss_key(daemon.home)) + "\n")
        server.authorized_keys.write_text("# of somebody else")
        doors = Doors(tmp_path / "place", daemon)
        told = doors.admin("set_datastore", address(server, tmp_path / "root"), code=3).err
        assert "did not help and was removed again" in told.replace("\n", " ")
        assert server.authorized_keys.read_text() == "# of somebody else\n"
        lines = [line.removeprefix("admin.py: ") for line in told.splitlines()]
        [line] = [line for line in lines if line.startswith("cert-authority")]
        with (tmp_path / "elsewhere").open("a") as file:
            file.write(line + "\n")
        assert doors.admin("set_datastore", address(server, tmp_path / "root")).code == 0
    finally:
        server.close()


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


def test_what_the_docs_show_of_ssh_is_true(far: Doors, own_sshd: Sshd, tmp_path: Path) -> None:
    readme = Page("README.md").marked("over SSH").splitlines()
    page = [command for command, _ in Page("docs/data.md").sessions()]
    assert len(readme) == 3
    tasks = [{"id": "t", "commands": "wc -c < a > r", "requirements": ["a"], "results": [["r", "results/report"]]}]
    (far.place / "inputs").mkdir()
    (far.place / "inputs/a").write_text("12345")
    far.write("tasks.json", tasks)
    for command in (*readme, *page):
        words = command.replace("user@host:/srv/data", address(own_sshd, tmp_path / "root")).split()
        assert words[0] == "python"
        (far.place / "report").unlink(missing_ok=True)
        done = far.run(*words[1:])
        if words[-2:] == ["results/report", "."]:
            assert (far.place / "report").read_text() == "5\n"
        assert done.out


class Laptop(Doors):
    """Commands on a machine that has an access file and nothing else of the cluster."""

    def __init__(self, place: Path, access: Path) -> None:
        super().__init__(place)
        self._access = access

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "ECLOUD_ACCESS": str(self._access), "PYTHONPATH": str(ROOT)}


PROGRAM = """
from ecloud import ClusterExecutor

def doubled(data):
    return data * 2

with ClusterExecutor(run="from-laptop") as executor:
    large = bytes(range(256)) * 4000
    first = executor.submit(doubled, large)
    told = []
    first.add_done_callback(lambda future: told.append(len(future.result())))
    print(first.result() == large * 2, executor.submit(len, first).result())
    print(sum(executor.map(len, [b""] * 10 + [large] * 5)))
print(told)
print(len(ClusterExecutor().attach("from-laptop").futures()[0].result()))
"""


def test_a_machine_with_an_access_file_alone_reaches_the_datastore(far: Doors, own_sshd: Sshd, tmp_path: Path) -> None:
    set_up(far, own_sshd, tmp_path / "root")
    far.admin("invite", "--role", "submit", "laptop.access")
    laptop = Laptop(tmp_path / "laptop", far.place / "laptop.access")
    (laptop.place / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=laptop.place, env=laptop.environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["True", "2048000", "5120000", "[2048000]", "2048000"], done.stderr
    (laptop.place / "inputs").mkdir()
    (laptop.place / "inputs" / "data.txt").write_text("1\n2\n3\n")
    task = {
        "id": "count",
        "commands": "wc -l < data.txt > n",
        "requirements": ["data.txt"],
        "results": [["n", "n.txt"]],
    }
    told = laptop.push(laptop.write("t.json", [task]), "--upload", "inputs", "--wait")
    assert "n.txt" in told.out
    laptop.admin("get", "n.txt", "here")
    assert (laptop.place / "here").read_text() == "3\n"
    laptop.admin("put", "here", "again.txt")
    assert (tmp_path / "root" / "again.txt").read_text() == "3\n"
    assert not list(Path(tempfile.gettempdir()).glob("ecloud-key-*")), "no key is left"
