"""What each page shows. A handler reads through `ecloud.queries`, on a thread, and renders a template."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape
from sqlalchemy.engine import Engine
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from datastore.problem import PART_AWAY, Problem
from ecloud.model.tasks import TaskState
from ecloud.model.text import amounts, byte_size, counted, duration, visible
from ecloud.queries import status as queries
from ecloud.queries.boot_history import pool_views
from ecloud.queries.browse import browse
from ecloud.queries.failures import failure_groups
from ecloud.queries.ledger import ledger
from ecloud.queries.lookup import task
from ecloud.queries.timeline import timeline
from ecloud.queries.why import why
from ecloud.queries.why_task import Pool
from ecloud.web import charts
from ecloud.web.answers import Answers

PAGE_ROWS = 100
TAIL_CHARS = 20_000
"""Of an output on a page; `admin.py logs` has the rest."""
GONE_VMS_SHOWN = 50
SIGNS = {
    "succeeded": "✓", "failed": "✗", "running": "▶", "ready": "○", "waiting": "…", "aborted": "⊘", "cancelled": "⊗",
    "leads": "✓", "away": "✗", "up": "✓", "draining": "↓", "lost": "✗", "gone": "–", "intended": "…", "booting": "…",
    "ending": "↓",
}  # fmt: skip
"""A state is told by shape and word, never by colour alone."""


class Pages:
    """Renders pages. `engine` opens the database (raises `DatabaseAway`); `csrf`: None where nothing may be changed."""

    def __init__(self, engine: Callable[[], Engine], cluster: str, csrf: str | None, pools: Sequence[Pool]) -> None:
        self._open = engine
        self._engine: Engine | None = None
        self._pools = pools
        self._answers = Answers()
        self._csrf = csrf
        self._templates = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True, trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self._templates.globals.update(
            cluster=cluster, csrf=csrf, bar=charts.bar, parts_bar=charts.parts_bar, sign=sign, states=list(TaskState)
        )
        self._templates.filters.update(
            duration=duration,
            counted=counted,
            bytes=byte_size,
            amounts=amounts,
            safe_text=safe_text,
            at=at,
            number=number,
        )

    @property
    def engine(self) -> Engine:
        """The database, opened when it is first asked. Raises `DatabaseAway`."""
        if self._engine is None:
            self._engine = self._open()
        return self._engine

    # --- answering ----------------------------------------------------------------------------------

    async def show(self, request: Request, template: str, find: Callable[[Engine], dict[str, Any]]) -> Response:
        """A page, or with `X-Fragment` its main part alone; 304 where the viewer has it already."""
        question = (template, str(request.url.query), tuple(sorted(request.path_params.items())))

        def render() -> tuple[int, str]:
            try:
                return 200, self._main(template, request, find(self.engine))
            except Problem as error:
                if error.exit_code != PART_AWAY:
                    return 404, self._main("message.html", request, {"title": "Not found", "text": str(error)})
                text = f"{error}. This page refreshes until it is back."
                return 503, self._main("message.html", request, {"title": "The database is away", "text": text})

        code, main = await run_in_threadpool(self._answers.ask, question, render)
        etag = f'"{hashlib.blake2b(main.encode(), digest_size=12).hexdigest()}"'
        headers = {"ETag": etag, "Cache-Control": "no-cache", "Vary": "X-Fragment"}
        if code == 200 and request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        if "x-fragment" not in request.headers:
            path = request.url.path
            main = self._templates.get_template("page.html").render(main=Markup(main), path=path, title=path.strip("/"))
        return Response(main, code, headers, "text/html; charset=utf-8")

    def _main(self, template: str, request: Request, values: Mapping[str, Any]) -> str:
        return self._templates.get_template(template).render(query=dict(request.query_params), **values)

    # --- pages --------------------------------------------------------------------------------------

    async def overview(self, request: Request) -> Response:
        """Everything on one screen."""

        def find(engine: Engine) -> dict[str, Any]:
            now = queries.status(engine)
            return {"now": now, "runs": now.runs[:50], "more_runs": max(0, len(now.runs) - 50)}

        return await self.show(request, "overview.html", find)

    async def run(self, request: Request) -> Response:
        """One run: counts, failures in groups, lanes by worker."""
        name = request.path_params["name"]

        def find(engine: Engine) -> dict[str, Any]:
            times = timeline(engine, name)
            return {
                "run": queries.run_status(engine, name),
                "failures": failure_groups(engine, name),
                "times": times,
                "lanes": charts.lanes(times),
                "curve": charts.curve(times.ended),
            }

        return await self.show(request, "run.html", find)

    async def tasks(self, request: Request) -> Response:
        """A list of tasks, a page at a time."""
        asked = request.query_params
        after = asked.get("after", "0")
        state = asked.get("state", "")

        def find(engine: Engine) -> dict[str, Any]:
            page = browse(
                engine, asked.get("run", ""), (state,) if state else (), asked.get("label", ""), asked.get("text", ""),
                int(after) if after.isdecimal() and len(after) < 18 else 0, PAGE_ROWS,
            )  # fmt: skip
            return {"page": page}

        return await self.show(request, "tasks.html", find)

    async def task(self, request: Request) -> Response:
        """One task whole, and why it stands where it stands."""
        name, run = request.query_params.get("id", ""), request.query_params.get("run", "")

        def find(engine: Engine) -> dict[str, Any]:
            return {"task": task(engine, name, run), "why": why(engine, name, run, self._pools)}

        return await self.show(request, "task.html", find)

    async def machines(self, request: Request) -> Response:
        """Workers, VMs and pools."""

        def find(engine: Engine) -> dict[str, Any]:
            vms = queries.vms(engine, gone=True)
            with queries.snapshot(engine) as connection:
                pools = list(pool_views(connection).values())
            return {
                "workers": queries.workers(engine),
                "vms": [vm for vm in vms if vm.state != "gone"],
                "gone": [vm for vm in vms if vm.state == "gone"][-GONE_VMS_SHOWN:][::-1],
                "pools": pools,
            }

        return await self.show(request, "machines.html", find)

    async def ledger(self, request: Request) -> Response:
        """Where every VM-second went."""
        run = request.query_params.get("run", "")

        def find(engine: Engine) -> dict[str, Any]:
            return {"ledger": ledger(engine, run, queries.status(engine).at)}

        return await self.show(request, "ledger.html", find)

    def message(self, request: Request, title: str, text: str, code: int) -> Response:
        """A page that says one thing."""
        main = self._main("message.html", request, {"title": title, "text": text})
        page = self._templates.get_template("page.html").render(main=Markup(main), path="", title=title)
        return Response(page, code, media_type="text/html; charset=utf-8")

    def confirm(self, request: Request, values: Mapping[str, Any]) -> Response:
        """A page that says what an action would do, with the button that does it."""
        main = self._main("confirm.html", request, values)
        page = self._templates.get_template("page.html").render(main=Markup(main), path="", title="Confirm")
        return Response(page, media_type="text/html; charset=utf-8")


# --- how values are written -----------------------------------------------------------------------


def sign(state: str) -> Markup:
    """A state as shape and word."""
    return Markup('<span class="state s-{}"><span aria-hidden="true">{}</span> {}</span>').format(
        state, SIGNS.get(state, "·"), state
    )


def safe_text(text: str, lines: bool = True) -> str:
    """Foreign text of which nothing acts on a terminal or hides; the template escapes it for HTML. Its end."""
    shown = text[-TAIL_CHARS:]
    return ("…\n" if len(shown) < len(text) else "") + visible(shown, lines=lines)


def at(seconds: float | None) -> Markup:
    """A moment, for `monitor.js` to write in the viewer's zone; without scripts as UTC."""
    if seconds is None:
        return Markup("–")
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return Markup('<time datetime="{}">{} UTC</time>').format(
        moment.isoformat(timespec="seconds"), escape(moment.strftime("%Y-%m-%d %H:%M:%S"))
    )


def number(value: float | None, digits: int = 0) -> str:
    """1234567 as 1,234,567; nothing as a dash."""
    return "–" if value is None else f"{value:,.{digits}f}"
