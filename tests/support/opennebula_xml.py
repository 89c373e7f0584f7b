"""How OpenNebula writes and reads: templates as text, objects as XML in the shapes that were recorded from a real one
(tests/inputs/opennebula), answers as XML-RPC."""

from __future__ import annotations

import re
from collections.abc import Iterable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

Attributes = dict[str, Any]
"""A template: texts, dicts of texts, and lists of those where an attribute stands several times."""

VM_ATTRIBUTES = (
    *("CONTEXT", "CPU", "DISK", "FEATURES", "GRAPHICS", "INPUT", "MEMORY", "NIC", "NIC_ALIAS", "NIC_DEFAULT", "OS"),
    *("PCI", "RAW", "SCHED_ACTION", "VCPU", "VMGROUP"),
)
"""What goes into a VM's TEMPLATE; all else goes into its USER_TEMPLATE."""


class SyntaxWrong(Exception):
    """A template that cannot be parsed."""


# --- templates ------------------------------------------------------------------------------------

_VARIABLE_BEFORE_NEWLINE = re.compile(r"\$\w+(\[[^\]]*\])?([\r\n]|\$\{)")
_NAME = re.compile(r"\s*([A-Za-z0-9_]+)[ \t]*=[ \t]*")
_QUOTED = re.compile(r'"((?:\\"|[^"])*)"')
_BARE = re.compile(r"[^=#\s,\[\]]+")


def parse_template(text: str) -> Attributes:
    """Lines of K="v" and K=[A="v",B="v"], or XML. Raises `SyntaxWrong`."""
    if text.lstrip().startswith("<"):
        return _from_xml(ElementTree.fromstring(text))
    found: Attributes = {}
    at = 0
    while text[at:].strip():
        at, name = _take(_NAME, text, at, "a name")
        if text.startswith("[", at):
            inner: dict[str, str] = {}
            at += 1
            while True:
                at, key = _take(_NAME, text, at, "a name")
                at, inner[key.upper()] = _value(text, at)
                at = _skip(text, at)
                if text.startswith(",", at):
                    at = _skip(text, at + 1)
                elif text.startswith("]", at):
                    at += 1
                    break
                else:
                    raise SyntaxWrong(f"syntax error, unexpected {text[at : at + 1]!r} at {at}")
            _add(found, name.upper(), inner)
        else:
            at, value = _value(text, at)
            _add(found, name.upper(), value)
    return found


def check_variables(context: Attributes) -> None:
    """Raises `SyntaxWrong` where oned's parser has no rule for what follows a variable. Like oned, it echoes all."""
    if any(_VARIABLE_BEFORE_NEWLINE.search(value) for value in context.values()):
        whole = ",\n".join(f'{key}="{value}"' for key, value in sorted(context.items()))
        raise SyntaxWrong(f"Error parsing: {whole}. syntax error, unexpected VARIABLE, expecting EOA")


def _take(pattern: re.Pattern[str], text: str, at: int, what: str) -> tuple[int, str]:
    match = pattern.match(text, at)
    if match is None:
        raise SyntaxWrong(f"syntax error, expecting {what} at {at}")
    return match.end(), match.group(1)


def _value(text: str, at: int) -> tuple[int, str]:
    quoted = _QUOTED.match(text, at)
    if quoted and "]]>" not in quoted.group(1):
        return quoted.end(), quoted.group(1).replace('\\"', '"')
    bare = _BARE.match(text, at)
    if bare is None or quoted:
        raise SyntaxWrong(f"syntax error, unexpected value at {at}")
    return bare.end(), bare.group(0)


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _add(found: Attributes, name: str, value: Any) -> None:
    if name not in found:
        found[name] = value
    elif isinstance(found[name], list):
        found[name].append(value)
    else:
        found[name] = [found[name], value]


def _from_xml(root: ElementTree.Element) -> Attributes:
    found: Attributes = {}
    for child in root:
        _add(found, child.tag, {c.tag: c.text or "" for c in child} if len(child) else child.text or "")
    return found


# --- objects --------------------------------------------------------------------------------------

RECORDINGS = Path(__file__).resolve().parents[1] / "inputs" / "opennebula"


@cache
def _recorded(name: str) -> ElementTree.Element:
    answer = ElementTree.parse(RECORDINGS / f"{name}.response.xml")
    text = answer.find(".//string")
    assert text is not None
    return ElementTree.fromstring(text.text or "")


def recorded(name: str, path: str = ".") -> ElementTree.Element:
    """A copy of an object that was recorded, to be filled with other values."""
    found = _recorded(name).find(path)
    assert found is not None
    return deepcopy(found)


def fill(element: ElementTree.Element, **values: object) -> ElementTree.Element:
    """Set the texts of children; the element itself."""
    for name, value in values.items():
        child = element.find(name)
        assert child is not None, name
        child.text = str(value)
    return element


def set_attributes(element: ElementTree.Element, attributes: Attributes) -> ElementTree.Element:
    """Make a template's attributes, sorted by name, the element's children."""
    element.clear()
    for name, value in sorted(attributes.items()):
        for item in value if isinstance(value, list) else [value]:
            child = ElementTree.SubElement(element, name)
            if isinstance(item, dict):
                set_attributes(child, item)
            else:
                child.text = str(item)
    return element


def attributes_of(element: ElementTree.Element | None) -> Attributes:
    """The other way round."""
    assert element is not None
    return _from_xml(element)


def pool(tag: str, members: Iterable[ElementTree.Element]) -> ElementTree.Element:
    """Members as a pool."""
    root = ElementTree.Element(tag)
    root.extend(members)
    return root


def text_of(element: ElementTree.Element) -> str:
    """As it goes into an answer."""
    return ElementTree.tostring(element, encoding="unicode", short_empty_elements=False)


# --- XML-RPC --------------------------------------------------------------------------------------


def success(value: object) -> str:
    """[true, value, 0]"""
    return _answer(["<boolean>1</boolean>", _typed(value), "<i4>0</i4>"])


def failure(text: str, code: int, number: int = -1) -> str:
    """[false, text, code, id of the object, -1]"""
    values = ["<boolean>0</boolean>", _typed(text), f"<i4>{code}</i4>", f"<i4>{number}</i4>", "<i8>-1</i8>"]
    return _answer(values)


def fault(code: int, text: str) -> str:
    """What comes when the call itself is wrong."""
    members = [("faultCode", f"<i4>{code}</i4>"), ("faultString", f"<string>{escape(text)}</string>")]
    inner = "".join(f"<member><name>{name}</name>\n<value>{value}</value></member>\n" for name, value in members)
    head = '<?xml version="1.0" encoding="UTF-8"?>\n<methodResponse>\n<fault>\n<value><struct>\n'
    return f"{head}{inner}</struct></value>\n</fault>\n</methodResponse>\n"


def _typed(value: object) -> str:
    return f"<i4>{value}</i4>" if isinstance(value, int) else f"<string>{escape(str(value))}</string>"


def _answer(values: list[str]) -> str:
    inner = "".join(f"<value>{value}</value>\n" for value in values)
    head = '<?xml version="1.0" encoding="UTF-8"?>\n<methodResponse>\n<params>\n<param><value><array><data>\n'
    return f"{head}{inner}</data></array></value></param>\n</params>\n</methodResponse>\n"
