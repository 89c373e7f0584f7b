"""The broker's and the datastore's VM, by their templates: found among the running VMs, or made on request. They carry
no mark of this cluster, so ECLOUD never ends them."""

from __future__ import annotations

import time
from typing import Protocol

import msgspec

from boss.providers.opennebula import naming as words
from boss.providers.opennebula.errors import Asks, No
from boss.providers.opennebula.template_finder import TemplateFinder, refusal
from boss.providers.opennebula.vm_list import SeenVm
from boss.providers.provider import GivePoolUp, TryLater

UP_S = 300.0
"""For a new VM to run and to get an address."""
LOOK_EVERY_S = 1.0
VISIBLE = -2
PENDING, LCM_RUNNING = 1, 3


class Shows(Asks, Protocol):
    """A cloud whose VMs can be listed."""

    def vms(self, method: str, *arguments: object) -> list[SeenVm]:
        """The VMs that the cloud shows. Raises as `call` does."""


class Machine(msgspec.Struct, frozen=True):
    """A VM of the template. `made`: whether it was made by this call."""

    cloud_id: str
    address: str
    made: bool = False


class Machines:
    """VMs of one template."""

    def __init__(self, cloud: Shows, template: str) -> None:
        self._cloud = cloud
        self._finder = TemplateFinder(cloud, template)
        self._template = template

    def find(self, create: bool, limit_s: float = UP_S) -> Machine:
        """The running VM; if there is none and `create` is set, a new one. Raises all errors of
        `provider.Provider.start`; `GivePoolUp` if there is none, or more than one."""
        template = self._finder.get()
        there = [vm for vm in self._vms() if vm.template == template.id and vm.state in (PENDING, words.ACTIVE)]
        there.sort(key=lambda vm: vm.id)
        if len(there) > 1:
            names = ", ".join(f"{vm.id} ({vm.address or 'no address'})" for vm in there)
            raise GivePoolUp(f"{len(there)} VMs of template {self._template} run: {names}; set the address itself")
        if there:
            return Machine(str(there[0].id), self._address(there[0].id, limit_s))
        if not create:
            raise GivePoolUp(
                f"no VM of template {self._template} runs: start one, or run python admin.py start --create"
            )
        name = f"{template.name} made by ecloud"
        try:
            number = int(self._cloud.call("template.instantiate", template.id, name, False, "", False))
        except No as error:
            raise refusal(error, self._cloud, self._finder.what) from error
        return Machine(str(number), self._address(number, limit_s), made=True)

    def _vms(self) -> list[SeenVm]:
        try:
            return self._cloud.vms("vmpool.infoextended", VISIBLE, -1, -1, -1)
        except No as error:
            raise TryLater(f"{self._cloud.name} does not list its VMs: {words.said(error)}") from error

    def _address(self, number: int, limit_s: float) -> str:
        """The address of a VM, once it runs."""
        deadline = time.monotonic() + limit_s
        while True:
            vm = next((vm for vm in self._vms() if vm.id == number), None)
            if vm is None:
                raise GivePoolUp(f"VM {number} of template {self._template} is gone")
            if vm.state == words.ACTIVE and vm.lcm == LCM_RUNNING and vm.address:
                return vm.address
            if time.monotonic() > deadline:
                raise TryLater(f"VM {number} of template {self._template} has no address after {limit_s:.0f} s")
            time.sleep(LOOK_EVERY_S)
