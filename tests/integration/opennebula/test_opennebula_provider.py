"""An OpenNebula as the boss meets it: what it sends, whose VMs it touches, what each no means, and what it does when no
answer comes."""

from __future__ import annotations

import base64
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xmlrpc.server import SimpleXMLRPCServer

import pytest
from opennebula_double import ACTIVE, DONE, POWEROFF, RUNNING, SHUTDOWN, UNKNOWN, OpenNebula, User, Vm
from services import HOST, Authority, free_port, wait_until

from boss.providers.opennebula import provider
from boss.providers.opennebula.provider import Connection, OpenNebulaCloud
from boss.providers.opennebula.transport import Endpoint
from boss.providers.provider import (
    AskForLess,
    CloudState,
    CredentialsWrong,
    GivePoolUp,
    Gone,
    TryLater,
    Unanswered,
    VmFound,
    VmOrder,
)
from ecloud.config.secrets import AccessFile

CLUSTER = "c0ffee"
SIZE = {"cpus": 1.0, "memory_mb": 100.0, "gpus": 0.0}
NewCloud = Callable[..., OpenNebulaCloud]


@pytest.fixture
def double(tmp_path: Path) -> Iterator[OpenNebula]:
    """A cloud with one template, `worker`, whose VMs start no guest."""
    made = OpenNebula(tmp_path / "cloud").start()
    made.add_worker_template()
    made.faults.unplugged = True
    yield made
    made.end()


@pytest.fixture
def new_cloud(double: OpenNebula) -> NewCloud:
    """Makes providers: `new_cloud(template="worker", user="alice", …)`."""

    def make(
        template: str = "worker", cluster_id: str = CLUSTER, public_key: str = "", **endpoint: Any
    ) -> OpenNebulaCloud:
        values = {"url": double.url, "user": "alice", "password": "PASSWORD", "answer_s": 20.0, **endpoint}
        access = AccessFile(cluster_id, HOST, 1883, "vm", "00" * 32, password='with "quotes" and $HOME')
        connection = Connection(Endpoint(**values))
        return OpenNebulaCloud(connection, cluster_id, template, lambda name: access, 120, public_key=public_key)

    return make


@pytest.fixture
def cloud(new_cloud: NewCloud) -> OpenNebulaCloud:
    return new_cloud()


def order(vm_no: int = 1) -> VmOrder:
    return VmOrder(vm_no, "big", SIZE, f"1-{vm_no}")


def start(cloud: OpenNebulaCloud, double: OpenNebula, vm_no: int = 1) -> Vm:
    """A running VM of this cluster."""
    vm = double.vms[int(cloud.start(order(vm_no)))]
    wait_until(lambda: vm.where == (ACTIVE, RUNNING), what="the VM runs")
    return vm


def only(cloud: OpenNebulaCloud) -> VmFound:
    (found,) = cloud.list()
    return found


def sentence(error: pytest.ExceptionInfo[Exception]) -> str:
    """What a person reads: one sentence, without a secret."""
    text = str(error.value)
    assert "\n" not in text
    assert "PASSWORD" not in text.replace("OPENNEBULA_PASSWORD", "")
    return text


# --- what it sends --------------------------------------------------------------------------------


def test_the_template_s_context_and_networks_are_kept(double: OpenNebula, new_cloud: NewCloud) -> None:
    double.add_worker_template(
        "scripted", more=',NOTE="say \\"hello\\" \\\\o/",START_SCRIPT="echo \\"mine\\"\necho $X"'
    )
    vm = double.vms[int(new_cloud("scripted").start(order()))]
    context = vm.template["CONTEXT"]
    assert context["NETWORK"] == context["REPORT_READY"] == "YES"
    assert context["VMNAME"] == f"ecloud-{CLUSTER}-1"
    assert context["NOTE"] == 'say "hello" \\\\o/'
    assert context["ECLOUD_OWN_SCRIPT"] == 'echo "mine"\necho $X'
    assert "START_SCRIPT" not in context
    assert base64.b64decode(context["START_SCRIPT_BASE64"]).startswith(b"#!/bin/sh\n")
    assert [nic["IP"] for nic in vm.template["NIC"]] == ["127.77.0.10"]
    assert vm.template["GRAPHICS"] == {"TYPE": "VNC", "LISTEN": "0.0.0.0"}


def test_a_password_in_the_context_is_sent_as_it_was(double: OpenNebula, new_cloud: NewCloud) -> None:
    """The cloud shows it encrypted."""
    double.add_worker_template("guarded", more=',PASSWORD="open sesame"')
    vm = double.vms[int(new_cloud("guarded").start(order()))]
    assert vm.template["CONTEXT"]["PASSWORD"] == "open sesame"


def test_a_vm_carries_its_cluster_and_its_intent(double: OpenNebula, cloud: OpenNebulaCloud) -> None:
    vm = double.vms[int(cloud.start(order(42)))]
    assert vm.name == f"ecloud-{CLUSTER}-42"
    assert vm.user_template["LABELS"] == f"base,ecloud-{CLUSTER},ecloud-vm-1-42"
    context = vm.template["CONTEXT"]
    assert (context["ECLOUD_VM_NO"], context["ECLOUD_BOOT_NONCE"]) == ("42", "1-42")
    assert base64.b64decode(context["ECLOUD_BOSS_BASE64"]) == f"{HOST}:1883".encode()
    assert b'with \\"quotes\\" and $HOME' in base64.b64decode(context["ECLOUD_ACCESS_BASE64"])


