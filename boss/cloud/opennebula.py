"""A cloud that is an OpenNebula, over its XML-RPC interface: the only file that knows pyone.

`Connection` makes calls, each within a time limit, with a token that is renewed before it ends; what goes wrong on the
way there and back it says in one sentence. `OpenNebulaCloud` is the provider for one pool: one template. It never
touches a VM that does not carry our cluster id.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
import xmlrpc.client
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from xml.parsers.expat import ExpatError

import pyone
import requests
from pyone.server_xrpc import OneServerXRPC

from boss.cloud import opennebula_words as words
from boss.cloud.opennebula_room import address_bound, host_bound, quota_bounds
from boss.cloud.opennebula_template import Template, Worker, choose, order_text, read_template
from boss.cloud.opennebula_transport import Endpoint, Transport, no_way, refused_by_http
from boss.cloud.opennebula_vms import SeenVm, read_vms
from boss.cloud.provider import (
    AskForLess,
    CredentialsWrong,
    GivePoolUp,
    Gone,
    Room,
    Stranger,
    TryLater,
    Unanswered,
    VmFound,
    VmOrder,
    VmState,
)
from boss.cloud.start_script import CODE_DIRECTORY
from ecloud.secrets import AccessFile

log = logging.getLogger("boss")
_T = TypeVar("_T")
RENEW_SHARE = 0.75
"""A token is renewed after this share of its life."""
TEMPLATE_KEPT_S = 60.0
"""How long a template that was read is used: hundreds of VMs asked for together read it once."""
END_GRACE_S = 30.0
"""After the first ask to end a VM: how long until it is ended hard."""
DETAILS_AT_ONCE = 100
"""VMs of which a list reads what the cloud says about them; those that wait or failed only."""
MINE, VISIBLE = -3, -2
_LIST_S = 1.0
_REFUSALS = {
    0x0100: pyone.OneAuthenticationException,
    0x0200: pyone.OneAuthorizationException,
    0x0400: pyone.OneNoExistsException,
    0x0800: pyone.OneActionException,
    0x1000: pyone.OneApiException,
    0x2000: pyone.OneInternalException,
}
_ODD = (ValueError, TypeError, LookupError, AttributeError, SyntaxError, ExpatError, xmlrpc.client.Error)
"""What parsing raises where an answer is not OpenNebula's."""


# --- the connection -------------------------------------------------------------------------------


class _Server(OneServerXRPC):  # type: ignore[misc]
    def __init__(self, endpoint: Endpoint, session: str) -> None:
        super().__init__(endpoint.url, session)
        self._ServerProxy__transport = Transport(endpoint)

    def text(self, method: str, *arguments: object) -> str:
        """The XML of an answer, unread. Raises as other calls do."""
        ok, answer, code, *_ = self._do_request(f"one.{method}", self._cast_parms(arguments))
        if not ok:
            raise _REFUSALS.get(code, pyone.OneException)(answer)
        if not isinstance(answer, str):
            raise TypeError(f"{type(answer).__name__} in the place of XML")
        return answer


