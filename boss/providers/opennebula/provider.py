"""An OpenNebula cloud over XML-RPC. The only file that imports pyone.

`Connection` makes calls, each within a time limit, with a token that is renewed before it expires, and describes
transport errors in one sentence. `OpenNebulaCloud` is the provider of one pool, which is one template. It never touches
a VM that does not carry our cluster id.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
import xmlrpc.client
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, TypeVar
from xml.parsers.expat import ExpatError

import pyone
import requests
from pyone.server_xrpc import OneServerXRPC

from boss.bootstrap.start_script import CODE_DIRECTORY
from boss.providers.opennebula import naming as words
from boss.providers.opennebula.errors import InTrouble, No, NoSuch, NotAllowed, WrongState
from boss.providers.opennebula.limits import lacks_network, read_room
from boss.providers.opennebula.missing import look_for
from boss.providers.opennebula.template import Template, Worker, order_text
from boss.providers.opennebula.template_finder import TemplateFinder, refusal
from boss.providers.opennebula.transport import Endpoint, Transport, no_way, refused_by_http
from boss.providers.opennebula.vm_list import SeenVm, read_vms
from boss.providers.provider import (
    AskForLess,
    Capacity,
    CloudState,
    CredentialsWrong,
    GivePoolUp,
    Gone,
    Stranger,
    TryLater,
    Unanswered,
    VmFound,
    VmOrder,
)
from ecloud.config.secrets import AccessFile
from ecloud.model.foreign_text import Cleaner, bounded
from ecloud.model.tasks import Resources

log = logging.getLogger("boss")
_T = TypeVar("_T")
RENEW_SHARE = 0.75
"""A token is renewed after this share of its life."""
END_GRACE_S = 30.0
"""Time after the first request until a VM is ended hard."""
ENDS_KEPT, ENDS_KEPT_S = 1000, 3600.0
"""With more pending ends than this, those requested longer ago than `ENDS_KEPT_S` are forgotten."""
DETAILS_AT_ONCE = 100
"""VMs per list whose detailed status is read; only those that wait or failed."""
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
_NOES = {
    pyone.OneAuthorizationException: NotAllowed,
    pyone.OneNoExistsException: NoSuch,
    pyone.OneActionException: WrongState,
    pyone.OneInternalException: InTrouble,
}
_ODD = (ValueError, TypeError, LookupError, AttributeError, SyntaxError, ExpatError, xmlrpc.client.Error)
"""Errors of the parsers for an answer that is not OpenNebula's."""


# --- the connection -------------------------------------------------------------------------------


