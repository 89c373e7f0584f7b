"""What the holder of a key may do. The role is part of the key's name, and the key is derived from the whole name: who
holds a key can't give it another role.

Roles: `worker` may run tasks, and nothing else. `submit` may push, watch and cancel. `admin` may do everything.
"""

from __future__ import annotations

from enum import Enum


class Role(str, Enum):
    """What a key is good for."""

    WORKER = "worker"
    SUBMIT = "submit"
    ADMIN = "admin"

    __str__ = str.__str__


VM_PREFIX = "vm-"
"""Keys that the boss gives to the VMs that it starts."""
INVITATIONS = ("invite-", *(f"{role}-" for role in Role))
"""Prefixes of keys that `admin.py invite` makes. `invite-` is how it named them before there were roles."""

MEANING = {
    Role.WORKER: "may run tasks as a worker, and nothing else",
    Role.SUBMIT: "may push tasks, watch runs, ask why, and cancel, retry or redo tasks",
    Role.ADMIN: "may do everything, and run tasks as a worker",
}

SUBMIT_VERBS = frozenset({"watch", "calls", "logs", "why", "plan", "cancel", "retry_failed", "redo_task"})
"""Requests that a `submit` key may make. All others change what everybody shares, or delete records: `admin` only."""


def role_of(key_name: str) -> Role:
    """The role that a key's name tells. Keys of the boss's own machine, and invitations from before there were roles,
    are `admin`."""
    if key_name.startswith((VM_PREFIX, f"{Role.WORKER}-")):
        return Role.WORKER
    if key_name.startswith(f"{Role.SUBMIT}-"):
        return Role.SUBMIT
    return Role.ADMIN


def is_revocable(key_name: str) -> bool:
    """Whether the key was given to a user; the boss's own can't be revoked."""
    return key_name.startswith((VM_PREFIX, *INVITATIONS))


def why_not_hello(key_name: str, kind: str) -> str:
    """A sentence where the key may not open a conversation of that kind; empty where it may."""
    role = role_of(key_name)
    if kind == "client" and role is Role.WORKER:
        return f"key {key_name} may run tasks and give no orders: ask for an access file of role submit"
    if kind == "worker" and role is Role.SUBMIT:
        return f"key {key_name} may submit tasks and run none: ask for an access file of role worker"
    return ""


def why_not_request(key_name: str, verb: str) -> str:
    """A sentence where the key may not make this request; empty where it may."""
    role = role_of(key_name)
    if role is Role.ADMIN or (role is Role.SUBMIT and verb in SUBMIT_VERBS):
        return ""
    return f"key {key_name} has the role {role}, which may not {verb}: ask for an access file of role admin"
