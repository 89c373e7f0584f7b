"""Tells a directory that stayed where it was from a copy of it: of a disk, a container's layer, or by `cp -r`.

A directory belongs to a machine, by its id, its hardware and its boot, and to a place there, by device and inode. It
stays the same when the machine boots again. It is a copy when the machine is another one, or the place.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from ecloud.config import this_host


class Mark(msgspec.Struct, frozen=True):
    """Where a directory is. `hardware`: addresses of network cards and the number that firmware gives a machine."""

    machine: str = ""
    boot: str = ""
    device: int = 0
    inode: int = 0
    hardware: tuple[str, ...] = ()


def of(directory: Path) -> str:
    """The mark of a directory as text, to be kept in it."""
    info = directory.stat()
    mark = Mark(_read("/etc/machine-id"), this_host.boot_id(), info.st_dev, info.st_ino, _hardware())
    return msgspec.json.encode(mark).decode()


def is_same(kept: str, here: str) -> bool:
    """Whether a mark that a directory keeps is that of the directory itself. One that cannot be read is not."""
    try:
        old, new = (msgspec.json.decode(text, type=Mark) for text in (kept, here))
    except msgspec.MsgspecError:
        return False
    if old.boot == new.boot:
        return (old.device, old.inode) == (new.device, new.inode)
    # Devices get other numbers at a boot. A snapshot of a disk keeps inode and machine id, not the network cards.
    is_other_hardware = old.hardware and new.hardware and not set(old.hardware) & set(new.hardware)
    return (old.machine, old.inode) == (new.machine, new.inode) and not is_other_hardware


def _hardware() -> tuple[str, ...]:
    found = [_read("/sys/class/dmi/id/product_uuid")]
    with contextlib.suppress(OSError):
        for card in sorted(os.listdir("/sys/class/net")):
            if os.path.exists(f"/sys/class/net/{card}/device"):  # not bridges and tunnels, which anybody may make
                found.append(_read(f"/sys/class/net/{card}/address"))
    return tuple(item for item in found if item)


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