def test_no_value_in_a_context_can_be_misread_by_a_shell(double: OpenNebula, cloud: OpenNebulaCloud) -> None:
    """The guest sources them unescaped."""
    context = double.vms[int(cloud.start(order()))].template["CONTEXT"]
    ours = {name: value for name, value in context.items() if name.startswith(("ECLOUD_", "START_SCRIPT"))}
    assert len(ours) >= 8
    assert [name for name, value in ours.items() if not re.fullmatch(r"[A-Za-z0-9+/=._:-]*", value)] == []


def test_a_template_is_named_by_its_name_or_its_id(double: OpenNebula, new_cloud: NewCloud) -> None:
    number = double.add_worker_template("other")
    for template in ("other", str(number)):
        assert double.vms[int(new_cloud(template).start(order()))].template_id == number


def test_of_two_templates_of_a_name_one_s_own_is_meant(double: OpenNebula, new_cloud: NewCloud) -> None:
    text = 'NAME="twice"\nNIC=[NETWORK_ID="0"]\nCONTEXT=[NETWORK="YES"]\n'
    numbers = [double.add_template(text, owner) for owner in (double.admin, double.alice)]
    assert double.vms[int(new_cloud("twice").start(order()))].template_id == numbers[1]


def test_hundreds_that_are_asked_for_together_read_the_template_once(
    double: OpenNebula, cloud: OpenNebulaCloud
) -> None:
    threads = [threading.Thread(target=cloud.start, args=(order(vm_no),)) for vm_no in range(1, 41)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(vm.vm_no for vm in cloud.list()) == list(range(1, 41))
    assert (double.calls["template.info"], double.calls["template.instantiate"]) == (1, 40)


def test_a_bare_image_lets_the_boss_in_by_ssh(double: OpenNebula, new_cloud: NewCloud, tmp_path: Path) -> None:
    """The boss's key is added to those that the template names; each VM has a host key of its own."""
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    double.add_worker_template("bare", "bare")
    double.faults.unplugged, double.ssh_port = False, free_port()
    cloud = new_cloud("bare", public_key=key.with_suffix(".pub").read_text())
    vms = [double.vms[int(cloud.start(order(vm_no)))] for vm_no in (1, 2)]
    for vm in vms:
        guest = wait_until(lambda vm=vm: vm.guest, what="a guest")
        wait_until(lambda guest=guest: (guest.root / "etc/ssh/host_key.pub").exists())
        known = tmp_path / f"known-{vm.id}"
        known.write_text(f"[{guest.address}]:{guest.ssh_port} {guest.host_key}\n")
        command = ["ssh", "-i", str(key), "-p", str(guest.ssh_port), "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"]
        command += ["-o", f"UserKnownHostsFile={known}", guest.address, "echo $ECLOUD_ROOT"]

        def said(command: list[str] = command) -> str:
            return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()

        assert wait_until(said, what="a shell in the guest") == str(guest.root)
    assert len({vm.guest.host_key for vm in vms if vm.guest is not None}) == 2


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_vms_start_from_every_way_to_write_a_public_key(double: OpenNebula, new_cloud: NewCloud, newline: str) -> None:
    """oned refuses a variable that a newline follows. The template as docs/clouds.md writes it, and its relatives."""
    double.alice.public_key = "ssh-ed25519 ALICE alice@home"
    ways = {
        "documented": "$USER[SSH_PUBLIC_KEY]",
        "newline-at-end": f"$USER[SSH_PUBLIC_KEY]{newline}",
        "variable-first": f"$USER[SSH_PUBLIC_KEY]{newline}ssh-ed25519 BOB bob@home",
        "variables": f"$USER[SSH_PUBLIC_KEY]{newline}$NAME{newline}$USER[SSH_PUBLIC_KEY]",
        "key": "ssh-ed25519 ALICE alice@home",
        "none": "",
    }
    for name, value in ways.items():
        double.add_template(
            f'NAME="{name}"\nCPU="1"\nNIC=[NETWORK_ID="0"]\nCONTEXT=[NETWORK="YES",SSH_PUBLIC_KEY="{value}"]\n'
        )
        vm = double.vms[int(new_cloud(name, public_key="ssh-ed25519 BOSS boss@cluster\n").start(order(1)))]
        keys = [line.strip() for line in vm.template["CONTEXT"]["SSH_PUBLIC_KEY"].splitlines()]
        assert keys[0] == "ssh-ed25519 BOSS boss@cluster", name
        assert ("ssh-ed25519 ALICE alice@home" in keys) == (name != "none"), (name, keys)
        assert ("ssh-ed25519 BOB bob@home" in keys) == (name == "variable-first"), (name, keys)


def test_a_network_that_is_attached_later_changes_nothing(double: OpenNebula, cloud: OpenNebulaCloud) -> None:
    """The guest runs its START_SCRIPT again."""
    double.faults.unplugged = False
    vm = start(cloud, double)
    guest = wait_until(lambda: vm.guest)
    (agent,) = wait_until(guest.agents, what="an agent")
    Connection(Endpoint(double.url, "oneadmin", "PASSWORD")).call("vm.attachnic", vm.id, 'NIC=[NETWORK_ID="0"]')
    wait_until(lambda: "the agent runs already" in guest.start_log)
    assert list(guest.agents()) == [agent]
    assert only(cloud).address == "127.77.0.10"


# --- whose VMs ------------------------------------------------------------------------------------


def test_a_vm_whose_answer_was_lost_is_found_by_the_list(double: OpenNebula, cloud: OpenNebulaCloud) -> None:
    for vm_no, kind in ((5, "lost"), (6, "502 made"), (7, "torn")):
        double.faults.next_calls.append(("template.instantiate", kind))
        with pytest.raises(Unanswered):
            cloud.start(order(vm_no))
    assert {vm.vm_no for vm in cloud.list()} == {5, 6, 7}


def test_an_order_that_did_not_arrive_is_no_vm(double: OpenNebula, cloud: OpenNebulaCloud) -> None:
    double.faults.next_calls.append(("template.instantiate", "reset"))
    with pytest.raises(Unanswered, match="closed the connection"):
        cloud.start(order())
    assert cloud.list() == []
    double.stop_answering()
    with pytest.raises(TryLater, match=r"cannot be reached: .*refused") as error:
        cloud.start(order())
    assert not isinstance(error.value, Unanswered)


def test_a_stranger_s_vm_of_our_name_is_never_touched(double: OpenNebula, cloud: OpenNebulaCloud) -> None:
    ours = start(cloud, double)
    labels = {"LABELS": ours.user_template["LABELS"]}
    copies = [
        double.add_vm(100, ours.name, double.alice, state=ACTIVE, lcm=RUNNING, user_template={"LABELS": "base"}),
        double.add_vm(101, "another", double.alice, state=ACTIVE, lcm=RUNNING, user_template=labels),
        double.add_vm(102, ours.name, double.admin, state=ACTIVE, lcm=RUNNING, user_template=dict(ours.user_template)),
    ]
    assert only(cloud).cloud_id == str(ours.id)
    for copy in copies:
        with pytest.raises(Gone, match="leaves it alone"):
            cloud.end(str(copy.id))
    assert list(cloud.end_all(20)) == []
    assert [vm.where for vm in copies] == [(ACTIVE, RUNNING)] * 3
    assert double.calls["vm.action"] >= 1


def test_strangers_are_shown_with_what_they_lack(double: OpenNebula, new_cloud: NewCloud) -> None:
    boss = new_cloud(user="oneadmin")
    double.add_vm(100, f"ecloud-{CLUSTER}-1", double.admin, state=ACTIVE, lcm=RUNNING)
    double.add_vm(101, f"ecloud-{CLUSTER}-2", double.alice, state=ACTIVE, lcm=RUNNING)
    found = {stranger.cloud_id: stranger for stranger in boss.strangers()}
    assert found["100"].why == "it has only the name or label of this cluster"
    assert (found["101"].why, found["101"].owner) == ("it belongs to alice", "alice")


def test_a_vm_that_a_person_renamed_is_still_ours(double: OpenNebula, cloud: OpenNebulaCloud) -> None:
    vm = start(cloud, double, 9)
    vm.name = "my favourite"
    assert only(cloud).vm_no == 9
    vm.name, vm.user_template["LABELS"] = f"ecloud-{CLUSTER}-9", "mine"
    assert only(cloud).vm_no == 9
    cloud.end(str(vm.id))
    wait_until(lambda: vm.state == DONE)


# --- states ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "state", "word"),
    [
        ((ACTIVE, UNKNOWN), CloudState.UNKNOWN, "UNKNOWN"),
        ((POWEROFF, 0), CloudState.OFF, "POWEROFF"),
        ((ACTIVE, 999), CloudState.UNKNOWN, "state 999"),
        ((ACTIVE, 25), CloudState.RUNNING, "HOTPLUG_NIC"),
        ((ACTIVE, SHUTDOWN), CloudState.ENDING, "SHUTDOWN"),
    ],
)
def test_a_vm_in_a_doubtful_state_is_listed(
    double: OpenNebula, cloud: OpenNebulaCloud, where: tuple[int, int], state: CloudState, word: str
) -> None:
    double.times["shutdown_s"] = 1e9
    vm = start(cloud, double)
    double.move(vm, *where)
    assert (only(cloud).state, only(cloud).cloud_state) == (state, word)


