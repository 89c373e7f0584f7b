"""Renders values as pages: templates, formats, ETags. Contains no queries."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape
from sqlalchemy.engine import Engine
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from datastore.problem import PART_AWAY, Problem
from ecloud.model.calls import is_python_resource
from ecloud.model.tasks import TaskState
from ecloud.model.text import amounts, byte_size, counted, duration, visible
from ecloud.web import charts
from ecloud.web.answers import Answers

TAIL_CHARS = 20_000
"""Maximum length of an output on a page; `admin.py logs` has the rest."""
SIGNS = {
    "succeeded": "✓", "failed": "✗", "running": "▶", "ready": "○", "waiting": "…", "aborted": "⊘", "cancelled": "⊗",
    "leads": "✓", "away": "✗", "up": "✓", "draining": "↓", "lost": "✗", "gone": "–", "intended": "…", "booting": "…",
    "ending": "↓", "ok": "✓", "pending": "…",
}  # fmt: skip
"""Signs of states: shape and text, never colour alone."""
_WHEN = re.compile(r"\b(?:(\d{4}-\d\d-\d\d) )?(\d\d:\d\d:\d\d) ([A-Z][A-Z]+|[+-]\d\d(?:\d\d)?)(?!\w)")
"""Times as `ecloud.model.text.when` writes them."""
FIGURE_SPACE, PERIOD_SPACE = "\u2007", "\u2008"
"""As wide as a digit, and as a point."""
HTML = "text/html; charset=utf-8"


class Rendering:
    """Renders templates. `engine` opens the database (raises `DatabaseAway`); `csrf`: None if the monitor is
    read-only."""

    def __init__(self, engine: Callable[[], Engine], cluster: str, csrf: str | None) -> None:
        self._open = engine
        self._engine: Engine | None = None
        self.answers = Answers()
        self._templates = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True, trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self._templates.globals.update(
            cluster=cluster, csrf=csrf, bar=charts.bar, parts_bar=charts.parts_bar, sign=sign, states=list(TaskState)
        )
        self._templates.filters.update(
            duration=duration,
            seconds=seconds,
            counted=counted,
            bytes=byte_size,
            offers=offers,
            safe_text=safe_text,
            at=at,
            sentence=sentence,
            number=number,
        )

    @property
    def engine(self) -> Engine:
        """The database, opened on first use. Raises `DatabaseAway`."""
        if self._engine is None:
            self._engine = self._open()
        return self._engine

    async def show(self, request: Request, template: str, find: Callable[[Engine], dict[str, Any]]) -> Response:
        """Render a page, or with `X-Fragment` only its main part; 304 if the viewer already has it."""
        question = (template, str(request.url.query), tuple(sorted(request.path_params.items())))

        def render() -> tuple[int, str, bool]:
            try:
                values = find(self.engine)
                return 200, self._main(template, request, values), not values.get("pending")
            except Problem as error:
                if error.exit_code != PART_AWAY:
                    return 404, self._main("message.html", request, {"title": "Not found", "text": str(error)}), True
                text = f"{error}. This page refreshes until it is back."
                return (
                    503,
                    self._main("message.html", request, {"title": "The database cannot be used now", "text": text}),
                    True,
                )

        code, main, _ = await run_in_threadpool(self.answers.ask, question, render, lambda answer: answer[2])
        etag = f'"{hashlib.blake2b(main.encode(), digest_size=12).hexdigest()}"'
        headers = {"ETag": etag, "Cache-Control": "no-cache", "Vary": "X-Fragment"}
        if code == 200 and request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        if "x-fragment" not in request.headers:
            path = request.url.path
            main = self._page(main, path, path.strip("/"))
        return Response(main, code, headers, HTML)

    def alone(
        self, request: Request, template: str, title: str, values: Mapping[str, Any], code: int = 200
    ) -> Response:
        """Render a page that is neither refreshed nor cached."""
        main = self._main(template, request, {"title": title, **values})
        return Response(self._page(main, "", title), code, media_type=HTML)

    def message(self, request: Request, title: str, text: str, code: int) -> Response:
        """Render a page with one message."""
        return self.alone(request, "message.html", title, {"text": text}, code)

    def _main(self, template: str, request: Request, values: Mapping[str, Any]) -> str:
        return self._templates.get_template(template).render(query=dict(request.query_params), **values)

    def _page(self, main: str, path: str, title: str) -> str:
        return self._templates.get_template("page.html").render(main=Markup(main), path=path, title=title)


# --- how values are written -----------------------------------------------------------------------


def sign(state: str, words: str = "") -> Markup:
    """Format a state as shape and text: its own word, or `words`."""
    return Markup('<span class="state s-{}"><span aria-hidden="true">{}</span> {}</span>').format(
        state, SIGNS.get(state, "·"), words or state
    )


def offers(resources: Mapping[str, float]) -> Markup:
    """Format what a worker offers; the Pythons behind the rest."""
    pythons = [name for name in resources if is_python_resource(name)]
    pythons.sort(key=lambda name: [int(part) for part in re.findall(r"\d+", name)])
    rest = {name: amount for name, amount in resources.items() if amount and name not in pythons}
    told = Markup("{}").format(safe_text(amounts(rest), lines=False))
    if pythons:
        versions = ", ".join(name.removeprefix("python") for name in pythons)
        told += Markup(' <span class="dim">Python {}</span>').format(safe_text(versions, lines=False))
    return told


def safe_text(text: str, lines: bool = True) -> str:
    """Remove control and invisible characters from foreign text and keep its end; the template escapes it for HTML."""
    shown = text[-TAIL_CHARS:]
    return ("…\n" if len(shown) < len(text) else "") + visible(shown, lines=lines)


def at(seconds: float | None) -> Markup:
    """Format a time; `monitor.js` converts it to the viewer's time zone, without scripts it is UTC."""
    if seconds is None:
        return Markup("–")
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return Markup('<time datetime="{}">{} UTC</time>').format(
        moment.isoformat(timespec="seconds"), escape(moment.strftime("%Y-%m-%d %H:%M:%S"))
    )


