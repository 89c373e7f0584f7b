"""Finds out what became of VMs that the list no longer shows, and when, with few calls for many VMs.

Reports a VM as gone only if the cloud does. Ends nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

from boss.providers.opennebula.errors import No, NoSuch
from boss.providers.opennebula.vm_list import SeenVm

log = logging.getLogger("boss")
ASKED_TOGETHER = 200
"""VMs named in one call; each takes 7 KB in the answer."""
APART = 100
"""Numbers further apart than this are asked for in two calls, because the answer includes all VMs between them."""
RANGES_AT_ONCE = 20
"""Range calls per list; the rest waits for the next list."""
LOOKED_FOR_AT_ONCE = 20
"""VMs that no range call shows and that are asked about one by one, per list; the others wait for the next list."""
MINE, ANY_STATE = -3, -2

ReadVms = Callable[..., Sequence[SeenVm]]


def look_for(read: ReadVms, ask: ReadVms, numbers: Iterable[int]) -> dict[int, SeenVm | None]:
    """Find these VMs, by number; None if the cloud has no VM of that number. Leaves out VMs that could not be asked
    about.

    `read` lists VMs and raises what a list raises; `ask` asks about one VM and raises `No`.
    """
    missing = sorted(set(numbers))
    found: dict[int, SeenVm | None] = {}
    # A call that names VMs also shows those of other users, if we may see them, with all attributes.
    for start in range(0, len(missing), ASKED_TOGETHER):
        some = ",".join(map(str, missing[start : start + ASKED_TOGETHER]))
        found.update((vm.id, vm) for vm in read("vmpool.infoset", some, True))
    # If it leaves out VMs that are DONE, a list of all states has them.
    for first, last in list(_ranges(number for number in missing if number not in found))[:RANGES_AT_ONCE]:
        found.update((vm.id, vm) for vm in read("vmpool.info", MINE, first, last, ANY_STATE) if vm.id not in found)
    wanted = frozenset(missing)
    for number in [number for number in missing if number not in found][:LOOKED_FOR_AT_ONCE]:
        try:
            found.update((vm.id, vm) for vm in ask("vm.info", number))
        except NoSuch:
            found[number] = None
        except No as error:
            log.debug("the cloud does not show VM %d: %s", number, error)
    return {number: vm for number, vm in found.items() if number in wanted}


def _ranges(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """First and last of groups of numbers that are close to each other."""
    first = last = -1
    for number in numbers:
        if last >= 0 and number - last > APART:
            yield first, last
            first = number
        elif last < 0:
            first = number
        last = number
    if last >= 0:
        yield first, last
