"""Finds a pool's template by name or id and caches it; explains the cloud's refusal of a start.

Owns the template that was read last. Starts nothing.
"""

from __future__ import annotations

import threading
import time

from boss.providers.opennebula import naming as words
from boss.providers.opennebula.errors import Asks, InTrouble, No, NoSuch, NotAllowed, WrongState
from boss.providers.opennebula.template import Template, choose, read_template
from boss.providers.provider import AskForLess, GivePoolUp, TryLater

TEMPLATE_KEPT_S = 60.0
"""How long a template is cached: hundreds of VMs requested together read it once."""
VISIBLE = -2


class TemplateFinder:
    """The template that a pool's setting names. For any thread."""

    def __init__(self, cloud: Asks, wanted: str) -> None:
        self._cloud = cloud
        self._wanted = wanted
        self._known: Template | None = None
        self._read_at = 0.0
        self._reading = threading.Lock()
        """Held while the template is read, so that only one of many threads reads it."""

    @property
    def what(self) -> str:
        """The template, for messages."""
        return f"template {self._wanted}"

    def forget(self) -> None:
        """Read it again the next time."""
        self._known = None

    def get(self) -> Template:
        """The template, at most a minute old. Raises all errors of `provider.Provider.start`."""
        known = self._known
        if known is None or time.monotonic() - self._read_at > TEMPLATE_KEPT_S:
            with self._reading:
                if self._known is known:
                    self._known = None  # a wrong one must not be used again
                    self._known = self._read()
                    self._read_at = time.monotonic()
                known = self._known
        if known is None:  # another thread found it wrong
            return self.get()
        return known

    def _read(self) -> Template:
        wanted = self._wanted
        number = int(wanted) if wanted.isascii() and wanted.isdecimal() else self._named(wanted)
        try:
            found = self._cloud.call("template.info", number)
            if "PASSWORD" in (found.TEMPLATE.get("CONTEXT") or ()):
                # The cloud shows it encrypted, and would encrypt it again.
                found = self._cloud.call("template.info", number, False, True)
        except No as error:
            raise refusal(error, self._cloud, self.what) from error
        return read_template(found)

    def _named(self, name: str) -> int:
        cloud = self._cloud
        try:
            every = cloud.call("templatepool.info", VISIBLE, -1, -1).VMTEMPLATE
        except No as error:
            raise refusal(error, cloud, self.what) from error
        number = choose(every, name, cloud.uid)
        if number is None:
            there = ", ".join(sorted({template.NAME for template in every})[:10]) or "none"
            raise GivePoolUp(f"{cloud.name} has no template {name} that user {cloud.user} sees; there: {there}")
        return number


def refusal(error: No, cloud: Asks, what: str) -> Exception:
    """The error of `provider.Provider.start` that a refusal of `template.instantiate` means."""
    text = words.said(error)
    low = text.lower()
    if "quota" in low and ("limit" in low or "exceed" in low):
        return AskForLess(f"{cloud.name} refuses more VMs of {what}: {text}; end other VMs first")
    if "lease" in low:
        return AskForLess(f"{cloud.name} has no free address for VMs of {what}: {text}; end other VMs first")
    if isinstance(error, NotAllowed):
        if "locked" in low:
            return TryLater(f"{what} is locked: {text}; it must be unlocked")
        return GivePoolUp(f"user {cloud.user} may not use {what}: {text}; ask for the rights")
    if isinstance(error, NoSuch):
        return GivePoolUp(f"{cloud.name} has no {what}; set the pool's template to one of its names or ids")
    if isinstance(error, WrongState):
        return TryLater(f"{cloud.name} cannot start {what} now: {text}; the boss retries")
    if isinstance(error, InTrouble) and not ("pars" in low or "syntax" in low):
        return TryLater(f"{cloud.name} is in trouble: {text}; the boss retries")
    return GivePoolUp(f"{what} cannot be started: {text}; correct the template, or set another")