class Connection:
    """Calls of one user to one OpenNebula, from any thread."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._token = ""
        self._renew_at = 0.0
        self._ends_at = 0.0
        self._uid: int | None = None

    @property
    def name(self) -> str:
        """The cloud, in a sentence."""
        return self._endpoint.name

    @property
    def user(self) -> str:
        """Who asks."""
        return self._endpoint.user

    @property
    def uid(self) -> int:
        """The number of who asks. Raises as `call` does."""
        if self._uid is None:
            self._uid = int(self.call("user.info", -1).ID)
        return self._uid

    def call(self, method: str, *arguments: object) -> Any:
        """What the cloud answers. Raises `CredentialsWrong`; `TryLater` where the call surely had no effect;
        `Unanswered` where that is not known; and `pyone.OneException` where the cloud answered with a no."""
        return self._with_session(lambda session: self._once(session, method, arguments))

    def vms(self, method: str, *arguments: object) -> list[SeenVm]:
        """The VMs that the cloud shows, all of them. Raises as `call` does."""
        return self._with_session(lambda session: self._once(session, method, arguments, read_vms))

    def _with_session(self, make: Callable[[str], _T]) -> _T:
        for last in (False, True):
            session = self._session()
            try:
                return make(session)
            except pyone.OneAuthenticationException as error:
                if last or not self._forget(session):
                    raise CredentialsWrong(self._not_let_in()) from error
        raise AssertionError

    def _once(
        self, session: str, method: str, arguments: Sequence[object], read: Callable[[str], Any] | None = None
    ) -> Any:
        ca = self._endpoint.ca
        if ca and not Path(ca).is_file():
            raise CredentialsWrong(f"OPENNEBULA_CA names {ca}, which is not there; set it to the authority's file")
        try:
            server = _Server(self._endpoint, session)
            return getattr(server, method)(*arguments) if read is None else read(server.text(method, *arguments))
        except pyone.OneException as error:
            if "<Fault " not in str(error):
                raise
            raise GivePoolUp(
                f"{self.name} does not understand our calls ({error}): is it an OpenNebula 6.8 or later?"
            ) from error
        except requests.exceptions.RequestException as error:
            raise no_way(self._endpoint, error) from error
        except xmlrpc.client.ProtocolError as error:
            raise refused_by_http(self._endpoint, error) from error
        except (ssl.SSLError, OSError) as error:
            raise TryLater(f"{self.name} can't be reached: {error}") from error
        except _ODD as error:
            text = f"{self.name} answered with something that is not OpenNebula's ({type(error).__name__}: {error})"
            raise Unanswered(f"{text}; if that stays so, look at OPENNEBULA_URL") from error

    # --- tokens ---------------------------------------------------------------------------------------

    def _session(self) -> str:
        endpoint = self._endpoint
        with self._lock:
            if endpoint.token_s and time.monotonic() >= self._renew_at:
                self._login()
            return f"{endpoint.user}:{self._token or endpoint.password}"

    def _login(self) -> None:
        endpoint, now = self._endpoint, time.monotonic()
        arguments = (endpoint.user, "", max(1, round(endpoint.token_s)), -1)
        try:
            self._token = str(self._once(f"{endpoint.user}:{endpoint.password}", "user.login", arguments))
        except pyone.OneAuthenticationException as error:
            self._token = ""
            raise CredentialsWrong(self._not_let_in()) from error
        except pyone.OneException as error:
            # Some ways of logging in know no tokens; and a user can have a limited number of them.
            log.warning("%s gives user %s no token, the password is used: %s", self.name, self.user, error)
            self._token = ""
        except TryLater:
            if not self._token or now >= self._ends_at:
                raise
            return  # the old one still holds; the next call tries again
        self._renew_at = now + RENEW_SHARE * endpoint.token_s
        self._ends_at = now + endpoint.token_s

    def _forget(self, session: str) -> bool:
        """Let go of the token that was refused: whether a new one is worth a try."""
        with self._lock:
            if not self._token:
                return False
            if session == f"{self._endpoint.user}:{self._token}":
                self._token, self._renew_at = "", 0.0
            return True

    # --- sentences ------------------------------------------------------------------------------------

    def _not_let_in(self) -> str:
        return (
            f"{self.name} does not let user {self.user} in: the password is wrong, or the user unknown or disabled; "
            "set OPENNEBULA_USER and OPENNEBULA_PASSWORD"
        )


# --- the provider ---------------------------------------------------------------------------------


class OpenNebulaCloud:
    """VMs of one template, for one pool. See `provider.Provider`."""

    def __init__(
        self,
        connection: Connection,
        cluster_id: str,
        template: str,
        access_of: Callable[[str], AccessFile],
        boss_gone_exit_s: float,
        keep_dirs: bool = False,
        code: str = CODE_DIRECTORY,
        public_key: str = "",
    ) -> None:
        self._connection = connection
        self._cluster_id = cluster_id
        self._wanted = template
        self._access_of = access_of
        self._worker = Worker(boss_gone_exit_s, keep_dirs, code, public_key)
        self._known: Template | None = None
        self._read_at = 0.0
        self._asked_at: dict[int, float] = {}
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        """Held while the template is read, so that of many who want it one reads it."""

    # --- start ----------------------------------------------------------------------------------------

    def start(self, order: VmOrder) -> str:
        """See `provider.Provider.start`."""
        template = self._template()
        access = self._access_of(f"vm-{order.vm_no}")
        text = order_text(template, order, self._cluster_id, access, self._worker)
        name = words.name_of(self._cluster_id, order.vm_no)
        try:
            answer = self._connection.call("template.instantiate", template.id, name, False, text, False)
        except pyone.OneException as error:
            refusal = self._refusal(error)
            if isinstance(refusal, GivePoolUp):  # a person may mend the template at any time
                self._known = None
            raise refusal from error
        if type(answer) is not int:
            raise Unanswered(f"{self._connection.name} gave no number for the VM that it made; its list will tell")
        return str(answer)

    def _refusal(self, error: Exception) -> Exception:
        """What a no to `template.instantiate` means."""
        text, cloud = words.said(error), self._connection.name
        low = text.lower()
        if "quota" in low and ("limit" in low or "exceed" in low):
            return AskForLess(f"{cloud} gives no more VMs of {self._what()}: {text}; others must end first")
        if "lease" in low:
            return AskForLess(f"{cloud} has no free address for VMs of {self._what()}: {text}; others must end first")
        if isinstance(error, pyone.OneAuthorizationException):
            if "locked" in low:
                return TryLater(f"{self._what()} is locked: {text}; it must be unlocked")
            return GivePoolUp(f"user {self._connection.user} may not use {self._what()}: {text}; ask for the rights")
        if isinstance(error, pyone.OneNoExistsException):
            return GivePoolUp(f"{cloud} has no {self._what()}; set the pool's template to one of its names or ids")
        if isinstance(error, pyone.OneActionException):
            return TryLater(f"{cloud} can't start {self._what()} now: {text}; it is asked again")
        wrong = "pars" in low or "syntax" in low
        if isinstance(error, pyone.OneInternalException) and not wrong:
            return TryLater(f"{cloud} is in trouble: {text}; it is asked again")
        return GivePoolUp(f"{self._what()} can't be started: {text}; mend the template, or set another")

    def _what(self, template: Template | None = None) -> str:
        wanted = template.name if template is not None else self._wanted
        return f"template {wanted}"

    # --- the template ---------------------------------------------------------------------------------

    def _template(self) -> Template:
        known = self._known
        if known is None or time.monotonic() - self._read_at > TEMPLATE_KEPT_S:
            with self._reading:
                if self._known is known:
                    self._known = None  # one that is wrong must not be used once more
                    self._known = self._read_template()
                    self._read_at = time.monotonic()
                known = self._known
        if known is None:  # another thread found it wrong
            return self._template()
        return known

    def _read_template(self) -> Template:
        wanted = self._wanted
        number = int(wanted) if wanted.isascii() and wanted.isdecimal() else self._template_named(wanted)
        try:
            found = self._connection.call("template.info", number)
            if "PASSWORD" in (found.TEMPLATE.get("CONTEXT") or ()):
                # It is shown encrypted, and what is sent back is encrypted once more.
                found = self._connection.call("template.info", number, False, True)
        except pyone.OneException as error:
            raise self._refusal(error) from error
        return read_template(found)

    def _template_named(self, name: str) -> int:
        connection = self._connection
        try:
            every = connection.call("templatepool.info", VISIBLE, -1, -1).VMTEMPLATE
        except pyone.OneException as error:
            raise self._refusal(error) from error
        number = choose(every, name, connection.uid)
        if number is None:
            there = ", ".join(sorted({template.NAME for template in every})[:10]) or "none"
            raise GivePoolUp(
                f"{connection.name} has no template {name} that user {connection.user} sees; there: {there}"
            )
        return number

    # --- end ------------------------------------------------------------------------------------------

    def end(self, cloud_id: str) -> None:
        """See `provider.Provider.end`."""
        number = int(cloud_id) if cloud_id.isascii() and cloud_id.isdecimal() else -1
        vm = self._find(number)
        if vm is None or vm.state == words.DONE:
            self._asked_at.pop(number, None)
            return
        if vm.uid != self._connection.uid or self._vm_no(vm, vm.attributes) is None:
            raise Gone(f"VM {cloud_id} ({vm.name}, of {vm.owner}) does not carry our cluster id: it is left alone")
        lcm = _lcm_name(vm.lcm)
        state = words.cloud_state(vm.state, lcm)
        with self._lock:
            asked_at = self._asked_at.setdefault(number, time.monotonic())
        hard = time.monotonic() - asked_at > END_GRACE_S
        if words.state_of(vm.state, lcm) is VmState.ENDING and not (hard and vm.lcm == words.LCM_SHUTDOWN):
            return
        # What the cloud has lost sight of can't be asked to shut down.
        action = "terminate-hard" if hard or words.state_of(vm.state, lcm) is VmState.UNKNOWN else "terminate"
        try:
            self._connection.call("vm.action", action, number)
        except pyone.OneNoExistsException:
            return
        except pyone.OneActionException as error:
            raise TryLater(f"VM {cloud_id} can't be ended while it is in {state}; it is asked again") from error
        except pyone.OneException as error:
            raise TryLater(f"VM {cloud_id} can't be ended: {words.said(error)}; it is asked again") from error

    def _find(self, number: int) -> SeenVm | None:
        if number < 0:
            return None
        try:
            return next(iter(self._connection.vms("vm.info", number)), None)
        except pyone.OneNoExistsException:
            return None
        except pyone.OneAuthorizationException as error:
            raise Gone(f"VM {number} is somebody else's: it is left alone ({words.said(error)})") from error
        except pyone.OneException as error:
            raise TryLater(f"{self._connection.name} does not show VM {number}: {words.said(error)}") from error

    def end_all(self, wait_s: float) -> Sequence[VmFound]:
        """See `provider.Provider.end_all`."""
        deadline = time.monotonic() + wait_s
        while left := self.list():
            for vm in left:
                try:
                    self.end(vm.cloud_id)
                except (TryLater, Gone) as error:
                    log.info("%s", error)
            if time.monotonic() >= deadline:
                break
            time.sleep(min(_LIST_S, max(0.0, deadline - time.monotonic())))
        return left

    # --- what is there --------------------------------------------------------------------------------

    def strangers(self) -> Sequence[Stranger]:
        """See `provider.Provider.strangers`."""
        vms, details = self._looking_like_ours(VISIBLE)
        uid = self._connection.uid if vms else -1
        found = []
        for vm in vms:
            if vm.uid != uid:
                found.append(Stranger(str(vm.id), vm.name, vm.owner, f"it belongs to {vm.owner}"))
            elif self._vm_no(vm, details.get(vm.id)) is None:
                found.append(Stranger(str(vm.id), vm.name, vm.owner, "it has our name or label only"))
        return found

    def list(self) -> list[VmFound]:
        """See `provider.Provider.list`."""
        vms, details = self._looking_like_ours(MINE)
        ours: dict[int, VmFound] = {}
        for vm in sorted(vms, key=lambda vm: vm.id):
            vm_no = self._vm_no(vm, details.get(vm.id))
            if vm_no is not None and vm_no not in ours:  # a copy that somebody made of it comes later
                ours[vm_no] = _found(vm_no, vm, details.get(vm.id, {}))
        with self._lock:
            alive = {int(vm.cloud_id) for vm in ours.values()}
            self._asked_at = {number: at for number, at in self._asked_at.items() if number in alive}
        return list(ours.values())

    def _looking_like_ours(self, flag: int) -> tuple[Sequence[SeenVm], dict[int, dict[str, str]]]:
        """VMs that show our cluster in their name or labels; and by their ids the attributes of those that need a
        second look."""
        cluster = self._cluster_id
        try:
            vms = [
                vm
                for vm in self._connection.vms("vmpool.info", flag, -1, -1, -1)
                if words.vm_no_in_name(cluster, vm.name) is not None
                or words.vm_no_in_labels(cluster, vm.labels) is not None
            ]
            unclear = [vm.id for vm in vms if self._vm_no(vm, None) is None]
            unclear += [vm.id for vm in vms if _has_a_reason(vm)][:DETAILS_AT_ONCE]
            if not unclear:
                return vms, {}
            extended = self._connection.vms("vmpool.infoset", ",".join(map(str, dict.fromkeys(unclear))), True)
            return vms, {vm.id: vm.attributes for vm in extended}
        except (pyone.OneAuthorizationException, pyone.OneNoExistsException) as error:
            raise CredentialsWrong(f"user {self._connection.user} may not list VMs: {words.said(error)}") from error
        except pyone.OneException as error:
            raise TryLater(f"{self._connection.name} does not list our VMs: {words.said(error)}") from error

    def _vm_no(self, vm: SeenVm, attributes: Mapping[str, str] | None) -> int | None:
        """The intent of a VM that shows it twice: in two of its name, its labels and its attributes."""
        shown = [
            words.vm_no_in_name(self._cluster_id, vm.name),
            words.vm_no_in_labels(self._cluster_id, vm.labels),
            words.vm_no_in_attributes(self._cluster_id, attributes or {}),
        ]
        return next((number for number in shown if number is not None and shown.count(number) > 1), None)

    # --- room -----------------------------------------------------------------------------------------

    def room(self) -> Room:
        """See `provider.Provider.room`. Quotas of groups are not looked at: users often can't read them."""
        template = self._template()
        try:
            bounds = [
                *quota_bounds(self._connection.call("user.info", -1), template.cpu, template.memory_mb),
                *self._address_bounds(template),
                *self._host_bounds(template),
            ]
        except pyone.OneException as error:
            raise TryLater(f"{self._connection.name} does not tell its limits: {words.said(error)}") from error
        if not bounds:
            return Room()
        vms, reason = min(bounds)
        return Room(vms, reason)

    def _address_bounds(self, template: Template) -> Iterator[tuple[int, str]]:
        for nic in template.nics:
            if nic.get("NETWORK_MODE", "").lower() == "auto":
                continue
            network = self._network(template, nic)
            if network is not None:
                yield address_bound(network)

    def _network(self, template: Template, nic: Mapping[str, str]) -> Any:
        number, name = nic.get("NETWORK_ID", ""), nic.get("NETWORK", "")
        try:
            if not number and name:
                every = self._connection.call("vnpool.info", VISIBLE, -1, -1, -1).VNET
                owner = nic.get("NETWORK_UNAME", "")
                number = next((str(net.ID) for net in every if name == net.NAME and owner in ("", net.UNAME)), "")
                if not number:
                    raise GivePoolUp(f"{self._what(template)} names network {name}, which is not there; mend it")
            return self._connection.call("vn.info", int(number)) if number.isdecimal() else None
        except pyone.OneNoExistsException as error:
            raise GivePoolUp(f"{self._what(template)} names network {number}, which is not there; mend it") from error
        except pyone.OneAuthorizationException as error:
            raise GivePoolUp(
                f"user {self._connection.user} may not use network {number or name} of {self._what(template)}: "
                f"{words.said(error)}; ask for the rights"
            ) from error

    def _host_bounds(self, template: Template) -> Iterator[tuple[int, str]]:
        """Few users may see hosts; for the others they bound nothing."""
        try:
            hosts = self._connection.call("hostpool.info").HOST
        except (pyone.OneException, GivePoolUp, AttributeError):
            return
        if hosts:
            yield host_bound(hosts, template.cpu, template.memory_mb)


# --- what pyone gives -----------------------------------------------------------------------------


def _lcm_name(lcm: int) -> str:
    try:
        return str(pyone.LCM_STATE(lcm).name)
    except ValueError:  # a state that is newer than pyone
        return f"state {lcm}"


def _has_a_reason(vm: SeenVm) -> bool:
    """Whether the cloud may have said why this VM is no further."""
    return words.state_of(vm.state, _lcm_name(vm.lcm)) in (VmState.PENDING, VmState.FAILED)


def _found(vm_no: int, vm: SeenVm, details: Mapping[str, str]) -> VmFound:
    lcm = _lcm_name(vm.lcm)
    state = words.state_of(vm.state, lcm)
    text = details.get("SCHED_MESSAGE" if state is VmState.PENDING else "ERROR", "")
    return VmFound(vm_no, str(vm.id), state, words.cloud_state(vm.state, lcm), vm.address, vm.since, text)
