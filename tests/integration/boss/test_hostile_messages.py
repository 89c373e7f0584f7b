"""A running boss among strangers: whatever they say changes nothing and crashes nothing, `status` answers meanwhile,
and no terminal acts on what they are called."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from services import Daemon, wait_until
from stranger import ESCAPE, Stranger, a_run_succeeds, is_heard_out, nothing_changes, shows_no_escapes, worker_of

from ecloud.model import wire
from ecloud.model.tasks import Result, TaskDefinition
from ecloud.model.wire import PushOptions, Refused, Request, RequestDone, RunAccepted, RunRejected, SubmitTasks

# --- noise ----------------------------------------------------------------------------------------


def noises(stranger: Stranger, chance: random.Random) -> Iterator[bytes]:
    """Bytes that are no message, or none that counts."""
    good = wire.encode(
        wire.Envelope(1, stranger.peer, "s", 1, wire.Heartbeat(0)), stranger.topic, stranger.key_name, stranger.key
    )
    yield from (
        b"",
        b"\0",
        b"\n",
        b"\n" * 1_000,
        b"ecloud",
        b"ecloud client \n",
        b"ecloud client x\n{}",
        b"\xff" * 5_000,
    )
    yield from (chance.randbytes(chance.randrange(1, 400)) for _ in range(100))
    yield from (good[: chance.randrange(len(good))] for _ in range(20))
    for _ in range(50):
        place = chance.randrange(len(good))
        yield good[:place] + bytes([good[place] ^ (1 << chance.randrange(8))]) + good[place + 1 :]
    yield stranger.signed(good.partition(b"\n")[2], "ecloud/another/topic")
    bombs = [
        b"[" * 1_000_000,
        b'{"v":' * 200_000,
        b'{"v":' + b"9" * 1_000_000 + b"}",
        b'{"v":1e999}',
        b'{"v":null}',
        b"{}",
    ]
    bombs += [
        b'{"v":1,"peer":"%b","session":"","number":1,"message":' % stranger.peer.encode() + bomb for bomb in bombs
    ]
    bombs += [b'{"v":%d}' % version for version in (-1, 0, 2, 2**62)]
    bombs += [
        b'{"v":1,"v":1,' + b'"x":{},' * 100_000 + b'"v":1}',
        b"\xff\xfe{",
        b'"\\ud800"',
        b'{"v":1,"peer":"\\ud800"}',
    ]
    yield from map(stranger.signed, bombs)
    yield from bombs
    yield bytes(wire.MAX_MESSAGE_BYTES + 1)
    yield stranger.signed(b" " * wire.MAX_MESSAGE_BYTES)


def test_noise_on_every_topic_changes_nothing(besieged: Daemon, tmp_path: Path) -> None:
    chance = random.Random(20)
    worker = worker_of(besieged)
    with Stranger(besieged) as stranger, nothing_changes(besieged, tmp_path):
        tails = (
            f"boss/{stranger.peer}",
            f"boss/{worker}",
            "boss/",
            f"presence/{worker}",
            f"peer/{worker}",
            "peer/x",
            "logs/1",
        )
        for tail in (*tails, "events", "elsewhere"):
            for noise in noises(stranger, chance):
                stranger.throw(stranger.path(tail), noise)
        is_heard_out(stranger)
    a_run_succeeds(besieged, "after")


def test_the_largest_message_a_broker_carries_changes_nothing(besieged: Daemon, tmp_path: Path) -> None:
    size = 256_000_000  # MQTT ends at 268,435,455 bytes
    with Stranger(besieged) as stranger, nothing_changes(besieged, tmp_path):
        worker = worker_of(besieged)
        for tail in (f"boss/{stranger.peer}", f"peer/{worker}"):
            stranger.heave(stranger.path(tail), size)
        is_heard_out(stranger)
    a_run_succeeds(besieged, "after")


# --- replays --------------------------------------------------------------------------------------


def test_all_that_was_ever_said_said_again_changes_nothing(besieged: Daemon, tmp_path: Path) -> None:
    with Stranger(besieged, listen="#") as stranger:
        a_run_succeeds(besieged, "overheard")
        with besieged.client() as client:
            client.request("cancel", ids=["overheard:t1"])
        wait_until(lambda: len(stranger.overheard) > 20, what="something is overheard")
        recorded = list(stranger.overheard)
        assert any(b"SubmitTasks" in payload for _, payload in recorded)
        assert any(b"TasksEnded" in payload for _, payload in recorded)
        for again in range(2):
            with nothing_changes(besieged, tmp_path):
                for topic, payload in [*recorded, *reversed(recorded)]:
                    stranger.throw(topic, payload)
                    stranger.throw(stranger.topic, payload)
                is_heard_out(stranger)
            if not again:
                besieged.restart()
                wait_until(lambda: besieged.log.count("connected to the broker") > 1, what="the next boss listens")
    a_run_succeeds(besieged, "after")


# --- signed, but odd ------------------------------------------------------------------------------

LONG = "x'\\" * 3_000_000
"""Nine million characters, each of which a database must escape."""
ODD_REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    (ESCAPE, {}),
    (LONG, {}),
    ("__class__", {}),
    ("watch", {"run": ESCAPE}),
    ("watch", {"run": 5}),
    ("cancel", {"ids": 7, "run": "nowhere"}),
    ("cancel", {"ids": [ESCAPE, -1, 2**62], "run": "before"}),
    ("cancel", {"run": "before", "state": "undead"}),
    ("cancel", {"run": "' OR 1=1 --"}),
    ("cancel", {"run": LONG}),
    ("cancel", {"ids": [LONG]}),
    ("cancel", {"label": LONG, "run": "before"}),
    ("retry_failed", {"run": ["before"]}),
    ("redo_task", {"ids": ["before:"], "below": "no"}),
    ("drop_tasks", {"ids": ["nowhere:t1"]}),
    ("drop_tasks", {"ids": [""]}),
    ("logs", {"ids": []}),
    ("logs", {"ids": ["before:t0", "before:t1"]}),
    ("instantiate_worker", {"n": 2**62, "pool": "nowhere"}),
    ("instantiate_worker", {"n": -1}),
    ("instantiate_worker", {"n": True}),
    ("instantiate_worker", {"n": "1"}),
    ("drain_worker", {"workers": [ESCAPE]}),
    ("kill_worker", {"workers": ["", "nobody"]}),
    ("drop_workers", {"workers": [LONG]}),
    ("set_context", {"key": "cluster_id", "value": "mine"}),
    ("set_context", {"key": "k" * 101, "value": "v"}),
    ("set_context", {"key": "k", "value": LONG}),
    ("set_datastore", {"address": ""}),
    ("set_datastore", {"address": LONG}),
    ("revoke_key", {"name": "client"}),
    ("revoke_key", {"name": "invite-" + LONG}),
]


def test_odd_requests_are_refused_and_change_nothing(besieged: Daemon, tmp_path: Path) -> None:
    with Stranger(besieged) as stranger, nothing_changes(besieged, tmp_path):
        stranger.hello("client")
        for index, (verb, arguments) in enumerate(ODD_REQUESTS):
            stranger.say(Request(f"odd-{index}", verb, arguments))
            answer = stranger.hears(Refused, RequestDone)
            known = isinstance(answer, Refused) or answer.count == 0 or verb == "drop_workers"
            assert known, (verb, str(arguments)[:100], answer)
        stranger.say(Request(LONG, "end_vms"))
        assert stranger.hears(Refused, RequestDone).__class__ is Refused
    a_run_succeeds(besieged, "after")


def test_odd_pushes_are_rejected_whole(besieged: Daemon, tmp_path: Path) -> None:
    good = TaskDefinition("good", ("true",))
    odd = [
        TaskDefinition(ESCAPE, ("true",)),
        TaskDefinition("", ("true",)),
        TaskDefinition(LONG, ("true",)),
        TaskDefinition("a", (LONG,)),
        TaskDefinition("a", ("true",), results=(Result("x", "../../x"),)),
        TaskDefinition("a", ("true",), results=(Result("x", ".ecloud/x"),)),
        TaskDefinition("a", ("true",), resources={"cpus": -1.0}),
        TaskDefinition("a", ("true",), resources={LONG: 1.0}),
        TaskDefinition("a", ("true",), labels=(ESCAPE,)),
        TaskDefinition("a", ("true",), env={"A=B": ESCAPE}),
        TaskDefinition("good", ("true",)),
    ]
    with Stranger(besieged) as stranger, nothing_changes(besieged, tmp_path):
        stranger.hello("client")
        for index, task in enumerate(odd):
            stranger.say(SubmitTasks(f"odd-{index}", 0, 1, PushOptions("odd"), (good, task)))
            rejected = stranger.hears(RunRejected, RunAccepted)
            assert isinstance(rejected, RunRejected), task.id[:50]
            shows_no_escapes("".join(rejected.problems))
        for index, (k, n) in enumerate([(5, 2), (-1, 1), (0, 0), (0, -7), (0, 2**62), (2**62, 2**62)]):
            stranger.say(SubmitTasks(f"chunks-{index}", k, n, PushOptions("odd"), (good,)))
            assert isinstance(stranger.hears(RunRejected, RunAccepted), RunRejected)
        for index, options in enumerate([PushOptions(""), PushOptions(LONG), PushOptions("odd", "burn")]):
            stranger.say(SubmitTasks(f"options-{index}", 0, 1, options, (good,)))
            assert isinstance(stranger.hears(RunRejected, RunAccepted), RunRejected)
    a_run_succeeds(besieged, "after")