def test_one_that_failed_says_why_and_can_be_ended(double: OpenNebula, cloud: OpenNebulaCloud) -> None:
    for fault, word in (("boot_fails", "DEPLOY"), ("prolog_fails", "PROLOG")):
        setattr(double.faults, fault, True)
        cloud_id = cloud.start(order())
        found = wait_until(lambda: next((vm for vm in cloud.list() if vm.state is CloudState.FAILED), None))
        assert f": {word}: " in found.text
        cloud.end(cloud_id)
        assert cloud.list() == []
        setattr(double.faults, fault, False)


def test_one_that_waits_for_a_host_says_why(double: OpenNebula, cloud: OpenNebulaCloud) -> None:
    double.faults.nothing_fits = True
    cloud.start(order())
    text = wait_until(lambda: only(cloud).text, what="a reason")
    assert "[HOST] Not enough CPU on hosts" in text
    assert only(cloud).state is CloudState.PENDING
    assert list(cloud.end_all(20)) == []


def test_a_known_vm_that_is_not_shown_is_gone_only_if_the_cloud_confirms_it(
    double: OpenNebula, cloud: OpenNebulaCloud, new_cloud: NewCloud
) -> None:
    """OPENNEBULA_USER was changed: each user lists its own VMs."""
    double.users["carol"] = User(7, "carol", "PASSWORD")
    vms = [start(cloud, double, vm_no) for vm_no in (1, 2, 3)]
    known = {str(vm.id): vm_no for vm_no, vm in enumerate(vms, 1)}
    carol = new_cloud(user="carol")
    assert carol.list() == []
    told = carol.list(known)
    assert [(vm.vm_no, vm.cloud_id, vm.state) for vm in told] == [(n, str(n - 1), CloudState.HIDDEN) for n in (1, 2, 3)]
    assert told[0].text == (
        "VM 0 is not visible to user carol and may still run: was OPENNEBULA_USER changed? "
        "Set it back until its VMs are gone, or have their owner end them"
    )
    double.vanish(vms[0])
    assert gone(cloud.list(known)) == [(1, "0", vms[0].made_at, vms[0].ended_at)]
    assert {vm.vm_no for vm in cloud.list(known)} == {1, 2, 3}
    never = (9, "4711", 0.0, 0.0)
    assert never in gone(cloud.list({**known, "4711": 9})), "of that one the cloud knows nothing"


