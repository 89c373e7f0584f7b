"""Numbers, times and foreign texts in readable form. Pure: the caller provides the present time."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from datetime import datetime

from ecloud.model.calls import is_python_resource

_BARE = frozenset("\n\t")
_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
"""Unicode categories that a terminal acts on or hides: controls, direction marks, surrogates, line separators."""


def visible(text: str, lines: bool = False) -> str:
    """Make foreign text safe to print: show controls that a terminal obeys as escapes. `lines` keeps \\n and \\t."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character
        if (lines and character in _BARE) or unicodedata.category(character) not in _UNSEEN
        else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def duration(seconds: float) -> str:
    """ "0.12 s", "14 s", "3 min 20 s", "2 h 5 min", "3 d 4 h": two units at most."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.2g} s" if seconds >= 0.01 else "0 s"
    whole = round(seconds)
    for size, name, below, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {name} {rest} {smaller}" if rest else f"{whole // size} {name}"
    return f"{whole} s"


def about(seconds: float) -> str:
    """An estimate, without false precision: "12 s", "4 min", "2 h 10 min"."""
    if seconds < 55:
        return f"{max(1, round(seconds))} s"
    if seconds < 3_300:
        return f"{max(1, round(seconds / 60))} min"
    return duration(round(seconds / 600) * 600)


def when(at: float | None, now: float | None = None) -> str:
    """A time of day here and its zone, with the date where it is not today's: "21:04:45 UTC". "-" for None."""
    if at is None:
        return "-"
    local = datetime.fromtimestamp(at).astimezone()
    today = now is not None and local.date() == datetime.fromtimestamp(now).astimezone().date()
    return local.strftime("%H:%M:%S %Z" if today else "%Y-%m-%d %H:%M:%S %Z")


def megabytes(amount: float) -> str:
    """Return MB in readable form: "512 MB", "7.6 GB"."""
    return _scaled(amount, ("MB", "GB", "TB"))


def byte_size(count: float) -> str:
    """Return bytes in readable form: "312 B", "4.2 kB", "7.6 GB"."""
    return _scaled(count, ("B", "kB", "MB", "GB", "TB"))


def _scaled(amount: float, units: Sequence[str]) -> str:
    """Return an amount of the first unit with three digits in the unit where it is below 1,000."""
    for unit in units[:-1]:
        if amount < 999.5:  # above, it would be written as 1e+03
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:,.0f} {units[-1]}" if amount >= 999.5 else f"{amount:.3g} {units[-1]}"


def amounts(resources: dict[str, float]) -> str:
    """Resources in words: "2 cpus, 4 GB memory, 1 gpu, python3.11" (the amount of a Python has no meaning)."""
    parts = []
    for name, amount in sorted(
        resources.items(), key=lambda item: (item[0] != "cpus", item[0] != "memory_mb", item[0])
    ):
        if name == "memory_mb":
            parts.append(f"{megabytes(amount)} memory")
        elif is_python_resource(name):
            parts.append(name)
        else:
            unit = name.removesuffix("s") if amount == 1 and name in ("cpus", "gpus") else name
            parts.append(f"{amount:g} {unit}")
    return ", ".join(parts) or "nothing"


def counted(count: int, one: str, many: str = "") -> str:
    """ "1 task", "2 tasks", "1,000 tasks"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
