"""How many more VMs a pool's cloud offered, and how many were requested since.

Owns the time of the next question. Asks and starts nothing: `Vms` asks before it starts the VMs of a plan, and limits
its plans to the remaining number. A cloud that cannot be asked limits nothing.
"""

from __future__ import annotations

from datastore.backoff import Backoff

KEPT_S = 30.0
"""How long an answer is valid: others use the cloud too."""
FULL_BACKOFF = Backoff(15.0, 120.0)
"""Delay between questions to a cloud without room."""
USED_UP_S = 2.0
"""How soon to ask again after the offered VMs were all requested."""
ANSWERED_IN_S = 60.0
"""After this time an answer is no longer expected."""


class PoolCapacity:
    """The room of one pool, as far as it is known."""

    def __init__(self, pool: str, tells: bool) -> None:
        self._pool = pool
        self._tells = tells
        self._vms: int | None = None
        self._reason = ""
        self._seen_at: float | None = None
        self._asked_at: float | None = None
        self._taken = 0
        """VMs that were requested and that the last answer may not include."""
        self._taken_next = 0
        """The same for the pending answer."""
        self._full_before = 0
        self.refused = 0
        """Requests that the cloud refused for lack of room since it last had room."""

    @property
    def left(self) -> int | None:
        """How many more VMs the last answer allows; None for no limit, or an unknown one."""
        return None if self._vms is None else max(0, self._vms - self._taken)

    @property
    def why(self) -> str:
        """The limit in words; empty without one."""
        if self._vms is None:
            return ""
        count = f"{self._vms or 'no'} more VM{'' if self._vms == 1 else 's'}"
        asked = f"; {self._taken} asked for since" if self._taken and self._vms else ""
        return f"pool {self._pool} has room for {count} ({self._reason}){asked}"

    def full(self, now: float) -> str:
        """Why the cloud has no room, in words; empty if it has room, or if nothing is known."""
        known = self._seen_at is not None and now < self._seen_at + 2 * FULL_BACKOFF.longest_s
        if not known or self._vms != 0:
            return ""
        return self.why + (
            f"; {self.refused} asked for {'was' if self.refused == 1 else 'were'} refused" if self.refused else ""
        )

    def asks_first(self, now: float) -> bool:
        """Whether the cloud must be asked before a start."""
        return self._tells and now >= self.holds_until

    def is_asked(self, now: float) -> bool:
        """Whether a question is pending."""
        return self._asked_at is not None and now < self._asked_at + ANSWERED_IN_S

    @property
    def holds_until(self) -> float:
        """When the last answer expires."""
        if self._seen_at is None:
            return 0.0
        if self._vms == 0:
            return self._seen_at + FULL_BACKOFF.wait_s(self._full_before)
        return self._seen_at + (USED_UP_S if self.left == 0 else KEPT_S)

    # --- facts -----------------------------------------------------------------------------------

    def on_ask(self, under_way: int, now: float) -> None:
        """A question was sent; the answer may or may not include the `under_way` calls."""
        self._asked_at = now
        self._taken_next = under_way

    def on_start(self, count: int) -> None:
        """This many VMs were requested."""
        self._taken += count
        self._taken_next += count

    def on_seen(self, vms: int | None, reason: str, now: float) -> None:
        """Take the cloud's answer."""
        self._full_before = self._full_before + 1 if vms == 0 and self._vms == 0 else 0
        self._vms, self._reason, self._taken = vms, reason, self._taken_next
        self._seen_at, self._asked_at = now, None
        if vms != 0:
            self.refused = 0

    def on_refused(self, for_lack_of_room: bool) -> None:
        """The cloud refused a VM."""
        self.refused += for_lack_of_room
        self.forget()

    def forget(self) -> None:
        """Ask again before the next start, because the cloud refused or a VM is gone."""
        self._seen_at = None
