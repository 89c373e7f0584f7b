"""Conditions over parameters, as in `when` and `exclude`: a small expression language. Nothing is ever run as Python.

    or_test    = and_test ("or" and_test)*
    and_test   = not_test ("and" not_test)*
    not_test   = "not" not_test | comparison
    comparison = sum (("==" | "!=" | "<" | "<=" | ">" | ">=" | "in" | "not in") sum)?
    sum        = product (("+" | "-") product)*
    product    = atom (("*" | "/" | "%") atom)*
    atom       = number | text in quotes | name | true | false | "-" atom | "(" or_test ")" | "[" or_test, ... "]"

Two single quotes within a text in single quotes are one.

Two values are compared as numbers where both are numbers, else as texts. `<` and arithmetic need numbers.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from decimal import Decimal, DecimalException, InvalidOperation
from typing import TypeAlias, Union

import msgspec

MAX_DEPTH = 50
"""Limit for nested parentheses: more than people write, and far below Python's own limit."""
MAX_CHARS = 10_000

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<text>'(?:[^']|'')*'|\"[^\"]*\")"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_.]*)|(?P<sign>==|!=|<=|>=|[-<>+*/%()\[\],]))"
)
_WORDS = frozenset({"and", "or", "not", "in", "true", "false"})
_COMPARE: dict[str, Callable[[Decimal, Decimal], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_COMPUTE: dict[str, Callable[[Decimal, Decimal], Decimal]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "%": operator.mod,
}

Value: TypeAlias = Union[str, Decimal, bool, "tuple[Value, ...]"]
"""A parameter's value is its text."""


class ConditionWrong(Exception):
    """A condition that cannot be read, or that has no value. `column`: characters before the place, from 0."""

    def __init__(self, text: str, column: int) -> None:
        super().__init__(text)
        self.text = text
        self.column = column


class Literal(msgspec.Struct, frozen=True):
    """A number, a text, true or false."""

    value: str | Decimal | bool
    column: int = 0


class Name(msgspec.Struct, frozen=True):
    """A parameter."""

    name: str
    column: int = 0


class Items(msgspec.Struct, frozen=True):
    """`[a, b]`."""

    items: tuple[Node, ...]
    column: int = 0


class Operation(msgspec.Struct, frozen=True):
    """An operator and what it is applied to: one operand for `not` and `neg`, else two."""

    sign: str
    operands: tuple[Node, ...]
    column: int = 0


Node: TypeAlias = Literal | Name | Items | Operation


class Condition(msgspec.Struct, frozen=True):
    """A condition that was read."""

    root: Node

    @property
    def names(self) -> list[tuple[str, int]]:
        """(parameter, column) of each one that it asks for."""
        return list(_names(self.root))

    def holds(self, values: Mapping[str, str]) -> bool:
        """Whether it holds for these values. Raises `ConditionWrong` where it asks for what has no answer."""
        return _truth(self.root, values)

    def __str__(self) -> str:
        return _printed(self.root)


def parse_condition(text: str) -> Condition:
    """Read a condition. Raises `ConditionWrong`."""
    if len(text) > MAX_CHARS:
        raise ConditionWrong(f"a condition has at most {MAX_CHARS:,} characters", 0)
    return Condition(_Parser(text).parse())


class _Parser:
    """Reads tokens from left to right, one token ahead."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str, int]] = []
        at = 0
        end = len(text.rstrip())
        while at < end:
            found = _TOKEN.match(text, at)
            if found is None:
                at += len(text[at:]) - len(text[at:].lstrip())
                raise ConditionWrong(f"{text[at]!r} is not part of a condition", at)
            kind = found.lastgroup or ""
            word = found[kind]
            if kind == "name" and word in _WORDS:
                kind = "sign" if word not in ("true", "false") else "bool"
            self._tokens.append((kind, word, found.start(found.lastgroup or 0)))
            at = found.end()
        self._tokens.append(("end", "", end))
        self._at = 0
        self._depth = 0

    def parse(self) -> Node:
        node = self._or()
        kind, word, column = self._tokens[self._at]
        if kind != "end":
            raise ConditionWrong(f"{word!r} is not expected here", column)
        return node

    def _take(self, *signs: str) -> tuple[str, int] | None:
        kind, word, column = self._tokens[self._at]
        if kind == "sign" and word in signs:
            self._at += 1
            return word, column
        return None

    def _chain(self, below: Callable[[], Node], *signs: str) -> Node:
        node = below()
        while (found := self._take(*signs)) is not None:
            node = Operation(found[0], (node, below()), found[1])
        return node

    def _or(self) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ConditionWrong("nested too deeply", self._tokens[self._at][2])
        node = self._chain(self._and, "or")
        self._depth -= 1
        return node

    def _and(self) -> Node:
        return self._chain(self._not, "and")

    def _not(self) -> Node:
        found = self._take("not")
        if found is None:
            return self._comparison()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ConditionWrong("nested too deeply", found[1])
        node = Operation("not", (self._not(),), found[1])
        self._depth -= 1
        return node

    def _comparison(self) -> Node:
        node = self._sum()
        if self._tokens[self._at][1] == "not" and self._tokens[self._at + 1][:2] == ("sign", "in"):
            column = self._tokens[self._at][2]
            self._at += 2
            return Operation("not in", (node, self._sum()), column)
        found = self._take("==", "!=", "<", "<=", ">", ">=", "in")
        return node if found is None else Operation(found[0], (node, self._sum()), found[1])

    def _sum(self) -> Node:
        return self._chain(self._product, "+", "-")

    def _product(self) -> Node:
        return self._chain(self._atom, "*", "/", "%")

    def _atom(self) -> Node:
        kind, word, column = self._tokens[self._at]
        self._at += 1
        if kind == "number":
            number = as_number(word)
            if number is None:
                raise ConditionWrong(f"{word} is too large a number", column)
            return Literal(number, column)
        if kind == "text":
            return Literal(word[1:-1].replace("''", "'") if word.startswith("'") else word[1:-1], column)
        if kind == "bool":
            return Literal(word == "true", column)
        if kind == "name":
            return Name(word, column)
        if word == "-":
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise ConditionWrong("nested too deeply", column)
            negative = Operation("neg", (self._atom(),), column)
            self._depth -= 1
            return negative
        if word == "(":
            node = self._or()
            self._expect(")")
            return node
        if word == "[":
            return self._items(column)
        self._at -= 1
        raise ConditionWrong(f"{word!r} is not expected here" if word else "something is missing at the end", column)

    def _items(self, column: int) -> Node:
        items: list[Node] = []
        while self._take("]") is None:
            if items:
                self._expect(",")
            items.append(self._or())
        return Items(tuple(items), column)

    def _expect(self, sign: str) -> None:
        if self._take(sign) is None:
            _, word, column = self._tokens[self._at]
            raise ConditionWrong(f"{sign!r} is expected here" + (f", not {word!r}" if word else ""), column)


def as_number(text: str) -> Decimal | None:
    """The number that a text denotes; None if it denotes none."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _names(node: Node) -> list[tuple[str, int]]:
    if isinstance(node, Name):
        return [(node.name, node.column)]
    below = node.items if isinstance(node, Items) else node.operands if isinstance(node, Operation) else ()
    return [found for item in below for found in _names(item)]


def _value(node: Node, values: Mapping[str, str]) -> Value:
    if isinstance(node, Literal):
        return node.value
    if isinstance(node, Name):
        return values.get(node.name, "")
    if isinstance(node, Items):
        return tuple(_value(item, values) for item in node.items)
    if node.sign == "neg":
        return -_number(node.operands[0], values)
    if node.sign in _COMPUTE:
        left, right = (_number(operand, values) for operand in node.operands)
        try:
            return _COMPUTE[node.sign](left, right)
        except (DecimalException, ZeroDivisionError):
            raise ConditionWrong(f"{left} {node.sign} {right} has no value", node.column) from None
    return _truth(node, values)


def _truth(node: Node, values: Mapping[str, str]) -> bool:
    if not isinstance(node, Operation) or node.sign in _COMPUTE or node.sign == "neg":
        value = _value(node, values)
        if value is True or value == "true":
            return True
        if value is False or value == "false":
            return False
        raise ConditionWrong(f"{_text(value)} is neither true nor false", node.column)
    if node.sign == "not":
        return not _truth(node.operands[0], values)
    left, right = node.operands
    if node.sign == "and":
        return _truth(left, values) and _truth(right, values)
    if node.sign == "or":
        return _truth(left, values) or _truth(right, values)
    if node.sign in _COMPARE:
        return _COMPARE[node.sign](_number(left, values), _number(right, values))
    first, second = _value(left, values), _value(right, values)
    if node.sign in ("in", "not in"):
        if not isinstance(second, tuple):
            raise ConditionWrong("'in' needs a list: x in [1, 2]", node.column)
        return any(_equal(first, item) for item in second) == (node.sign == "in")
    return _equal(first, second) == (node.sign == "==")


def _number(node: Node, values: Mapping[str, str]) -> Decimal:
    value = _value(node, values)
    number = as_number(value) if isinstance(value, str) else value
    if isinstance(number, Decimal):
        return number
    what = f"{node.name} = {_text(value)}" if isinstance(node, Name) else _text(value)
    raise ConditionWrong(f"{what} is not a number", node.column)


def _equal(first: Value, second: Value) -> bool:
    if isinstance(first, tuple) and isinstance(second, tuple):
        return len(first) == len(second) and all(map(_equal, first, second))
    if isinstance(first, tuple) or isinstance(second, tuple):
        return False
    texts = [_text(value) for value in (first, second)]
    numbers = [as_number(text) for text in texts]
    if None not in numbers:
        return numbers[0] == numbers[1]
    return texts[0] == texts[1]


def _text(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_text, value))}]"
    return str(value)


def _printed(node: Node) -> str:
    """With parentheses around every operation, so that it is read again as the same."""
    if isinstance(node, Name):
        return node.name
    if isinstance(node, Items):
        return f"[{', '.join(map(_printed, node.items))}]"
    if isinstance(node, Literal):
        if isinstance(node.value, str):
            return f'"{node.value}"' if "'" in node.value else f"'{node.value}'"
        return _text(node.value)
    if node.sign in ("not", "neg"):
        return f"({'not ' if node.sign == 'not' else '-'}{_printed(node.operands[0])})"
    return f"({_printed(node.operands[0])} {node.sign} {_printed(node.operands[1])})"
