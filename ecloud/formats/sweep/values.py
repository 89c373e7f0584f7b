"""Values of one parameter: as they are listed, computed from an interval, or drawn at random.

A value is a text, as it was written: `1e-3` is not reformatted, `no` is not a boolean.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Iterator
from decimal import Decimal, localcontext

import msgspec

MAX_VALUES = 1_000_000
"""Limit for the values of one parameter."""
DIGITS = 6
"""Significant digits of a computed value that is not exact."""


class Value(msgspec.Struct, frozen=True):
    """A value of a parameter. `is_flag`: written as a bare true or false."""

    text: str
    is_flag: bool = False


class Draw(msgspec.Struct, frozen=True):
    """Values drawn at random. `kind`: uniform, log, int, normal, log_normal; `low` and `high` are mean and deviation of
    the last two. `step`: values are rounded to its multiples."""

    kind: str
    low: float
    high: float
    step: float | None = None

    def at(self, chance: float) -> str:
        """The value for a chance from 0 to below 1."""
        if self.kind == "int":
            return str(int(self.low) + int(chance * (int(self.high) - int(self.low) + 1)))
        if self.kind == "uniform":
            value = self.low + chance * (self.high - self.low)
        elif self.kind == "log":
            value = math.exp(math.log(self.low) + chance * (math.log(self.high) - math.log(self.low)))
        else:
            value = statistics.NormalDist(self.low, self.high).inv_cdf(min(max(chance, 1e-12), 1 - 1e-12))
            if self.kind == "log_normal":
                value = math.exp(value)
        if self.step:
            value = round(value / self.step) * self.step
        return f"{value:.{DIGITS}g}"


class Parameter(msgspec.Struct, frozen=True):
    """A parameter: its listed `values`, or how they are drawn. `weights`: of the values, where one is picked at random.
    `line`, `column`: of its name in the file, from 0."""

    name: str
    values: tuple[Value, ...] = ()
    draw: Draw | None = None
    weights: tuple[float, ...] = ()
    line: int = 0
    column: int = 0

    def pick(self, seed: str, sample: int) -> Value:
        """A value at random: always the same one for the same seed and sample."""
        digest = hashlib.blake2b(f"{seed}\0{sample}\0{self.name}".encode(), digest_size=8).digest()
        chance = (int.from_bytes(digest, "big") >> 11) / 2**53
        if self.draw is not None:
            return Value(self.draw.at(chance))
        if not self.weights:
            return self.values[int(chance * len(self.values))]
        left = chance * sum(self.weights)
        for value, weight in zip(self.values, self.weights):
            left -= weight
            if left < 0:
                return value
        return self.values[-1]


def interval(start: Decimal, end: Decimal, step: Decimal) -> Iterator[str]:
    """From `start` to below `end` (above it for a negative step), in exact decimals."""
    places = max(0, *(-int(number.as_tuple().exponent) for number in (start, step)))
    for index in range(steps(start, end, step)):
        number = start + index * step
        yield f"{number:.{places}f}"


def steps(start: Decimal, end: Decimal, step: Decimal) -> int:
    """How many values an interval has; 0 where the step leads away from the end."""
    with localcontext() as context:
        context.prec = 60
        return max(0, int(((end - start) / step).to_integral_value(rounding="ROUND_CEILING")))


def spaced_by_factors(start: str, end: str, count: int) -> Iterator[str]:
    """`count` values from `start` to `end`, both among them, each the same multiple of the one before."""
    first, last = Decimal(start), Decimal(end)
    for index in range(count):
        if index in (0, count - 1):
            yield start if index == 0 else end
        else:
            value = first * (((last / first).ln() * index / (count - 1)).exp())
            yield f"{float(value):.{DIGITS}g}"
