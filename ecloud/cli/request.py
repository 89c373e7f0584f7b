"""Requests of `admin.py` to the boss about tasks, workers, invitations. Prints the answers."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from datastore.problem import DONE, NOT_ALL_SUCCEEDED, PART_AWAY, Problem
from ecloud.cli import app
from ecloud.config import invitations
from ecloud.config.settings import load_settings

if TYPE_CHECKING:
    from ecloud.client.client import Argument
    from ecloud.model.wire import RequestDone

MANY_WORKERS = 20
"""Above this number, the user must confirm the start of workers."""
NAMES_ASKED = 5
"""Task names shown in the confirmation before deletion."""
REFUSED_WITHIN_S = 3.0
"""How long to wait for a cloud to refuse requested VMs: most answer within 0.1 s."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def ask(verb: str, as_json: bool, **arguments: Argument) -> int:
    """Send one request and print its answer. Raises `RequestRefused`, `BossAway`, `BrokerAway`, `Problem`."""
    _print(_answer(verb, **arguments), as_json)
    return DONE


def _answer(verb: str, **arguments: Argument) -> RequestDone:
    with app.boss(load_settings()) as client:
        return client.request(verb, **arguments)


def _print(answer: RequestDone, as_json: bool) -> None:
    from ecloud.cli.tables import print_json, some
    from ecloud.model.text import visible

    if as_json:
        print_json({"count": answer.count, "text": answer.text, "names": answer.names})
        return
    print(visible(app.as_typed(answer.text)))
    if answer.names and answer.count:
        print(f"  {some(answer.names, total=max(answer.count, len(answer.names)))}")


def drop_tasks(tasks: Sequence[str], run: str, state: str, label: str, yes: bool, as_json: bool) -> int:
    """Delete tasks after the user has confirmed their number and names. Raises as `about_tasks` does; `Problem` if the
    command cannot ask the user."""
    from ecloud.model.text import counted

    if not yes and (tasks or run or state or label):
        names, total = _which(tasks, run, state, label)
        if not total:
            raise Problem("no such tasks", "python admin.py show_tasks lists them")
        shown = f"{counted(total, 'task')} ({', '.join(names[:NAMES_ASKED])}{', …' if total > NAMES_ASKED else ''})"
        if not sys.stdin.isatty():
            raise Problem(
                f"drop_tasks deletes {shown} for good, and there is no terminal to confirm it", "confirm with --yes"
            )
        click.confirm(f"Delete {shown} for good?", abort=True, err=True)
    return about_tasks("drop_tasks", tasks, run, state, label, as_json)


def _which(tasks: Sequence[str], run: str, state: str, label: str) -> tuple[list[str], int]:
    """Return the first names of the selected tasks, and their number."""
    from ecloud.model.text import visible
    from ecloud.queries import status as queries

    if tasks:
        return [visible(name) for name in tasks], len(tasks)
    if os.environ.get("ECLOUD_ACCESS"):  # a client elsewhere has no access to the database
        meant = ", ".join(
            f"{word} {value}" for word, value in (("run", run), ("state", state), ("label", label)) if value
        )
        return [f"all of {meant}"], 1
    page = queries.tasks(app.database(load_settings()), (state,) if state else (), run, label, NAMES_ASKED)
    return [visible(line.id) for line in page.tasks], page.total


def instantiate(n: int, pool: str, keep_alive: bool, yes: bool, as_json: bool) -> int:
    """Start workers; reports immediate refusals of their cloud. Returns exit code 1 if none starts. Raises as `ask`
    does."""
    if n > MANY_WORKERS and not yes:
        if not sys.stdin.isatty():
            raise Problem(f"{n} workers are many, and there is no terminal to confirm it", "confirm with --yes")
        click.confirm(f"Start {n} workers?", abort=True, err=True)
    if os.environ.get("ECLOUD_ACCESS"):  # a client elsewhere has no access to the database
        answer = _answer("instantiate_worker", n=n, pool=pool or None, keep_alive=keep_alive)
        _print(answer, as_json)
        return DONE if answer.count else NOT_ALL_SUCCEEDED
    from ecloud.model.text import counted, visible
    from ecloud.queries import status as queries

    engine = app.database(load_settings())
    before = max((vm.vm_no for vm in queries.vms(engine, gone=True)), default=0)
    answer = _answer("instantiate_worker", n=n, pool=pool or None, keep_alive=keep_alive)
    _print(answer, as_json)
    if not answer.count:
        return NOT_ALL_SUCCEEDED
    until = time.monotonic() + REFUSED_WITHIN_S
    while True:
        asked = [vm for vm in queries.vms(engine, gone=True) if vm.vm_no > before]
        if time.monotonic() > until or (asked and all(vm.state != "intended" for vm in asked)):
            break
        time.sleep(0.05)
    refused = [vm for vm in asked if vm.state == "gone" and vm.cause.startswith("refused")]
    if not refused:
        return DONE
    were = "was" if len(refused) == 1 else "were"
    print(f"admin.py: {counted(len(refused), 'VM')} {were} refused: {visible(refused[-1].reason)}", file=sys.stderr)
    return PART_AWAY if len(refused) == len(asked) else DONE


