"""Actions of viewers that change the cluster: the page first describes the effect, then sends the request to the boss
in the viewer's name."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import parse_qs, urlencode

import msgspec
from sqlalchemy.engine import Engine
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response

from datastore.problem import PART_AWAY, Problem
from ecloud.client.client import Argument, Client
from ecloud.model.text import counted
from ecloud.model.wire import RequestDone
from ecloud.queries import status as queries
from ecloud.queries.failures import failed_in_group
from ecloud.queries.views import RunStatus
from ecloud.web.rendering import Rendering
from ecloud.web.security import TOO_LARGE, Secret

MOST_WORKERS = 1_000


class Action(msgspec.Struct, frozen=True):
    """`text`: description of the effect, with `{what}`; `button`: its label; `about`: tasks, workers or pools."""

    text: str
    button: str
    about: str
    takes_reason: bool = False


ACTIONS = {
    "cancel": Action(
        "Cancel {what}. Running commands are ended; tasks that depend on them are aborted.",
        "Cancel tasks",
        "tasks",
        True,
    ),
    "retry_failed": Action("Run {what} again, with the tasks that were aborted because of it.", "Retry", "tasks"),
    "redo_task": Action("Run {what} again from the beginning.", "Redo", "tasks"),
    "drain_worker": Action(
        "Drain worker {what}: it ends what it runs and gets no more tasks.", "Drain", "workers", True
    ),
    "undrain_worker": Action("Give tasks to worker {what} again.", "Undrain", "workers"),
    "instantiate_worker": Action("Start workers of pool {what}, even if no task waits for them.", "Start", "pools"),
    "hold_pool": Action(
        "Hold pool {what}: the boss starts no VM of it until you release it; its VMs continue, and work that fits no "
        "other pool waits.",
        "Hold",
        "pools",
        True,
    ),
    "release_pool": Action("Release pool {what}: the boss may start VMs of it again.", "Release", "pools"),
}


class Wanted(msgspec.Struct, frozen=True):
    """Parameters of the action, from a URL or a form."""

    verb: str = ""
    run: str = ""
    id: str = ""
    group: str = ""
    pool: str = ""

    @property
    def action(self) -> Action | None:
        """The requested action; None if this monitor does not know it or its target is missing."""
        found = ACTIONS.get(self.verb)
        named = {"tasks": self.run, "workers": self.id, "pools": self.pool}
        return found if found is not None and named[found.about] else None

    @property
    def back(self) -> str:
        """The page to return to."""
        if not self.run:
            return "/machines"
        if self.id:
            return "/task?" + urlencode({"id": self.id, "run": self.run})
        return "/tasks?" + urlencode({"run": self.run})


class Actions:
    """Confirmation pages and the forms on them."""

    def __init__(
        self,
        rendering: Rendering,
        find_run: Callable[[Engine, str], RunStatus],
        boss: Callable[[], AbstractContextManager[Client]],
        secret: Secret,
    ) -> None:
        self._rendering = rendering
        self._find_run = find_run
        self._boss = boss
        self._secret = secret

    async def confirm(self, request: Request) -> Response:
        """Show what the action would do."""
        wanted = _wanted(request.query_params)
        action = wanted.action
        if action is None:
            text = "This monitor has no such action."
            return self._rendering.message(request, "No such action", text, 404)
        try:
            what = await run_in_threadpool(self._what, wanted, action)
        except Problem as error:
            return self._rendering.message(request, "Not found", str(error), 404)
        values = {
            "text": action.text.format(what=what),
            "button": action.button,
            "fields": {name: value for name, value in msgspec.structs.asdict(wanted).items() if value},
            "takes_reason": action.takes_reason,
            "number_of": "How many" if wanted.verb == "instantiate_worker" else "",
            "back": wanted.back,
        }
        return self._rendering.alone(request, "confirm.html", "Confirm", values)

    def _what(self, wanted: Wanted, action: Action) -> str:
        """Describe the targets of the action. Raises `Problem`."""
        if action.about == "pools":
            return self._pool(wanted.pool)
        if action.about == "workers":
            return wanted.id
        if wanted.group:
            group, ids = failed_in_group(self._rendering.engine, wanted.run, wanted.group)
            line = f" (“{group.line}”)" if group is not None else ""
            return f"{counted(len(ids), 'task')} of run {wanted.run} that failed in one way{line}"
        if wanted.id:
            return f"task {wanted.id} of run {wanted.run}"
        found = self._find_run(self._rendering.engine, wanted.run)
        if wanted.verb == "retry_failed":
            return f"{counted(found.states.get('failed', 0), 'failed task')} of run {wanted.run}"
        count = found.left if wanted.verb == "cancel" else found.total - found.left
        return f"{counted(count, 'task')} of run {wanted.run}"

    def _pool(self, pool: str) -> str:
        """Describe the pool with the number of its VMs."""
        vms = sum(vm.pool == pool for vm in queries.vms(self._rendering.engine))
        return f"{pool} ({counted(vms, 'VM')})"

    async def do(self, request: Request) -> Response:
        """Carry out the action."""
        try:
            body = (await request.body()).decode("utf-8", "replace")
        except ClientDisconnect:
            return self._rendering.message(request, "Not done", TOO_LARGE, 413)
        form = parse_qs(body, keep_blank_values=True, max_num_fields=10)
        fields = {name: values[0] for name, values in form.items()}
        if not hmac.compare_digest(fields.get("csrf", "").encode(), self._secret.csrf.encode()):
            text = "The form belongs to another monitor: reload the page."
            return self._rendering.message(request, "Not done", text, 403)
        wanted = _wanted(fields)
        action = wanted.action
        if action is None:
            text = "This monitor has no such action."
            return self._rendering.message(request, "No such action", text, 404)
        try:
            done = await run_in_threadpool(self._ask, wanted, action, fields)
        except Problem as error:
            is_away = error.exit_code == PART_AWAY
            title = "The boss does not answer" if is_away else "The boss refused"
            return self._rendering.message(request, title, str(error), 503 if is_away else 409)
        self._rendering.answers.forget()
        if not done.count:
            return self._rendering.message(request, "Nothing changed", done.text, 200)
        return RedirectResponse(wanted.back, 303)

    def _ask(self, wanted: Wanted, action: Action, fields: Mapping[str, str]) -> RequestDone:
        arguments: dict[str, Argument]
        if wanted.verb == "instantiate_worker":
            count = fields.get("n", "1")
            if not count.isdecimal() or not 1 <= int(count) <= MOST_WORKERS:
                raise Problem(f"{count!r} is not a number of workers from 1 to {MOST_WORKERS:,}")
            arguments = {"n": int(count), "pool": wanted.pool}
        elif action.about == "pools":
            arguments = {"pool": wanted.pool}
        elif action.about == "workers":
            arguments = {"workers": [wanted.id]}
        elif wanted.group:
            _, ids = failed_in_group(self._rendering.engine, wanted.run, wanted.group)
            if not ids:
                raise Problem("no task fails in that way now")
            arguments = {"ids": list(ids), "run": wanted.run}
        else:
            arguments = {"ids": [wanted.id] if wanted.id else [], "run": wanted.run}
            if wanted.verb == "retry_failed" and not wanted.id:
                arguments["state"] = "failed"
        if action.takes_reason and fields.get("reason"):
            arguments["reason"] = fields["reason"]
        with self._boss() as client:
            return client.request(wanted.verb, **arguments)


def _wanted(fields: Mapping[str, Any]) -> Wanted:
    return Wanted(*(str(fields.get(name, "")) for name in Wanted.__struct_fields__))
