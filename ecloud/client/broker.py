"""The connection to the broker. The only file that imports paho.

Each connection uses a new paho client, because one that reconnects would deliver messages queued for an old session.
Callbacks of the owner only put events into an inbox; exceptions in them are logged and never reach paho's thread.
Messages may be dropped here: the protocol repeats them.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from datastore.backoff import Backoff
from datastore.problem import PartAway
from ecloud.config.secrets import AccessFile
from ecloud.config.settings import Settings, SettingsWrong
from ecloud.model.roles import INVITATIONS

log = logging.getLogger("ecloud.client.broker")

KEEPALIVE_S = 20
"""In seconds. A frozen broker, or a network that drops everything, is noticed after at most twice this."""
BACKOFF = Backoff(0.2, 5.0)
"""Between connections to the broker, each shortened by up to a half at random."""
HELD_S = 2.0
"""After a connection that lasted this long the next one is made at once; after shorter ones the waits grow."""
CONNECT_TIMEOUT_S = 5.0
"""For TCP and TLS, and again for the broker's answer."""
IN_FLIGHT = 1_000
"""QoS-1 messages under way at once; paho's default of 20 throttles batches."""
QUEUED = 20_000
"""Messages queued for a slow broker; beyond it `publish` drops messages and returns False."""
QOS = 1
INVITE_AGAIN = "the access file is outdated or wrong: ask for a new one (on the boss's machine: python admin.py invite)"


class BrokerAddress(msgspec.Struct, frozen=True):
    """Where a broker listens and how to log in. `ca`: PEM text of the authority that signed its certificate."""

    host: str
    port: int
    user: str = ""
    password: str = ""
    ca: str = ""
    tls: bool = False
    is_invited: bool = False
    """From an access file that `invite` made: its holder has no settings that name the broker."""

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @classmethod
    def of(cls, access: AccessFile) -> BrokerAddress:
        """The address in an access file."""
        is_invited = access.key_name.startswith(INVITATIONS)
        return cls(access.host, access.port, access.user, access.password, access.ca, access.tls, is_invited)


def external_broker(settings: Settings) -> BrokerAddress | None:
    """The broker that the settings name; None if the boss runs its own. Raises `SettingsWrong`."""
    if not settings.broker_host:
        return None
    ca = ""
    if settings.broker_ca:
        try:
            ca = Path(settings.broker_ca).expanduser().read_text()
            ssl.create_default_context(cadata=ca)
        except (ssl.SSLError, ValueError):
            raise SettingsWrong([f"BROKER_CA = {settings.broker_ca!r}: it holds no certificate in PEM form"]) from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise SettingsWrong([f"BROKER_CA = {settings.broker_ca!r}: {reason}"]) from None
    return BrokerAddress(
        host=settings.broker_host,
        port=settings.broker_port,
        user=settings.broker_user,
        password=settings.broker_password,
        ca=ca,
        tls=settings.broker_tls or bool(ca),  # a CA implies TLS
    )


def describe_failure(address: BrokerAddress, error: BaseException | ReasonCode | None) -> PartAway:
    """Why the broker cannot be used. Only the remedy names settings, or the access file. None: it closed the connection
    before it answered."""
    failure = _describe(address, error)
    if address.is_invited and "BROKER_" in failure.remedy:
        may_be_down = isinstance(error, (socket.gaierror, ConnectionRefusedError))
        return PartAway(failure.text, ("it may be down, or " if may_be_down else "") + INVITE_AGAIN)
    return failure


