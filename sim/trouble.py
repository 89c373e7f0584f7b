"""Faults of machines, drawn once a second: deaths, freezes, partitions, full disks, vanished VMs. Owns only its random
numbers.

Faults of single actions (a message, a commit, a call) are drawn where the action happens.
"""

from __future__ import annotations

from collections.abc import Callable

from sim.boss_shell import BossProcess
from sim.cluster import Cluster, Machine
from sim.datastore import BOSS
from sim.liar import Liar
from sim.network import Link

LOOK_S = 1.0
"""Interval at which faults are drawn."""
SHUTDOWN_S = (1.0, 15.0)
"""Time that a machine takes to shut down."""
BACKUP = 0.2
"""Probability of a database backup within a second."""
LONGEST_PARTITION_S = 25.0
"""Longer than any lease of a simulation."""


class Trouble:
    """Causes faults until they heal."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.world, self.faults = cluster.world, cluster.faults
        self._liar: Liar | None = None
        self.world.after(LOOK_S, self._look)

    def _look(self) -> None:
        """Draw the faults of one second."""
        cluster, world, faults = self.cluster, self.world, self.faults
        if cluster.healed_at is not None:
            return
        world.after(LOOK_S, self._look)
        if world.fault("broker_restart", faults.broker_restart):
            cluster.network.restart()
        if world.fault("datastore_away", faults.datastore_away):
            cluster.datastore.go_away(world.random.uniform(0.5, 20.0))
        if world.fault("datastore_full", faults.datastore_full):
            cluster.datastore.fill_up(world.random.uniform(0.5, 20.0))
        if world.fault("second_boss", faults.second_boss):
            cluster.begin_boss(replace=True)
        if faults.database_restored:
            if world.chance(BACKUP):
                cluster.back_up()
            if world.chance(faults.database_restored):
                cluster.restore_database()
        for boss in list(cluster.bosses):
            if boss.alive:
                self._befall_boss(boss)
        if world.chance(faults.partition):
            self._part()
        if world.fault("liar", faults.liar):
            self._liar = self._liar or Liar(world, cluster.network, cluster.tables)
            cluster.checker.liars.add(self._liar.name)
            self._liar.lie()
        for machine in list(cluster.machines.values()):
            if machine.process is not None and machine.process.alive:
                self._befall_worker(machine)
            if machine.of_cloud and machine.stands:
                self._befall_vm(machine)

    def _befall_boss(self, boss: BossProcess) -> None:
        world, faults = self.world, self.faults
        if world.fault("boss_freeze", faults.boss_freeze):
            boss.freeze(world.random.expovariate(1 / 5.0))
        if world.fault("store_parted", faults.store_parted):
            seconds = world.random.uniform(0.5, LONGEST_PARTITION_S)
            boss.store.parted_until = world.now + seconds
            world.tell("world", f"parts {boss.name} from its database for {seconds:.1f} s")
        if self.cluster.config.pools and world.fault("cloud_parted", faults.cloud_parted):
            seconds = world.random.uniform(0.5, LONGEST_PARTITION_S)
            boss.calls.parted_until = world.now + seconds
            world.tell("world", f"parts {boss.name} from its cloud for {seconds:.1f} s")

    def _befall_worker(self, machine: Machine) -> None:
        world, faults, process = self.world, self.faults, machine.process
        assert process is not None
        if world.fault("worker_death", faults.worker_death):
            process.die("killed")
        elif world.fault("spool_lost", faults.spool_lost):
            self.cluster.checker.spools_lost.add(process.name)
            machine.home.spool = {}
            process.die("killed, and its disk is empty")
        elif world.fault("worker_gone", faults.worker_gone):
            self.cluster.end_machine(machine)
        elif world.fault("worker_leaves", faults.worker_leaves):
            process.leave()
        elif world.fault("shutdown", faults.shutdown):
            self._shut_down(machine)
        elif world.fault("worker_freeze", faults.worker_freeze):
            process.freeze(world.random.expovariate(1 / 10.0))
        elif world.fault("link_cut", faults.link_cut):
            process.link.cut(world.random.expovariate(1 / 5.0))
        elif world.fault("disk_full", faults.disk_full):
            process.fill_disk(world.random.uniform(0.5, 20.0))

    def _shut_down(self, machine: Machine) -> None:
        """Shut a machine down: its processes receive SIGTERM, and seconds later it is gone."""
        assert machine.process is not None
        machine.process.shut_down()
        self.cluster.cloud.shut_down(machine.home.name)

        def off() -> None:
            if machine.stands:
                self.cluster.end_machine(machine)

        self.world.after(self.world.random.uniform(*SHUTDOWN_S), off)

    def _befall_vm(self, machine: Machine) -> None:
        world, faults = self.world, self.faults
        if world.fault("vm_vanishes", faults.vm_vanishes):
            self.cluster.end_machine(machine)
        elif world.fault("vm_hidden", faults.vm_hidden):
            self.cluster.cloud.hide(machine.home.name)
        elif world.fault("vm_off", faults.vm_off):
            # The cloud reports POWEROFF. That is no evidence: the machine may well continue.
            kind = world.random.choice(("lives on", "is off for a while", "is off for good"))
            world.tell("cloud", f"says POWEROFF of {machine.home.name}, which {kind}")
            if kind != "lives on":
                machine.switch_off()
            if kind == "is off for a while":
                world.after(world.random.uniform(1.0, 60.0), machine.switch_on)

    def _part(self) -> None:
        """Separate two parts for a while, without any notice."""
        world, cluster = self.world, self.cluster
        links = [link for _, links in sorted(cluster.network.links.items()) for link in links if link.connected]
        pairs: list[tuple[str, str, Link | None]] = [(link.topic or "every boss", "the broker", link) for link in links]
        workers = [machine.process.name for machine in cluster.machines.values() if machine.process is not None]
        pairs += [(who, "the datastore", None) for who in [BOSS, *workers]]
        who, whom, link = world.random.choice(pairs)
        seconds = world.random.uniform(0.5, LONGEST_PARTITION_S)
        if link is not None:
            mute, deaf = world.random.choice(((True, True), (True, False), (False, True)))
            link.part(seconds, mute, deaf)
        elif who not in cluster.datastore.parted:
            cluster.datastore.parted.add(who)
            world.after(seconds, _discard(cluster.datastore.parted, who))
        else:
            return
        world.fired["partition"] += 1
        world.tell("world", f"parts {who} from {whom} for {seconds:.1f} s")


def _discard(whom: set[str], who: str) -> Callable[[], None]:
    return lambda: whom.discard(who)
