"""An OpenNebula for tests: its XML-RPC interface, states and refusals as they were recorded from a real one, and faults
by option. Its VMs are real: processes of `guests.Guest`, each with a loopback address of its own.

`OpenNebula(directory).start()`, then `.url`; `.faults` says what is to go wrong; `.end()` ends every guest.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
import xmlrpc.client
from collections import Counter
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from guests import Guest
from opennebula_server import Faults, make_server
from opennebula_shapes import (
    ACTIVE,
    DONE,
    HOLD,
    PENDING,
    POWEROFF,
    Network,
    Template,
    User,
    Vm,
    disk_mb,
    group_xml,
    leases_used,
    mac,
    many,
    network_xml,
    quota_used,
    template_xml,
    user_xml,
    vm_short_xml,
    vm_xml,
)
from opennebula_xml import (
    VM_ATTRIBUTES,
    Attributes,
    SyntaxWrong,
    check_variables,
    failure,
    fault,
    parse_template,
    pool,
    recorded,
    set_attributes,
    success,
    text_of,
)

AUTHENTICATION, AUTHORIZATION, NO_EXISTS = 0x100, 0x200, 0x400
ACTION, API, INTERNAL, ALLOCATE = 0x800, 0x1000, 0x2000, 0x4000
PROLOG, BOOT, RUNNING, EPILOG, SHUTDOWN, UNKNOWN = 1, 2, 3, 11, 12, 16
BOOT_FAILURE, PROLOG_FAILURE = 36, 39
TICK_S = 0.02
MAX_TOKENS = 10
"""Of one user."""
MOVES = {
    "hold": ((PENDING, 0), (HOLD, 0)),
    "release": ((HOLD, 0), (PENDING, 0)),
    "poweroff": ((ACTIVE, RUNNING), (POWEROFF, 0)),
    "poweroff-hard": ((ACTIVE, RUNNING), (POWEROFF, 0)),
    "resume": ((POWEROFF, 0), (ACTIVE, BOOT)),
}
"""Further actions: from where, and to where. Those that take a while are done at once."""
NAMES = {PENDING: "PENDING", HOLD: "HOLD", DONE: "DONE", POWEROFF: "POWEROFF"}
LCM_NAMES = {PROLOG: "PROLOG", BOOT: "BOOT", EPILOG: "EPILOG", SHUTDOWN: "SHUTDOWN", RUNNING: "RUNNING"}

CONTEXT_OF_NIC = (
    *("DNS", "EXTERNAL", "GATEWAY", "IP", "IP6", "IP6_GATEWAY", "IP6_METHOD", "IP6_METRIC", "IP6_PREFIX_LENGTH"),
    *("IP6_ULA", "MAC", "MASK", "METHOD", "METRIC", "MTU", "NETWORK", "ROUTES", "SEARCH_DOMAIN", "VLAN_ID"),
    *("VROUTER_IP", "VROUTER_IP6", "VROUTER_MANAGEMENT"),
)


class No(Exception):
    """The cloud's no: text and code; `number`: the object that it is about."""

    def __init__(self, text: str, code: int, number: int = -1) -> None:
        super().__init__(text)
        self.text, self.code, self.number = text, code, number


