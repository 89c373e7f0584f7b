"""What the context of a VM brings that never meets its boss: the broker of its access file is not there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from services import HOST, free_port

from boss.bootstrap.start_script import variables
from ecloud.config.secrets import AccessFile

KEY = "5ec2e7" + "0" * 58
NONCE = "4-1"


def variables_of_a_vm(options: Sequence[str], password: str = "", **others: Any) -> dict[str, str]:
    """Of VM 1; `others`: what else `start_script.variables` takes."""
    access = AccessFile("c0ffee", HOST, free_port(), "vm-1", KEY, password=password)
    return variables(
        cluster_id="c0ffee",
        vm_no=1,
        boot_nonce=NONCE,
        access=msgspec.json.encode(access),
        boss=f"{access.host}:{access.port}",
        options=options,
        **others,
    )
