"""Answers to requests, and how to read a request's arguments. Shared by the modules that carry requests out."""

from __future__ import annotations

from datastore.problem import Problem
from ecloud.model.wire import Request

Answer = tuple[int, str, tuple[str, ...]]
"""The number of changes, a sentence for the user, and the names of what changed."""


class RequestRefused(Problem):
    """The request cannot be carried out. The text says why and what to do."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def listed(request: Request, name: str) -> list[str | int]:
    """An argument that may be a list, a single value or absent."""
    value = request.arguments.get(name)
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [str(value)]


def text_of(request: Request, name: str, otherwise: str = "") -> str:
    """An argument as text; `otherwise` if it is absent or empty."""
    return str(request.arguments.get(name) or otherwise)
