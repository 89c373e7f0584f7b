"""Where messages travel: the broker's topics of a cluster, each with one direction. A message is signed
together with its topic (`ecloud/model/wire.py`)."""

from __future__ import annotations


def boss_topic(cluster_id: str, peer: str) -> str:
    """Where `peer` speaks to the boss."""
    return f"ecloud/{cluster_id}/boss/{peer}"


def peer_topic(cluster_id: str, peer: str) -> str:
    """Where the boss speaks to `peer`."""
    return f"ecloud/{cluster_id}/peer/{peer}"


def presence_topic(cluster_id: str, peer: str) -> str:
    """Where the broker says that `peer` is gone (its last will): a hint, never evidence."""
    return f"ecloud/{cluster_id}/presence/{peer}"


def logs_topic(cluster_id: str, task_no: int) -> str:
    """Where a worker sends the output of a running task while somebody asks for it."""
    return f"ecloud/{cluster_id}/logs/{task_no}"