class OpenNebula:
    """The double. Times in seconds: how long a VM is in each state."""

    def __init__(self, directory: Path, tls: tuple[Path, Path] | None = None, **times: float) -> None:
        self.directory = directory
        self.faults = Faults()
        self.times = {"pending_s": 0.05, "prolog_s": 0.05, "boot_s": 0.1, "shutdown_s": 0.1, "epilog_s": 0.05, **times}
        self.admin = User(0, "oneadmin", "PASSWORD", "oneadmin")
        self.alice = User(2, "alice", "PASSWORD")
        self.group_quotas: dict[str, Attributes] = {}
        """By the group's name."""
        self.users = {user.name: user for user in (self.admin, self.alice)}
        self.networks: dict[int, Network] = {}
        self.templates: dict[int, Template] = {}
        self.vms: dict[int, Vm] = {}
        self.hosts_cpu = 1000.0
        self.hosts = 0
        """With this many hosts VMs are placed by plans, one after another, each with one VM per host at most, as the
        `rank` scheduler does unless told otherwise; 0: all at once."""
        self.onegate = False
        """Whether OneGate is set up: else a context has nothing of it, and no VMID."""
        self.hidden_images: set[int] = set()
        """Images that only their owner may use."""
        self.no_tokens = False
        self.clock_ahead_s = 0.0
        self.ssh_port = 0
        """Of every guest's own sshd; 0 for none."""
        self.next_vm = 0
        self.calls: Counter[str] = Counter()
        self.sessions: list[str] = []
        """Whom each call was made by, in order."""
        self.lock = threading.RLock()
        self.let_go = threading.Event()
        self.held: list[str] = []
        """Faults of calls that were heard and not made, in order."""
        self.released = threading.Event()
        self._server = make_server(self, tls)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_address[1]}/RPC2"
        self._threads = [
            threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True),
            threading.Thread(target=self._live, daemon=True),
        ]

    # --- for tests ------------------------------------------------------------------------------------

    def start(self) -> OpenNebula:
        for thread in self._threads:
            thread.start()
        return self

    def stop_answering(self) -> None:
        """The cloud's front end is gone; its VMs continue."""
        if self._threads[0].is_alive():
            self._server.shutdown()
        self._server.server_close()

    def end(self) -> None:
        """End the cloud and every guest."""
        self.released.set()
        self.stop_answering()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(10)
        for vm in self.vms.values():
            if vm.guest is not None:
                vm.guest.end()

    def add_network(self, name: str = "net", first: str = "127.77.0.10", size: int = 250) -> int:
        """A network whose addresses are loopback addresses of this machine."""
        number = len(self.networks)
        self.networks[number] = Network(number, name, self.admin, first, size)
        return number

    def add_template(self, text: str, owner: User | None = None) -> int:
        """A template as text; NAME is in it."""
        number = len(self.templates)
        attributes = parse_template(text)
        name = attributes.pop("NAME")
        self.templates[number] = Template(number, name, owner or self.admin, attributes)
        return number

    def add_worker_template(self, name: str = "worker", image: str = "ecloud", more: str = "", cpus: int = 1) -> int:
        """A template whose VMs have ECLOUD inside (`ecloud`), or nothing (`bare`). `more`: of its CONTEXT; `cpus`: what
        a VM sees."""
        network = 0 if self.networks else self.add_network()
        return self.add_template(
            f'NAME="{name}"\nCPU="1"\nVCPU="{cpus}"\nMEMORY="512"\nLABELS="base"\nDISK=[IMAGE_ID="0",IMAGE="{image}"]\n'
            f'NIC=[NETWORK_ID="{network}"]\nGRAPHICS=[TYPE="VNC",LISTEN="0.0.0.0"]\n'
            f'CONTEXT=[NETWORK="YES",SSH_PUBLIC_KEY="$USER[SSH_PUBLIC_KEY]",REPORT_READY="YES",VMNAME="$NAME"{more}]\n'
        )

    def add_vm(self, number: int, name: str, owner: User | None = None, **options: Any) -> Vm:
        """A VM that is there already, without a guest. `user_template`, `state`, `lcm`; of template 0."""
        template = self.templates[0]
        vm = self._make_vm(number, name, owner or self.admin, template, dict(template.attributes))
        vm.user_template.update(options.pop("user_template", {}))
        for key, value in options.items():
            setattr(vm, key, value)
        vm.deployed = vm.state != PENDING
        self.vms[number] = vm
        self.next_vm = max(self.next_vm, number + 1)
        return vm

    @property
    def alive(self) -> list[Vm]:
        """VMs that are not DONE."""
        with self.lock:
            return [vm for vm in self.vms.values() if vm.state != DONE]

    def clock(self) -> int:
        """Epoch seconds by the cloud's clock, which may be off."""
        return int(time.time() + self.clock_ahead_s)

    def move(self, vm: Vm, state: int, lcm: int = 0) -> None:
        """Put a VM into a state, e.g. one that its host reports; its guest continues."""
        with self.lock:
            vm.state, vm.lcm, vm.since = state, lcm, time.monotonic()

    def vanish(self, vm: Vm) -> None:
        """The host burns: the guest is killed and the VM is DONE."""
        with self.lock:
            self._done(vm)

    def shut_down(self, vm: Vm) -> None:
        """A person ends it in the cloud: its guest shuts down."""
        with self.lock:
            self.move(vm, ACTIVE, SHUTDOWN)
            if vm.guest is not None:
                vm.guest.shut_down()

    # --- life -----------------------------------------------------------------------------------------

    def _live(self) -> None:
        while not self.released.wait(TICK_S):
            with self.lock:
                for vm in list(self.vms.values()):
                    if vm.state != DONE and vm.id >= 0:
                        self._step(vm, time.monotonic() - vm.since)
                if self.hosts:
                    self._plan()

    def _step(self, vm: Vm, for_s: float) -> None:
        times, faults = self.times, self.faults
        if vm.state == PENDING and for_s >= times["pending_s"] and not self.hosts:
            self._deploy(vm)
        elif vm.where == (ACTIVE, PROLOG) and for_s >= times["prolog_s"] and not faults.stays_in_prolog:
            self.move(vm, ACTIVE, PROLOG_FAILURE if faults.prolog_fails else BOOT)
            self._explain(vm, "PROLOG", faults.prolog_fails)
        elif vm.where == (ACTIVE, BOOT) and for_s >= times["boot_s"] and not faults.never_boots:
            self.move(vm, ACTIVE, BOOT_FAILURE if faults.boot_fails else RUNNING)
            self._explain(vm, "DEPLOY", faults.boot_fails)
            if not faults.boot_fails and not faults.unplugged:
                self._boot(vm)
        elif vm.where == (ACTIVE, SHUTDOWN) and for_s >= times["shutdown_s"]:
            if faults.shutdown_fails and not vm.hard:
                self.move(vm, ACTIVE, RUNNING)
            else:
                self._end_guest(vm)
                self.move(vm, ACTIVE, EPILOG)
        elif vm.where == (ACTIVE, EPILOG) and for_s >= times["epilog_s"]:
            self._done(vm)
        elif vm.where == (ACTIVE, RUNNING) and vm.guest is not None and vm.guest.has_powered_off:
            self._end_guest(vm)
            self.move(vm, POWEROFF)

    def _plan(self) -> None:
        """One plan at a time: while a VM of the last one is in PROLOG, all others wait."""
        waiting = [vm for vm in self.vms.values() if vm.state == PENDING and vm.id >= 0]
        if any(vm.where == (ACTIVE, PROLOG) for vm in self.vms.values()):
            waiting, left = [], waiting
        else:
            waiting, left = waiting[: self.hosts], waiting[self.hosts :]
        for vm in waiting:
            self._deploy(vm)
        for vm in left:
            when = time.strftime("%a %b %d %H:%M:%S %Y")
            vm.user_template["SCHED_MESSAGE"] = f"{when}: [HOST] Dispatch limit reached on hosts: 0"

    def _deploy(self, vm: Vm) -> None:
        when = time.strftime("%a %b %d %H:%M:%S %Y")
        for nic in many(vm.template.get("NIC")):
            if nic.get("NETWORK_MODE", "").lower() == "auto" and "IP" not in nic:
                try:
                    self._lease(vm, nic, next(iter(self.networks)))
                except No:
                    vm.user_template["SCHED_MESSAGE"] = f"{when}: [VNET] Unavailable leases in networks: 0"
                    return
        used = sum(float(other.template.get("CPU", 1)) for other in self.alive if other.deployed)
        if self.faults.nothing_fits or used + float(vm.template.get("CPU", 1)) > self.hosts_cpu:
            vm.user_template["SCHED_MESSAGE"] = f"{when}: [HOST] Not enough CPU on hosts: 0"
            return
        vm.user_template.pop("SCHED_MESSAGE", None)
        vm.deployed = True
        self.move(vm, ACTIVE, PROLOG)

    def _explain(self, vm: Vm, action: str, failed: bool) -> None:
        if failed:
            vm.user_template["ERROR"] = f"{time.strftime('%a %b %d %H:%M:%S %Y')}: {action}: dh0:{vm.name}:dummy"

    def _boot(self, vm: Vm) -> None:
        context = vm.template.get("CONTEXT")
        if context:
            image = next((disk.get("IMAGE", "") for disk in many(vm.template.get("DISK"))), "")
            address = next((nic["IP"] for nic in many(vm.template.get("NIC")) if "IP" in nic), "127.0.0.1")
            vm.guest = Guest(self.directory / f"vm-{vm.id}", address, image, self.ssh_port)
            vm.guest.boot(context)

    def _end_guest(self, vm: Vm) -> None:
        if vm.guest is not None:
            vm.guest.end()

    def _done(self, vm: Vm) -> None:
        self._end_guest(vm)
        for network in self.networks.values():
            network.leases = {address: number for address, number in network.leases.items() if number != vm.id}
        vm.ended_at = self.clock()
        self.move(vm, DONE)

    # --- calls ----------------------------------------------------------------------------------------

    def answer(self, body: bytes) -> str:
        """The answer to one XML-RPC request."""
        arguments, method = xmlrpc.client.loads(body)
        method = method or ""
        handler = getattr(self, "_" + method.removeprefix("one.").replace(".", "_"), None)
        if handler is None or not method.startswith("one."):
            return fault(-506, f"Method '{method}' not defined")
        with self.lock:
            self.calls[method.removeprefix("one.")] += 1
            self.sessions.append(str(arguments[0]) if arguments else "")
            try:
                user = self._user(str(arguments[0]) if arguments else "")
                limits = handler.__code__.co_argcount - 2
                if len(arguments) - 1 < limits - len(handler.__defaults__ or ()):
                    return fault(-501, "Not enough parameters")
                if len(arguments) - 1 > limits:
                    return fault(-501, "Too many parameters")
                given = handler(user, *arguments[1:])
            except No as no:
                return failure(f"[{method}] {no.text}", no.code, no.number)
            except (TypeError, AttributeError):
                return fault(-501, "Parameter that is supposed to be string is not")
        return success(given if isinstance(given, (int, str)) else text_of(given))

    def _user(self, session: str) -> User:
        name, _, secret = session.partition(":")
        user = self.users.get(name)
        now = time.monotonic()
        if user is None or not user.enabled or not (secret == user.password or user.tokens.get(secret, 0.0) > now):
            raise No("User couldn't be authenticated, aborting call.", AUTHENTICATION)
        return user

    def _system_version(self, user: User) -> str:
        return "7.4.0"

    def _user_login(self, user: User, name: str, token: str, seconds: int, group: int = -1) -> str:
        if self.no_tokens:
            raise No("Tokens are not enabled.", AUTHORIZATION)
        tokens, now = self.users[name].tokens, time.monotonic()
        for ended in [key for key, until in tokens.items() if until <= now]:
            del tokens[ended]
        if seconds == 0:
            if tokens.pop(token, None) is None:
                raise No("Could not find token.", INTERNAL)
            return token
        if len(tokens) >= MAX_TOKENS:
            raise No("Max number of tokens limit reached.", INTERNAL)
        made = token or secrets.token_hex(32)
        tokens[made] = now + seconds
        return made

    def _user_info(self, user: User, number: int, decrypt: bool = False) -> Any:
        subject = user if number == -1 else next(other for other in self.users.values() if other.id == number)
        return user_xml(subject, [vm for vm in self.alive if vm.owner is subject])

    def _user_quota(self, user: User, number: int, text: str) -> int:
        self._admins_only(user, f"perform ADMIN USER [{number}]")
        quota = parse_template(text).get("VM", {})
        next(other for other in self.users.values() if other.id == number).quota.update(quota)
        return number

    def _group_info(self, user: User, number: int, decrypt: bool = False) -> Any:
        if self.faults.groups_are_hidden or number != -1:
            raise No(f"User [{user.id}] : Not authorized to perform USE GROUP [1].", AUTHORIZATION)
        return group_xml(user.group, self.group_quotas.get(user.group, {}), self._of_group(user.group))

    def _of_group(self, group: str) -> list[Vm]:
        return [vm for vm in self.alive if vm.owner.group == group]

    def _host_allocate(self, user: User, name: str, im: str, vmm: str, cluster: int = -1) -> int:
        self._admins_only(user, "perform CREATE HOST")
        return 0

    def _hostpool_info(self, user: User) -> Any:
        if self.faults.only_admin_sees_hosts and user is not self.admin:
            return pool("HOST_POOL", [])
        used = sum(float(vm.template.get("CPU", 1)) for vm in self.alive if vm.deployed)
        share: dict[str, Any] = {
            "MEM_USAGE": 0,
            "CPU_USAGE": used * 100,
            "TOTAL_MEM": 1 << 40,
            "TOTAL_CPU": self.hosts_cpu * 100,
        }
        share.update(MAX_MEM=1 << 40, MAX_CPU=self.hosts_cpu * 100, RUNNING_VMS=0, VMS_THREAD=1)
        share = {name: str(int(value)) for name, value in share.items()}
        host = {"ID": "0", "NAME": "dh0", "STATE": "2", "HOST_SHARE": share}
        return set_attributes(pool("HOST_POOL", []), {"HOST": host})

    def _image_allocate(self, user: User, text: str, datastore: int, check: bool = True) -> int:
        parse_template(text)
        return 0

    def _image_info(self, user: User, number: int, decrypt: bool = False) -> Any:
        if number in self.hidden_images and user is not self.admin:
            raise No(f"User [{user.id}] : Not authorized to perform USE IMAGE [{number}].", AUTHORIZATION)
        found = recorded("34-imagepool.info", "IMAGE")
        if number != 0:
            raise No(f"Error getting image [{number}].", NO_EXISTS, number)
        return found

    def _imagepool_info(self, user: User, flag: int, start: int, end: int) -> Any:
        return recorded("34-imagepool.info")

    # --- networks -------------------------------------------------------------------------------------

    def _vn_allocate(self, user: User, text: str, cluster: int = -1) -> int:
        attributes = parse_template(text)
        return self.add_network(attributes["NAME"], attributes["AR"]["IP"], int(attributes["AR"]["SIZE"]))

    def _vn_info(self, user: User, number: int, decrypt: bool = False) -> Any:
        if number not in self.networks:
            raise No(f"Error getting virtual network [{number}].", NO_EXISTS, number)
        return network_xml(self.networks[number], True)

    def _vnpool_info(self, user: User, flag: int, start: int, end: int, state: int) -> Any:
        return pool("VNET_POOL", [network_xml(net, False) for _, net in sorted(self.networks.items())[::-1]])

    def _lease(self, vm: Vm, nic: Attributes, number: int) -> None:
        net = self.networks.get(number)
        every = (str(IPv4Address(net.first) + index) for index in range(net.size)) if net else iter(())
        address = next((ip for ip in every if net is not None and ip not in net.leases), None)
        if net is None or address is None:
            text = f"Cannot get IP/MAC lease from virtual network {number}."
            raise No(f"Error allocating a new virtual machine template. {text}", ALLOCATE)
        net.leases[address] = vm.id
        nic.update(IP=address, MAC=mac(address), NETWORK=net.name, NETWORK_ID=str(net.id))

    # --- templates ------------------------------------------------------------------------------------

    def _template_allocate(self, user: User, text: str) -> int:
        attributes = parse_template(text)
        for template in self.templates.values():
            if template.name == attributes["NAME"] and template.owner is user:
                raise No(f"NAME is already taken by TEMPLATE {template.id}.", INTERNAL)
        return self.add_template(text, user)

    def _template_delete(self, user: User, number: int, images: bool = False) -> int:
        del self.templates[self._template(user, number, "MANAGE").id]
        return number

    def _template_info(self, user: User, number: int, extended: bool = False, decrypt: bool = False) -> Any:
        return template_xml(self._template(user, number, "USE"), decrypt)

    def _templatepool_info(self, user: User, flag: int, start: int, end: int) -> Any:
        return pool("VMTEMPLATE_POOL", [template_xml(t) for _, t in sorted(self.templates.items())[::-1]])

    def _template(self, user: User, number: int, right: str) -> Template:
        template = self.templates.get(number)
        if template is None:
            raise No(f"Error getting virtual machine template [{number}].", NO_EXISTS, number)
        if template.attributes.get("SECRET") and user is not template.owner:
            raise No(f"User [{user.id}] : Not authorized to perform {right} TEMPLATE [{number}].", AUTHORIZATION)
        return template

    def _template_instantiate(
        self, user: User, number: int, name: str, hold: bool, extra: str, persistent: bool = False
    ) -> int:
        template = self._template(user, number, "USE")
        try:
            attributes = {**template.attributes, **parse_template(extra)}
        except SyntaxWrong as error:
            raise No(f"Error parsing template: {error}", INTERNAL) from None
        name = name or f"{template.name}-{self.next_vm}"
        if bad := re.search(r"[$:/<&]", name):
            text = f"Invalid NAME, it contains the character {bad.group()}"
            raise No(f"Error allocating a new virtual machine template. {text}", ALLOCATE)
        if len(name) > 128:
            text = "Invalid NAME, max length is 128 characters"
            raise No(f"Error allocating a new virtual machine template. {text}", ALLOCATE)
        self._check_quota(user, attributes)
        vm = self._make_vm(self.next_vm, name, user, template, attributes)
        try:
            check_variables(vm.template.get("CONTEXT", {}))
        except SyntaxWrong as error:
            raise No(f"Error allocating a new virtual machine template. {error}", ALLOCATE) from None
        for nic in many(vm.template.get("NIC")):
            if nic.get("NETWORK_MODE", "").lower() != "auto":
                self._lease(vm, nic, self._network_number(nic))
        self._complete(vm)
        if hold:
            vm.state = HOLD
        self.vms[vm.id] = vm
        self.next_vm += 1
        return vm.id

    def _network_number(self, nic: Attributes) -> int:
        if "NETWORK_ID" in nic:
            return int(nic["NETWORK_ID"])
        return next((net.id for net in self.networks.values() if net.name == nic.get("NETWORK")), -1)

    def _check_quota(self, user: User, attributes: Attributes) -> None:
        mine = [vm for vm in self.alive if vm.owner is user]
        self._check_quotas(f"User [{user.id}] : user [{user.id}]", user.quota, mine, attributes)
        group = self.group_quotas.get(user.group, {})
        self._check_quotas("Group [1] : group [1]", group, self._of_group(user.group), attributes)
        for nic in many(attributes.get("NIC")):
            number = self._network_number(nic)
            limit = user.network_quota.get(number)
            if limit is not None and leases_used(mine, number) >= limit:
                text = f"limit of {limit} reached for LEASES quota in NETWORK with ID: {number}."
                raise No(f"User [{user.id}] : user [{user.id}] {text}", AUTHORIZATION)

    def _check_quotas(self, whose: str, quota: Attributes, vms: list[Vm], attributes: Attributes) -> None:
        cpu, memory = float(attributes.get("CPU", 1)), float(attributes.get("MEMORY", 0))
        more = {
            "VMS": 1.0, "RUNNING_VMS": 1.0, "CPU": cpu, "RUNNING_CPU": cpu, "MEMORY": memory,
            "RUNNING_MEMORY": memory, "SYSTEM_DISK_SIZE": disk_mb(attributes),
        }  # fmt: skip
        used = quota_used(vms)
        for kind, amount in more.items():
            limit = float(quota.get(kind, -2))
            if 0 <= limit < used[kind] + amount:
                raise No(f"{whose} limit of {limit:g} reached for {kind} quota in VM.", AUTHORIZATION)

    def _make_vm(self, number: int, name: str, user: User, template: Template, attributes: Attributes) -> Vm:
        inner = {key: value for key, value in attributes.items() if key in VM_ATTRIBUTES}
        inner["NIC"] = [{**nic, "NIC_ID": str(index)} for index, nic in enumerate(many(attributes.get("NIC")))]
        outer = {key: value for key, value in attributes.items() if key not in VM_ATTRIBUTES}
        made_at = self.clock()
        return Vm(number, name, user, template.id, inner, outer, since=time.monotonic(), made_at=made_at)

    def _complete(self, vm: Vm) -> None:
        """Make its context what the guest sees."""
        if "CONTEXT" not in vm.template:
            return
        known = {"$NAME": vm.name, "$VMID": str(vm.id), "$USER[SSH_PUBLIC_KEY]": vm.owner.public_key}
        context = dict(vm.template["CONTEXT"])
        for key, value in context.items():
            for variable, text in known.items():
                value = value.replace(variable, text)
            context[key] = value
        if context.get("NETWORK") == "YES":
            for index, nic in enumerate(many(vm.template.get("NIC"))):
                given = {"IP": nic.get("IP", ""), "MAC": nic.get("MAC", ""), "MASK": "255.0.0.0"}
                context.update({f"ETH{index}_{part}": given.get(part, "") for part in CONTEXT_OF_NIC})
        context.update(DISK_ID="1", TARGET="hda")
        if self.onegate:
            context.update(VMID=str(vm.id), ONEGATE_ENDPOINT="http://127.0.0.1:5030")
        vm.template["CONTEXT"] = context

    # --- VMs ------------------------------------------------------------------------------------------

    def _vm(self, user: User, number: int, right: str) -> Vm:
        vm = self.vms.get(number)
        if vm is None:
            raise No(f"Error getting virtual machine [{number}].", NO_EXISTS, number)
        if user is not self.admin and user is not vm.owner:
            raise No(f"User [{user.id}] : Not authorized to perform {right} VM [{number}].", AUTHORIZATION)
        return vm

    def _vm_info(self, user: User, number: int, decrypt: bool = False) -> Any:
        return vm_xml(self._vm(user, number, "USE"))

    def _vmpool_info(self, user: User, flag: int, start: int, end: int, state: int, query: str = "") -> Any:
        if query:
            raise No("JSON query search is not supported by the SQL backend", INTERNAL)
        return pool("VM_POOL", map(vm_short_xml, self._some(user, flag, start, end, state)))

    def _vmpool_infoextended(self, user: User, flag: int, start: int, end: int, state: int) -> Any:
        return pool("VM_POOL", map(vm_xml, self._some(user, flag, start, end, state)))

    def _vmpool_infoset(self, user: User, numbers: str, extended: bool) -> Any:
        found = [self.vms[int(n)] for n in numbers.split(",") if n and int(n) in self.vms]
        visible = [vm for vm in found if user is self.admin or vm.owner is user]
        if self.faults.sets_lack_done:
            visible = [vm for vm in visible if vm.state != DONE]
        return pool("VM_POOL", map(vm_xml if extended else vm_short_xml, visible))

    def _some(self, user: User, flag: int, start: int, end: int, state: int) -> list[Vm]:
        if flag < -4:
            raise No("Incorrect filter_flag", API)
        if not -2 <= state <= 11:
            raise No("Incorrect filter_flag, state", API)
        found = []
        for number, vm in sorted(self.vms.items(), reverse=True):
            if (start >= 0 and number < start) or (end >= 0 and number > end):
                continue
            mine = vm.owner is user
            seen = mine if flag == -3 else vm.owner.id == flag if flag >= 0 else mine or user is self.admin
            if seen and (vm.state != DONE if state == -1 else state in (-2, vm.state)):
                found.append(vm)
        return found

    def _vm_action(self, user: User, action: str, number: int) -> int:
        vm = self._vm(user, number, "MANAGE")
        if action in MOVES:
            before, after = MOVES[action]
            if vm.where != before:
                state = LCM_NAMES.get(vm.lcm, NAMES[vm.state]) if vm.state == ACTIVE else NAMES[vm.state]
                raise No(f'Error performing action "{action}": wrong state {state}.', ACTION)
            self.move(vm, *after)
            return number
        if action not in ("terminate", "terminate-hard"):
            raise No(f'Error performing action "{action}": unknown action.', ACTION)
        hard = action == "terminate-hard"
        refused = vm.where in ((ACTIVE, PROLOG), (ACTIVE, BOOT), (ACTIVE, EPILOG))
        if refused or (vm.where == (ACTIVE, SHUTDOWN) and not hard):
            state = f"wrong state {LCM_NAMES[vm.lcm]}."
            raise No(f'Error performing action "{action}": Could not terminate VM {number}, {state}', ACTION)
        if vm.state == DONE or self.faults.terminate_lies:
            return number
        if vm.where == (ACTIVE, SHUTDOWN):  # accepted, and it is still there right afterwards
            vm.hard = True
        elif vm.where == (ACTIVE, RUNNING) and not hard:
            self.move(vm, ACTIVE, SHUTDOWN)
        else:
            self._done(vm)
        return number

    def _vm_chown(self, user: User, number: int, owner: int, group: int) -> int:
        self._admins_only(user, f"perform MANAGE VM [{number}]")
        self._vm(user, number, "MANAGE").owner = next(other for other in self.users.values() if other.id == owner)
        return number

    def _vm_recover(self, user: User, number: int, operation: int) -> int:
        vm = self._vm(user, number, "ADMIN")
        if operation == 3:
            self._done(vm)
        return number

    def _vm_deploy(self, user: User, number: int, host: int, enforce: bool = False, store: int = -1) -> int:
        self._admins_only(user, "perform DEPLOY")
        vm = self._vm(user, number, "ADMIN")
        vm.deployed = True
        self.move(vm, ACTIVE, PROLOG)
        return number

    def _vm_update(self, user: User, number: int, text: str, append: int) -> int:
        vm = self._vm(user, number, "MANAGE")
        vm.user_template = {**(vm.user_template if append else {}), **parse_template(text)}
        return number

    def _vm_attachnic(self, user: User, number: int, text: str) -> int:
        vm = self._vm(user, number, "MANAGE")
        nics = many(vm.template.get("NIC"))
        nic = {**parse_template(text)["NIC"], "NIC_ID": str(len(nics))}
        self._lease(vm, nic, self._network_number(nic))
        vm.template["NIC"] = [*nics, nic]
        self._complete(vm)
        if vm.guest is not None:  # its context changes: the guest runs its START_SCRIPT again
            vm.guest.boot(vm.template["CONTEXT"])
        return number

    def _admins_only(self, user: User, what: str) -> None:
        if user is not self.admin:
            raise No(f"User [{user.id}] : Not authorized to {what}.", AUTHORIZATION)