def plan(as_json: bool) -> int:
    """Print what the boss would start and end now, and why. Raises as `ask` does."""
    from rich.text import Text

    from ecloud.cli.tables import print_json, print_text
    from ecloud.model.text import visible

    with app.boss(load_settings()) as client:
        document = msgspec.json.decode(client.request("plan").text)
    lines = document.pop("lines")
    if as_json:
        print_json(document)
    else:
        console = app.console()
        for line in lines:
            print_text(console, Text(visible(line)))
    return DONE


def about_tasks(
    verb: str, tasks: Sequence[str], run: str, state: str, label: str, as_json: bool, **arguments: Argument
) -> int:
    """Send a request about tasks: the named ones, or all that match. Raises `Problem` if the user selects none."""
    if not (tasks or run or state or label):
        raise Problem(f"{verb} which tasks? Name them, or use --run, --state or --label")
    return ask(verb, as_json, ids=list(tasks), run=run or None, state=state or None, label=label or None, **arguments)


def about_workers(verb: str, workers: Sequence[str], everyone: bool, as_json: bool, **arguments: Argument) -> int:
    """Send a request about workers: the named ones, or all. Raises `Problem` if the user selects none."""
    if bool(workers) == everyone:
        raise Problem(f"{verb} which workers? Name them (python admin.py show_workers), or use --all")
    return ask(verb, as_json, workers=list(workers), **arguments)


def drop_workers(workers: Sequence[str], everyone: bool, as_json: bool) -> int:
    """Delete the records of workers that no longer exist: the boss keeps them only for the history of their tasks."""
    from ecloud.queries import status as queries

    known = [view.worker for view in queries.workers(app.database(load_settings()), ("lost", "gone"))]
    names = [name for name in known if everyone or not workers or any(name.startswith(given) for given in workers)]
    wrong = [given for given in workers if not any(name.startswith(given) for name in known)]
    if wrong:
        raise Problem(f"no worker {wrong[0]} is gone or lost: python admin.py show_workers --all")
    return ask("drop_workers", as_json, workers=list(names))


def drop_context(keys: Sequence[str], as_json: bool) -> int:
    """Delete entries of the context: the named ones, or the addresses of broker and datastore. Raises `Problem` if
    there is none."""
    from ecloud.queries import status as queries

    if keys:
        there = queries.context(app.database(load_settings()))
        if missing := [key for key in keys if key not in there]:
            raise Problem(f"there is no note {missing[0]!r}: python admin.py show_context")
    return ask("drop_context", as_json, keys=list(keys))


# --- invitations ------------------------------------------------------------------------------------


def invite(file: str, host: str | None, role: str, as_json: bool) -> int:
    """Write an access file with a new key. Raises `Problem`, `AccessWrong`."""
    from ecloud.config.secrets import cluster_secret, derive_key, new_invite_name, write_access
    from ecloud.model.roles import MEANING, Role

    settings = load_settings()
    own = app.find_access(settings)
    home = settings.home_directory
    if not home.cluster_key.exists():
        raise Problem(f"{home.cluster_key} is missing: invitations are made where the boss runs", exit_code=PART_AWAY)
    name = new_invite_name(Role(role))
    key = derive_key(cluster_secret(home), name).hex()
    access = msgspec.structs.replace(own, key_name=name, key=key, host=host or own.host, role=role)
    path = Path(file).absolute()
    if path.exists():
        raise Problem(f"{path} exists: name another file, or remove it")
    try:
        invitations.record(home, name, role, str(path))
        write_access(path, access)
    except OSError as error:
        raise Problem(f"{path}: {error.strerror}") from None
    if as_json:
        from ecloud.cli.tables import print_json

        print_json({"file": str(path), "name": name, "role": role, "host": access.host, "port": access.port})
        return DONE
    print(f"{path} holds key {name} of role {role}: it {MEANING[Role(role)]}")
    print("copy it to the other machine (it is a secret), then run there")
    if role != Role.SUBMIT:
        print(f"  python -m worker {path.name}            a worker")
    if role != Role.WORKER:
        print(f"  ECLOUD_ACCESS={path.name} python push_tasks.py FILE   a client")
    print(f"to revoke it: python admin.py invite --revoke {name}")
    if access.host in LOOPBACK:
        print(
            f"but {access.host} is this machine only: for other machines, start the boss with python admin.py start "
            "--listen ADDRESS (an address of this machine that they reach), or set BROKER_HOST in settings.py"
        )
    return DONE


def list_invitations(as_json: bool) -> int:
    """List invitations: name, role, and whether each is still valid. Raises `Problem`."""
    from ecloud.cli.tables import print_json, print_table
    from ecloud.model.text import when
    from ecloud.queries import status as queries

    settings = load_settings()
    try:
        found = list(invitations.invitations(settings.home_directory))
    except OSError as error:
        raise Problem(f"{settings.home_directory.invitations}: {error.strerror}") from None
    revoked = queries.revoked_keys(app.database(settings))
    if as_json:
        print_json([{**msgspec.to_builtins(one), "revoked": one.name in revoked} for one in found])
        return DONE
    now = time.time()
    rows = [
        (one.name, one.role, when(one.at, now), "revoked" if one.name in revoked else "", one.file) for one in found
    ]
    print_table(app.console(), ("name", "role", "made", "", "file"), rows)
    return DONE


def revoke(name: str, as_json: bool) -> int:
    """Revoke an invitation."""
    return ask("revoke_key", as_json, name=name)
