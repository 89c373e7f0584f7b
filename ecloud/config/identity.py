"""Distinguishes a directory that was not moved from a copy of it: of a disk, a container's layer, or by `cp -r`.

A directory belongs to a machine, identified by its id, its hardware and its boot, and to a place there, identified by
device and inode. It stays the same when the machine boots again. It is a copy if the machine or the place is another
one.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from ecloud.config import this_host


class Mark(msgspec.Struct, frozen=True):
    """The identity of a directory. `hardware`: addresses of network cards and the number that firmware gives a
    machine."""

    machine: str = ""
    boot: str = ""
    device: int = 0
    inode: int = 0
    hardware: tuple[str, ...] = ()


def of(directory: Path) -> str:
    """Return the mark of a directory as text, to be stored in it."""
    info = directory.stat()
    mark = Mark(_read("/etc/machine-id"), this_host.boot_id(), info.st_dev, info.st_ino, _hardware())
    return msgspec.json.encode(mark).decode()


def is_same(kept: str, here: str) -> bool:
    """Whether the mark stored in a directory is that of the directory itself. False if it cannot be read."""
    try:
        old, new = (msgspec.json.decode(text, type=Mark) for text in (kept, here))
    except msgspec.MsgspecError:
        return False
    if old.boot == new.boot:
        return (old.device, old.inode) == (new.device, new.inode)
    # Devices change their numbers at a boot. A snapshot of a disk keeps inode and machine id, not the network cards.
    is_other_hardware = old.hardware and new.hardware and not set(old.hardware) & set(new.hardware)
    return (old.machine, old.inode) == (new.machine, new.inode) and not is_other_hardware


def _hardware() -> tuple[str, ...]:
    found = [_read("/sys/class/dmi/id/product_uuid")]
    with contextlib.suppress(OSError):
        for card in sorted(os.listdir("/sys/class/net")):
            if os.path.exists(f"/sys/class/net/{card}/device"):  # not bridges and tunnels, which any program may make
                found.append(_read(f"/sys/class/net/{card}/address"))
    return tuple(item for item in found if item)


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
