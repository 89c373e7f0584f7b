"""A sweep as a value: what `read_sweep` makes, and `sweep_tasks` turns into tasks."""

from __future__ import annotations

from typing import Any

import msgspec

from ecloud.formats.sweep.conditions import Condition
from ecloud.formats.sweep.values import Parameter

STYLES = ("equals", "space", "env", "hydra")
METHODS = ("grid", "random")


class Placed(msgspec.Struct, frozen=True):
    """A condition and where its text begins in the file (line and column from 0)."""

    condition: Condition
    line: int
    column: int


class Sweep(msgspec.Struct, frozen=True):
    """`zipped`: groups of parameters that vary together. `keep`: conditions of which each must hold; `exclude`: those
    of which none may hold. `only_if`: parameters that exist only where their condition holds.

    `program`: a line for the shell, to which the parameters are added as `style` says; `words` instead of both: what
    W&B's `command` lists. `defaults`: task fields, as in a task list.
    """

    name: str
    program: str
    parameters: tuple[Parameter, ...]
    zipped: tuple[tuple[str, ...], ...] = ()
    keep: tuple[Placed, ...] = ()
    only_if: dict[str, Placed] = {}
    exclude: tuple[Placed, ...] = ()
    method: str = "grid"
    samples: int = 0
    seed: str = "0"
    repeat: int = 1
    style: str = "equals"
    bare_flags: bool = True
    words: tuple[str, ...] = ()
    defaults: dict[str, Any] = {}
    notes: tuple[str, ...] = ()

    @property
    def groups(self) -> list[tuple[Parameter, ...]]:
        """Parameters that vary together, in the order in which they vary: the last one fastest."""
        partners = {name: names for names in self.zipped for name in names}
        by_name = {parameter.name: parameter for parameter in self.parameters}
        found: list[tuple[Parameter, ...]] = []
        done: set[str] = set()
        for parameter in self.parameters:
            if parameter.name not in done:
                names = partners.get(parameter.name, (parameter.name,))
                done.update(names)
                found.append(tuple(by_name[name] for name in names))
        return found

    @property
    def count(self) -> int:
        """Combinations, before any is left out."""
        if self.method == "random":
            return self.samples * self.repeat
        total = self.repeat
        for group in self.groups:
            total *= len(group[0].values)
        return total