def gone(told: list[VmFound]) -> list[tuple[int, str, float, float]]:
    """Those that are no more: intent, number, since when and until when they were there."""
    return [(vm.vm_no, vm.cloud_id, vm.since, vm.ended) for vm in told if vm.state is CloudState.GONE]


@pytest.mark.parametrize("shows_done", [True, False])
def test_the_ends_of_hundreds_are_found_by_few_calls(
    double: OpenNebula, cloud: OpenNebulaCloud, shows_done: bool
) -> None:
    """Whether the call that names VMs shows those that are done, or leaves them out."""
    double.faults.sets_lack_done = not shows_done
    numbers = [*range(100, 350), *range(5_000, 5_050)]
    vms = [double.add_vm(number, f"ecloud-{CLUSTER}-{number}", double.alice, state=DONE) for number in numbers]
    for vm in vms:
        vm.made_at, vm.ended_at = 1_000 + vm.id, 2_000 + vm.id
    told = gone(cloud.list({str(number): number for number in numbers}))
    assert sorted(told) == [(n, str(n), 1_000.0 + n, 2_000.0 + n) for n in numbers]
    assert double.calls["vmpool.infoset"] == 2
    assert double.calls["vmpool.info"] == (1 if shows_done else 3)
    assert double.calls["vm.info"] == 0


def test_a_cloud_that_has_too_many_to_look_through_is_not_waited_for(
    double: OpenNebula, cloud: OpenNebulaCloud
) -> None:
    vm = start(cloud, double)
    cloud.list()
    double.faults.next_calls += [("vmpool.info", ""), ("vmpool.info", "reset")]
    assert [found.cloud_id for found in cloud.list(lost={7: "1-7"})] == [str(vm.id)]


def test_a_vm_that_a_user_renamed_and_relabelled_is_not_taken_for_gone(
    double: OpenNebula, cloud: OpenNebulaCloud
) -> None:
    vm = start(cloud, double)
    vm.name, vm.user_template["LABELS"] = "mine", ""
    assert cloud.list() == []
    assert [(seen.vm_no, seen.state) for seen in cloud.list({"0": 1})] == [(1, CloudState.HIDDEN)]


def test_a_vm_that_a_user_gave_other_attributes_is_not_taken_for_gone(
    double: OpenNebula, cloud: OpenNebulaCloud
) -> None:
    """Its name alone is left of what marks it: `onevm update` replaces all of its USER_TEMPLATE."""
    vm = start(cloud, double)
    vm.user_template = {}
    assert cloud.list() == []
    (seen,) = cloud.list({str(vm.id): 1})
    assert (seen.vm_no, seen.cloud_id, seen.state) == (1, str(vm.id), CloudState.HIDDEN)
    assert f"give it back its labels (ecloud-{CLUSTER},ecloud-vm-1)" in seen.text
    double.vanish(vm)
    assert gone(cloud.list({str(vm.id): 1})) == [(1, str(vm.id), vm.made_at, vm.ended_at)]


def test_of_two_that_show_the_same_intent_none_is_taken_for_gone(double: OpenNebula, cloud: OpenNebulaCloud) -> None:
    """One of them comes from a database that was lost."""
    older, newer = start(cloud, double), start(cloud, double)
    known = {str(newer.id): 1}
    assert {vm.cloud_id for vm in cloud.list(known)} == {str(older.id), str(newer.id)}


