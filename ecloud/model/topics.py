"""The broker's topics of a cluster, each with one direction, and the names of peers in them. A message is signed
together with its topic (`ecloud/model/wire.py`)."""

from __future__ import annotations

import re

PEER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
RESERVED_PEERS = frozenset({"put", "get", "boss", "client", "worker", "tmp", "trash"})
"""Names with another meaning where a worker's name is used: `put` holds uploads of users, beside the directories in
which workers stage results."""


def why_no_peer_name(name: str) -> str:
    """Return a sentence if no peer may have this name; else ""."""
    if not PEER_NAME.fullmatch(name):
        return (
            f"{name[:64]!r} is not a name of a peer: 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first"
        )
    if name.lower() in RESERVED_PEERS:
        return f"the peer name {name!r} is reserved"
    return ""


def boss_topic(cluster_id: str, peer: str) -> str:
    """Topic of messages from `peer` to the boss."""
    return f"ecloud/{cluster_id}/boss/{peer}"


def peer_topic(cluster_id: str, peer: str) -> str:
    """Topic of messages from the boss to `peer`."""
    return f"ecloud/{cluster_id}/peer/{peer}"


def presence_topic(cluster_id: str, peer: str) -> str:
    """Topic on which the broker announces that `peer` vanished (its last will): a hint, never evidence."""
    return f"ecloud/{cluster_id}/presence/{peer}"


def logs_topic(cluster_id: str, task_no: int) -> str:
    """Topic on which a worker sends the output of a running task while a client follows it."""
    return f"ecloud/{cluster_id}/logs/{task_no}"