def _describe(address: BrokerAddress, error: BaseException | ReasonCode | None) -> PartAway:
    if error is None or isinstance(error, ConnectionResetError):
        hint = "it does not use TLS" if address.tls else "it requires TLS"
        text = f"the broker at {address} closed the connection without an answer: a refused user or password, or {hint}"
        return PartAway(text, "check BROKER_TLS, BROKER_USER and BROKER_PASSWORD")
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = error.verify_message.rstrip(".") or str(error)
        text = f"the certificate of the broker at {address} is not accepted: {reason}"
        return PartAway(text, "check BROKER_CA and BROKER_HOST")
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or str(error)).replace("_", " ").lower()
        text = f"the broker at {address} and this machine do not agree on TLS: {reason}"
        return PartAway(text, "check BROKER_TLS, BROKER_PORT")
    if isinstance(error, socket.gaierror):
        return PartAway(f"the broker's name {address.host} cannot be resolved", "check BROKER_HOST and DNS")
    if isinstance(error, TimeoutError):
        return PartAway(f"the broker at {address} does not answer", "check the address and the firewall")
    if isinstance(error, ConnectionRefusedError):
        return PartAway(f"no broker listens at {address}", "start it, or check BROKER_HOST and BROKER_PORT")
    if isinstance(error, OSError):
        return PartAway(f"the broker at {address} cannot be reached: {error.strerror or error}")
    text = str(error)
    if "authorized" in text.lower() or "bad user name" in text.lower():  # paho has no code for it
        user = f"the password of user {address.user!r}" if address.user else "a connection without a user"
        return PartAway(f"the broker at {address} refused {user}", "check BROKER_USER and BROKER_PASSWORD")
    return PartAway(f"the connection to the broker at {address} ended: {text}")


class _TlsSocket(ssl.SSLSocket):
    """A socket that is closed when TLS fails: paho would leak it."""

    def do_handshake(self, block: bool = False) -> None:
        """Negotiate TLS."""
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


class _Client(mqtt.Client):
    """paho's client, which also reports when its thread ended, for any reason."""

    def __init__(self, address: BrokerAddress, client_id: str, over: Callable[[], None]) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=True, reconnect_on_failure=False
        )
        self.suppress_exceptions = True  # an exception in a callback would end paho's thread silently
        self.max_inflight_messages_set(IN_FLIGHT)
        self.max_queued_messages_set(QUEUED)
        self.connect_timeout = CONNECT_TIMEOUT_S
        if address.user:
            self.username_pw_set(address.user, address.password)
        if address.tls:
            context = ssl.create_default_context(cadata=address.ca or None)
            context.sslsocket_class = _TlsSocket
            self.tls_set_context(context)
        self.on_socket_open = _no_delay
        self._over = over

    def loop_forever(self, timeout: float = 1.0, retry_first_connection: bool = False) -> MQTTErrorCode:
        """The main function of paho's thread. A malformed packet can make it raise."""
        try:
            return super().loop_forever(timeout, retry_first_connection)
        except Exception:
            log.exception("the connection's thread failed; a new connection is made")
            return MQTTErrorCode.MQTT_ERR_UNKNOWN
        finally:
            self._over()

    def cut(self) -> None:
        """Close its socket, which wakes up every wait on it."""
        sock = self.socket()
        if isinstance(sock, socket.socket):
            with contextlib.suppress(OSError):  # it may be closed already
                sock.shutdown(socket.SHUT_RDWR)


