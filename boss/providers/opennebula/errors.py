"""An OpenNebula's no to a call, told apart by what it is about: what the rest of the provider knows of pyone's
exceptions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class No(Exception):
    """The cloud heard the call and refused it; the text says why, in its own words."""


class NotAllowed(No):
    """No rights, a quota that is reached, or an object that is locked: only the text tells."""


class NoSuch(No):
    """There is no such object."""


class WrongState(No):
    """The object's state refuses it now."""


class InTrouble(No):
    """The cloud could not do it; or it could not read what it was sent: only the text tells."""


class Asks(Protocol):
    """What asks an OpenNebula in a user's name: `opennebula.Connection`."""

    @property
    def name(self) -> str:
        """The cloud, in a sentence."""

    @property
    def user(self) -> str:
        """Who asks."""

    @property
    def uid(self) -> int:
        """The number of who asks. Raises as `call` does."""

    def call(self, method: str, *arguments: object, secrets: Sequence[str] = ()) -> Any:
        """What the cloud answers. `secrets`: those in the arguments, which no error may repeat. Raises `No` and the
        errors of `provider.Provider`."""
