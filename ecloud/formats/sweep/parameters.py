"""The values of one parameter as they are written: single, list, interval, or an object that says how."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal, DecimalException

from ecloud.formats.paths import text_problem
from ecloud.formats.problems import Problems, shown
from ecloud.formats.sweep.conditions import as_number
from ecloud.formats.sweep.values import MAX_VALUES, Draw, Parameter, Value, interval, spaced_by_factors, steps
from ecloud.formats.sweep.yaml_nodes import YamlNode, is_plain, kind, pairs_of, place_of

TUPLE = "tag:yaml.org,2002:python/tuple"
_OTHER_TAGS = ("!", "tag:yaml.org,2002:python/")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.+/@-]*")
MAX_NAME_CHARS = 100
MAX_VALUE_CHARS = 10_000
OWN_FORMS = ("range", "log", "uniform", "choice")
WANDB_FORMS = ("value", "values", "min", "max", "distribution", "mu", "sigma", "q", "probabilities", "parameters")
_FORMS = f"one of {', '.join(OWN_FORMS)}, or of W&B's {', '.join(WANDB_FORMS[:5])}"


class _Wrong(Exception):
    """A value that is none; the text is the problem."""

    def __init__(self, node: YamlNode, text: str) -> None:
        super().__init__(text)
        self.node = node
        self.text = text


def read_parameter(name: str, key: YamlNode, node: YamlNode, problems: Problems) -> Parameter | None:
    """A parameter, or None where something is wrong, which is added to the problems."""
    if not NAME.fullmatch(name) or len(name) > MAX_NAME_CHARS:
        text = f"{shown(name)!r} is not a name of a parameter: use letters, digits and _ . -; begin with a letter or _"
        problems.add(place_of(key), "", text)
        return None
    try:
        values, draw, weights = _read(node, problems)
        _refuse_equal(node, values)
    except _Wrong as wrong:
        problems.add(place_of(wrong.node), shown(name), wrong.text)
        return None
    return Parameter(name, values, draw, weights, key.start_mark.line, key.start_mark.column)


_Read = tuple[tuple[Value, ...], "Draw | None", tuple[float, ...]]


def _read(node: YamlNode, problems: Problems) -> _Read:
    if node.tag.startswith(_OTHER_TAGS) and node.tag != TUPLE:
        raise _Wrong(node, f"the tag {shown(node.tag)} is not known here; !!python/tuple makes an interval")
    if node.id == "scalar":
        return (_value(node),), None, ()
    if node.id == "sequence":
        return (_interval(node) if node.tag == TUPLE else _list(node)), None, ()
    return _described(node, problems)


def _value(node: YamlNode) -> Value:
    if node.id != "scalar":
        raise _Wrong(node, f"a value is a text or a number, not {kind(node)}")
    plain = is_plain(node)
    if plain and not node.value:
        raise _Wrong(node, "the value is missing; '' is an empty text")
    if len(node.value) > MAX_VALUE_CHARS:
        raise _Wrong(node, f"{len(node.value):,} characters; at most {MAX_VALUE_CHARS:,} are allowed")
    problem = text_problem(node.value, "the value")
    if problem:
        raise _Wrong(node, problem)
    return Value(node.value, is_flag=plain and node.value in ("true", "false", "True", "False"))


def _list(node: YamlNode) -> tuple[Value, ...]:
    if node.id != "sequence":
        raise _Wrong(node, f"expected a list, not {kind(node)}")
    if not node.value:
        raise _Wrong(node, "the list is empty: the sweep would have no combinations")
    return tuple(_value(item) for item in node.value)


def _refuse_equal(node: YamlNode, values: tuple[Value, ...]) -> None:
    if len(set(values)) == len(values):
        return
    seen = set()
    for item, value in zip(node.value if node.id == "sequence" else [node] * len(values), values):
        if value in seen:
            raise _Wrong(item, f"{shown(value.text)} stands twice")
        seen.add(value)


def _number(node: YamlNode) -> Decimal:
    number = as_number(node.value) if node.id == "scalar" else None
    if number is None or abs(number.adjusted()) > 300:
        raise _Wrong(node, f"expected a number, not {shown(node.value) if node.id == 'scalar' else kind(node)}")
    return number


def _numbers(node: YamlNode, least: int, most: int, form: str) -> list[Decimal]:
    if node.id != "sequence" or not least <= len(node.value) <= most:
        raise _Wrong(node, f"expected {form}")
    return [_number(item) for item in node.value]


def _interval(node: YamlNode) -> tuple[Value, ...]:
    start, end, *rest = _numbers(node, 2, 3, "an interval [start, end] or [start, end, step]")
    step = rest[0] if rest else Decimal(1)
    if step == 0:
        raise _Wrong(node.value[2], "the step is 0")
    count = steps(start, end, step)
    if count == 0:
        raise _Wrong(node, f"the interval is empty: from {start} to below {end} by steps of {step}")
    if count > MAX_VALUES:
        raise _Wrong(node, f"{count:,} values; at most {MAX_VALUES:,} are allowed")
    return tuple(Value(text) for text in interval(start, end, step))


def _described(node: YamlNode, problems: Problems) -> _Read:
    """An object: `{range: […]}` and ECLOUD's other forms, or W&B's keys."""
    parts = {name: value for name, _, value in pairs_of(node, problems, "values")}
    if len(parts) == 1 and next(iter(parts)) in OWN_FORMS:
        form, value = next(iter(parts.items()))
        return _OWN[form](value)
    unknown = [name for name in parts if name not in WANDB_FORMS]
    if unknown or not parts:
        raise _Wrong(node, f"expected {_FORMS}" + (f"; found {shown(unknown[0])}" if unknown else ""))
    return _wandb(node, parts)


def _range(node: YamlNode) -> _Read:
    return _interval(node), None, ()


def _choice(node: YamlNode) -> _Read:
    return _list(node), None, ()


def _uniform(node: YamlNode) -> _Read:
    low, high = _numbers(node, 2, 2, "[from, to]")
    return (), _draw(node, "uniform", low, high), ()


def _log(node: YamlNode) -> _Read:
    low, high, *rest = _numbers(node, 2, 3, "[from, to, n], or [from, to] with method: random")
    if low <= 0 or high <= 0:
        raise _Wrong(node, "a logarithmic scale needs numbers above 0")
    if not rest:
        return (), _draw(node, "log", low, high), ()
    count = int(rest[0])
    if count != rest[0] or not 2 <= count <= MAX_VALUES:
        raise _Wrong(node.value[2], f"n is a whole number from 2 to {MAX_VALUES:,}")
    try:
        texts = spaced_by_factors(node.value[0].value, node.value[1].value, count)
        return tuple(Value(text) for text in dict.fromkeys(texts)), None, ()
    except DecimalException:
        raise _Wrong(node, "the numbers are too large or too small") from None


_OWN: dict[str, Callable[[YamlNode], _Read]] = {"range": _range, "choice": _choice, "uniform": _uniform, "log": _log}


def _draw(node: YamlNode, form: str, low: Decimal, high: Decimal, step: float | None = None) -> Draw:
    if form not in ("normal", "log_normal") and low > high:
        raise _Wrong(node, f"{low} is above {high}")
    return Draw(form, float(low), float(high), step)


_DISTRIBUTIONS = {
    "uniform": "uniform", "q_uniform": "uniform", "int_uniform": "int", "log_uniform_values": "log",
    "q_log_uniform_values": "log", "log_uniform": "log", "q_log_uniform": "log", "normal": "normal",
    "q_normal": "normal", "log_normal": "log_normal", "q_log_normal": "log_normal",
}  # fmt: skip
"""W&B's names, and ours."""


