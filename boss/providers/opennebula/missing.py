"""VMs that were there and are not in the list any more: what became of each, and when, in few calls for however many.

Says of none that it is gone unless the cloud says so. Ends nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

from boss.providers.opennebula.errors import No, NoSuch
from boss.providers.opennebula.vm_list import SeenVm

log = logging.getLogger("boss")
ASKED_TOGETHER = 200
"""VMs that are named in one call: 7 KB each in its answer."""
APART = 100
"""Numbers with more than this between them are looked for in two calls: what lies between is shown, too."""
RANGES_AT_ONCE = 20
"""Calls of that kind for one list; what is left waits for the next."""
LOOKED_FOR_AT_ONCE = 20
"""VMs that no call shows, of which a list asks one by one; the others wait for the next."""
MINE, ANY_STATE = -3, -2

ReadVms = Callable[..., Sequence[SeenVm]]


def look_for(read: ReadVms, ask: ReadVms, numbers: Iterable[int]) -> dict[int, SeenVm | None]:
    """Of these VMs those that could be asked about, by number: None where the cloud has none of that number.

    `read` lists VMs, and raises what a list raises; `ask` asks about one, and raises `No`.
    """
    missing = sorted(set(numbers))
    found: dict[int, SeenVm | None] = {}
    # What names VMs shows those of others, too, where we may see them, and all attributes.
    for start in range(0, len(missing), ASKED_TOGETHER):
        some = ",".join(map(str, missing[start : start + ASKED_TOGETHER]))
        found.update((vm.id, vm) for vm in read("vmpool.infoset", some, True))
    # Where it leaves out those that are done, a list of all states has them.
    for first, last in list(_ranges(number for number in missing if number not in found))[:RANGES_AT_ONCE]:
        found.update((vm.id, vm) for vm in read("vmpool.info", MINE, first, last, ANY_STATE) if vm.id not in found)
    wanted = frozenset(missing)
    for number in [number for number in missing if number not in found][:LOOKED_FOR_AT_ONCE]:
        try:
            found.update((vm.id, vm) for vm in ask("vm.info", number))
        except NoSuch:
            found[number] = None
        except No as error:
            log.debug("VM %d is not shown: %s", number, error)
    return {number: vm for number, vm in found.items() if number in wanted}


def _ranges(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """First and last of numbers that are near each other."""
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
