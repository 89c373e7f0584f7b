"""What may go wrong, as named options with probabilities. Owns no chance itself: `World.fault` draws and counts.

`Faults` is what the machines look at, at the moment something could go wrong. `heal` ends all of it.
"""

from __future__ import annotations

import random

import msgspec


class Faults(msgspec.Struct):
    """Probabilities per occasion (message, effect, commit, call), or mean rates per second and machine."""

    lose: float = 0.0
    """Per message: it never arrives."""
    duplicate: float = 0.0
    """Per message: it arrives a second time, later."""
    delay: float = 0.0
    """Per message: it arrives up to seconds late, after what was sent after it."""
    boss_death: float = 0.0
    """Per point between two effects of the boss."""
    second_boss: float = 0.0
    """Per second: another boss takes the lead while the first still lives."""
    boss_freeze: float = 0.0
    """Per second: the boss stands still for a while, at times longer than a lease."""
    commit_fails: float = 0.0
    """Per commit: the database is away, nothing was written."""
    commit_unanswered: float = 0.0
    """Per commit: it was written, the answer got lost."""
    commit_slow: float = 0.0
    """Per commit: it takes seconds."""
    commit_refused: float = 0.0
    """Per commit: the database refuses the batch; the boss leaves it out and begins anew."""
    store_parted: float = 0.0
    """Per second and boss: it does not reach its database for a while; commits, reads and renewals fail."""
    cloud_parted: float = 0.0
    """Per second and boss: it does not reach its cloud for a while; what it asked for last may have arrived."""
    worker_death: float = 0.0
    """Per second and worker: the process dies; another starts on the same home."""
    worker_cut: float = 0.0
    """Per step of a chain at a worker: the process dies between this one and the next."""
    worker_gone: float = 0.0
    """Per second and worker: the machine is gone with its disk; another comes later."""
    worker_freeze: float = 0.0
    """Per second and worker: it stands still, at times longer than its lease."""
    worker_leaves: float = 0.0
    """Per second and worker: someone tells it to leave; another comes later."""
    link_cut: float = 0.0
    """Per second and worker: its connection to the broker ends for a while."""
    broker_restart: float = 0.0
    """Per second: the broker restarts; what it held is lost, all connections end."""
    datastore_away: float = 0.0
    """Per second: the datastore can't be reached for a while."""
    promotion_cut: float = 0.0
    """Per promoted entry: the datastore goes away in the middle."""
    call_lost: float = 0.0
    """Per call of a boss that died: it happens nevertheless, late."""
    vm_refused: float = 0.0
    """Per VM asked for: the cloud says no."""
    vm_quota: float = 0.0
    """Per VM asked for: a quota is used up; the cloud says no to everything for a while."""
    vm_slow: float = 0.0
    """Per VM: it boots for minutes, at times longer than anybody waits."""
    vm_never: float = 0.0
    """Per VM: its boot never ends."""
    vm_vanishes: float = 0.0
    """Per second and VM: it is gone, and the cloud knows."""
    vm_off: float = 0.0
    """Per second and VM: the cloud says POWEROFF; its worker may live on, be gone for a while, or for good."""
    vm_address: float = 0.0
    """Per VM asked for: it is given the address of another that lives."""
    vm_late: float = 0.0
    """Per VM asked for: the call waits long for its turn, or its answer is lost and the VM is made long after."""
    partition: float = 0.0
    """Per second: two of them (a peer and the broker, a worker and the datastore, the boss and either) do not reach
    each other for a while, in one direction or both, and nobody is told."""
    queue_full: float = 0.0
    """Per message to someone for whom many wait: the broker drops it silently."""
    datastore_full: float = 0.0
    """Per second: nothing can be stored or published for a while; what is there can be read."""
    disk_full: float = 0.0
    """Per second and worker: outcomes can't be kept on its disk for a while, and nothing can be started."""
    spool_lost: float = 0.0
    """Per second and worker: the process dies and what it had on disk is gone; another starts."""
    clock_steps: float = 0.0
    """Per start of a boss: its clock stands hours before or after that of the one before it."""
    sign_lost: float = 0.0
    """Per certificate asked for: it never comes."""
    liar: float = 0.0
    """Per second: a peer with a key of its own lies of what is others', or someone says again what others said."""
    poison: float = 0.0
    """Per push of a run: one of its tasks kills every worker process that it runs on, also after things heal."""
    vm_queue: float = 0.0
    """Per VM asked for while none waits: the cloud places this and all that come meanwhile one after another."""

    database_restored: float = 0.0
    """Per second: a person stops the boss and puts the last backup of the database back."""
    call_host_death: float = 0.0
    """Per call: its interpreter is killed by a signal before it ends."""

    @property
    def any(self) -> bool:
        """Whether anything may go wrong."""
        return any(getattr(self, name) for name in self.__struct_fields__)

    def heal(self) -> None:
        """Nothing goes wrong from now on."""
        for name in self.__struct_fields__:
            setattr(self, name, 0.0)


MOST = Faults(
    lose=0.15,
    duplicate=0.15,
    delay=0.15,
    boss_death=0.04,
    second_boss=0.06,
    boss_freeze=0.06,
    commit_fails=0.08,
    commit_unanswered=0.08,
    commit_slow=0.04,
    commit_refused=0.03,
    store_parted=0.06,
    cloud_parted=0.06,
    worker_death=0.06,
    worker_cut=0.04,
    worker_gone=0.03,
    worker_freeze=0.06,
    worker_leaves=0.03,
    link_cut=0.06,
    broker_restart=0.05,
    datastore_away=0.06,
    promotion_cut=0.15,
    call_lost=0.7,
    vm_refused=0.4,
    vm_quota=0.3,
    vm_slow=0.5,
    vm_never=0.3,
    vm_vanishes=0.05,
    vm_off=0.05,
    vm_address=0.5,
    vm_late=0.5,
    partition=0.15,
    queue_full=0.5,
    datastore_full=0.06,
    disk_full=0.06,
    spool_lost=0.03,
    clock_steps=0.7,
    sign_lost=0.4,
    liar=0.5,
    poison=0.7,
    vm_queue=0.4,
    database_restored=0.1,
    call_host_death=0.3,
)
"""The highest probability of each; a seed draws which of them it has, and how much."""

NAMES = tuple(MOST.__struct_fields__)


def draw(chance: random.Random, allowed: tuple[str, ...] = NAMES) -> Faults:
    """Faults of one scenario: about a third of those allowed, each between a little and most."""
    faults = Faults()
    for name in NAMES:
        wanted, amount = chance.random() < 0.35, chance.uniform(0.1, 1.0)
        if wanted and name in allowed:
            setattr(faults, name, getattr(MOST, name) * amount)
    return faults
