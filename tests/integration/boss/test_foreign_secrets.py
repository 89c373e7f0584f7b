"""Nothing that a cloud or a guest wrote carries a secret to people: a cloud that echoes all that it was sent, in errors
and in attributes of VMs, is shown by every door, the log, the database and the hook without any."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from doors import Doors
from opennebula_double import BOOT_FAILURE, OpenNebula
from opennebula_shapes import ACTIVE
from services import Daemon, wait_until

from ecloud.config.secrets import cluster_secret, derive_key, read_access

PASSWORD = "Xk3-alice-s3cret-Qz"
PATIENCE_S = 60.0


@pytest.fixture
def double(tmp_path: Path) -> Iterator[OpenNebula]:
    made = OpenNebula(tmp_path / "cloud", pending_s=600.0).start()
    made.alice.password = PASSWORD
    made.add_worker_template("good")
    made.add_worker_template("broken", more=',GREETING="$USER[NAME]\nhello"')
    yield made
    made.end()


def secrets_of(daemon: Daemon) -> dict[str, str]:
    """Every secret that was sent, in each form in which it was."""
    access = read_access(daemon.home.client_access)
    words = {"the cloud's password": PASSWORD, "the broker's password": access.password}
    cluster = cluster_secret(daemon.home)
    words["the cluster's key"] = daemon.home.cluster_key.read_text().strip()
    for vm_no in range(1, 6):
        name = f"vm-{vm_no}"
        key = derive_key(cluster, name).hex()
        words[f"the key of {name}"] = key
        sent = msgspec.structs.replace(access, key_name=name, key=key)
        encoded = base64.b64encode(msgspec.json.encode(sent)).decode()
        # Each part of it tells something; the address and the cluster's id, with which it begins, are no secret.
        start = encoded.index(base64.b64encode(msgspec.json.encode(sent)[:90]).decode()[:80])
        words.update({f"its file from {at}": encoded[at : at + 40] for at in range(start + 120, len(encoded) - 40, 40)})
    assert all(len(word) > 10 for word in words.values())
    return words


def test_what_a_cloud_echoes_is_shown_without_secrets(
    daemons: Callable[..., Daemon], double: OpenNebula, tmp_path: Path
) -> None:
    hook = tmp_path / "hook"
    pools = tuple(
        {"name": name, "cloud": "opennebula", "template": name, "maximum": 2, "memory_mb": 500}
        for name in ("good", "broken")
    )
    daemon = daemons(
        OPENNEBULA_URL=double.url,
        OPENNEBULA_USER="alice",
        OPENNEBULA_PASSWORD=PASSWORD,
        POOLS=pools,
        LOG_LEVEL="DEBUG",
        HOOK_COMMAND=f"env >> {hook}; cat >> {hook}",
    ).start()
    doors = Doors(tmp_path / "place", daemon)
    shown = [doors.admin("instantiate_worker", "--pool", "good").text]
    vm = wait_until(lambda: next(iter(double.alive), None), PATIENCE_S, "a VM waits")
    access = base64.b64decode(vm.template["CONTEXT"]["ECLOUD_ACCESS_BASE64"]).decode()
    double.move(vm, ACTIVE, BOOT_FAILURE)
    vm.user_template["ERROR"] = f"Error executing image transfer script: {access} could not be written"
    shown.append(doors.admin("instantiate_worker", "--pool", "broken", code=None).text)
    doors.push(doors.write("film.json", [{"id": "a", "commands": "true", "resources": {"cpus": 64}}]))
    wait_until(lambda: "syntax error" in doors.admin("status").text, PATIENCE_S, "the refusal is shown")
    wait_until(lambda: "could not be written" in doors.admin("why", "vm/1").text, PATIENCE_S, "the failure is shown")
    wait_until(lambda: hook.exists() and "syntax error" in hook.read_text(), PATIENCE_S, "the hook was told")
    for action in ("status", "plan", "doctor --json", "why a", "why vm/1", "why vm/2", "show_vms --all --json"):
        shown.append(doors.admin(*action.split(), code=None).text)
    files = [
        hook,
        *daemon.home.path.glob("*.log*"),
        *daemon.home.path.glob("*.sqlite*"),
        *daemon.home.path.glob("*.db*"),
    ]
    assert len(files) >= 3, files
    told = {f"output {index}": text.encode() for index, text in enumerate(shown)}
    told.update({path.name: path.read_bytes() for path in files})
    words = secrets_of(daemon)
    for place, data in told.items():
        assert [name for name, word in words.items() if word.encode() in data] == [], place
