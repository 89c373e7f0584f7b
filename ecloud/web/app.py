"""The monitor as an ASGI application."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
from sqlalchemy.engine import Engine
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from datastore.problem import Problem
from ecloud.client.client import Client
from ecloud.db.database import DatabaseAway
from ecloud.model.finding import Finding
from ecloud.queries.why_task import Pool
from ecloud.web.actions import Actions
from ecloud.web.health import Health
from ecloud.web.live_logs import LiveLogs
from ecloud.web.metrics import exposition
from ecloud.web.pages import Pages, Sweep
from ecloud.web.rendering import Rendering
from ecloud.web.security import Guard, Secret

STATIC = Path(__file__).parent / "static"
STREAMS = ("stdout", "stderr")


class Parts(msgspec.Struct, frozen=True):
    """Data sources of the monitor. Each is called when first needed, and may raise errors of its part. `boss`: a
    connection to the boss; takes a watchdog that may raise. `secret`: the cluster's, to follow outputs. `look`: runs
    the doctor's checks. `sweep`: a module-level function that returns a run's table."""

    engine: Callable[[], Engine]
    boss: Callable[[Callable[[], None] | None], AbstractContextManager[Client]]
    secret: Callable[[], bytes]
    look: Callable[[], Iterable[Finding]]
    sweep: Sweep | None = None
    boss_numbers: Path | None = None


def make_app(
    parts: Parts,
    secret: Secret,
    hosts: Sequence[str],
    *,
    cluster: str = "",
    pools: Sequence[Pool] = (),
    read_only: bool = False,
    password: str = "",
) -> ASGIApp:
    """Make the application. `hosts`: accepted `Host` headers, with ports. `password`: the password that browsers must
    enter; if empty, they need the token."""
    rendering = Rendering(parts.engine, cluster, None if read_only else secret.csrf)
    health = Health(parts.look)
    pages = Pages(rendering, health, pools, parts.sweep)
    actions = Actions(rendering, pages.find_run, lambda: parts.boss(None), secret)
    logs = LiveLogs(parts.boss, parts.secret)

    async def metrics(request: Request) -> Response:
        def find() -> bytes:
            engine = rendering.engine
            return exposition(engine, pages.books(engine), health, parts.boss_numbers)

        try:
            text = await run_in_threadpool(rendering.answers.ask, "metrics", find)
        except DatabaseAway as error:
            return PlainTextResponse(f"{error}\n", 503)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def log(request: Request) -> Response:
        asked = request.query_params
        offset, stream = asked.get("offset", "0"), asked.get("stream", "")
        if not offset.isdecimal() or len(offset) > 17 or stream not in STREAMS:
            return PlainTextResponse("Give stream=stdout or stderr, and offset as a number of bytes.\n", 400)
        try:
            piece = await run_in_threadpool(
                logs.read, asked.get("run", ""), asked.get("id", ""), stream, int(offset)
            )  # fmt: skip
        except Problem as error:
            return PlainTextResponse(f"{error}\n", 503)
        headers = {"X-Next-Offset": str(piece.next), "X-Ended": str(int(piece.ended)), "Cache-Control": "no-store"}
        return Response(piece.data, headers=headers, media_type="text/plain; charset=utf-8")

    async def login(request: Request) -> Response:
        if not password:
            return rendering.message(request, "Not found", "This monitor has no password.", 404)
        return rendering.alone(request, "login.html", "Password", {})

    app = Starlette(
        routes=[
            Route("/", pages.overview),
            Route("/run/{name:path}", pages.run),
            Route("/sweep/{name:path}", pages.sweep),
            Route("/tasks", pages.tasks),
            Route("/task", pages.task),
            Route("/machines", pages.machines),
            Route("/ledger", pages.ledger),
            Route("/log", log),
            Route("/login", login),
            Route("/confirm", actions.confirm),
            Route("/do", actions.do, methods=["POST"]),
            Route("/metrics", metrics),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]
    )
    return Guard(app, secret, frozenset(hosts), read_only, password)
