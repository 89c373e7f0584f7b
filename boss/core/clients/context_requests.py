"""Requests about state that the whole cluster shares: notes in the context, the datastore, revoked keys."""

from __future__ import annotations

from collections.abc import Callable

from boss.core.autoscale.vms import Vms
from boss.core.clients.request_answers import Answer, RequestRefused, listed, text_of
from boss.core.model.effects import UseDatastore
from boss.core.model.outbox import Conversation, Outbox
from boss.core.tasks.attempts import Attempts
from boss.core.workers.datastore_access import Access
from boss.core.workers.leases import Leases
from ecloud.model.roles import is_revocable
from ecloud.model.text import counted
from ecloud.model.wire import Refused, Request

DATASTORE_NOTES = ("datastore_address", "datastore_host_key", "datastore_python", "datastore_gate")
REVOKED = "its access file was revoked: ask the operator of the cluster for another one (python admin.py invite)"


class ContextRequests:
    """Carries out requests about the cluster. `verbs`: by name, called with the request and `now`."""

    def __init__(
        self,
        outbox: Outbox,
        attempts: Attempts,
        access: Access,
        leases: Leases,
        vms: Vms,
        clients: dict[str, Conversation],
        forget_client: Callable[[Conversation], None],
        revoked_keys: set[str],
    ) -> None:
        self._outbox = outbox
        self._leases = leases
        self._vms = vms
        self._clients = clients
        self._forget_client = forget_client
        self._attempts = attempts
        self._access = access
        self._revoked_keys = revoked_keys
        self.verbs: dict[str, Callable[[Request, float], Answer]] = {
            "set_context": self._set_context,
            "drop_context": self._drop_context,
            "set_datastore": self._set_datastore,
            "revoke_key": self._revoke_key,
        }

    def _set_context(self, request: Request, now: float) -> Answer:
        key, value = text_of(request, "key"), text_of(request, "value")
        if not key or len(key) > 100 or key == "cluster_id" or "/" in key:  # names with a slash belong to the boss
            raise RequestRefused("request", f"{key!r} cannot be set in the context")
        self._outbox.writes.context[key] = value
        return 1, f"{key} set", (key,)

    def _drop_context(self, request: Request, now: float) -> Answer:
        keys = [str(key) for key in listed(request, "keys")] or ["boss_address", *DATASTORE_NOTES]
        if kept := [key for key in keys if key == "cluster_id" or "/" in key]:
            raise RequestRefused("request", f"{kept[0]!r} cannot be deleted: VMs and keys of this cluster depend on it")
        usual, moved = self._access.usual, ""
        if usual not in ("", self._access.datastore.address) and not set(keys).isdisjoint(DATASTORE_NOTES):
            self._refuse_while_files_move()
            keys = list(dict.fromkeys([*keys, *DATASTORE_NOTES]))
            self._access.move(UseDatastore(usual, "", "", ""), now)
            moved = f"; the datastore is {usual} from now on"
        for key in keys:
            self._outbox.writes.context[key] = None
        return len(keys), f"{len(keys)} dropped{moved}", tuple(keys)

    def _set_datastore(self, request: Request, now: float) -> Answer:
        address = text_of(request, "address")
        if not address:
            raise RequestRefused("request", "set_datastore needs an address")
        if address != self._access.datastore.address:
            self._refuse_while_files_move()
        use = UseDatastore(address, *(text_of(request, name) for name in ("host_key", "python", "gate")))
        values = (use.address, use.host_key, use.python, use.gate)
        self._outbox.writes.context.update({name: value or None for name, value in zip(DATASTORE_NOTES, values)})
        self._access.move(use, now)
        return 1, f"the datastore is {address}", ()

    def _refuse_while_files_move(self) -> None:
        if count := len(self._attempts.active):
            raise RequestRefused(
                "busy",
                f"{count} attempts are running and use the current datastore: wait for them, or cancel them",
            )

    def _revoke_key(self, request: Request, now: float) -> Answer:
        name = text_of(request, "name")
        if not is_revocable(name):
            raise RequestRefused("request", f"{name!r} is not the name of an invitation: invite --list shows them")
        self._revoked_keys.add(name)
        self._outbox.writes.revoked_keys.add(name)
        workers = self._leases.revoke(name, now)
        for worker in workers:
            self._vms.on_worker_left(worker, now)
        clients = [client for client in self._clients.values() if client.key_name == name]
        for client in clients:
            self._outbox.say(client, Refused("revoked", REVOKED))
            self._forget_client(client)
        dropped = [counted(len(found), what) for found, what in ((workers, "worker"), (clients, "client")) if found]
        text = f"{name} is revoked" + (f"; disconnected: {' and '.join(dropped)}" if dropped else "")
        return 1, text, (name,)