def test_a_lost_list_of_missing_vms_is_no_list(double: OpenNebula, cloud: OpenNebulaCloud) -> None:
    start(cloud, double)
    double.faults.next_calls.append(("vmpool.infoset", "reset"))
    with pytest.raises(TryLater):
        cloud.list({"0": 1, "77": 2})


def test_one_that_vanished_is_not_listed(double: OpenNebula, cloud: OpenNebulaCloud) -> None:
    double.vanish(start(cloud, double))
    assert cloud.list() == []


# --- end ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "word"), [("never_boots", "BOOT"), ("stays_in_prolog", "PROLOG")])
def test_an_end_that_its_state_refuses_is_asked_again(
    double: OpenNebula, cloud: OpenNebulaCloud, fault: str, word: str
) -> None:
    setattr(double.faults, fault, True)
    cloud_id = cloud.start(order())
    wait_until(lambda: only(cloud).cloud_state == word)
    with pytest.raises(TryLater, match=f"VM {cloud_id} cannot be ended now: .*wrong state {word}; the boss retries"):
        cloud.end(cloud_id)
    setattr(double.faults, fault, False)
    assert list(cloud.end_all(20)) == []


def test_an_ok_without_effect_is_no_end(double: OpenNebula, cloud: OpenNebulaCloud) -> None:
    vm = start(cloud, double)
    double.faults.terminate_lies = True
    cloud.end(str(vm.id))
    assert [found.vm_no for found in cloud.end_all(0.5)] == [1]
    double.faults.terminate_lies = False
    assert list(cloud.end_all(20)) == []


