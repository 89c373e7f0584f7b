"""Limits of a peer's Hello: every text, list and number is bounded, whatever the peer sends.

The boss keeps a Hello in memory until the peer confirms it, and a worker's for as long as the worker is on duty.
"""

from __future__ import annotations

from boss.core.model.worker import believed
from ecloud.model.wire import MAX_NAME_CHARS, HeldAttempt, Hello

MAX_TEXT_CHARS = 255
"""Maximum characters of host, software, boot id, a label, an address, a resource's name."""
MAX_KEY_CHARS = 8_192
"""Maximum characters of an OpenSSH public key: RSA with 16,384 bits takes 2,800."""
MAX_ITEMS = 64
"""Maximum number of labels, addresses, resources, boot steps."""
MAX_ATTEMPTS = 10_000
"""Maximum attempts that a worker may list, running and queued. Further ones are redone."""
MAX_SECONDS = 1e9
_STATES = frozenset({"queued", "running", "ended"})


def bounded(hello: Hello) -> Hello:
    """The Hello as the boss keeps it. Raises nothing; a name that is too long is cut, and therefore matches nothing."""
    if hello.kind != "worker":
        return Hello(
            hello.nonce, hello.kind, software=hello.software[:MAX_TEXT_CHARS], host=hello.host[:MAX_TEXT_CHARS]
        )
    resources, machine_has = (
        {name[:MAX_TEXT_CHARS]: amount for name, amount in list(amounts.items())[:MAX_ITEMS]}
        for amounts in (hello.resources, hello.machine_has)
    )
    return Hello(
        nonce=hello.nonce,
        kind=hello.kind,
        software=hello.software[:MAX_TEXT_CHARS],
        host=hello.host[:MAX_TEXT_CHARS],
        addresses=_texts(hello.addresses),
        boot_id=hello.boot_id[:MAX_TEXT_CHARS],
        machine=hello.machine[:MAX_TEXT_CHARS],
        machine_part=hello.machine_part[:MAX_TEXT_CHARS],
        machine_has=believed(machine_has),
        home=hello.home[:MAX_NAME_CHARS],
        pid=hello.pid,
        vm=hello.vm[:MAX_NAME_CHARS],
        boot_nonce=hello.boot_nonce[:MAX_NAME_CHARS],
        resources=believed(resources),
        labels=_texts(hello.labels),
        lives_s=None if hello.lives_s is None else _seconds(hello.lives_s),
        attempts=tuple(
            HeldAttempt(item.task_no, item.number, item.state if item.state in _STATES else "running")
            for item in hello.attempts[:MAX_ATTEMPTS]
        ),
        ssh_key=hello.ssh_key if len(hello.ssh_key) <= MAX_KEY_CHARS else "",
        boot_s={step[:MAX_TEXT_CHARS]: _seconds(ago) for step, ago in list(hello.boot_s.items())[:MAX_ITEMS]},
        chains=hello.chains,
        asks_values=hello.asks_values,
    )


def _texts(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(text[:MAX_TEXT_CHARS] for text in texts[:MAX_ITEMS])


def _seconds(seconds: float) -> float:
    return min(max(seconds, 0.0), MAX_SECONDS)
