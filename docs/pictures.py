"""Draws docs/images/architecture-light.svg and -dark.svg, the pictures of the README. `docs/generate.py` runs it."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

IMAGES = Path(__file__).parent / "images"
WIDTH, HEIGHT = 960, 430
THEMES = {
    "light": {
        "text": "#1f2328", "dim": "#59636e", "line": "#818b98", "box": "#f6f8fa", "edge": "#d1d9e0",
        "boss": "#ddf4ff", "boss_edge": "#0969da", "work": "#dafbe1", "work_edge": "#1a7f37",
        "keep": "#fff8c5", "keep_edge": "#9a6700", "files": "#1a7f37", "words": "#0969da",
    },
    "dark": {
        "text": "#f0f6fc", "dim": "#9198a1", "line": "#656c76", "box": "#151b23", "edge": "#3d444d",
        "boss": "#0c2d6b", "boss_edge": "#4493f8", "work": "#04260f", "work_edge": "#3fb950",
        "keep": "#341a00", "keep_edge": "#d29922", "files": "#3fb950", "words": "#4493f8",
    },
}  # fmt: skip


def architecture(theme: str) -> str:
    """Return the picture as SVG text, in the colours of `theme` ("light" or "dark")."""
    colours = THEMES[theme]
    parts: list[str] = []

    def text(x: float, y: float, words: str, size: int = 13, colour: str = "text", **more: str) -> None:
        attributes = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
        parts.append(
            f'<text x="{x}" y="{y}" font-size="{size}" fill="{colours[colour]}"{attributes}>{escape(words)}</text>'
        )

    def box(x: float, y: float, w: float, h: float, title: str, lines: tuple[str, ...], kind: str = "") -> None:
        fill, edge = (colours[kind], colours[f"{kind}_edge"]) if kind else (colours["box"], colours["edge"])
        parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="8" fill="{fill}" stroke="{edge}" stroke-width="1.5"/>'
        )
        text(x + 14, y + 24, title, 15, font_weight="600")
        for number, line in enumerate(lines):
            text(x + 14, y + 45 + 18 * number, line, 12, "dim")

    def arrow(points: str, colour: str, both: bool = False) -> None:
        start = f' marker-start="url(#{colour}-start)"' if both else ""
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colours[colour]}" stroke-width="2"'
            f'{start} marker-end="url(#{colour}-end)"/>'
        )

    for colour in ("line", "words", "files"):
        for end, tip_x, path in (("end", 7, "M0,0 L8,4 L0,8 z"), ("start", 1, "M8,0 L0,4 L8,8 z")):
            parts.append(
                f'<marker id="{colour}-{end}" markerWidth="8" markerHeight="8" refX="{tip_x}" refY="4" orient="auto" '
                f'markerUnits="userSpaceOnUse"><path d="{path}" fill="{colours[colour]}"/></marker>'
            )
    box(20, 40, 200, 96, "push_tasks.py", ("task lists, sweeps, WfFormat:", "names every problem at once"))
    box(20, 176, 200, 96, "admin.py", ("status, why, logs, retry, plan;", "reads work without the boss"))
    box(330, 40, 270, 232, "boss", (), "boss")
    box(350, 82, 230, 78, "core", ("decides: place, retry, scale", "pure: no clock, no I/O, no threads"))
    box(350, 176, 230, 78, "shell", ("commits first, then speaks;", "one thread, one loop"))
    box(330, 322, 270, 84, "database", ("SQLite, MySQL or MariaDB:", "every task, attempt and machine"), "keep")
    box(710, 40, 230, 232, "workers", (), "work")
    for number, (name, note) in enumerate(
        (
            ("this machine", "processes"), ("SSH hosts", "a list of names"),
            ("Slurm", "jobs"), ("OpenNebula", "VMs"),
        )
    ):  # fmt: skip
        y = 74 + 48 * number
        parts.append(
            f'<rect x="726" y="{y}" width="198" height="40" rx="6" fill="{colours["box"]}" stroke="{colours["edge"]}"/>'
        )
        text(738, y + 25, name, 13, font_weight="600")
        text(912, y + 25, note, 12, "dim", text_anchor="end")
    box(
        710,
        322,
        230,
        84,
        "datastore",
        ("a directory, or a host over SSH:", "results appear whole or not at all"),
        "keep",
    )
    arrow("222,88 326,88", "words", both=True)
    arrow("222,224 326,224", "words", both=True)
    text(274, 80, "MQTT", 12, "words", text_anchor="middle")
    arrow("602,120 706,120", "words", both=True)
    text(654, 112, "MQTT", 12, "words", text_anchor="middle")
    text(654, 140, "orders,", 12, "dim", text_anchor="middle")
    text(654, 156, "outcomes", 12, "dim", text_anchor="middle")
    arrow("602,200 706,200", "line")
    text(654, 192, "start, end", 12, "dim", text_anchor="middle")
    arrow("465,274 465,318", "line", both=True)
    arrow("825,274 825,318", "files", both=True)
    text(837, 302, "files", 12, "files")
    arrow("602,256 654,256 654,364 706,364", "line")
    text(662, 320, "publish", 12, "dim")
    arrow("120,274 120,364 326,364", "line")
    text(132, 356, "read", 12, "dim")
    font = "-apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="{font}" role="img" aria-label="Clients speak with the boss over MQTT; the boss keeps everything '
        f'in a database and orders workers, which move files to and from the datastore.">\n{body}\n</svg>\n'
    )


def draw() -> dict[Path, str]:
    """Return the content of each picture, by file."""
    return {IMAGES / f"architecture-{theme}.svg": architecture(theme) for theme in THEMES}
