"""OpenNebula's refusals, by cause: all that the rest of the provider knows about pyone's exceptions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class No(Exception):
    """The cloud received the call and refused it. The text is the cloud's."""


class NotAllowed(No):
    """No rights, a quota reached, or a locked object: only the text shows which."""


class NoSuch(No):
    """The object does not exist."""


class WrongState(No):
    """The object's current state does not allow the call."""


class InTrouble(No):
    """The cloud failed to do it, or could not parse the call: only the text shows which."""


class Asks(Protocol):
    """A connection that calls an OpenNebula in a user's name: `opennebula.Connection`."""

    @property
    def name(self) -> str:
        """The cloud, for messages."""

    @property
    def user(self) -> str:
        """The user's name."""

    @property
    def uid(self) -> int:
        """The user's id. Raises as `call` does."""

    def call(self, method: str, *arguments: object, secrets: Sequence[str] = ()) -> Any:
        """The cloud's answer. `secrets`: secrets in the arguments, which are removed from errors. Raises `No` and the
        errors of `provider.Provider`."""
