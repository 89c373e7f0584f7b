"""Faults, as named options with probabilities. Draws nothing itself: `World.fault` draws and counts.

The simulated parts read `Faults` whenever something may fail. `heal` ends all faults.
"""

from __future__ import annotations

import random

import msgspec


class Faults(msgspec.Struct):
    """Probabilities per occasion (message, effect, commit, call), or mean rates per second and machine."""

    lose: float = 0.0
    """Per message: it is lost."""
    duplicate: float = 0.0
    """Per message: it arrives a second time, later."""
    delay: float = 0.0
    """Per message: it arrives up to seconds late, after later messages."""
    boss_death: float = 0.0
    """Per point between two effects of the boss."""
    second_boss: float = 0.0
    """Per second: another boss takes the lead while the first one still runs."""
    boss_freeze: float = 0.0
    """Per second: the boss is suspended for a while, sometimes longer than a lease."""
    commit_fails: float = 0.0
    """Per commit: the database is unreachable, and nothing is written."""
    commit_unanswered: float = 0.0
    """Per commit: it is written, and the answer is lost."""
    commit_slow: float = 0.0
    """Per commit: it takes seconds."""
    commit_refused: float = 0.0
    """Per commit: the database refuses the batch; the boss leaves it out and starts again."""
    store_parted: float = 0.0
    """Per second and boss: it does not reach its database for a while; commits, reads and renewals fail."""
    cloud_parted: float = 0.0
    """Per second and boss: it does not reach its cloud for a while; its last request may have arrived."""
    worker_death: float = 0.0
    """Per second and worker: the process dies; another one starts on the same home."""
    worker_cut: float = 0.0
    """Per step of a chain at a worker: the process dies between this step and the next."""
    worker_gone: float = 0.0
    """Per second and worker: the machine vanishes with its disk; another one comes later."""
    worker_freeze: float = 0.0
    """Per second and worker: it is suspended, sometimes longer than its lease."""
    worker_leaves: float = 0.0
    """Per second and worker: it is ordered to leave; another one comes later."""
    link_cut: float = 0.0
    """Per second and worker: its connection to the broker ends for a while."""
    broker_restart: float = 0.0
    """Per second: the broker restarts, loses its messages and closes all connections."""
    datastore_away: float = 0.0
    """Per second: the datastore is unreachable for a while."""
    promotion_cut: float = 0.0
    """Per promoted entry: the datastore becomes unreachable in the middle."""
    call_lost: float = 0.0
    """Per call of a boss that died: it is made nevertheless, late."""
    vm_refused: float = 0.0
    """Per requested VM: the cloud refuses it."""
    vm_quota: float = 0.0
    """Per requested VM: a quota is used up; the cloud refuses all requests for a while."""
    vm_slow: float = 0.0
    """Per VM: it boots for minutes, sometimes longer than the boss waits."""
    vm_never: float = 0.0
    """Per VM: its boot never ends."""
    vm_vanishes: float = 0.0
    """Per second and VM: it vanishes, and the cloud's list shows it."""
    vm_off: float = 0.0
    """Per second and VM: the cloud reports POWEROFF; its worker may continue, vanish for a while, or for good."""
    vm_address: float = 0.0
    """Per requested VM: it gets the address of a living one."""
    vm_late: float = 0.0
    """Per requested VM: the call waits long for its turn, or its answer is lost and the VM is created long after."""
    partition: float = 0.0
    """Per second: two parts (a peer and the broker, a worker and the datastore, the boss and either) do not reach each
    other for a while, in one direction or both, without any notice."""
    queue_full: float = 0.0
    """Per message to a peer with many waiting messages: the broker drops it without notice."""
    datastore_full: float = 0.0
    """Per second: nothing can be stored or published for a while; existing files can be read."""
    disk_full: float = 0.0
    """Per second and worker: outcomes cannot be written to its disk for a while, and no attempt can start."""
    spool_lost: float = 0.0
    """Per second and worker: the process dies and its disk is lost; another one starts."""
    clock_steps: float = 0.0
    """Per start of a boss: its clock is hours before or after that of the previous boss."""
    sign_lost: float = 0.0
    """Per requested certificate: it never arrives."""
    liar: float = 0.0
    """Per second: a peer with a valid key sends false claims about other peers, or replays their messages."""
    poison: float = 0.0
    """Per push of a run: one of its tasks kills every worker process that it runs on, also after things heal."""
    vm_queue: float = 0.0
    """Per VM requested while none waits: the cloud places this one and all that follow meanwhile one after another."""

    database_restored: float = 0.0
    """Per second: an operator stops the boss and restores the last backup of the database."""
    call_host_death: float = 0.0
    """Per call: its interpreter is killed by a signal before it ends."""
    call_refused: float = 0.0
    """Per prefetched call: its host, which is about to be replaced, does not take it."""
    long_report: float = 0.0
    """Per attempt with results: the broker refuses its report, which is too long, by ending the connection; also after
    things heal."""
    shutdown: float = 0.0
    """Per second and worker: its machine shuts down: SIGTERM reaches its tasks and its agent, in any order; seconds
    later it is gone, and another one comes."""
    inbox_full: float = 0.0
    """Per start of a boss: its inbox has room for a few messages only, and drops the others."""
    vm_waits: float = 0.0
    """Per VM requested from a cloud that queues jobs: it waits for minutes, longer than a VM of other clouds may."""
    vm_hidden: float = 0.0
    """Per second and VM: the cloud does not list it for a while, and cannot say whether it still exists."""
    short_lives: float = 0.0
    """Per machine: it ends at a time that its workers state; some tasks state run times that are longer. Half of the
    pools start such machines only."""

    @property
    def any(self) -> bool:
        """Whether any fault is possible."""
        return any(getattr(self, name) for name in self.__struct_fields__)

    def heal(self) -> None:
        """End all faults."""
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
    call_refused=0.3,
    long_report=0.05,
    shutdown=0.04,
    inbox_full=0.7,
    vm_waits=0.6,
    vm_hidden=0.05,
    short_lives=0.7,
)
"""Highest probability of each fault; a seed draws which faults it has, and their probabilities."""

NAMES = tuple(MOST.__struct_fields__)


def draw(chance: random.Random, allowed: tuple[str, ...] = NAMES) -> Faults:
    """Draw the faults of one scenario: about a third of those allowed, each between a tenth of its maximum and the
    maximum."""
    faults = Faults()
    for name in NAMES:
        wanted, amount = chance.random() < 0.35, chance.uniform(0.1, 1.0)
        if wanted and name in allowed:
            setattr(faults, name, getattr(MOST, name) * amount)
    return faults
