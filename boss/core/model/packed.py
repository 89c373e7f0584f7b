"""A list of many values that are read one after another and change no more: encoded, it takes a tenth of the memory."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import msgspec

ITEMS_A_PART = 1_000
"""Items that are encoded together. The last ones, fewer than these, are kept as they are: most lists are short, and
encode nothing."""
QUICK = 1
"""Compression level of zlib. Higher ones take longer and save little."""

_Item = TypeVar("_Item")
_encoder = msgspec.msgpack.Encoder()


class Packed(Collection[_Item], Generic[_Item]):
    """A list of `kind`, which msgspec must be able to encode and to decode. Each iteration decodes it again, part by
    part: changes of an item are lost."""

    def __init__(self, kind: type[_Item], items: Iterable[_Item] = ()) -> None:
        self._kind = kind
        self._parts: list[tuple[bytes, int]] = []
        """Each with the number of its items."""
        self._last: list[_Item] = []
        self.extend(items)

    def append(self, item: _Item) -> None:
        """Add an item. It must not change afterwards."""
        self._last.append(item)
        if len(self._last) >= ITEMS_A_PART:
            self.pack()

    def extend(self, items: Iterable[_Item]) -> None:
        """Add items."""
        for item in items:
            self.append(item)

    def add_packed(self, other: Packed[_Item]) -> None:
        """Add the items of a list of the same kind, without decoding them."""
        if other._parts:
            self.pack()
            self._parts += other._parts
        self.extend(other._last)

    def pack(self) -> None:
        """Encode the last items, too."""
        if self._last:
            self._add_part(self._last)
            self._last = []

    def _add_part(self, items: Sequence[object]) -> None:
        self._parts.append((zlib.compress(_encoder.encode(items), QUICK), len(items)))

    def __len__(self) -> int:
        return sum([count for _, count in self._parts]) + len(self._last)

    def __iter__(self) -> Iterator[_Item]:
        if self._parts:
            kind: Any = self._kind
            decoder = msgspec.msgpack.Decoder(list[kind])
            for part, _ in self._parts:
                yield from decoder.decode(zlib.decompress(part))
        yield from self._last

    def __contains__(self, item: object) -> bool:
        return any(other == item for other in self)

    def in_order(self, positions: Sequence[int]) -> Packed[_Item]:
        """The items, each at another of these positions."""
        assert len(positions) == len(self)
        if all(map(int.__eq__, positions, range(len(self)))):
            return self
        if not self._parts:
            return Packed(self._kind, map(self._last.__getitem__, positions))
        items = [msgspec.Raw(_encoder.encode(item)) for item in self]
        found: Packed[_Item] = Packed(self._kind)
        for start in range(0, len(positions), ITEMS_A_PART):
            part = positions[start : start + ITEMS_A_PART]
            found._add_part([items[position] for position in part])
        return found


def drained(items: list[_Item]) -> Iterator[_Item]:
    """Yield the items in order, and remove each from the list, whose memory is free as soon as possible."""
    items.reverse()
    while items:
        yield items.pop()
