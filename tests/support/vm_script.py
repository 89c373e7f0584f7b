"""What VMs do in a script for the boss: they are asked for, made, and their workers report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from boss_script import BossScript, Peer

from boss.core.model.cloud_vms import CloudState, VmFound
from boss.core.model.effects import StartVm
from boss.core.model.events import MessageArrived, VmsListed, VmStarted
from ecloud.model import wire
from ecloud.model.wire import Envelope


def cloud_lists(
    pool: str,
    by_vm_no: Mapping[int, str] = {},
    seen: Mapping[int, tuple[str, str]] = {},
    *,
    since: Mapping[str, float] = {},
    addresses: Mapping[int, str] = {},
    gone: Mapping[str, int] = {},
    ended: Mapping[str, float] = {},
    **more: Any,
) -> VmsListed:
    """What the cloud of `pool` says: cloud ids by intent of those that are there; of some their state and text, of some
    addresses; intents by cloud id of those that are gone; times by cloud id. `more`: as in `VmsListed`."""
    there = [
        VmFound(
            vm_no,
            cloud_id,
            CloudState(seen[vm_no][0]) if vm_no in seen and seen[vm_no][0] else CloudState.RUNNING,
            address=addresses.get(vm_no, ""),
            since=since.get(cloud_id, 0.0),
            text=seen[vm_no][1] if vm_no in seen else "",
        )
        for vm_no, cloud_id in by_vm_no.items()
    ]
    over = [
        VmFound(vm_no, cloud_id, CloudState.GONE, since=since.get(cloud_id, 0.0), ended=ended.get(cloud_id, 0.0))
        for cloud_id, vm_no in gone.items()
    ]
    return VmsListed(pool, (*there, *over), **more)


def vm_worker(script: BossScript, vm_no: int, holds: tuple[wire.HeldAttempt, ...] = ()) -> Peer:
    """The VM's worker joins; it holds these attempts."""
    vm = script.store.vms[vm_no]
    peer = Peer(f"w{vm_no}", "worker")
    hello = wire.Hello(
        "n", "worker", resources=vm.size, boot_nonce=vm.boot_nonce, vm="x", home=f"h{vm_no}", attempts=holds
    )
    script.handle(MessageArrived(Envelope(1, peer.name, "", 0, hello), f"vm-{vm_no}"))
    peer.session = script.take(peer, wire.Welcome).session
    peer.number = 1
    script.handle(MessageArrived(Envelope(1, peer.name, peer.session, 1, wire.Heartbeat(0, holds)), f"vm-{vm_no}"))
    return peer


def started(script: BossScript) -> list[int]:
    """Intents asked of the cloud since the last look."""
    asked = [call.vm_no for call in script.calls if isinstance(call, StartVm)]
    script.calls = [call for call in script.calls if not isinstance(call, StartVm)]
    return asked


def made(script: BossScript, *vm_nos: int) -> None:
    script.handle(*(VmStarted(vm_no, f"cloud-{vm_no}") for vm_no in vm_nos))


def script_with_one(script: BossScript) -> int:
    """A pool of which one VM came up."""
    script.ask("instantiate_worker", n=1)
    (vm_no,) = started(script)
    made(script, vm_no)
    vm_worker(script, vm_no)
    return vm_no