def _wandb(node: YamlNode, parts: dict[str, YamlNode]) -> _Read:
    if "parameters" in parts:
        raise _Wrong(parts["parameters"], "parameters inside parameters are not supported: name them one by one")
    if "value" in parts:
        return (_value(parts["value"]),), None, ()
    if "values" in parts:
        values = _list(parts["values"])
        _refuse_equal(parts["values"], values)
        weights: tuple[float, ...] = ()
        if "probabilities" in parts:
            numbers = [float(_number(item)) for item in parts["probabilities"].value]
            if len(numbers) != len(values) or min(numbers) < 0 or sum(numbers) <= 0:
                raise _Wrong(parts["probabilities"], "expected one probability for each value")
            weights = tuple(numbers)
        return values, None, weights
    name = parts["distribution"].value if "distribution" in parts else ""
    if not name:
        whole = all(_number(parts[end]) == int(_number(parts[end])) for end in ("min", "max") if end in parts)
        name = "int_uniform" if whole else "uniform"
    if name not in _DISTRIBUTIONS:
        raise _Wrong(parts["distribution"], f"{shown(str(name))}: known are {', '.join(_DISTRIBUTIONS)}")
    ends = ("mu", "sigma") if "normal" in name else ("min", "max")
    if any(end not in parts for end in ends):
        raise _Wrong(node, f"expected {' and '.join(ends)} for {name}")
    low, high = (_number(parts[end]) for end in ends)
    step = float(_number(parts["q"])) if "q" in parts else 1.0 if name.startswith("q_") else None
    if name in ("log_uniform", "q_log_uniform"):
        # W&B's min and max of this one are exponents of e.
        if not -700 < low <= high < 700:
            raise _Wrong(node, "expected exponents of e, min not above max")
        return (), Draw("log", math.exp(low), math.exp(high), step), ()
    if _DISTRIBUTIONS[name] == "log" and low <= 0:
        raise _Wrong(parts["min"], "a logarithmic scale needs numbers above 0")
    return (), _draw(node, _DISTRIBUTIONS[name], low, high, step), ()
