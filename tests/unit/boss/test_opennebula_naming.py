"""OpenNebula's words: what is written is read back as it was, names and labels lead back to their intent, and each
state means something."""

from __future__ import annotations

import pyone
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opennebula_xml import parse_template

from boss.core.model.cloud_vms import boot_nonce
from boss.providers.opennebula import naming as words
from boss.providers.opennebula.vm_list import read_vms
from boss.providers.provider import CloudState

NAMES = st.from_regex(r"[A-Z][A-Z0-9_]{0,8}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")).filter(
    lambda text: not text.endswith("\\") and "]]>" not in text and '\\"' not in text
)


# --- templates ------------------------------------------------------------------------------------


@given(single=TEXTS, inner=st.dictionaries(NAMES, TEXTS, min_size=1))
def test_a_template_is_read_as_it_was_written(single: str, inner: dict[str, str]) -> None:
    assert parse_template(words.template_text({"ONE": single, "CONTEXT": inner})) == {"ONE": single, "CONTEXT": inner}


@pytest.mark.parametrize("value", ["ends\\", "a]]>b", "zero\0"])
def test_what_can_t_be_written_is_named(value: str) -> None:
    with pytest.raises(words.CantBeWritten, match=r"CONTEXT/NOTE (ends|holds)"):
        words.template_text({"CONTEXT": {"NOTE": value}})


# --- whose is it? ---------------------------------------------------------------------------------


@given(vm_no=st.integers(1, 10**9), own=st.sampled_from(["", "base", "a,b", "ecloud-other"]))
def test_name_and_labels_lead_back_to_the_intent(vm_no: int, own: str) -> None:
    nonce = boot_nonce(1_790_000_000_000, vm_no)
    assert words.vm_no_in_name("c0ffee", words.name_of("c0ffee", vm_no)) == vm_no
    assert words.vm_no_in_labels("c0ffee", words.labels_of("c0ffee", nonce, own)) == vm_no
    assert words.vm_no_in_attributes("c0ffee", words.attributes_of("c0ffee", vm_no, nonce, "p")) == vm_no
    for other in ("c0ffe", "c0ffee-1", "C0FFEE"):
        assert words.vm_no_in_name(other, words.name_of("c0ffee", vm_no)) is None
        assert words.vm_no_in_labels(other, words.labels_of("c0ffee", nonce, own)) is None
        assert words.vm_no_in_attributes(other, words.attributes_of("c0ffee", vm_no, nonce, "p")) is None


def test_a_vm_shows_its_boot_nonce_in_its_labels_or_its_attributes() -> None:
    nonce = "1790000000000-7"
    labels, attributes = words.labels_of("c0ffee", nonce), words.attributes_of("c0ffee", 7, nonce, "p")
    assert words.nonce_of("c0ffee", labels, {}) == nonce
    assert words.nonce_of("c0ffee", "", attributes) == nonce
    assert words.nonce_of("c0ffee", words.labels_of("c0ffee", "7"), attributes) == nonce
    assert words.nonce_of("c0ffee", words.labels_of("c0ffee", "7"), {}) == "", "made by an earlier release"
    assert words.nonce_of("other", labels, attributes) == ""


@pytest.mark.parametrize("name", ["", "ecloud-c0ffee-", "ecloud-c0ffee-x", "ecloud-c0ffee--1", "ecloud-c0ffee-١"])
def test_a_name_that_only_looks_like_ours_is_not(name: str) -> None:
    assert words.vm_no_in_name("c0ffee", name) is None


# --- states ---------------------------------------------------------------------------------------


def test_every_state_that_pyone_knows_means_something() -> None:
    unclear = {"SAVE_MIGRATE"}
    for lcm in pyone.LCM_STATE:
        state = words.state_of(words.ACTIVE, lcm.name)
        if "FAILURE" in lcm.name:
            assert state is CloudState.FAILED, lcm.name
        elif state is CloudState.UNKNOWN:
            assert lcm.name == "UNKNOWN" or lcm.name in unclear, lcm.name
    for number, name in enumerate(words.NAMES):
        assert pyone.VM_STATE[name] == number


@pytest.mark.parametrize(
    ("lcm", "state"),
    [
        ("PROLOG", CloudState.BOOTING),
        ("BOOT", CloudState.BOOTING),
        ("BOOT_POWEROFF", CloudState.BOOTING),
        ("RUNNING", CloudState.RUNNING),
        ("HOTPLUG_NIC", CloudState.RUNNING),
        ("SHUTDOWN", CloudState.ENDING),
        ("EPILOG", CloudState.ENDING),
        ("SHUTDOWN_POWEROFF", CloudState.OFF),
        ("EPILOG_FAILURE", CloudState.FAILED),
        ("UNKNOWN", CloudState.UNKNOWN),
        ("state 999", CloudState.UNKNOWN),
    ],
)
def test_what_an_active_vm_does(lcm: str, state: CloudState) -> None:
    assert words.state_of(words.ACTIVE, lcm) is state


@pytest.mark.parametrize("text", ["", "<", "<USER/>", "<VM_POOL><HOST/></VM_POOL>", "<VM_POOL><VM/></VM_POOL>"])
def test_what_is_no_list_of_vms_is_never_an_empty_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_vms(text)
    assert read_vms("<VM_POOL></VM_POOL>") == []
