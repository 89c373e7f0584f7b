"""Measures how much a value holds, by container. For tests of memory growth; changes nothing.

Walks everything that is reachable from a value, so that containers that are added later are covered, too.
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

_PLAIN = (str, bytes, bytearray, int, float, bool, complex, type(None), type, ModuleType, enum.Enum)
_CONTAINERS = (Mapping, list, tuple, set, frozenset, deque)


def sizes(root: object) -> Counter[str]:
    """Return the number of entries of all containers of the same name, and of objects of each class.

    A container is named by the class and the attribute that refer to it; a container in it, by that name and [].
    """
    found: Counter[str] = Counter()
    seen = {id(root)}
    left: deque[tuple[str, Any]] = deque([(type(root).__name__, root)])
    while left:
        name, value = left.popleft()
        if isinstance(value, _CONTAINERS):
            found[name] += len(value)
        else:
            found[f"objects of {type(value).__name__}"] += 1
        for part_name, part in _parts(name, value):
            if not isinstance(part, _PLAIN) and id(part) not in seen:
                seen.add(id(part))
                left.append((part_name, part))
    return found


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the objects that a value refers to, each with its name."""
    if isinstance(value, Mapping):
        yield from ((f"{name} key", key) for key in value)
        yield from ((f"{name}[]", item) for item in value.values())
    elif isinstance(value, _CONTAINERS):
        yield from ((f"{name}[]", item) for item in value)
    elif isinstance(value, MethodType):
        yield type(value.__self__).__name__, value.__self__
    elif isinstance(value, partial):
        yield from ((f"partial of {getattr(value.func, '__qualname__', '?')}", part) for part in _of_partial(value))
    elif isinstance(value, FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        yield from ((f"{value.__qualname__}.{variable}", cell.cell_contents) for variable, cell in cells)
    else:
        yield from _attributes(value)


def _of_partial(value: partial[Any]) -> Iterator[object]:
    yield value.func
    yield from value.args
    yield from value.keywords.values()


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    owner = type(value).__name__
    names = [*getattr(value, "__struct_fields__", ()), *getattr(value, "__dict__", ())]
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        names += [slots] if isinstance(slots, str) else slots
    for name in dict.fromkeys(names):
        part = getattr(value, name, None)
        if part is not None:
            yield f"{owner}.{name}", part
