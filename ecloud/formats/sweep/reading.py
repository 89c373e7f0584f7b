"""Sweep files -> `Sweep`: our own, mlframework's (names with values, nothing else) and those of Weights & Biases.

Every problem is listed with its line and column.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from ecloud.formats.filling import variable_of
from ecloud.formats.problems import Problems, TaskListWrong, shown
from ecloud.formats.sweep.conditions import ConditionWrong, parse_condition
from ecloud.formats.sweep.model import METHODS, STYLES, Placed, Sweep
from ecloud.formats.sweep.parameters import read_parameter
from ecloud.formats.sweep.tasks import REPEAT
from ecloud.formats.sweep.values import Parameter
from ecloud.formats.sweep.yaml_nodes import YamlNode, is_plain, kind, pairs_of, place_of, plain_value
from ecloud.model.tasks import MAX_ID_CHARS

KEYS = (
    "name", "program", "parameters", "zip", "when", "exclude", "method", "samples", "seed", "repeat", "style",
    "defaults",
)  # fmt: skip
"""Of our own files."""
WANDB_KEYS = ("command", "run_cap", "metric", "early_terminate", "description", "entity", "project", "controller")
"""What W&B's files have besides. The last six are ignored: they steer W&B's own service."""
MAX_REPEAT = 100_000
MAX_SAMPLES = 10_000_000


def is_sweep(node: YamlNode) -> bool:
    """Whether a document is a sweep: names with values, that are no task list and no WfFormat."""
    if node.id != "mapping":
        return False
    keys = {key.value for key, _ in node.value if key.id == "scalar"}
    return not keys & {"tasks", "workflow", "schemaVersion"}


def read_sweep(node: YamlNode, name: str, program: str = "", samples: int = 0) -> Sweep:
    """A sweep from its document. `name`: the run's, where the file gives none. `program`, `samples`: as the user gave
    them, instead of the file's. Raises `TaskListWrong`."""
    problems = Problems()
    reader = _Reader(problems)
    has_parameters = any(key.id == "scalar" and key.value == "parameters" for key, _ in node.value)
    fields: dict[str, Any] = reader.fields(node) if has_parameters else {"parameters": reader.parameters(node)}
    if program:
        fields["program"] = program
    if samples:
        fields["samples"] = samples
    fields.setdefault("name", name)
    if not fields.setdefault("program", "") and not fields.get("words"):
        problems.add("", "program", "missing: write --program 'python train.py', or program: in the file")
    sweep = Sweep(**{"parameters": (), **fields})
    reader.check(sweep)
    if not problems.is_empty:
        raise TaskListWrong(problems.kept, problems.more)
    return sweep


