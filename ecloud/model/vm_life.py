"""Divides the life of one VM into parts and attributes each part to runs: a pure function of the recorded times.

A VM's life lasts from when its cloud created it until it was gone. Each moment of it belongs to exactly one of the
parts below, and to the runs whose attempts were on the VM then. Times are whole microseconds, so that all sums
are exact.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import msgspec

PARTS = ("booting", "staging", "running", "idle", "draining", "lost")
"""booting: from being made to its worker's first message. running: commands of at least one attempt ran. staging: no
commands ran, but an attempt fetched its requirements, or its results were being stored. lost: the VM had only attempts
whose work was lost, or ended before any worker had reported. draining: the VM had no attempt, and its end was decided.
idle: the rest."""
MICRO = 1_000_000
CLOUD_COUNTS_S = 1.0
"""Clouds report whole seconds."""


class VmLife(msgspec.Struct, frozen=True):
    """The known times of one VM. `hello_at`, `ending_at`, `gone_at`: None if not reached yet.

    `started_at` and `gone_at` are by the clock of its cloud, all other times by the boss's: `ahead_s` is by how much
    the cloud's clock is ahead of that.
    """

    vm_no: int
    pool: str
    started_at: float
    hello_at: float | None = None
    ending_at: float | None = None
    gone_at: float | None = None
    ahead_s: float = 0.0


class Ran(msgspec.Struct, frozen=True):
    """An attempt on the VM. `ended_at` None: it has not ended. `run_s` None: the duration of its commands is not known;
    then all its time except the fetching counts."""

    run_no: int
    started_at: float
    ended_at: float | None = None
    lost: bool = False
    fetch_s: float = 0.0
    run_s: float | None = None


class Division(msgspec.Struct, frozen=True):
    """A life in microseconds: `parts` add up to it. `runs`: each part by run_no; empty for a VM that never had an
    attempt.

    Attempts that are on the VM together share the time equally. The time of booting belongs to the first attempts; idle
    and draining time to the last ones.
    """

    parts: dict[str, int]
    runs: dict[int, dict[str, int]]


class _Here(msgspec.Struct, frozen=True):
    """An attempt in microseconds: on the VM from `start` to `end`, its commands from `begins` to `ceases`."""

    run_no: int
    lost: bool
    start: int
    begins: int
    ceases: int
    end: int


def ahead_s(intended_at: float, started_at: float, seen_at: float) -> float:
    """Estimate by how much the clock of a VM's cloud is ahead of the boss's, in seconds. 0 if the VM was made (by the
    cloud's clock) between the request and the first time it was seen (both by the boss's clock), with a tolerance of
    whole seconds; else the difference that makes the request the moment of its making."""
    if intended_at - CLOUD_COUNTS_S <= started_at <= max(intended_at, seen_at) + CLOUD_COUNTS_S:
        return 0.0
    return started_at - intended_at


def micros(at: float) -> int:
    """Convert seconds to whole microseconds."""
    return round(at * MICRO)


def divide(vm: VmLife, ran: Sequence[Ran], now: float) -> Division:
    """Return the parts of a VM's life until `now`, and the runs they belong to. Times outside the life, as when clocks
    differ, are cut off: the cloud's times define the life."""
    parts = dict.fromkeys(PARTS, 0)
    runs: dict[int, dict[str, int]] = {}
    before: list[int] = []
    unclaimed: dict[str, int] = {}
    for start, end, part, going in _told(vm, ran, now):
        length = end - start
        parts[part] += length
        if going:
            before = [attempt.run_no for attempt in going]
            for other, amount in unclaimed.items():
                _share(runs, before, other, amount)
            unclaimed = {}
            for run_no, amount in _shares([attempt.run_no for attempt in going], length):
                lost = all(attempt.lost for attempt in going if attempt.run_no == run_no)
                _add(runs, run_no, "lost" if lost else part, amount)
        elif before:
            _share(runs, before, part, length)
        else:
            unclaimed[part] = unclaimed.get(part, 0) + length
    return Division(parts, runs)