def sentence(text: str) -> Markup:
    """Format a sentence of ECLOUD like `safe_text` on one line. Each time in it, as `ecloud.model.text.when` writes it,
    becomes a time in the viewer's zone."""
    found, end = Markup(), 0
    shown = safe_text(text, lines=False)
    for match in _WHEN.finditer(shown):
        moment = _moment(match)
        if moment is not None:
            found += shown[end : match.start()]
            found += Markup('<time datetime="{}">{}</time>').format(moment.isoformat(timespec="seconds"), match[0])
            end = match.end()
    return found + shown[end:]


def _moment(match: re.Match[str]) -> datetime | None:
    """The moment that `when` wrote in the server's zone; None if the text names another zone, or no time."""
    try:
        clock = time.strptime(match[2], "%H:%M:%S")
        day = date.fromisoformat(match[1]) if match[1] else date.today()
    except ValueError:
        return None
    for is_summer in (0, 1):
        at_s = time.mktime((day.year, day.month, day.day, *clock[3:6], 0, 0, is_summer))
        moment = datetime.fromtimestamp(at_s).astimezone()
        if moment.strftime("%H:%M:%S %Z") == f"{match[2]} {match[3]}":
            return moment
    return None


def number(value: float | None, digits: int = 0) -> str:
    """Format 1234567 as 1,234,567; None as a dash."""
    return "–" if value is None else f"{value:,.{digits}f}"


def aligned(values: Sequence[float | None]) -> list[str]:
    """Format the numbers of a column with six digits at most; spaces as wide as the missing decimals align their
    points. None as a dash."""
    told = ["–" if value is None else f"{value:.6g}" for value in values]
    if any("e" in text or "n" in text for text in told):  # an exponent, nan or inf: they have no common point
        return told
    decimals = [len(text.partition(".")[2]) for text in told]
    most = max(decimals, default=0)
    return [
        text + (PERIOD_SPACE if most and not own else "") + FIGURE_SPACE * (most - own)
        for text, own in zip(told, decimals)
    ]


def seconds(value: float | None) -> str:
    """Format a short time as 12 ms, a longer one in words; None as a dash."""
    if value is None:
        return "–"
    return f"{value * 1000:.0f} ms" if 0 < value < 1 else duration(value)
