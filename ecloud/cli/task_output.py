"""Prints the output of tasks: on a terminal as it would appear there, in a pipe with visible control characters, and
with `--raw` unchanged."""

from __future__ import annotations

import os
import re
import sys
from typing import TextIO

from ecloud.model.text import visible

_ACTED_ON = re.compile(r"\x1b\[[0-9;:]*m|[\r\b]")
"""Sequences that the terminal may interpret: colours, and moves back within the line; none that moves elsewhere or
clears."""
_UNFINISHED = re.compile(r"\x1b(\[[0-9;:]{0,40})?\Z")
_RESET = "\x1b[0m"


class TaskOutput:
    """Writes pieces of one stream of a task to `stream`. `is_raw`: unchanged.

    A colour sequence split between two pieces is kept for the next piece; `end` writes the remaining text and resets
    colours.
    """

    def __init__(self, stream: TextIO, is_raw: bool = False) -> None:
        self._stream = stream
        self._is_raw = is_raw
        self._is_terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._has_colours = not os.environ.get("NO_COLOR")
        self._rest = ""
        self._is_coloured = False

    def write(self, text: str) -> None:
        """Write one piece."""
        if self._is_raw:
            self._stream.write(text)
        elif not self._is_terminal:
            self._stream.write(visible(text, lines=True))
        else:
            text = self._rest + text
            cut = _UNFINISHED.search(text)
            self._rest = text[cut.start() :] if cut else ""
            self._stream.write(self._shown(text[: cut.start()] if cut else text))
        self._stream.flush()

    def _shown(self, text: str) -> str:
        parts, at = [], 0
        for found in _ACTED_ON.finditer(text):
            parts.append(visible(text[at : found.start()], lines=True))
            at = found.end()
            if not found[0].startswith("\x1b"):
                parts.append(found[0])
            elif self._has_colours:
                parts.append(found[0])
                self._is_coloured = True
        return "".join(parts) + visible(text[at:], lines=True)

    def end(self) -> None:
        """End the stream."""
        if self._rest:
            self._stream.write(visible(self._rest, lines=True))
        if self._is_coloured:
            self._stream.write(_RESET)
        self._rest, self._is_coloured = "", False
        self._stream.flush()


def print_text(text: str, stream: TextIO, is_raw: bool) -> None:
    """Print a whole text."""
    output = TaskOutput(stream, is_raw)
    output.write(text)
    output.end()


def outputs(is_raw: bool) -> dict[str, TaskOutput]:
    """Return the writers of a task's two streams, to the same streams of this command."""
    return {"stdout": TaskOutput(sys.stdout, is_raw), "stderr": TaskOutput(sys.stderr, is_raw)}