class _Server(OneServerXRPC):  # type: ignore[misc]
    def __init__(self, endpoint: Endpoint, session: str) -> None:
        super().__init__(endpoint.url, session)
        self._ServerProxy__transport = Transport(endpoint)

    def text(self, method: str, *arguments: object) -> str:
        """The raw XML of an answer. Raises as other calls do."""
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
        """The cloud, for messages."""
        return self._endpoint.name

    @property
    def user(self) -> str:
        """The user's name."""
        return self._endpoint.user

    @property
    def uid(self) -> int:
        """The user's id. Raises as `call` does."""
        if self._uid is None:
            self._uid = int(self.call("user.info", -1).ID)
        return self._uid

    def call(self, method: str, *arguments: object, secrets: Sequence[str] = ()) -> Any:
        """The cloud's answer. `secrets`: secrets in the arguments, which are removed from errors. Raises
        `CredentialsWrong`; `TryLater` if the call certainly had no effect; `Unanswered` if that is unknown; `No` if the
        cloud refused."""
        return self._with_session(lambda session: self._once(session, method, arguments, secrets=secrets))

    def vms(self, method: str, *arguments: object) -> list[SeenVm]:
        """All VMs that the cloud shows. Raises as `call` does."""
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
        self,
        session: str,
        method: str,
        arguments: Sequence[object],
        read: Callable[[str], Any] | None = None,
        secrets: Sequence[str] = (),
    ) -> Any:
        ca = self._endpoint.ca
        if ca and not Path(ca).is_file():
            raise CredentialsWrong(f"OPENNEBULA_CA names {ca}, which does not exist; set it to the authority's file")
        try:
            server = _Server(self._endpoint, session)
            return getattr(server, method)(*arguments) if read is None else read(server.text(method, *arguments))
        except pyone.OneAuthenticationException:
            raise
        except pyone.OneException as error:
            # oned repeats what it could not parse, CONTEXT included: never chain its own text.
            text = self._cleaner(session, arguments, secrets)(str(error))
            if "<Fault " not in text:
                raise _NOES.get(type(error), No)(text) from None
            raise GivePoolUp(
                f"{self.name} does not understand the boss's calls ({text}): is it an OpenNebula 6.8 or later?"
            ) from None
        except requests.exceptions.RequestException as error:
            raise no_way(self._endpoint, error) from error
        except xmlrpc.client.ProtocolError as error:
            raise refused_by_http(self._endpoint, error) from error
        except (ssl.SSLError, OSError) as error:
            raise TryLater(f"{self.name} cannot be reached: {bounded(str(error))}") from error
        except _ODD as error:
            told = self._cleaner(session, arguments, secrets)(str(error))
            text = f"{self.name} did not answer as OpenNebula does ({type(error).__name__}: {told})"
            raise Unanswered(f"{text}; if this persists, check OPENNEBULA_URL") from None

    def _cleaner(self, session: str, arguments: Sequence[object], secrets: Sequence[str]) -> Cleaner:
        sent = [text for text in arguments if isinstance(text, str)]
        return Cleaner([self._endpoint.password, session.partition(":")[2], *secrets], sent)

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
        except No as error:
            # Some login methods have no tokens, and a user may have only a few.
            log.warning("%s gives user %s no token; the boss uses the password: %s", self.name, self.user, error)
            self._token = ""
        except TryLater:
            if not self._token or now >= self._ends_at:
                raise
            return  # the old one is still valid; the next call tries again
        self._renew_at = now + RENEW_SHARE * endpoint.token_s
        self._ends_at = now + endpoint.token_s

    def close(self) -> None:
        """Give the token back: a user may have only ten. Tried once; if the cloud is away the token expires."""
        with self._lock:
            token, self._token, self._renew_at = self._token, "", 0.0
        if token:
            try:
                session = f"{self._endpoint.user}:{self._endpoint.password}"
                self._once(session, "user.login", (self._endpoint.user, token, 0, -1), secrets=[token])
            except (pyone.OneAuthenticationException, No, TryLater, GivePoolUp, CredentialsWrong) as error:
                log.info("a token of user %s could not be deleted and expires within the hour: %s", self.user, error)

    def _forget(self, session: str) -> bool:
        """Drop the token that was refused. Returns whether a new one is worth a try."""
        with self._lock:
            if not self._token:
                return False
            if session == f"{self._endpoint.user}:{self._token}":
                self._token, self._renew_at = "", 0.0
            return True

    # --- sentences ------------------------------------------------------------------------------------

    def _not_let_in(self) -> str:
        return (
            f"{self.name} refuses user {self.user}: the password is wrong, or the user is unknown or disabled; "
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
        self._template = TemplateFinder(connection, template)
        self._access_of = access_of
        self._worker = Worker(boss_gone_exit_s, keep_dirs, code, public_key)
        self._asked_at: dict[int, float] = {}
        self._has_networks: Template | None = None
        """A template whose networks were checked after a refusal: further refusals belong to the same wave."""
        self._lock = threading.Lock()

    # --- start ----------------------------------------------------------------------------------------

    def start(self, order: VmOrder) -> str:
        """See `provider.Provider.start`."""
        template = self._template.get()
        access = self._access_of(f"vm-{order.vm_no}")
        text = order_text(template, order, self._cluster_id, access, self._worker)
        secrets = (access.password, access.key)
        name = words.name_of(self._cluster_id, order.vm_no)
        try:
            answer = self._connection.call(
                "template.instantiate", template.id, name, False, text, False, secrets=secrets
            )
        except No as error:
            no = refusal(error, self._connection, self._template.what)
            if isinstance(no, AskForLess) and self._has_networks is not template:
                lacking = lacks_network(self._connection, template)
                no = GivePoolUp(lacking) if lacking else no
                self._has_networks = None if lacking else template
            if isinstance(no, GivePoolUp):  # the operator may repair the template at any time
                self._template.forget()
            raise no from error
        if type(answer) is not int:
            raise Unanswered(
                f"{self._connection.name} returned no id for the VM that it created; the boss finds it in the next list"
            )
        return str(answer)

    # --- end ------------------------------------------------------------------------------------------

    def end(self, cloud_id: str) -> None:
        """See `provider.Provider.end`."""
        number = int(cloud_id) if cloud_id.isascii() and cloud_id.isdecimal() else -1
        vm = self._find(number)
        if vm is None or vm.state == words.DONE:
            self._asked_at.pop(number, None)
            return
        if vm.uid != self._connection.uid or self._vm_no(vm, vm.attributes) is None:
            raise Gone(
                f"VM {cloud_id} ({vm.name}, of {vm.owner}) does not have this cluster's id: the boss leaves it alone"
            )
        state = _state(vm)
        with self._lock:
            self._forget_old_ends()
            asked_at = self._asked_at.setdefault(number, time.monotonic())
        hard = time.monotonic() - asked_at > END_GRACE_S
        if state is CloudState.ENDING and not (hard and vm.lcm == words.LCM_SHUTDOWN):
            return
        # A VM in UNKNOWN cannot be asked to shut down.
        action = "terminate-hard" if hard or state is CloudState.UNKNOWN else "terminate"
        try:
            self._connection.call("vm.action", action, number)
        except NoSuch:
            return
        except WrongState as error:
            # Its state changed since it was read: the refusal names the new one.
            now = self._find(number)
            if now is None or now.state == words.DONE or _state(now) is CloudState.ENDING:
                return
            raise TryLater(f"VM {cloud_id} cannot be ended now: {words.said(error)}; the boss retries") from error
        except No as error:
            raise TryLater(f"VM {cloud_id} cannot be ended: {words.said(error)}; the boss retries") from error

    def _forget_old_ends(self) -> None:
        # Numbers are never reused. A VM whose end takes longer is asked softly once more.
        if len(self._asked_at) > ENDS_KEPT:
            now = time.monotonic()
            self._asked_at = {number: at for number, at in self._asked_at.items() if now - at < ENDS_KEPT_S}

    def _find(self, number: int) -> SeenVm | None:
        if number < 0:
            return None
        try:
            return next(iter(self._connection.vms("vm.info", number)), None)
        except NoSuch:
            return None
        except NotAllowed as error:
            raise Gone(f"VM {number} has another owner: the boss leaves it alone ({words.said(error)})") from error
        except No as error:
            raise TryLater(f"{self._connection.name} does not show VM {number}: {words.said(error)}") from error
        except GivePoolUp as error:
            raise TryLater(str(error)) from error

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
                found.append(Stranger(str(vm.id), vm.name, vm.owner, "it has only the name or label of this cluster"))
        return found

    def list(self, known: Mapping[str, int] = {}, lost: Mapping[int, str] = {}) -> list[VmFound]:
        """See `provider.Provider.list`."""
        vms, details = self._looking_like_ours(MINE)
        ours: dict[tuple[int, str], VmFound] = {}
        for vm in sorted(vms, key=lambda vm: vm.id):
            vm_no = self._vm_no(vm, details.get(vm.id))
            if vm_no is not None:
                found = self._found(vm_no, vm, details.get(vm.id, {}))
                ours.setdefault((vm_no, found.boot_nonce), found)  # a user's copy of it has a higher id and comes later
        told = {int(vm.cloud_id) for vm in ours.values()}
        numbers = {int(cloud_id): vm_no for cloud_id, vm_no in known.items() if cloud_id.isdecimal()}
        missing = {number: vm_no for number, vm_no in numbers.items() if number not in told}
        here = {vm_no for vm_no, nonce in ours if nonce in ("", lost.get(vm_no, nonce))}
        unseen = lost.keys() - here
        return [*ours.values(), *self._not_shown(missing), *(self._over(unseen) if unseen else ())]

    def _not_shown(self, missing: Mapping[int, int]) -> Iterator[VmFound]:
        """Report on VMs that existed and are no longer shown. `missing`: intents by cloud id."""
        there = look_for(self._read_vms, self._connection.vms, missing) if missing else {}
        user = self._connection.user
        for number, vm_no in missing.items():
            vm = there.get(number)
            if number in there and (vm is None or vm.state == words.DONE):
                yield VmFound(vm_no, str(number), CloudState.GONE, "DONE") if vm is None else self._gone(vm_no, vm)
            elif vm is None:
                why = (
                    f"VM {number} is not visible to user {user} and may still run: was OPENNEBULA_USER "
                    "changed? Set it back until its VMs are gone, or have their owner end them"
                )
                yield VmFound(vm_no, str(number), CloudState.HIDDEN, text=why)
            elif self._vm_no(vm, vm.attributes) != vm_no:
                labels = words.labels_of(self._cluster_id, str(vm_no))
                why = (
                    f"VM {number} ({vm.name}, of {vm.owner}) no longer carries this cluster's id, and may still "
                    f"run: give it back its labels ({labels}), or end it by hand"
                )
                yield VmFound(vm_no, str(number), CloudState.HIDDEN, text=why)
            else:  # it has another name, or another owner
                yield self._found(vm_no, vm, vm.attributes)

    def _over(self, lost: AbstractSet[int]) -> Sequence[VmFound]:
        """Return VMs of these intents that are DONE and whose numbers are unknown: reads all VMs that are DONE. Gives
        up if the cloud has too many of them to answer in time."""
        try:
            done = self._read_vms("vmpool.info", MINE, -1, -1, words.DONE)
        except TryLater as error:
            log.warning("the boss cannot find out whether unanswered starts created VMs: %s", error)
            return ()
        shown = [(self._vm_no(vm, vm.attributes), vm) for vm in done]
        return [self._gone(vm_no, vm) for vm_no, vm in shown if vm_no is not None and vm_no in lost]

    def _gone(self, vm_no: int, vm: SeenVm) -> VmFound:
        nonce = words.nonce_of(self._cluster_id, vm.labels, vm.attributes)
        return VmFound(vm_no, str(vm.id), CloudState.GONE, "DONE", since=vm.since, ended=vm.ended, boot_nonce=nonce)

    def _looking_like_ours(self, flag: int) -> tuple[Sequence[SeenVm], dict[int, dict[str, str]]]:
        """VMs whose name or labels carry our cluster id; and, by id, the attributes of those that need a second
        check."""
        cluster = self._cluster_id
        vms = [
            vm
            for vm in self._read_vms("vmpool.info", flag, -1, -1, -1)
            if words.vm_no_in_name(cluster, vm.name) is not None
            or words.vm_no_in_labels(cluster, vm.labels) is not None
        ]
        unclear = [vm.id for vm in vms if self._vm_no(vm, None) is None]
        unclear += [vm.id for vm in vms if _has_a_hidden_reason(vm)][:DETAILS_AT_ONCE]
        if not unclear:
            return vms, {}
        extended = self._read_vms("vmpool.infoset", ",".join(map(str, dict.fromkeys(unclear))), True)
        return vms, {vm.id: vm.attributes for vm in extended}

    def _read_vms(self, method: str, *arguments: object) -> Sequence[SeenVm]:
        try:
            return self._connection.vms(method, *arguments)
        except (NotAllowed, NoSuch) as error:
            raise CredentialsWrong(f"user {self._connection.user} may not list VMs: {words.said(error)}") from error
        except No as error:
            raise TryLater(f"{self._connection.name} does not list this cluster's VMs: {words.said(error)}") from error
        except GivePoolUp as error:  # the cloud does not know the call
            raise TryLater(str(error)) from error

    def _vm_no(self, vm: SeenVm, attributes: Mapping[str, str] | None) -> int | None:
        """The intent of a VM that shows it twice: in two of its name, its labels and its attributes."""
        shown = [
            words.vm_no_in_name(self._cluster_id, vm.name),
            words.vm_no_in_labels(self._cluster_id, vm.labels),
            words.vm_no_in_attributes(self._cluster_id, attributes or {}),
        ]
        return next((number for number in shown if number is not None and shown.count(number) > 1), None)

    def _found(self, vm_no: int, vm: SeenVm, details: Mapping[str, str]) -> VmFound:
        lcm = _lcm_name(vm.lcm)
        state = words.state_of(vm.state, lcm)
        details = {**vm.attributes, **details}
        text = details.get("SCHED_MESSAGE" if state is CloudState.PENDING else "ERROR", "")
        if state is CloudState.PENDING and words.is_queued(text):
            state = CloudState.QUEUED
        if text:  # an ERROR may repeat the VM's context
            access = self._access_of(f"vm-{vm_no}")
            text = Cleaner([access.password, access.key])(text)
        nonce = words.nonce_of(self._cluster_id, vm.labels, details)
        shown = words.cloud_state(vm.state, lcm)
        return VmFound(vm_no, str(vm.id), state, shown, vm.address, vm.since, text, boot_nonce=nonce)

    # --- room -----------------------------------------------------------------------------------------

    def room(self) -> Capacity:
        """See `provider.Provider.room`."""
        return read_room(self._connection, self._template.get())

    def misfit(self, size: Resources) -> str:
        """See `provider.Provider.misfit`."""
        return self._template.get().too_small_for(size)

    def close(self) -> None:
        """See `provider.Provider.close`."""
        self._connection.close()


# --- what pyone gives -----------------------------------------------------------------------------


def _lcm_name(lcm: int) -> str:
    try:
        return str(pyone.LCM_STATE(lcm).name)
    except ValueError:  # a state newer than pyone
        return f"state {lcm}"


def _state(vm: SeenVm) -> CloudState:
    return words.state_of(vm.state, _lcm_name(vm.lcm))


def _has_a_hidden_reason(vm: SeenVm) -> bool:
    """Whether the cloud may have a reason why this VM does not progress that its short list does not show: older
    versions leave it out."""
    shown = "SCHED_MESSAGE" in vm.attributes or "ERROR" in vm.attributes
    return not shown and _state(vm) in (CloudState.PENDING, CloudState.FAILED)
