"""Results of benchmarks, and the plain table of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One line of the table. `wall` and `cpu` are texts with their unit; `aim` is empty if there is none."""

    what: str
    wall: str = ""
    cpu: str = ""
    result: str = ""
    aim: str = ""
    met: bool | None = None


HEADINGS = ("measure", "wall", "CPU", "result", "aim", "")


def cells(figure: Figure) -> tuple[str, ...]:
    """Return the cells of the figure's line."""
    verdict = "" if figure.met is None else "met" if figure.met else "MISSED"
    return figure.what, figure.wall, figure.cpu, figure.result, figure.aim, verdict


def table(figures: list[Figure]) -> str:
    """Return the table, with aligned columns: texts to the left, amounts to the right."""
    lines = [HEADINGS, *map(cells, figures)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    text = []
    for line in lines:
        amounts = [word.rjust(width) for word, width in zip(line[1:4], widths[1:4])]
        parts = [line[0].ljust(widths[0]), *amounts, line[4].ljust(widths[4]), line[5]]
        text.append("  ".join(parts).rstrip())
    text.insert(1, "-" * max(map(len, text)))
    return "\n".join(text)


def micro(seconds: float) -> str:
    """Format the time of one task."""
    return f"{seconds * 1e6:,.1f} us"


def seconds(amount: float) -> str:
    """Format a time."""
    return f"{amount:.2f} s"