def spans(vm: VmLife, ran: Sequence[Ran], now: float) -> Iterator[tuple[float, float, str]]:
    """Yield the same life in order of time and without gaps: (from, to, part) in seconds by the boss's clock."""
    for start, end, part, _ in _told(vm, ran, now):
        yield start / MICRO - vm.ahead_s, end / MICRO - vm.ahead_s, part


def _told(vm: VmLife, ran: Sequence[Ran], now: float) -> Iterator[tuple[int, int, str, list[_Here]]]:
    """Yield each section of a life: from, to, its part, the attempts on the VM."""
    born, ahead = micros(vm.started_at), micros(vm.ahead_s)
    over = max(born, micros(vm.gone_at) if vm.gone_at is not None else micros(now) + ahead)
    hello = over if vm.hello_at is None else min(max(micros(vm.hello_at) + ahead, born), over)
    leaving = over if vm.ending_at is None else min(max(micros(vm.ending_at) + ahead, hello), over)
    for start, end, going in _moments(born, over, (hello, leaving), ran, ahead):
        yield start, end, _part(going, start, hello, leaving, vm), going


def _part(going: list[_Here], start: int, hello: int, leaving: int, vm: VmLife) -> str:
    good = [attempt for attempt in going if not attempt.lost]
    if good:
        return "running" if any(attempt.begins <= start < attempt.ceases for attempt in good) else "staging"
    if going:
        return "lost"
    if start < hello:
        return "lost" if vm.hello_at is None and vm.gone_at is not None else "booting"
    return "draining" if start >= leaving else "idle"


def _shares(run_nos: list[int], length: int) -> Iterator[tuple[int, int]]:
    """Yield whole microseconds for each run, by its number of attempts; they add up to the length."""
    counts = [(run_no, len(list(same))) for run_no, same in itertools.groupby(sorted(run_nos))]
    given = counted = 0
    for run_no, count in counts:
        counted += count
        upto = length * counted // len(run_nos)
        yield run_no, upto - given
        given = upto


def _share(runs: dict[int, dict[str, int]], run_nos: list[int], part: str, length: int) -> None:
    for run_no, amount in _shares(run_nos, length):
        _add(runs, run_no, part, amount)


def _add(runs: dict[int, dict[str, int]], run_no: int, part: str, amount: int) -> None:
    runs.setdefault(run_no, dict.fromkeys(PARTS, 0))[part] += amount


def _moments(
    born: int, over: int, marks: Iterable[int], ran: Sequence[Ran], ahead: int
) -> Iterator[tuple[int, int, list[_Here]]]:
    """Cut the life wherever something begins or ends: from, to, and the attempts on the VM in between."""
    begins: dict[int, list[_Here]] = {}
    ends: dict[int, list[_Here]] = {}
    cuts = {born, over, *marks}
    for attempt in ran:
        here = _here(attempt, born, over, ahead)
        if here.start < here.end:
            begins.setdefault(here.start, []).append(here)
            ends.setdefault(here.end, []).append(here)
            cuts.update((here.start, here.begins, here.ceases, here.end))
    going: dict[int, _Here] = {}
    for start, end in itertools.pairwise(sorted(cuts)):
        for here in ends.get(start, ()):
            going.pop(id(here), None)
        going.update({id(here): here for here in begins.get(start, ())})
        yield start, end, list(going.values())


def _here(attempt: Ran, born: int, over: int, ahead: int) -> _Here:
    start = min(max(born, micros(attempt.started_at) + ahead), over)
    end = over if attempt.ended_at is None else min(over, micros(attempt.ended_at) + ahead)
    begins = min(max(start, start + micros(attempt.fetch_s)), max(start, end))
    ceases = end if attempt.run_s is None else min(end, begins + micros(attempt.run_s))
    return _Here(attempt.run_no, attempt.lost, start, begins, max(begins, ceases), end)