def test_a_shutdown_that_fails_is_ended_hard_in_time(
    double: OpenNebula, cloud: OpenNebulaCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    double.faults.shutdown_fails = True
    vm = start(cloud, double)
    cloud.end(str(vm.id))
    wait_until(lambda: vm.where == (ACTIVE, RUNNING), what="it is back without a word")
    monkeypatch.setattr(provider, "END_GRACE_S", 0.0)
    cloud.end(str(vm.id))
    assert vm.state == DONE


def test_one_that_is_shutting_down_is_let_alone_for_a_while(
    double: OpenNebula, cloud: OpenNebulaCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    double.times["shutdown_s"] = 1e9
    vm = start(cloud, double)
    for _ in range(3):
        cloud.end(str(vm.id))
    assert vm.where == (ACTIVE, SHUTDOWN)
    assert double.calls["vm.action"] == 1
    monkeypatch.setattr(provider, "END_GRACE_S", 0.0)
    cloud.end(str(vm.id))
    assert vm.where == (ACTIVE, SHUTDOWN), "an accepted hard end is no end yet"
    double.times["shutdown_s"] = 0.1
    wait_until(lambda: vm.state == DONE)


def test_what_the_cloud_has_lost_sight_of_is_ended(double: OpenNebula, cloud: OpenNebulaCloud) -> None:
    vm = start(cloud, double)
    double.move(vm, ACTIVE, UNKNOWN)
    cloud.end(str(vm.id))
    assert vm.state == DONE


# --- each no --------------------------------------------------------------------------------------


def test_a_quota_asks_for_less(double: OpenNebula, cloud: OpenNebulaCloud) -> None:
    double.alice.quota["VMS"] = "2"
    assert (cloud.room().vms, cloud.room().reason) == (2, "user alice has a quota of 2 for VMS")
    for vm_no in (1, 2):
        cloud.start(order(vm_no))
    assert cloud.room().vms == 0
    with pytest.raises(AskForLess, match="limit of 2 reached for VMS quota in VM; end other VMs first") as error:
        cloud.start(order(3))
    assert "template worker" in sentence(error)


@pytest.mark.parametrize(
    ("kind", "limit", "more"),
    [("RUNNING_CPU", "2", 2), ("RUNNING_MEMORY", "1100", 2), ("SYSTEM_DISK_SIZE", "2100", 2), ("MEMORY", "600", 1)],
)
def test_every_quota_is_read_beforehand(
    double: OpenNebula, cloud: OpenNebulaCloud, kind: str, limit: str, more: int
) -> None:
    double.alice.quota[kind] = limit
    assert (cloud.room().vms, cloud.room().reason) == (more, f"user alice has a quota of {limit} for {kind}")
    started = [start(cloud, double, vm_no) for vm_no in range(1, more + 1)]
    assert cloud.room().vms == 0
    with pytest.raises(AskForLess, match=f"reached for {kind} quota"):
        cloud.start(order(9))
    assert len(started) == more


def test_a_quota_of_leases_is_read_beforehand(double: OpenNebula, cloud: OpenNebulaCloud) -> None:
    double.alice.network_quota[0] = 1
    assert cloud.room().vms == 1
    start(cloud, double)
    assert (cloud.room().vms, cloud.room().reason) == (0, "user alice has a quota of 1 for leases of network 0")
    with pytest.raises(AskForLess, match="reached for LEASES quota"):
        cloud.start(order(2))


def test_an_image_that_the_user_may_not_use_gives_the_pool_up(double: OpenNebula, cloud: OpenNebulaCloud) -> None:
    double.hidden_images.add(0)
    with pytest.raises(GivePoolUp, match=r"user alice may not use image ecloud of template worker .*ask for the right"):
        cloud.room()


def test_a_pool_that_promises_more_than_its_template_gives_is_named(
    double: OpenNebula, cloud: OpenNebulaCloud, new_cloud: NewCloud
) -> None:
    assert cloud.misfit({"cpus": 1.0, "memory_mb": 512.0}) == ""
    assert cloud.misfit({"cpus": 4.0, "memory_mb": 600.0}) == (
        "the pool has 4 cpus, but its template gives 1 (VCPU); "
        "the pool has 600 MB of memory, but its template gives 512 (MEMORY)"
    )
    double.add_worker_template("large", cpus=4)
    assert new_cloud("large").misfit({"cpus": 4.0}) == ""


def test_vms_that_wait_for_their_turn_are_distinguished_from_those_without_a_place(
    double: OpenNebula, cloud: OpenNebulaCloud
) -> None:
    """One host, one VM at a time; the reason is in the short list, which asks for nothing more."""
    double.hosts = 1
    double.times["prolog_s"] = 1e9
    for vm_no in (1, 2):
        cloud.start(order(vm_no))

    def states() -> dict[int, CloudState]:
        return {vm.vm_no: vm.state for vm in cloud.list()}

    wait_until(lambda: states() == {1: CloudState.BOOTING, 2: CloudState.QUEUED}, what="one waits for the other")
    asked = double.calls["vmpool.infoset"]
    assert "Dispatch limit reached" in next(vm.text for vm in cloud.list() if vm.vm_no == 2)
    assert double.calls["vmpool.infoset"] == asked


def test_a_vm_with_a_new_owner_is_hidden_and_not_ended(double: OpenNebula, cloud: OpenNebulaCloud) -> None:
    vm = start(cloud, double)
    double.users["bob"] = User(3, "bob", "PASSWORD")
    Connection(Endpoint(double.url, "oneadmin", "PASSWORD")).call("vm.chown", vm.id, 3, -1)
    double.vanish(vm)
    (seen,) = cloud.list({str(vm.id): 1})
    assert seen.state is CloudState.HIDDEN
    with pytest.raises(Gone, match="has another owner: the boss leaves it alone"):
        cloud.end(str(vm.id))


def test_a_quota_of_the_group_bounds_all_its_users_together(double: OpenNebula, cloud: OpenNebulaCloud) -> None:
    double.add_vm(50, "bob's", User(3, "bob", "x"), state=ACTIVE, lcm=RUNNING)
    double.group_quotas["users"] = {"VMS": "3"}
    assert (cloud.room().vms, cloud.room().reason) == (2, "group users has a quota of 3 for VMS")
    cloud.start(order(1))
    cloud.start(order(2))
    with pytest.raises(AskForLess, match=r"limit of 3 reached for VMS quota"):
        cloud.start(order(3))
    double.faults.groups_are_hidden = True
    assert cloud.room().vms == 248, "a group that a user may not see bounds nothing that is known"


def test_an_empty_address_pool_asks_for_less(double: OpenNebula, cloud: OpenNebulaCloud) -> None:
    double.networks[0].size = 2
    for vm_no in (1, 2):
        cloud.start(order(vm_no))
    assert (cloud.room().vms, cloud.room().reason) == (0, "network net has 0 free addresses of 2")
    with pytest.raises(AskForLess, match=r"no free address .* Cannot get IP/MAC lease from virtual network 0"):
        cloud.start(order(3))
    assert list(cloud.end_all(20)) == []
    assert cloud.room().vms == 2


def test_three_hundred_asked_of_255_addresses_are_255(double: OpenNebula, cloud: OpenNebulaCloud) -> None:
    double.networks[0].size = 255
    noes = []
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(cloud.start, order(vm_no)) for vm_no in range(1, 301)]:
            if error := done.exception():
                noes.append(error)
    assert len(cloud.list()) == 255
    assert {type(error) for error in noes} == {AskForLess}
    assert len({str(error) for error in noes}) == 1


def test_hosts_bound_the_room_of_whom_they_are_shown_to(double: OpenNebula, new_cloud: NewCloud) -> None:
    double.hosts_cpu = 3.0
    assert new_cloud(user="oneadmin").room().vms == 3
    assert new_cloud().room().vms == 250


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('NIC=[NETWORK_ID="0"]', r"template bad \(1\) has no CONTEXT: give it one"),
        ('CONTEXT=[NETWORK="YES"]', r"template bad \(1\) has no network: give it a NIC"),
        ('NIC=[NETWORK_ID="77"]\nCONTEXT=[NETWORK="YES"]', "names network 77, which does not exist; correct it"),
        ('SECRET="yes"\nNIC=[NETWORK_ID="0"]\nCONTEXT=[NETWORK="YES"]', "alice may not use template bad: .*the rights"),
        ('NIC=[NETWORK_ID="0"]\nCONTEXT=[NETWORK="YES",PLACE="C:\\"]', "CONTEXT/PLACE ends with a backslash"),
    ],
)
def test_a_template_that_can_t_work_gives_the_pool_up(
    double: OpenNebula, new_cloud: NewCloud, text: str, expected: str
) -> None:
    if "backslash" in expected:  # oned would not take it as text; it comes in by other ways
        double.add_template('NAME="bad"\nNIC=[NETWORK_ID="0"]\nCONTEXT=[NETWORK="YES"]')
        double.templates[1].attributes["CONTEXT"]["PLACE"] = "C:\\"
    else:
        double.add_template(f'NAME="bad"\n{text}\n')
    with pytest.raises(GivePoolUp, match=expected) as error:
        new_cloud("bad").start(order())
    sentence(error)
    assert double.vms == {}


