"""Permissions of the holder of a key. The role is part of the key's name, and the key is derived from the whole name:
the holder cannot give it another role.

Roles: `worker` may run tasks, and nothing else. `submit` may push, watch and cancel. `admin` may do everything.
"""

from __future__ import annotations

from enum import Enum


class Role(str, Enum):
    """The permissions of a key."""

    WORKER = "worker"
    SUBMIT = "submit"
    ADMIN = "admin"

    __str__ = str.__str__


VM_PREFIX = "vm-"
"""Keys that the boss gives to the VMs that it starts."""
INVITATIONS = ("invite-", *(f"{role}-" for role in Role))
"""Prefixes of keys that `admin.py invite` makes. `invite-` is the prefix from before there were roles."""

MEANING = {
    Role.WORKER: "may run tasks as a worker, and nothing else",
    Role.SUBMIT: "may push tasks, watch runs, ask why, and cancel, retry or redo tasks",
    Role.ADMIN: "may do everything, and run tasks as a worker",
}

SUBMIT_VERBS = frozenset({
    "watch", "calls", "pythons", "logs", "why", "plan", "cancel", "retry_failed", "redo_task", "open_datastore",
})  # fmt: skip
"""Requests that a `submit` key may make. All others change shared state, or delete records: `admin` only."""


def role_of(key_name: str) -> Role:
    """Return the role in a key's name. Keys of the boss's own machine, and invitations from before there were roles,
    are `admin`."""
    if key_name.startswith((VM_PREFIX, f"{Role.WORKER}-")):
        return Role.WORKER
    if key_name.startswith(f"{Role.SUBMIT}-"):
        return Role.SUBMIT
    return Role.ADMIN


def is_revocable(key_name: str) -> bool:
    """Return whether the key was given to a user; the boss's own keys cannot be revoked."""
    return key_name.startswith((VM_PREFIX, *INVITATIONS))


def why_not_hello(key_name: str, kind: str) -> str:
    """Return a sentence if the key may not open a conversation of that kind; else ""."""
    role = role_of(key_name)
    if kind == "client" and role is Role.WORKER:
        return f"key {key_name} may only run tasks: ask for an access file of role submit"
    if kind == "worker" and role is Role.SUBMIT:
        return f"key {key_name} may submit tasks but not run them: ask for an access file of role worker"
    return ""


def why_not_request(key_name: str, verb: str) -> str:
    """Return a sentence if the key may not make this request; else ""."""
    role = role_of(key_name)
    if role is Role.ADMIN or (role is Role.SUBMIT and verb in SUBMIT_VERBS):
        return ""
    return f"key {key_name} has the role {role}, which may not {verb}: ask for an access file of role admin"