class _Reader:
    """Reads the parts of one document; remembers where they were."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._places: dict[str, str] = {}
        self._names: list[str] = []
        """Of all parameters, those that are wrong, too."""

    def fields(self, node: YamlNode) -> dict[str, Any]:
        """Fields of `Sweep` from a document with `parameters`."""
        items = {name: (key, value) for name, key, value in pairs_of(node, self._problems, "a sweep")}
        is_wandb = any(name in WANDB_KEYS for name in items)
        readers: dict[str, Callable[[YamlNode], dict[str, Any]]] = {
            "name": lambda node: {"name": self._name(node)},
            "program": lambda node: {"program": self._program(node)},
            "parameters": lambda node: {"parameters": self.parameters(node)},
            "zip": lambda node: {"zipped": self._zip(node)},
            "when": self._when,
            "exclude": lambda node: {"exclude": self._conditions(node)},
            "method": lambda node: {"method": self._choice(node, "method", METHODS)},
            "samples": lambda node: {"samples": self._count(node, "samples", MAX_SAMPLES)},
            "run_cap": lambda node: {"samples": self._count(node, "run_cap", MAX_SAMPLES)},
            "seed": lambda node: {"seed": self._text(node, "seed")},
            "repeat": lambda node: {"repeat": self._count(node, "repeat", MAX_REPEAT)},
            "style": lambda node: {"style": self._choice(node, "style", STYLES)},
            "defaults": lambda node: {"defaults": self._defaults(node)},
            "command": lambda node: {"words": self._words(node)},
        }
        fields: dict[str, Any] = {}
        for name, (key, value) in items.items():
            self._places[name] = place_of(key)
            if name in readers:
                fields.update(readers[name](value))
            elif name not in WANDB_KEYS:
                nearest = difflib.get_close_matches(name[:100], KEYS, 1)
                hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(KEYS)}"
                self._problems.add(place_of(key), shown(name), f"a sweep has no such field; {hint}")
        if is_wandb:
            ignored = [name for name in items if name in WANDB_KEYS[2:]]
            fields["bare_flags"] = False
            fields["notes"] = (f"ignored, it is for W&B's own service: {', '.join(ignored)}",) if ignored else ()
            if fields.get("method") == "grid" and "samples" in fields:
                fields.pop("samples")
                fields["notes"] += ("run_cap is ignored: a grid runs all its combinations",)
        return fields

    def parameters(self, node: YamlNode) -> tuple[Parameter, ...]:
        """Each name with its values."""
        found = []
        for name, key, value in pairs_of(node, self._problems, "parameters"):
            self._names.append(name)
            parameter = read_parameter(name, key, value, self._problems)
            if parameter is not None:
                found.append(parameter)
        if node.id == "mapping" and not node.value:
            self._problems.add(place_of(node), "parameters", "there are none")
        self._refuse_equal_variables(found)
        return tuple(found)

    def _refuse_equal_variables(self, parameters: list[Parameter]) -> None:
        seen: dict[str, str] = {}
        for parameter in parameters:
            other = seen.setdefault(variable_of(parameter.name), parameter.name)
            if other != parameter.name:
                text = f"{shown(parameter.name)} and {shown(other)} would both be ${variable_of(parameter.name)}"
                self._problems.add(_place(parameter), "", text)

    def _text(self, node: YamlNode, field: str) -> str:
        if node.id != "scalar":
            self._problems.add(place_of(node), field, f"expected a text, not {kind(node)}")
            return ""
        return str(node.value)

    def _name(self, node: YamlNode) -> str:
        name = self._text(node, "name")
        if not (1 <= len(name) <= MAX_ID_CHARS and name.isprintable()):
            self._problems.add(place_of(node), "name", f"a text of 1 to {MAX_ID_CHARS} printable characters")
            return "sweep"
        return name

    def _program(self, node: YamlNode) -> str:
        program = self._text(node, "program").strip()
        return f"python3 {program}" if program.endswith(".py") and not set(program) & set(" \t\n'\"$;&|<>") else program

    def _choice(self, node: YamlNode, field: str, choices: tuple[str, ...]) -> str:
        text = self._text(node, field)
        if text == "bayes" and field == "method":
            problem = "bayes chooses values from earlier results, which is not supported: use grid or random"
            self._problems.add(place_of(node), field, problem)
        elif text not in choices:
            self._problems.add(place_of(node), field, f"{shown(text)!r}: known are {', '.join(choices)}")
        return text if text in choices else choices[0]

    def _count(self, node: YamlNode, field: str, most: int) -> int:
        text = self._text(node, field)
        if text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most:
            return int(text)
        self._problems.add(place_of(node), field, f"a whole number from 1 to {most:,}")
        return 1

    def _zip(self, node: YamlNode) -> tuple[tuple[str, ...], ...]:
        """`[a, b]`, or `[[a, b], [c, d]]`."""
        if node.id != "sequence" or not node.value:
            self._problems.add(place_of(node), "zip", "expected a list of names, or a list of such lists")
            return ()
        groups = node.value if all(item.id == "sequence" for item in node.value) else [node]
        found = []
        for group in groups:
            names = [self._text(item, "zip") for item in group.value]
            self._places.update({f"zip {name}": place_of(item) for name, item in zip(names, group.value)})
            if len(names) < 2:
                self._problems.add(place_of(group), "zip", "at least two parameters vary together")
            found.append(tuple(names))
        return tuple(found)

    def _when(self, node: YamlNode) -> dict[str, Any]:
        """Conditions that combinations must meet; or names of parameters with the condition under which they exist."""
        if node.id != "mapping":
            return {"keep": self._conditions(node)}
        found = {}
        for name, key, value in pairs_of(node, self._problems, "when"):
            self._places[f"when {name}"] = place_of(key)
            for condition in self._conditions(value):
                found[name] = condition
        return {"only_if": found}

    def _conditions(self, node: YamlNode) -> tuple[Placed, ...]:
        found = []
        for item in node.value if node.id == "sequence" else [node]:
            if item.id == "mapping":
                found += self._equalities(item)
                continue
            if item.id != "scalar":
                self._problems.add(place_of(item), "", f"expected a condition such as lr < 0.1, not {kind(item)}")
                continue
            try:
                condition = parse_condition(item.value)
            except ConditionWrong as wrong:
                self._problems.add(place_of(item, wrong.column), "condition", wrong.text)
                continue
            quote = 0 if is_plain(item) else 1
            found.append(Placed(condition, item.start_mark.line, item.start_mark.column + quote))
        return tuple(found)

    def _equalities(self, node: YamlNode) -> list[Placed]:
        """`{lr: 0.1, batch: [16, 32]}` means that all of these are so."""
        parts = []
        for name, key, value in pairs_of(node, self._problems, "a condition"):
            items = value.value if value.id == "sequence" else [value]
            if any(item.id != "scalar" for item in items):
                self._problems.add(place_of(value), "condition", "expected a value, or a list of values")
                continue
            quoted = ["'" + item.value.replace("'", "''") + "'" for item in items]
            parts.append((f"{name} in [{', '.join(quoted)}]", key))
        try:
            condition = parse_condition(" and ".join(text for text, _ in parts))
        except ConditionWrong:
            self._problems.add(place_of(node), "condition", "expected names of parameters with values")
            return []
        return [Placed(condition, node.start_mark.line, node.start_mark.column)]

    def _defaults(self, node: YamlNode) -> dict[str, Any]:
        value = plain_value(node, self._problems)
        if not isinstance(value, dict):
            self._problems.add(place_of(node), "defaults", "expected task fields with values")
            return {}
        for name, key, _ in pairs_of(node, Problems(), "defaults"):
            self._places[f"defaults {name}"] = place_of(key)
        return value

    def _words(self, node: YamlNode) -> tuple[str, ...]:
        if node.id != "sequence":
            self._problems.add(place_of(node), "command", f"expected a list of words, not {kind(node)}")
            return ()
        return tuple(self._text(item, "command") for item in node.value)

    def check(self, sweep: Sweep) -> None:
        """What the parts mean to each other."""
        by_name = {parameter.name: parameter for parameter in sweep.parameters}
        seen: set[str] = set()
        for group in sweep.zipped:
            lengths = []
            for name in group:
                where = self._places.get(f"zip {name}", "")
                if name not in self._names:
                    self._problems.add(where, "zip", self._unknown(name))
                elif name in seen:
                    self._problems.add(where, "zip", f"{shown(name)} stands twice")
                elif name in by_name:
                    lengths.append((len(by_name[name].values), name))
                seen.add(name)
            if len({length for length, _ in lengths}) > 1:
                told = ", ".join(f"{shown(name)} has {length:,}" for length, name in lengths)
                self._problems.add(self._places.get("zip", ""), "zip", f"as many values are needed of each: {told}")
        for name in sweep.only_if:
            if name not in self._names:
                self._problems.add(self._places.get(f"when {name}", ""), "when", self._unknown(name))
        for placed in (*sweep.keep, *sweep.only_if.values(), *sweep.exclude):
            for name, column in placed.condition.names:
                if name not in self._names:
                    where = f"line {placed.line + 1}, column {placed.column + column + 1}"
                    self._problems.add(where, "condition", self._unknown(name))
        for parameter in sweep.parameters:
            if sweep.method == "grid" and not parameter.values:
                text = "values drawn at random need method: random, and samples: N"
                self._problems.add(_place(parameter), shown(parameter.name), text)
        if sweep.method == "random" and not sweep.samples:
            text = "random needs samples: N (or --samples N): how many combinations are drawn"
            self._problems.add(self._places.get("method", ""), "method", text)
        if sweep.repeat > 1 and REPEAT in by_name:
            text = "is also the number of a repetition: give the parameter another name"
            self._problems.add(_place(by_name[REPEAT]), REPEAT, text)
        if sweep.method == "random" and sweep.zipped:
            self._problems.add(self._places.get("zip", ""), "zip", "is for method: grid")

    def _unknown(self, name: str) -> str:
        known = self._names
        nearest = difflib.get_close_matches(name[:100], known, 1)
        hint = f"did you mean {shown(nearest[0])}?" if nearest else f"there are {', '.join(map(shown, known[:10]))}"
        return f"there is no parameter {shown(name)}; {hint}"


def _place(parameter: Parameter) -> str:
    return f"line {parameter.line + 1}, column {parameter.column + 1}"
