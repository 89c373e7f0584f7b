"""The monitor as an ASGI application."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from sqlalchemy.engine import Engine
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from ecloud.client.client import Client
from ecloud.db.database import DatabaseAway
from ecloud.queries.why_task import Pool
from ecloud.web.actions import Actions
from ecloud.web.metrics import exposition
from ecloud.web.pages import Pages
from ecloud.web.security import Guard, Secret

STATIC = Path(__file__).parent / "static"


def make_app(
    engine: Callable[[], Engine],
    boss: Callable[[], AbstractContextManager[Client]],
    secret: Secret,
    hosts: Sequence[str],
    *,
    cluster: str = "",
    pools: Sequence[Pool] = (),
    read_only: bool = False,
) -> ASGIApp:
    """The application. `engine` opens the database and `boss` a conversation, each when first needed; both may raise
    what their parts raise. `hosts`: the `Host` headers that are answered, with ports."""
    pages = Pages(engine, cluster, None if read_only else secret.csrf, pools)
    actions = Actions(pages, boss, secret)

    async def metrics(request: Request) -> Response:
        try:
            text = await run_in_threadpool(lambda: exposition(pages.engine))
        except DatabaseAway as error:
            return PlainTextResponse(f"{error}\n", 503)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    app = Starlette(
        routes=[
            Route("/", pages.overview),
            Route("/run/{name:path}", pages.run),
            Route("/tasks", pages.tasks),
            Route("/task", pages.task),
            Route("/machines", pages.machines),
            Route("/ledger", pages.ledger),
            Route("/confirm", actions.confirm),
            Route("/do", actions.do, methods=["POST"]),
            Route("/metrics", metrics),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]
    )
    return Guard(app, secret, frozenset(hosts), read_only)
