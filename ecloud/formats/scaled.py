"""Stand-ins for recorded programs: sh scripts that check their input files, sleep, and write their output files.

The first line of each file names the file and its producer, so a consumer can verify whose file it got. Zeros follow,
up to the scaled size.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import msgspec

INITIAL = "initial input"
"""In place of the producer's id, in the first line of a file that no task makes."""
_PIECE_BYTES = 1 << 20
_SHORTEST_SLEEP_S = 0.001

_NEED = (
    'need() { line=; IFS= read -r line < "$1"; [ "$line" = "$2" ] ||'
    " { echo \"$1: expected '$2', found '$line'\" >&2; exit 9; }; }"
)
_MAKE = (
    'make() { case $1 in */*) mkdir -p -- "${1%/*}";; esac; printf \'%s\\n\' "$2" > "$1" || exit 9;'
    ' [ -z "${3:-}" ] || truncate -s "$3" -- "$1" || exit 9; }'
)


class ScaledFile(msgspec.Struct, frozen=True):
    """A file of a scaled workflow: `path` below the datastore's root, `local` name, recorded `size` in bytes."""

    path: str
    local: str
    size: int
    producer: str

    @property
    def header(self) -> str:
        """Its first line."""
        return f"{self.path} of {self.producer}"


def scaled_commands(
    reads: list[ScaledFile], writes: list[ScaledFile], runtime_s: float, scale: float
) -> tuple[str, ...]:
    """Commands for sh. No process is started for a sleep of 0, or for a file as short as its first line."""
    lines = []
    if reads:
        lines.append("\n".join([_NEED, *(f"need {_quoted(file.local)} {_quoted(file.header)}" for file in reads)]))
    if runtime_s >= _SHORTEST_SLEEP_S:
        lines.append(f"sleep {runtime_s:.3f}")
    if writes:
        calls = []
        for file in writes:
            size = int(file.size * scale)
            filled = f" {size}" if size > len(file.header.encode("utf-8", "surrogatepass")) + 1 else ""
            calls.append(f"make {_quoted(file.local)} {_quoted(file.header)}{filled}")
        lines.append("\n".join([_MAKE, *calls]))
    return tuple(lines) or (":",)


def initial_input_bytes(path: str, size: int, scale: float) -> Iterator[bytes]:
    """The content of a file that no task makes, in pieces: its first line, then zeros up to `size` times `scale`
    bytes."""
    header = (ScaledFile(path, path, size, INITIAL).header + "\n").encode()
    yield header
    left = int(size * scale) - len(header)
    while left > 0:
        yield bytes(min(left, _PIECE_BYTES))
        left -= _PIECE_BYTES


def _quoted(text: str) -> str:
    return shlex.quote(text)
