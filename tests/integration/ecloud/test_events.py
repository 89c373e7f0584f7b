"""Events: found in the tables once, delivered signed and in order, again where it failed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import sqlalchemy as sa
from monitored import RUN, SWEEP, fill
from sqlalchemy.engine import Engine

from ecloud.cli.event_sender import Delivered, Sender, Target, post, run_command, signature
from ecloud.config.settings import Settings
from ecloud.db import schema
from ecloud.queries.events import Happened, events

SECRET = "a secret of sixteen"
ONE = Happened("run_ended/1", "run_ended", 12.0, "run <r> ended", "r")


def write(engine: Engine, statement: sa.Executable) -> None:
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        connection.execute(statement)


def test_each_kind_is_found_once_and_oldest_first(engine: Engine) -> None:
    fill(engine, 100)
    now = time.time()
    vms, workers = schema.vms, schema.workers
    write(engine, sa.update(vms).where(vms.c.vm_no == 3).values(ending_at=None, reason="the VM vanished", since=now))
    write(engine, sa.update(workers).where(workers.c.vm_no == 4).values(state="lost", since=now, reason="silent"))
    write(engine, schema.context.insert().values(name="shouted/budget", value=str(now)))
    found = events(engine)
    assert [one.at for one in found] == sorted(one.at for one in found)
    kinds = [one.kind for one in found]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "run_ended": 2, "first_failure": 1, "pool_closed": 1, "budget_used": 1, "vm_lost": 2,
    }  # fmt: skip
    texts = " | ".join(one.text for one in found)
    assert "run genomes ended: 1 failed, 99 succeeded" in texts
    assert "task prepare-0000005 of run genomes failed" in texts
    assert "VM 3 of pool spot was lost: the VM vanished" in texts
    assert {one.run for one in found if one.kind == "run_ended"} == {RUN, SWEEP}
    assert events(engine, known={one.key for one in found}) == []
    assert len({one.key for one in found}) == len(found)
    assert events(engine, since=now + 60) == []


class Receiver:
    """A web server that fails this many times, then accepts."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.taken: list[tuple[dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if receiver.failures:
                    receiver.failures -= 1
                    self.send_response(503)
                else:
                    receiver.taken.append(({name.lower(): value for name, value in self.headers.items()}, body))
                    self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver(0)
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_post_is_signed_over_its_time_and_body(receiver: Receiver) -> None:
    post(receiver.url, SECRET, ONE, 1_700_000_000.0)
    ((headers, body),) = receiver.taken
    assert headers["x-ecloud-timestamp"] == "1700000000"
    assert headers["x-ecloud-signature"] == f"sha256={signature(SECRET, '1700000000', body)}"
    assert headers["x-ecloud-signature"] != f"sha256={signature(SECRET, '1700000001', body)}"
    assert json.loads(body) == {
        "id": "run_ended/1",
        "kind": "run_ended",
        "at": 12.0,
        "run": "r",
        "text": "run <r> ended",
    }


def test_a_post_that_fails_is_sent_again_later_and_others_are_not_kept_waiting(
    sqlite_engine: Engine, receiver: Receiver, tmp_path: Path
) -> None:
    fill(sqlite_engine, 100)
    heard: list[str] = []
    settings = Settings(database_url=str(sqlite_engine.url))
    web = Target("EVENT_URL", lambda one: post(receiver.url, SECRET, one, 0.0))
    command = Target("EVENT_COMMAND", lambda one: heard.append(one.key))
    file = tmp_path / "events.json"
    file.write_text('{"begun_at": 0}')
    receiver.failures = 2
    sender = Sender(settings, [web, command], file)
    now = time.time()
    sender.look(now)
    assert len(heard) == 4
    assert receiver.taken == []
    sender.look(now + 0.5)
    assert receiver.failures == 1, "not before its time"
    sender.look(now + 2)
    assert receiver.failures == 0
    sender.look(now + 10)
    assert [json.loads(body)["id"] for _, body in receiver.taken] == heard, "all of them, in order"

    again = Sender(settings, [web, command], file)
    again.look(now + 20)
    assert len(heard) == len(receiver.taken) == 4, "a sender that starts again repeats nothing"


def test_a_sender_that_starts_first_tells_nothing_old(sqlite_engine: Engine, tmp_path: Path) -> None:
    fill(sqlite_engine, 100)
    heard: list[str] = []
    settings = Settings(database_url=str(sqlite_engine.url))
    Sender(settings, [Target("T", lambda one: heard.append(one.key))], tmp_path / "events.json").look(time.time())
    assert heard == []
    assert Delivered(1.0).done == {}


def test_a_command_gets_the_event_and_one_that_hangs_is_killed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_command(f'cat > {out}; echo "$ECLOUD_EVENT $ECLOUD_RUN" >> {out}', ONE)
    body, words = out.read_text().splitlines()
    assert json.loads(body)["text"] == "run <r> ended"
    assert words == "run_ended r"
    began = time.monotonic()
    run_command("sleep 100", ONE, limit_s=0.2)
    assert time.monotonic() - began < 50
