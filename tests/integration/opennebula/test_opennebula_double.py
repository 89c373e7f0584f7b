"""The OpenNebula double answers as the real one that was recorded (tests/inputs/opennebula): the same texts and codes
where it says no, the same elements where it shows something."""

from __future__ import annotations

import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from opennebula_double import ACTIVE, BOOT, BOOT_FAILURE, DONE, PENDING, RUNNING, OpenNebula
from opennebula_xml import RECORDINGS

NAMES = sorted(path.name.removesuffix(".request.xml") for path in RECORDINGS.glob("*.request.xml"))
WORKER = xmlrpc.client.loads((RECORDINGS / "07-template.allocate.request.xml").read_bytes())[0][1]
OURS = {"ECLOUD_POOL": "x"}
NODE = {**OURS, "ECLOUD_NODE": "n"}


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[OpenNebula]:
    """The cloud as it was while it was recorded. Its time stands still: nothing changes automatically."""
    made = OpenNebula(tmp_path)
    made.add_network("net4", "10.0.4.10", 4)
    made.add_network("netbig", "10.1.0.10", 4096)
    made.add_template(WORKER)
    made.add_template('NAME="aw"\nCPU="0.01"\nMEMORY="8"\nNIC=[NETWORK_ID="1"]\n', made.alice)
    made.add_template('NAME="more"\nCPU="1"\n')
    made.onegate = True
    for number, state, lcm, more in (
        (21, ACTIVE, RUNNING, OURS),
        (29, ACTIVE, BOOT, OURS),
        (31, ACTIVE, BOOT_FAILURE, {**OURS, "ERROR": "DEPLOY"}),
        (48, PENDING, 0, {**OURS, "SCHED_MESSAGE": "[HOST] Not enough CPU on hosts: 0"}),
        (255, ACTIVE, BOOT_FAILURE, OURS),
        (256, PENDING, 0, OURS),
        (2096, ACTIVE, RUNNING, NODE),
        (2120, ACTIVE, RUNNING, NODE),
        (2121, ACTIVE, RUNNING, NODE),
        (2122, PENDING, 0, NODE),
    ):
        vm = made.add_vm(number, f"vm-{number}", state=state, lcm=lcm, user_template=more)
        made._lease(vm, vm.template["NIC"][0], 1)
        made._complete(vm)
    yield made
    made.end()


def prepare(cloud: OpenNebula, name: str) -> None:
    """What had happened before that very request."""
    if name == "07-template.allocate":
        del cloud.templates[0]
    elif name == "14-vm.action-terminate-on-DONE":
        cloud.move(cloud.vms[21], DONE)
    elif name == "11-vn.info-0":
        cloud.networks[0].leases["10.0.4.11"] = 12
    elif name == "18-template.instantiate-AR-exhausted":
        cloud.networks[0].leases.update({f"10.0.4.{last}": 1 for last in range(10, 14)})
    elif name == "21-template.instantiate-quota":
        cloud.alice.quota["VMS"] = "3"
        for number in (301, 302, 303):
            cloud.add_vm(number, "a", cloud.alice)


def paths(element: ElementTree.Element, before: str = "") -> set[str]:
    """Every element of an object by its way from the root."""
    place = f"{before}/{element.tag}"
    return {place}.union(*(paths(child, place) for child in element))


def shape(answer: str) -> object:
    """What stays the same from one cloud to another: the kinds of the values, and all of a no."""
    root = ElementTree.fromstring(answer)
    if root.find("fault") is not None:
        return [(item.tag, item.text) for item in root.iter() if item.tag in ("name", "i4", "string")]
    values = [value[0] for value in root.findall(".//data/value")]
    kinds = [value.tag for value in values]
    if values[0].text == "0":
        return [(value.tag, value.text) for value in values]
    text = values[1].text or ""
    return kinds, paths(ElementTree.fromstring(text)) if text.startswith("<") else None


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_request_gets_an_answer_of_the_recorded_shape(cloud: OpenNebula, name: str) -> None:
    prepare(cloud, name)
    answer = cloud.answer((RECORDINGS / f"{name}.request.xml").read_bytes())
    assert shape(answer) == shape((RECORDINGS / f"{name}.response.xml").read_text())


def test_what_a_request_does_not_send_stays_and_what_it_sends_replaces(cloud: OpenNebula) -> None:
    """The rule that loses people their networks and keys."""
    cloud.answer((RECORDINGS / "09-template.instantiate.request.xml").read_bytes())
    vm = cloud.vms[cloud.next_vm - 1]
    assert [nic["NETWORK_ID"] for nic in vm.template["NIC"]] == ["1"]
    assert "START_SCRIPT_BASE64" not in vm.template["CONTEXT"]
    assert vm.user_template == {"ECLOUD_POOL": "x", "ECLOUD_NODE": "n-1", "LABELS": "ecloud", "FOO": "tmplfoo"}


@pytest.mark.parametrize(
    ("value", "parses"),
    [
        ("$USER[SSH_PUBLIC_KEY]\nkey", False),
        ("$USER[SSH_PUBLIC_KEY]\r\nkey", False),
        ("$USER[SSH_PUBLIC_KEY]${NAME}", False),
        ("$USER[SSH_PUBLIC_KEY] \nkey", True),
        ("key\n$USER[SSH_PUBLIC_KEY]", True),
    ],
)
def test_a_variable_before_a_newline_is_a_syntax_error(tmp_path: Path, value: str, parses: bool) -> None:
    """As a real oned refused it, echoing the whole context."""
    cloud = OpenNebula(tmp_path)
    number = cloud.add_template(f'NAME="t"\nCONTEXT=[SECRET="echoed",SSH_PUBLIC_KEY="{value}"]\n')
    request = xmlrpc.client.dumps(("alice:PASSWORD", number, "", False, "", False), "one.template.instantiate")
    answer = cloud.answer(request.encode())
    assert ("unexpected VARIABLE, expecting EOA" in answer) == (not parses)
    assert ("echoed" in answer) == (not parses)
    cloud.end()
