"""Generates the parts of docs/ that must agree with the code: message tables, state tables and diagrams.

python docs/generate.py            rewrite the text between the markers
python docs/generate.py --check    exit 1 and name the file if code and docs differ
"""

from __future__ import annotations

import inspect
import re
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path

import msgspec
import pictures

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent))
from ecloud.model import tasks, transfer_status, vm_states, wire, worker_states

DOCS = Path(__file__).parent
MARKERS = re.compile(r"(<!-- generated: (?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def first_paragraph(thing: type) -> str:
    """Return the docstring up to its first empty line, on one line."""
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


def type_name(annotation: object) -> str:
    """Return a readable name of a type, the same with every Python version."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " \\| ".join(map(type_name, inner))
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(type_name, inner))}]"
    if annotation in (..., type(None)):
        return "..." if annotation is ... else "None"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def messages() -> str:
    """Return a table of all messages."""
    lines = ["| message | what it says | fields |", "|---|---|---|"]
    for message in typing.get_args(wire.Message):
        hints = typing.get_type_hints(message)
        fields = ", ".join(f"`{name}`: {type_name(hints[name])}" for name in message.__struct_fields__)
        lines.append(f"| `{message.__name__}` | {first_paragraph(message)} | {fields or 'none'} |")
    return "\n".join(lines) + "\n"


def values() -> str:
    """Return a table of the values inside messages."""
    lines = ["| value | what it is | fields |", "|---|---|---|"]
    for value in (
        wire.Envelope, wire.HeldAttempt, wire.AttemptName, wire.AttemptOrder, wire.StartedAttempt, wire.TaskEnded,
        wire.DatastoreAccess, transfer_status.Moving, transfer_status.HeldInput,
        wire.PushOptions, wire.CallEnded, wire.CallValue, tasks.Call, tasks.Outcome, tasks.ManifestEntry,
        tasks.TaskDefinition, tasks.TaskBody,
    ):  # fmt: skip
        shape = "array" if msgspec.inspect.type_info(value).array_like else "object"  # type: ignore[attr-defined]
        fields = ", ".join(f"`{name}`" for name in value.__struct_fields__)
        lines.append(f"| `{value.__name__}` ({shape}) | {first_paragraph(value)} | {fields} |")
    return "\n".join(lines) + "\n"


def limits() -> str:
    """Return a table of the wire's named limits."""
    rows = [
        ("protocol version", wire.PROTOCOL_VERSION),
        ("largest message, bytes", f"{wire.MAX_MESSAGE_BYTES:,}"),
        ("a batch is closed at, bytes", f"{wire.BATCH_BYTES:,}"),
        ("a batch is closed at, items", wire.BATCH_COUNT),
        ("big inputs that a worker reports", transfer_status.INPUTS_TOLD),
        ("a big input, bytes", f"{transfer_status.BIG_INPUT_BYTES:,}"),
        ("longest peer, key, session, nonce", wire.MAX_NAME_CHARS),
        ("output kept of a success, bytes a stream", f"{tasks.SUCCESS_TAIL_BYTES:,}"),
        ("output kept of anything else, bytes a stream", f"{tasks.FAILURE_TAIL_BYTES:,}"),
    ]
    return "| limit | value |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows)


def diagram(moves: tuple[tuple[tasks.TaskState, tasks.TaskState, str], ...] | tuple[typing.Any, ...]) -> str:
    """Return a mermaid state diagram and the table of its moves."""
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f"    {a.value} --> {b.value}" for a, b, _ in moves]
    lines += ["```", "", "| from | to | by |", "|---|---|---|"]
    lines += [f"| {a.value} | {b.value} | {by} |" for a, b, by in moves]
    return "\n".join(lines) + "\n"


PARTS: dict[str, Callable[[], str]] = {
    "messages": messages,
    "values": values,
    "limits": limits,
    "task_states": lambda: diagram(tasks.MOVES),
    "attempt_states": lambda: diagram(tasks.ATTEMPT_MOVES),
    "worker_states": lambda: diagram(worker_states.WORKER_MOVES),
    "vm_states": lambda: diagram(vm_states.VM_MOVES),
}


def main() -> int:
    """Rewrite or check every file with markers, and every picture."""
    check = "--check" in sys.argv[1:]
    stale = []
    fresh = {
        path: MARKERS.sub(lambda match: f"{match[1]}{PARTS[match['name']]()}{match[3]}", path.read_text())
        for path in sorted(DOCS.glob("*.md"))
    }
    for path, text in {**fresh, **pictures.draw()}.items():
        if not path.exists() or path.read_text() != text:
            stale.append(path.name)
            if not check:
                path.write_text(text)
    if check and stale:
        print(f"docs differ from the code: {', '.join(stale)}; run `make docs`")
        return 1
    print(f"docs: {', '.join(stale) + ' rewritten' if stale else 'as the code says'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
