"""What befalls machines, once a second: deaths, freezes, partitions, full disks, vanished VMs. Owns nothing but chance.

What can go wrong at the moment something is done (a message, a commit, a call) is decided where it is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sim.datastore import BOSS
from sim.network import Link

if TYPE_CHECKING:
    from sim.boss_shell import BossProcess
    from sim.simulation import Machine, Simulation

LOOK_S = 1.0
"""How often what goes wrong is drawn."""
LONGEST_PARTITION_S = 25.0
"""Longer than any lease of a simulation."""


class Trouble:
    """Makes things go wrong until they heal."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.world, self.faults = sim.world, sim.faults
        self.world.after(LOOK_S, self._look)

    def _look(self) -> None:
        """Once a second: what befalls whom."""
        sim, world, faults = self.sim, self.world, self.faults
        if sim.healed_at is not None:
            return
        world.after(LOOK_S, self._look)
        if world.fault("broker_restart", faults.broker_restart):
            sim.network.restart()
        if world.fault("datastore_away", faults.datastore_away):
            sim.datastore.go_away(world.random.uniform(0.5, 20.0))
        if world.fault("datastore_full", faults.datastore_full):
            sim.datastore.fill_up(world.random.uniform(0.5, 20.0))
        if world.fault("second_boss", faults.second_boss):
            sim.begin_boss(replace=True)
        for boss in list(sim.bosses):
            if boss.alive:
                self._befall_boss(boss)
        if world.chance(faults.partition):
            self._part()
        for machine in list(sim.machines.values()):
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
            boss.store_parted_until = world.now + seconds
            world.tell("world", f"parts {boss.name} from its database for {seconds:.1f} s")
        if self.sim.config.pools and world.fault("cloud_parted", faults.cloud_parted):
            seconds = world.random.uniform(0.5, LONGEST_PARTITION_S)
            boss.cloud_parted_until = world.now + seconds
            world.tell("world", f"parts {boss.name} from its cloud for {seconds:.1f} s")

    def _befall_worker(self, machine: Machine) -> None:
        world, faults, process = self.world, self.faults, machine.process
        assert process is not None
        if world.fault("worker_death", faults.worker_death):
            process.die("killed")
        elif world.fault("spool_lost", faults.spool_lost):
            self.sim.checker.spools_lost.add(process.name)
            machine.home.spool = {}
            process.die("killed, and its disk is empty")
        elif world.fault("worker_gone", faults.worker_gone):
            self._end_machine(machine)
        elif world.fault("worker_leaves", faults.worker_leaves):
            process.leave()
        elif world.fault("worker_freeze", faults.worker_freeze):
            process.freeze(world.random.expovariate(1 / 10.0))
        elif world.fault("link_cut", faults.link_cut):
            process.link.cut(world.random.expovariate(1 / 5.0))
        elif world.fault("disk_full", faults.disk_full):
            process.fill_disk(world.random.uniform(0.5, 20.0))

    def _befall_vm(self, machine: Machine) -> None:
        world, faults = self.world, self.faults
        if world.fault("vm_vanishes", faults.vm_vanishes):
            self._end_machine(machine)
        elif world.fault("vm_off", faults.vm_off):
            # The cloud says POWEROFF. That is no evidence: the machine may well go on.
            kind = world.random.choice(("lives on", "is off for a while", "is off for good"))
            world.tell("cloud", f"says POWEROFF of {machine.home.name}, which {kind}")
            if kind != "lives on":
                machine.switch_off()
            if kind == "is off for a while":
                world.after(world.random.uniform(1.0, 60.0), machine.switch_on)

    def _end_machine(self, machine: Machine) -> None:
        machine.end()
        self.sim.cloud.vanish(machine.home.name)
        if not machine.of_cloud:
            self.world.after(self.world.random.uniform(0.5, 20.0), self.sim.add_machine)

    def _part(self) -> None:
        """Two of them do not reach each other for a while, and nobody is told."""
        world, sim = self.world, self.sim
        links = [link for _, links in sorted(sim.network.links.items()) for link in links if link.connected]
        pairs: list[tuple[str, str, Link | None]] = [(link.topic or "every boss", "the broker", link) for link in links]
        workers = [machine.process.name for machine in sim.machines.values() if machine.process is not None]
        pairs += [(who, "the datastore", None) for who in [BOSS, *workers]]
        who, whom, link = world.random.choice(pairs)
        seconds = world.random.uniform(0.5, LONGEST_PARTITION_S)
        if link is not None:
            mute, deaf = world.random.choice(((True, True), (True, False), (False, True)))
            link.part(seconds, mute, deaf)
        elif who not in sim.datastore.parted:
            sim.datastore.parted.add(who)
            world.after(seconds, _discard(sim.datastore.parted, who))
        else:
            return
        world.fired["partition"] += 1
        world.tell("world", f"parts {who} from {whom} for {seconds:.1f} s")


def _discard(whom: set[str], who: str) -> Callable[[], None]:
    return lambda: whom.discard(who)
