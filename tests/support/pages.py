"""Pages of the docs whose commands are typed as they stand there: what they show, and how it is compared."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from services import ROOT

BLOCKS = re.compile(r"(?:<!-- (?P<what>[^\n]*) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)```", re.DOTALL)


class Page:
    """A page's blocks."""

    def __init__(self, name: str, heading: str = "") -> None:
        """`heading`: of the only part that is meant, down to the next one of its level."""
        self.text = (ROOT / name).read_text()
        if heading:
            (self.text,) = re.findall(
                rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", self.text, re.DOTALL | re.MULTILINE
            )
        self.blocks = [(found["kind"], found["what"] or "", found["text"]) for found in BLOCKS.finditer(self.text)]

    def marked(self, what: str) -> str:
        """The block below the comment that begins with `what`."""
        (text,) = (text for _, mark, text in self.blocks if mark.startswith(what))
        return text

    def sessions(self) -> Iterator[tuple[str, str]]:
        """Commands and what they are to print."""
        for kind, _, text in self.blocks:
            if kind == "console":
                for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                    command, _, output = part.partition("\n")
                    yield command, output


def type_all(page: Page, place: Path, environment: dict[str, str]) -> None:
    """Type every command of a page and compare: `...` stands for anything, on its own line for any lines."""
    for name in ("admin.py", "push_tasks.py", "examples", "worker"):
        (place / name).symlink_to(ROOT / name)
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    type_sessions(page, place, environment, {})


def type_sessions(page: Page, place: Path, environment: dict[str, str], names: dict[str, str]) -> None:
    """The same, with other names for those that the page shows."""
    for command, expected in page.sessions():
        for shown, real in names.items():
            command, expected = command.replace(shown, real), expected.replace(shown, real)
        done = subprocess.run(
            ["bash", "-c", f"exec 2>&1; {command}"], cwd=place, env=environment, stdout=subprocess.PIPE, timeout=200
        )
        printed = done.stdout.decode()
        assert re.fullmatch(pattern(expected), printed), f"$ {command}\n{printed}\n--- expected:\n{expected}"


def pattern(expected: str) -> re.Pattern[str]:
    """`...` alone on a line is any number of lines, within one any text."""
    parts = []
    for line in expected.splitlines():
        parts.append("(?:.*\n)*" if line == "..." else re.escape(line).replace(re.escape("..."), ".*") + "\n")
    return re.compile("".join(parts))