def test_a_network_that_is_not_there_is_found_before_a_vm_is_asked_for(double: OpenNebula, new_cloud: NewCloud) -> None:
    for nic in ('NETWORK_ID="77"', 'NETWORK="nowhere"'):
        number = double.add_template(f'NAME="{nic[:8]}"\nNIC=[{nic}]\nCONTEXT=[NETWORK="YES"]\n')
        with pytest.raises(GivePoolUp, match="which does not exist"):
            new_cloud(str(number)).room()


def test_a_template_that_is_not_there_gives_the_pool_up(new_cloud: NewCloud) -> None:
    with pytest.raises(GivePoolUp, match="has no template warker that user alice sees; there: worker"):
        new_cloud("warker").start(order())
    with pytest.raises(GivePoolUp, match="has no template 99; set the pool's template"):
        new_cloud("99").start(order())


def test_wrong_credentials_are_one_sentence_for_each_call(double: OpenNebula, new_cloud: NewCloud) -> None:
    for endpoint in ({"password": "nope"}, {"user": "mallory"}, {"password": "nope", "token_s": 0.0}):
        cloud = new_cloud(**endpoint)
        calls: list[Callable[[], object]] = [cloud.list, cloud.room, cloud.strangers]
        for call in (*calls, lambda cloud=cloud: cloud.start(order()), lambda cloud=cloud: cloud.end("1")):
            with pytest.raises(CredentialsWrong, match=r"refuses user .*: .*set OPENNEBULA_USER") as error:
                call()
            sentence(error)
    double.alice.enabled = False
    with pytest.raises(CredentialsWrong):
        new_cloud().list()


def test_another_cloud_than_expected_is_said(double: OpenNebula, new_cloud: NewCloud) -> None:
    base = double.url.removesuffix("/RPC2")
    for url, expected in (
        (f"{base}/RPC3", r"there is no OpenNebula at .* \(HTTP 404\); check OPENNEBULA_URL"),
        ("http://", "is not an address; set OPENNEBULA_URL"),
        (double.url.replace("http", "https", 1), "does not use TLS there; use http://"),
    ):
        with pytest.raises(CredentialsWrong, match=expected) as error:
            new_cloud(url=url).list()
        sentence(error)


def test_what_speaks_xml_rpc_and_is_no_opennebula_is_one_sentence_for_each_call(new_cloud: NewCloud) -> None:
    with SimpleXMLRPCServer((HOST, 0), logRequests=False) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        cloud = new_cloud(url=f"http://{HOST}:{server.server_address[1]}/RPC2")
        calls: list[Callable[[], object]] = [cloud.list, lambda: cloud.list({"7": 1}), lambda: cloud.end("7")]
        try:
            for call in calls:
                with pytest.raises(
                    TryLater, match=r"does not understand the boss's calls .*is it an OpenNebula"
                ) as error:
                    call()
                sentence(error)
        finally:
            server.shutdown()


# --- the way there --------------------------------------------------------------------------------


def test_a_cloud_that_is_away_is_asked_later(new_cloud: NewCloud) -> None:
    for url, expected in (
        (f"http://{HOST}:{free_port()}/RPC2", "cannot be reached: .*refused; is it up"),
        ("http://no-such-host.invalid:2633/RPC2", "the name no-such-host.invalid is not known"),
    ):
        with pytest.raises(TryLater, match=expected) as error:
            new_cloud(url=url).list()
        sentence(error)


@pytest.mark.parametrize("kind", ["garbage", "torn", "cut", "500", "reset", "lost", "wrong object"])
def test_a_broken_answer_is_never_an_incomplete_list(double: OpenNebula, cloud: OpenNebulaCloud, kind: str) -> None:
    start(cloud, double)
    double.faults.next_calls.append(("vmpool.info", kind))
    with pytest.raises(TryLater) as error:
        cloud.list()
    sentence(error)
    assert len(cloud.list()) == 1


def test_a_cloud_that_flaps_is_asked_until_it_answers(double: OpenNebula, cloud: OpenNebulaCloud) -> None:
    double.faults.every_third = "500"
    answered = 0
    for _ in range(20):
        try:
            cloud.list()
            answered += 1
        except TryLater:
            continue
    assert answered >= 10


