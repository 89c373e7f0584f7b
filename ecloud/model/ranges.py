"""Sets of whole numbers as ranges: a million consecutive numbers cost as much as one.

Written as `1-1000,1005`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator


class Ranges:
    """Numbers from 0, kept as sorted ranges that do not touch. Each query costs the logarithm of the number of
    ranges."""

    __slots__ = ("_firsts", "_lasts", "count")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        """`ranges`: (first, last), both included, in any order."""
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        self.count = 0
        for first, last in sorted(ranges):
            if self._lasts and first <= self._lasts[-1] + 1:
                self.count += max(0, last - self._lasts[-1])
                self._lasts[-1] = max(self._lasts[-1], last)
            else:
                self._firsts.append(first)
                self._lasts.append(last)
                self.count += last - first + 1

    @classmethod
    def of(cls, text: str) -> Ranges:
        """Read the text that `str` wrote."""
        parts = [part.partition("-") for part in text.split(",") if part]
        return cls([(int(first), int(last or first)) for first, _, last in parts])

    @classmethod
    def holding(cls, numbers: Iterable[int]) -> Ranges:
        """Return the set of these numbers."""
        return cls([(number, number) for number in numbers])

    def __str__(self) -> str:
        return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in self.ranges)

    def __bool__(self) -> bool:
        return bool(self._firsts)

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._firsts, number) - 1
        return at >= 0 and number <= self._lasts[at]

    def __iter__(self) -> Iterator[int]:
        for first, last in self.ranges:
            yield from range(first, last + 1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and self._firsts == other._firsts and self._lasts == other._lasts

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """(first, last), in order."""
        return list(zip(self._firsts, self._lasts, strict=True))

    def copy(self) -> Ranges:
        """Return another set of the same numbers."""
        return Ranges(self.ranges)

    def add(self, number: int) -> None:
        """Add a number."""
        at = bisect_right(self._firsts, number) - 1
        if at >= 0 and number <= self._lasts[at]:
            return
        self.count += 1
        after = at + 1
        joins_before = at >= 0 and self._lasts[at] == number - 1
        joins_after = after < len(self._firsts) and self._firsts[after] == number + 1
        if joins_before and joins_after:
            self._lasts[at] = self._lasts.pop(after)
            del self._firsts[after]
        elif joins_before:
            self._lasts[at] = number
        elif joins_after:
            self._firsts[after] = number
        else:
            self._firsts.insert(after, number)
            self._lasts.insert(after, number)

    def discard(self, number: int) -> None:
        """Remove a number."""
        at = bisect_right(self._firsts, number) - 1
        if at < 0 or number > self._lasts[at]:
            return
        self.count -= 1
        first, last = self._firsts[at], self._lasts[at]
        if first == last:
            del self._firsts[at], self._lasts[at]
        elif number == first:
            self._firsts[at] = number + 1
        elif number == last:
            self._lasts[at] = number - 1
        else:
            self._lasts[at] = number - 1
            self._firsts.insert(at + 1, number + 1)
            self._lasts.insert(at + 1, last)

    def take(self, count: int) -> list[int]:
        """Remove the first `count` numbers; return them in order."""
        taken: list[int] = []
        whole = 0
        for first, last in zip(self._firsts, self._lasts, strict=True):
            room = count - len(taken)
            if last - first + 1 > room:
                taken.extend(range(first, first + room))
                break
            taken.extend(range(first, last + 1))
            whole += 1
        del self._firsts[:whole], self._lasts[:whole]
        if self._firsts and len(taken) == count and taken and taken[-1] >= self._firsts[0]:
            self._firsts[0] = taken[-1] + 1
        self.count -= len(taken)
        return taken

    def intersection(self, other: Ranges) -> Ranges:
        """Return the numbers that are in both sets."""
        found, at, beside = [], 0, 0
        while at < len(self._firsts) and beside < len(other._firsts):
            first = max(self._firsts[at], other._firsts[beside])
            last = min(self._lasts[at], other._lasts[beside])
            if first <= last:
                found.append((first, last))
            if self._lasts[at] < other._lasts[beside]:
                at += 1
            else:
                beside += 1
        return Ranges(found)


class Indices:
    """The indices of an array's elements, in the order of its positions 0, 1, 2, …: `1-9:2,20` is 1, 3, 5, 7, 9, 20.

    Ascending. Conversion in either direction costs the logarithm of the number of parts.
    """

    __slots__ = ("_at", "_parts", "count")

    def __init__(self, parts: Iterable[range]) -> None:
        self._parts = [part for part in parts if part]
        self._at: list[int] = []
        self.count = 0
        for part in self._parts:
            self._at.append(self.count)
            self.count += len(part)

    @classmethod
    def of(cls, text: str) -> Indices:
        """Read the text that `str` wrote."""
        parts = []
        for part in text.split(","):
            span, _, step = part.partition(":")
            first, _, last = span.partition("-")
            parts.append(range(int(first), int(last or first) + 1, int(step or 1)))
        return cls(parts)

    @classmethod
    def holding(cls, numbers: Iterable[int]) -> Indices:
        """Return these numbers, each once, ascending."""
        found: list[range] = []
        first = last = step = length = 0
        for number in sorted(set(numbers)):
            if length == 1:
                step, last, length = number - last, number, 2
                continue
            if length > 1 and number - last == step:
                last, length = number, length + 1
                continue
            if length == 2 and step > 1:  # two numbers that are far apart make no part
                found.append(range(first, first + 1))
                first, step, last = last, number - last, number
                continue
            if length:
                found.append(range(first, last + 1, step))
            first, last, length = number, number, 1
        if length:
            found.append(range(first, last + 1, step if length > 1 else 1))
        return cls(found)

    @property
    def bounds(self) -> list[int]:
        """First and last index of each part, in order; a part with one index gives it once."""
        return [bound for part in self._parts for bound in dict.fromkeys((part.start, part[-1]))]

    def __str__(self) -> str:
        return ",".join(_span(part) for part in self._parts)

    def __getitem__(self, position: int) -> int:
        at = bisect_right(self._at, position) - 1
        return self._parts[at][position - self._at[at]]

    def __iter__(self) -> Iterator[int]:
        for part in self._parts:
            yield from part

    def position(self, index: int) -> int | None:
        """Return the position of an index; None if no element has it."""
        at = bisect_right(self._parts, index, key=lambda part: part.start) - 1
        if at < 0 or index not in self._parts[at]:
            return None
        return self._at[at] + self._parts[at].index(index)


def _span(part: range) -> str:
    if len(part) == 1:
        return str(part.start)
    return f"{part.start}-{part[-1]}" + (f":{part.step}" if part.step > 1 else "")
