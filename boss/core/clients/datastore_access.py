"""Access to a datastore over SSH for clients on other machines: a certificate for a client's own key, when it asks.

Owns only the signatures under way. A client renews its certificate by asking again; a lost signature is asked for
again with the same request.
"""

from __future__ import annotations

import msgspec

from boss.core.clients.request_answers import text_of
from boss.core.model.effects import SignClientKey
from boss.core.model.outbox import Conversation, Outbox
from boss.core.workers.datastore_access import Access
from ecloud.model.wire import DatastoreGranted, Refused, Request, RequestDone

SIGNED_WITHIN_S = 30.0
"""A request that is repeated after this time without a signature is signed again."""


class AccessForClients:
    """Answers requests for access. `clients`: the conversations of clients, by peer."""

    def __init__(self, outbox: Outbox, access: Access, clients: dict[str, Conversation]) -> None:
        self._outbox = outbox
        self._access = access
        self._clients = clients
        self._asked_at: dict[tuple[str, str], float] = {}
        """When the signature was last requested, by client and request."""

    def on_request(self, client: Conversation, request: Request, now: float) -> None:
        """Have the key signed. Answered later, or refused now if no key opens the datastore."""
        self._asked_at = {key: at for key, at in self._asked_at.items() if now - at < SIGNED_WITHIN_S}
        address, key = self._access.datastore.address, (client.peer, request.request_id)
        if not self._access.datastore.host_key:
            self._refuse(client, request.request_id, f"the datastore {address} is a directory of the boss's machine")
        elif key not in self._asked_at:
            self._asked_at[key] = now
            self._outbox.call(SignClientKey(client.peer, request.request_id, text_of(request, "public_key")))

    def on_signed(self, peer: str, request_id: str, address: str, certificate: str, lives_s: float) -> None:
        """Send a client its certificate: a `DatastoreGranted` as JSON in the answer's text."""
        self._asked_at.pop((peer, request_id), None)
        client, datastore = self._clients.get(peer), self._access.datastore
        if client is None:
            return
        if address != datastore.address:
            self._refuse(client, request_id, f"the datastore is {datastore.address} since a moment ago: try again")
            return
        granted = DatastoreGranted(msgspec.structs.replace(datastore, credential=certificate), lives_s)
        self._outbox.say(client, RequestDone(request_id, 1, msgspec.json.encode(granted).decode()))

    def on_failed(self, call: SignClientKey, reason: str) -> None:
        """The key was not signed."""
        self._asked_at.pop((call.client, call.request_id), None)
        client = self._clients.get(call.client)
        if client is not None:
            self._refuse(client, call.request_id, reason)

    def _refuse(self, client: Conversation, request_id: str, reason: str) -> None:
        self._outbox.say(client, Refused("datastore", reason, about=request_id))
