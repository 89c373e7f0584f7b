"""What a viewer may change: each action says first what it would do, then asks the boss, in a person's name."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from contextlib import AbstractContextManager
from urllib.parse import parse_qs, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from datastore.problem import PART_AWAY, Problem
from ecloud.client.client import Argument, Client
from ecloud.queries import status as queries
from ecloud.web.pages import Pages
from ecloud.web.security import Secret

ON_TASKS = {
    "cancel": "Cancel {what}. Running commands are ended; tasks that depend on them are aborted.",
    "retry_failed": "Try {what} again, and what was aborted because of them.",
    "redo_task": "Run {what} again, and what lies below, although they succeeded.",
}
ON_WORKERS = {
    "drain_worker": "Drain worker {what}: it ends what it runs, takes nothing new, and leaves.",
    "undrain_worker": "Let worker {what} take tasks again.",
}


class Actions:
    """Confirmation pages and the forms that follow them."""

    def __init__(self, pages: Pages, boss: Callable[[], AbstractContextManager[Client]], secret: Secret) -> None:
        self._pages = pages
        self._boss = boss
        self._secret = secret

    async def confirm(self, request: Request) -> Response:
        """What the action would do."""
        verb, run, id = (request.query_params.get(name, "") for name in ("verb", "run", "id"))
        if verb in ON_WORKERS and id:
            return self._pages.confirm(
                request, {"verb": verb, "run": "", "id": id, "text": ON_WORKERS[verb].format(what=id)}
            )
        if verb in ON_TASKS and run:
            what = f"task {id} of run {run}" if id else await run_in_threadpool(self._whole_run, verb, run)
            return self._pages.confirm(
                request, {"verb": verb, "run": run, "id": id, "text": ON_TASKS[verb].format(what=what)}
            )
        return self._pages.message(request, "No such action", "The address names no action of this monitor.", 404)

    def _whole_run(self, verb: str, run: str) -> str:
        found = next((one for one in queries.status(self._pages.engine).runs if one.name == run), None)
        states = found.states if found else {}
        count = states.get("failed", 0) if verb == "retry_failed" else found.left if found and verb == "cancel" else 0
        kind = "failed tasks" if verb == "retry_failed" else "unfinished tasks" if verb == "cancel" else "tasks"
        return f"{count:,} {kind} of run {run}" if count else f"all {kind} of run {run}"

    async def do(self, request: Request) -> Response:
        """Carry it out."""
        form = parse_qs((await request.body()).decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=10)
        verb, run, id, csrf = (form.get(name, [""])[0] for name in ("verb", "run", "id", "csrf"))
        if not hmac.compare_digest(csrf.encode(), self._secret.csrf.encode()):
            return self._pages.message(request, "Not done", "The form is of another monitor: load its page again.", 403)
        arguments: dict[str, Argument]
        if verb in ON_WORKERS and id:
            arguments, back = {"workers": [id]}, "/machines"
        elif verb in ON_TASKS and run:
            arguments = {"ids": [id] if id else [], "run": run}
            back = "/task?" + urlencode({"id": id, "run": run}) if id else "/tasks?" + urlencode({"run": run})
        else:
            return self._pages.message(request, "No such action", "The form names no action of this monitor.", 404)
        try:
            await run_in_threadpool(self._ask, verb, arguments)
        except Problem as error:
            is_away = error.exit_code == PART_AWAY
            title = "The boss is away" if is_away else "The boss refused"
            return self._pages.message(request, title, str(error), 503 if is_away else 409)
        return RedirectResponse(back, 303)

    def _ask(self, verb: str, arguments: dict[str, Argument]) -> None:
        with self._boss() as client:
            client.request(verb, **arguments)
