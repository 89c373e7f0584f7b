"""Visits VMs by SSH: probes them, and brings code and packages if the image has none.

Owns the connection to each guest, from any thread; each visit ends within `VISIT_S`. The host key is pinned at the
first visit of a VM and required at each later one, whatever its address is then. A visit may be interrupted anywhere
and repeated: what the guest already has is not sent again, and what runs is not started again.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from boss.bootstrap.bundle import Bundles, Machine, NoBundle
from boss.bootstrap.guest_scripts import OWN_SCRIPT, PROBE, Probed, as_root, read_probe, start_command, unpack_command
from boss.bootstrap.start_script import SCRIPT
from boss.core.model.effects import VisitVm
from boss.core.model.events import VmVisited
from datastore.ssh import remote
from datastore.ssh.remote import Login, Remote, Unreachable
from ecloud.model.boot_diagnosis import LOG_CHARS, Visit, facts
from ecloud.model.foreign_text import Cleaner
from ecloud.model.machine_needs import LEAST_PYTHON, PREVENT_START, lacks, version

log = logging.getLogger("boss")
VISIT_S = 180.0
"""A whole visit. Its longest part is a bundle of 1 MB over a slow line."""


class Broken(Exception):
    """The visit could not continue. `contact` is one of those of `Visit`; the text describes what happened."""

    def __init__(self, contact: str, text: str) -> None:
        super().__init__(text)
        self.contact = contact


class Visitor:
    """Visits VMs of one pool. `key`: the private key that their sshd accepts; `user` and `port`: of their sshd;
    `secrets_of`: secrets that a VM was sent, by its number."""

    def __init__(
        self,
        key: Path,
        bundles: Bundles,
        user: str = "root",
        port: int = 22,
        secrets_of: Callable[[int], Iterable[str]] = lambda vm_no: (),
    ) -> None:
        self._secrets_of = secrets_of
        self._key = key
        self._bundles = bundles
        self._user = user
        self._port = port
        self._lock = threading.Lock()
        self._guests: set[Guest] = set()
        """Guests that are being visited."""
        self._closed = False

    def close(self) -> None:
        """Interrupt all visits, so that none delays a boss that leaves. Begin no more."""
        with self._lock:
            self._closed = True
            guests = tuple(self._guests)
        for guest in guests:
            guest.close()

    def visit(self, call: VisitVm) -> VmVisited:
        """Probe, and prepare if the call requests it. Never raises for the guest's faults."""
        begun = time.monotonic()
        done: dict[str, float] = {}
        guest = Guest(Login(call.address, self._user, self._key, self._port, call.host_key), begun + VISIT_S)
        with self._lock:
            self._guests.add(guest)
            closed = self._closed
        try:
            if closed:
                raise Broken("broken", "the boss leaves")
            guest.open()
            done["ssh"] = time.monotonic()
            visit = self._inside(guest, call, done)
        except Broken as error:
            visit = Visit(error.contact, said=str(error), vm=guest.vm, boot_nonce=guest.boot_nonce)
        except Refused as error:  # a guest that cannot even be probed
            visit = Visit("broken", said=f"the VM cannot be checked: {error}")
        finally:
            guest.close()
            with self._lock:
                self._guests.discard(guest)
        now = time.monotonic()
        ago_s = {step: now - at for step, at in done.items()}
        # If it was interrupted later, as when the VM ends meanwhile, the guest had already identified itself.
        known = visit.contact == "ok" or (visit.vm, visit.boot_nonce) == (str(call.vm_no), call.boot_nonce)
        host_key = call.host_key or (guest.shown if known else "")
        return VmVisited(call.vm_no, call.address, host_key, self._cleaned(visit, call.vm_no), ago_s)

    def _cleaned(self, visit: Visit, vm_no: int) -> Visit:
        """Return the guest's texts without the secrets that it was sent: a start script may have printed them."""
        cleaner = Cleaner(self._secrets_of(vm_no))
        short = {name: cleaner(getattr(visit, name)) for name in ("said", "starting", "home", "problem")}
        return msgspec.structs.replace(visit, **short, log=cleaner.clean(visit.log)[-LOG_CHARS:])

    def _inside(self, guest: Guest, call: VisitVm, done: dict[str, float]) -> Visit:
        asked = time.time()
        probed = read_probe(guest.run("sh -s", PROBE.encode()))
        guest.vm, guest.boot_nonce = probed.visit.vm, probed.visit.boot_nonce
        # It reports whole seconds, when the script begins.
        ahead_s = probed.date - asked if probed.date is not None else None
        visit = msgspec.structs.replace(probed.visit, clock_s=ahead_s, by_ssh=call.prepare)
        if probed.date is not None:
            done["clock"] = time.monotonic()
        if version(visit.python) >= LEAST_PYTHON:
            done["python"] = time.monotonic()
        if not call.prepare or visit.agent or not _may_be_prepared(visit, call):
            return visit
        try:
            bundle = self._bundles.get(_machine(probed))
            if bundle.name not in probed.codes:
                guest.run(unpack_command(probed.python[4], probed.home, bundle.name), bundle.archive)
            done["code"] = time.monotonic()
            visit = msgspec.structs.replace(visit, code=bundle.name)
            said = guest.run(start_command(probed.home, bundle.name), SCRIPT.encode())
        except (NoBundle, Refused) as error:
            return msgspec.structs.replace(visit, problem=str(error))
        return msgspec.structs.replace(visit, agent=True, log=f"{visit.log}\n{said}".strip())


def _may_be_prepared(visit: Visit, call: VisitVm) -> bool:
    """Whether preparing is useful, and this is the right machine. What is only slow (its name server, its clock) may
    recover while the worker waits."""
    fits = not any(lack.need in PREVENT_START for lack in lacks(facts(visit))) and OWN_SCRIPT not in visit.starting
    return fits and (visit.vm, visit.boot_nonce) == (str(call.vm_no), call.boot_nonce)


def _machine(probed: Probed) -> Machine:
    if len(probed.python) < 5:
        raise NoBundle("its Python does not report its version; use an image with another Python")
    python, architecture, libc, libc_version, _ = probed.python[:5]
    return Machine(_pair(python), architecture, libc, _pair(libc_version))


def _pair(text: str) -> tuple[int, int]:
    first, second, *_ = [*map(int, re.findall(r"\d+", text)), 0, 0]
    return first, second


# --- one guest ------------------------------------------------------------------------------------


class Refused(Exception):
    """A command ended with an exit code other than 0. The text is its output."""


class Guest:
    """A connection to one guest. `vm`, `boot_nonce`: the identity that it reported."""

    def __init__(self, login: Login, until: float) -> None:
        self._remote = Remote(login)
        self._until = until
        self.vm = self.boot_nonce = ""

    @property
    def shown(self) -> str:
        """Its host key, as `type base64`."""
        return self._remote.shown

    def open(self) -> None:
        """Connect, compare the host key, authenticate. Raises `Broken`."""
        try:
            self._remote.open()
        except Unreachable as error:
            raise Broken(error.contact, str(error)) from error

    def run(self, command: str, given: bytes | Path) -> str:
        """The output of a command with `given` as input. Raises `Broken`, `Refused`."""
        try:
            code, text = self._remote.run(as_root(command), given, self._until)
        except remote.Broken as error:
            raise Broken("broken", str(error)) from error
        if code != 0:
            last = text.strip().splitlines()[-1:] or [f"exit code {code}"]
            raise Refused(last[0])
        return text

    def close(self) -> None:
        """End the connection, whatever it is doing."""
        self._remote.close()
