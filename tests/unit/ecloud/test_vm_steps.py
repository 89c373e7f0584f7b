"""What `why vm/ID` tells of the steps of a VM's life, whatever the clock of its cloud says."""

from __future__ import annotations

from typing import Any

import pytest

from ecloud.queries.boot_history import record
from ecloud.queries.views import VmView

ASKED_AT = 1_700_000_000.5


def told(**times: float) -> str:
    """The first sentence. Times in seconds after the VM was asked for."""
    at: dict[str, Any] = {f"{name}_at": ASKED_AT + seconds for name, seconds in times.items()}
    row = {"hello_at": None, "gone_at": None, "ending_at": None, **at}
    view = VmView(
        vm_no=1, pool="p", state="gone", since=ASKED_AT, size={}, boot_nonce="n", cloud_id="7", worker="",
        keep_alive=False, reason="", intended_at=ASKED_AT, **row,
    )  # fmt: skip
    return next(iter(record(view, None, ASKED_AT + 1_000)))


@pytest.mark.parametrize("off_s", [0.0, 3_600.0, -3_600.0])
def test_the_steps_are_shown_by_the_boss_s_clock(off_s: float) -> None:
    text = told(started=off_s - 0.5, hello=60.2, first_task=61.0, ending=100.0, gone=99.5 + off_s)
    assert text.partition("; ")[2] == (
        "created by its cloud after 0 s, its worker reported after 1 min, its first task after 1 min 1 s, "
        "its end decided after 1 min 40 s, gone after 1 min 40 s"
    )