def test_a_cloud_that_never_answers_is_not_waited_for(double: OpenNebula, new_cloud: NewCloud) -> None:
    cloud = new_cloud(answer_s=0.4)
    cloud.list()
    double.faults.next_calls.append(("vmpool.info", "hang"))
    with pytest.raises(Unanswered, match=r"did not answer within 0.4 s; the boss retries"):
        cloud.list()
    double.faults.next_calls.append(("vmpool.info", "stalled"))
    with pytest.raises(Unanswered, match=r"did not answer within 0.4 s; the boss retries"):
        cloud.list()
    double.faults.trickle_s = 0.05  # each piece comes in time, the answer does not
    with pytest.raises(Unanswered, match=r"did not answer within 0.4 s; the boss retries"):
        cloud.list()


def test_a_vm_that_was_made_after_its_request_was_given_up_is_found(double: OpenNebula, new_cloud: NewCloud) -> None:
    impatient = new_cloud(answer_s=0.4)
    double.faults.next_calls.append(("template.instantiate", "hang"))
    with pytest.raises(Unanswered):
        impatient.start(order(4))
    assert only(impatient).vm_no == 4


# --- TLS and proxies ------------------------------------------------------------------------------


def test_the_certificate_is_verified(tmp_path: Path, new_cloud: NewCloud) -> None:
    authority, other = Authority(tmp_path / "authority"), Authority(tmp_path / "other")
    secure = OpenNebula(tmp_path / "secure", tls=(authority.certificate, authority.key)).start()
    try:
        assert new_cloud(url=secure.url, ca=str(authority.ca)).list() == []
        for ca in ("", str(other.ca)):
            with pytest.raises(
                CredentialsWrong, match=r"certificate of .* is not valid: .*; check OPENNEBULA_CA"
            ) as error:
                new_cloud(url=secure.url, ca=ca).list()
            sentence(error)
        with pytest.raises(CredentialsWrong, match=r"OPENNEBULA_CA names .*missing.pem, which does not exist"):
            new_cloud(url=secure.url, ca=str(tmp_path / "missing.pem")).list()
        (tmp_path / "empty.pem").write_text("nothing\n")
        with pytest.raises(CredentialsWrong, match="holds no certificate"):
            new_cloud(url=secure.url, ca=str(tmp_path / "empty.pem")).list()
    finally:
        secure.end()


def test_the_proxy_is_used_and_named_when_it_is_away(double: OpenNebula, new_cloud: NewCloud) -> None:
    # The double takes whole addresses as a proxy does: what is asked of it does not exist elsewhere.
    through = new_cloud(url="http://no-such-host.invalid/RPC2", proxy=double.url.removesuffix("/RPC2"))
    assert through.list() == []
    away = new_cloud(proxy=f"http://me:hidden@{HOST}:{free_port()}")
    with pytest.raises(TryLater, match=r"the proxy http://127.0.0.1:\d+ on the way .* OPENNEBULA_PROXY") as error:
        away.list()
    assert "hidden" not in sentence(error)


# --- tokens ---------------------------------------------------------------------------------------


def test_the_password_is_used_for_tokens_only(double: OpenNebula, cloud: OpenNebulaCloud) -> None:
    for _ in range(5):
        cloud.list()
    assert double.calls["user.login"] == 1
    assert double.sessions[0] == "alice:PASSWORD"
    assert "alice:PASSWORD" not in double.sessions[1:]


def test_a_token_is_renewed_before_it_ends(double: OpenNebula, new_cloud: NewCloud) -> None:
    cloud = new_cloud(token_s=1.0)

    def renewed() -> bool:
        cloud.list()
        return double.calls["user.login"] >= 3

    wait_until(renewed, what="two renewals")


def test_a_token_is_given_back_and_the_next_call_makes_another(double: OpenNebula, cloud: OpenNebulaCloud) -> None:
    cloud.list()
    assert len(double.alice.tokens) == 1
    cloud.close()
    cloud.close()
    assert double.alice.tokens == {}
    assert cloud.list() == []


def test_bosses_that_come_and_go_use_up_no_tokens(double: OpenNebula, new_cloud: NewCloud) -> None:
    for _ in range(12):
        cloud = new_cloud()
        cloud.list()
        cloud.close()
    assert double.alice.tokens == {}


def test_a_user_whose_tokens_are_used_up_works_with_the_password(double: OpenNebula, new_cloud: NewCloud) -> None:
    for _ in range(12):
        new_cloud().list()
    assert len(double.alice.tokens) == 10


def test_a_cloud_that_is_away_does_not_hold_up_who_leaves(double: OpenNebula, cloud: OpenNebulaCloud) -> None:
    cloud.list()
    double.stop_answering()
    cloud.close()


def test_a_token_that_was_taken_away_is_replaced(double: OpenNebula, cloud: OpenNebulaCloud) -> None:
    cloud.list()
    double.alice.tokens.clear()
    assert cloud.list() == []
    assert double.calls["user.login"] == 2


def test_a_cloud_without_tokens_takes_the_password(double: OpenNebula, cloud: OpenNebulaCloud) -> None:
    double.no_tokens = True
    assert cloud.list() == []
    assert double.sessions[-1] == "alice:PASSWORD"
