"""How many more VMs a pool's cloud said it would give, and how many were asked for since.

Owns when to ask again. Asks nothing itself and starts nothing: `Vms` asks before it starts what a plan wants, and takes
what is left here for the bound of its plans. A cloud that can't be asked bounds nothing.
"""

from __future__ import annotations

from datastore.backoff import Backoff

KEPT_S = 30.0
"""How long an answer holds: others use the cloud too."""
FULL_BACKOFF = Backoff(15.0, 120.0)
"""Between questions to a cloud that answered: none."""
USED_UP_S = 2.0
"""After what was said to be left has been asked for: how long until it is asked again."""
ANSWERED_IN_S = 60.0
"""An answer that has not come by then is not coming."""


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
        """VMs asked for that the last answer may not count."""
        self._taken_next = 0
        """The same for the answer that is on its way."""
        self._full_before = 0
        self.refused = 0
        """VMs that the cloud had no room for since it last had some."""

    @property
    def left(self) -> int | None:
        """How many more may be asked for by the last answer; None for no bound, or none that is known."""
        return None if self._vms is None else max(0, self._vms - self._taken)

    @property
    def why(self) -> str:
        """The bound in words; empty without one."""
        if self._vms is None:
            return ""
        count = f"{self._vms or 'no'} more VM{'' if self._vms == 1 else 's'}"
        asked = f"; {self._taken} asked for since" if self._taken and self._vms else ""
        return f"pool {self._pool} has room for {count} ({self._reason}){asked}"

    def full(self, now: float) -> str:
        """Why none can be had, in words; empty where some can, or where that is long unknown."""
        known = self._seen_at is not None and now < self._seen_at + 2 * FULL_BACKOFF.longest_s
        if not known or self._vms != 0:
            return ""
        return self.why + (
            f"; {self.refused} asked for {'was' if self.refused == 1 else 'were'} refused" if self.refused else ""
        )

    def asks_first(self, now: float) -> bool:
        """Whether the cloud must be asked before anything is started."""
        return self._tells and now >= self.holds_until

    def is_asked(self, now: float) -> bool:
        """Whether an answer is on its way."""
        return self._asked_at is not None and now < self._asked_at + ANSWERED_IN_S

    @property
    def holds_until(self) -> float:
        """When the last answer is too old to go by."""
        if self._seen_at is None:
            return 0.0
        if self._vms == 0:
            return self._seen_at + FULL_BACKOFF.wait_s(self._full_before)
        return self._seen_at + (USED_UP_S if self.left == 0 else KEPT_S)

    # --- facts -----------------------------------------------------------------------------------

    def on_ask(self, under_way: int, now: float) -> None:
        """The cloud is asked; `under_way` calls may be made before it looks, or after."""
        self._asked_at = now
        self._taken_next = under_way

    def on_start(self, count: int) -> None:
        """So many VMs were asked for."""
        self._taken += count
        self._taken_next += count

    def on_seen(self, vms: int | None, reason: str, now: float) -> None:
        """The cloud's answer."""
        self._full_before = self._full_before + 1 if vms == 0 and self._vms == 0 else 0
        self._vms, self._reason, self._taken = vms, reason, self._taken_next
        self._seen_at, self._asked_at = now, None
        if vms != 0:
            self.refused = 0

    def on_refused(self, for_lack_of_room: bool) -> None:
        """The cloud said no to one VM."""
        self.refused += for_lack_of_room
        self.forget()

    def forget(self) -> None:
        """Something changed: the cloud refused, or a VM is gone. It is asked again before the next start."""
        self._seen_at = None