def _no_delay(client: mqtt.Client, userdata: object, sock: object) -> None:
    # Without it a QoS-1 request and its reply take 44 to 88 ms instead of 0.5: Nagle waits for the other side.
    if isinstance(sock, socket.socket):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class BrokerConnection:
    """One peer's connection, renewed forever.

    `on_found()` after each connection (subscriptions are sent before it), `on_lost(reason)` after each loss or failed
    attempt with one sentence for people, `on_message(topic, payload)`: all are called from threads of this object and
    must not block, as they hold up the connection. `will`: (topic, payload) that the broker publishes when this peer
    vanishes. Call `start` once and `stop` once, from any thread but the callbacks'.
    """

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        subscriptions: list[str],
        on_message: Callable[[str, bytes], None],
        on_found: Callable[[], None],
        on_lost: Callable[[str], None],
        will: tuple[str, bytes] | None = None,
    ) -> None:
        self.address = address
        self._client_id = client_id
        self._subscriptions = set(subscriptions)
        self._subscribing = threading.Lock()
        self._on_message = on_message
        self._on_found = on_found
        self._on_lost = on_lost
        self._will = will
        self._client: _Client | None = None
        self._last: mqtt.MQTTMessageInfo | None = None
        """The last message handed to this connection."""
        self._connected = False
        self._reason: PartAway | None = None
        self.trouble: PartAway | None = None
        """Why there is, or was, no broker."""
        self._stopping = threading.Event()
        self._changed = threading.Event()
        """Set when the broker answers and when paho's thread ends."""
        self._over = False
        self._thread = threading.Thread(target=self._supervise, name=f"broker-{client_id}", daemon=True)

    @property
    def is_connected(self) -> bool:
        """Whether messages can be sent now."""
        return self._connected

    def start(self) -> None:
        """Connect, now and after each lost connection."""
        self._thread.start()

    def publish(self, topic: str, payload: bytes) -> bool:
        """Hand a message to the broker. Returns False if it was dropped; the protocol repeats it."""
        client = self._client
        if client is None or not self._connected:
            return False
        handed_over = client.publish(topic, payload, qos=QOS)
        if handed_over.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            return False
        self._last = handed_over
        return True

    def subscribe(self, topic: str) -> None:
        """Listen to `topic`, now and after each reconnection."""
        with self._subscribing:
            self._subscriptions.add(topic)
        client = self._client
        if client is not None and self._connected:
            client.subscribe(topic, qos=QOS)

    def unsubscribe(self, topic: str) -> None:
        """Stop listening to `topic`."""
        with self._subscribing:
            self._subscriptions.discard(topic)
        client = self._client
        if client is not None and self._connected:
            client.unsubscribe(topic)

    def stop(self, wait_s: float = 2.0) -> None:
        """Send what was handed over, disconnect, and end the threads; after `wait_s` without waiting further."""
        self._stopping.set()
        client, last = self._client, self._last
        if client is not None:
            if self._connected and last is not None:
                # A socket closed with unread answers is reset, and the broker would lose what it had not read yet.
                with contextlib.suppress(RuntimeError, ValueError):
                    last.wait_for_publish(wait_s)
            client.disconnect()
        if self._thread.is_alive():
            self._thread.join(wait_s)
            if self._thread.is_alive() and client is not None:
                client.cut()
                self._thread.join(wait_s)

    def cut(self) -> None:
        """Lose the connection as a failing network would: the broker publishes the will, and this peer reconnects."""
        if self._client is not None:
            self._client.cut()

    # --- the thread ---------------------------------------------------------------------------------

    def _supervise(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            was_connected = self._connect_and_wait()
            # One that ended at once may do so again: a message is too large for the broker, or a peer has our id.
            held = was_connected and time.monotonic() - began >= HELD_S
            failures = 0 if held else failures + 1
            self._stopping.wait(BACKOFF.jittered_s(failures))

    def _connect_and_wait(self) -> bool:
        """Run one connection from its first packet to its end. Returns whether the broker accepted it."""
        self._over, self._reason = False, None
        self._changed.clear()
        try:
            client = self._make_client()
            client.connect(self.address.host, self.address.port, keepalive=KEEPALIVE_S)
        except Exception as error:
            self._tell_lost(describe_failure(self.address, error))
            return False
        self._client, self._last = client, None
        client.loop_start()
        if not self._changed.wait(CONNECT_TIMEOUT_S):
            self._reason = describe_failure(self.address, TimeoutError())
            client.cut()
        if self._stopping.is_set():
            client.disconnect()  # stop() came before there was a client to disconnect
        while not self._over:
            self._changed.wait()
            self._changed.clear()
        client.loop_stop()
        found, self._connected, self._client = self._connected, False, None
        client.cut()
        if not self._stopping.is_set():
            self._tell_lost(self._reason or (self._ended() if found else describe_failure(self.address, None)))
        return found

    def _make_client(self) -> _Client:
        client = _Client(self.address, self._client_id, self._loop_over)
        client.on_connect = self._answered
        client.on_message = self._message_arrived
        client.on_subscribe = self._subscribed
        if self._will is not None:
            client.will_set(*self._will, qos=0)
        return client

    def _ended(self) -> PartAway:
        return PartAway(f"the connection to the broker at {self.address} was lost")

    def _tell_lost(self, trouble: PartAway) -> None:
        self.trouble = trouble
        try:
            self._on_lost(str(trouble))
        except Exception:
            log.exception("on_lost failed")

    # --- called from paho's thread ------------------------------------------------------------------

    def _loop_over(self) -> None:
        self._over = True
        self._changed.set()

    def _answered(
        self, client: mqtt.Client, userdata: object, flags: object, reason: ReasonCode, properties: object
    ) -> None:
        if reason.is_failure:
            self._reason = describe_failure(self.address, reason)
            client.disconnect()
            return
        self._connected = True  # before the set is read: later subscriptions send themselves
        with self._subscribing:
            subscriptions = sorted(self._subscriptions)
        if subscriptions:
            client.subscribe([(topic, QOS) for topic in subscriptions])
        self._changed.set()
        try:
            self._on_found()
        except Exception:
            log.exception("on_found failed")

    def _subscribed(
        self, client: mqtt.Client, userdata: object, mid: int, reasons: list[ReasonCode], properties: object
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            user = repr(self.address.user) if self.address.user else "a peer without user"
            text = f"the broker at {self.address} refuses {user} a subscription"
            self._reason = PartAway(text, "check its access rules (ACL)")
            client.disconnect()

    def _message_arrived(self, client: mqtt.Client, userdata: object, message: mqtt.MQTTMessage) -> None:
        try:
            self._on_message(message.topic, bytes(message.payload))
        except Exception:
            log.exception("on_message failed")


# --- questions of doctor and of the boss's own broker --------------------------------------------


def _one_off(
    address: BrokerAddress,
    subscriptions: list[str],
    on_message: Callable[[str, bytes], None],
    on_found: Callable[[], None],
    on_lost: Callable[[str], None] = lambda reason: None,
    will: tuple[str, bytes] | None = None,
) -> BrokerConnection:
    name = f"probe-{secrets.token_hex(5)}"
    return BrokerConnection(address, name, subscriptions, on_message, on_found, on_lost, will)


def probe(address: BrokerAddress, timeout_s: float = 5.0) -> PartAway | None:
    """None if the broker accepts a connection, else the reason. Takes at most `timeout_s`."""
    done = threading.Event()
    connection = _one_off(address, [], lambda topic, payload: None, done.set, lambda reason: done.set())
    connection.start()
    answered, trouble = done.wait(timeout_s), connection.trouble
    connection.stop(0.2)
    if answered:
        return trouble
    text = f"the broker at {address} does not answer within {timeout_s:g} s"
    return PartAway(text, "check the address and the firewall")


def measure_round_trip(
    address: BrokerAddress, topic: str, payload_bytes: int = 100, timeout_s: float = 5.0
) -> float | None:
    """Seconds for a message of that size to return through the wildcard `topic`/+, the best of five.

    None if none returns: no connection, no rights, or a size limit. More than 0.02 s on one machine means that the
    broker has TCP_NODELAY off.
    """
    connected, arrived = threading.Event(), threading.Event()
    connection = _one_off(address, [f"{topic}/+"], lambda t, payload: arrived.set(), connected.set)
    connection.start()
    best: float | None = None
    try:
        if not connected.wait(timeout_s):
            return None
        for _ in range(5):
            arrived.clear()
            began = time.monotonic()
            connection.publish(f"{topic}/probe", b"x" * payload_bytes)
            if not arrived.wait(timeout_s):
                return best
            took = time.monotonic() - began
            best = took if best is None else min(best, took)
        return best
    finally:
        connection.stop(0.2)


def check_will(address: BrokerAddress, topic: str, timeout_s: float = 5.0) -> bool:
    """Whether the broker publishes on `topic` the last will of a peer that vanishes."""
    listening, arrived, ready, found = (threading.Event() for _ in range(4))

    def hear(_: str, payload: bytes) -> None:
        (arrived if payload == b"gone" else listening).set()

    listener = _one_off(address, [topic], hear, found.set)
    mortal = _one_off(address, [], lambda t, payload: None, ready.set, will=(topic, b"gone"))
    listener.start()
    mortal.start()
    try:
        if not (found.wait(timeout_s) and ready.wait(timeout_s)):
            return False
        listener.publish(topic, b"here")  # it receives its own message: its subscription is active
        if not listening.wait(timeout_s):
            return False
        mortal.cut()
        return arrived.wait(timeout_s)
    finally:
        mortal.stop(0.2)
        listener.stop(0.2)
