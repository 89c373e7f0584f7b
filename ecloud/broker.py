"""The connection to the broker. The only file that imports paho.

Each connection gets a new paho client: one that reconnects by itself would deliver what was queued for a session long over.
Callbacks never raise and never block: the owner's put facts into an inbox.
"""

from __future__ import annotations

import random
import socket
import ssl
import threading
import time
from collections.abc import Callable

import msgspec
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

KEEPALIVE_S = 20
FIRST_WAIT_S = 0.2
LAST_WAIT_S = 5.0
CONNECT_TIMEOUT_S = 5.0
IN_FLIGHT = 1_000
"""QoS-1 messages on the way at once; paho's default of 20 throttles batches."""
QOS = 1


class BrokerAddress(msgspec.Struct, frozen=True):
    """Where a broker listens and how to be let in. `ca`: PEM text of the authority its certificate must be signed by."""

    host: str
    port: int
    user: str = ""
    password: str = ""
    ca: str = ""
    tls: bool = False

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def _make_client(address: BrokerAddress, client_id: str) -> mqtt.Client:
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=True)
    client.max_inflight_messages_set(IN_FLIGHT)
    client.connect_timeout = CONNECT_TIMEOUT_S
    if address.user:
        client.username_pw_set(address.user, address.password)
    if address.tls:
        client.tls_set_context(ssl.create_default_context(cadata=address.ca or None))
    client.on_socket_open = _no_delay
    return client


def _no_delay(client: mqtt.Client, userdata: object, sock: object) -> None:
    # Without it a QoS-1 request and its reply take 44 to 88 ms instead of 0.5 (facts: Nagle).
    if isinstance(sock, socket.socket):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def describe_failure(address: BrokerAddress, error: BaseException | ReasonCode | str) -> str:
    """One sentence on why the broker can't be used, and what to look at."""
    if isinstance(error, ssl.SSLError):
        return f"the broker at {address} and this machine do not agree on TLS: {error.reason or error}; check BROKER_CA"
    if isinstance(error, socket.gaierror):
        return f"the broker's name {address.host} can't be resolved: check BROKER_HOST and DNS"
    if isinstance(error, (TimeoutError, socket.timeout)):
        return f"the broker at {address} does not answer: check the address and the firewall"
    if isinstance(error, OSError):
        return f"no broker answers at {address}: {error.strerror or error}"
    text = str(error)
    if "authorized" in text.lower() or "bad user name" in text.lower():
        return f"the broker at {address} refuses user {address.user!r}: check BROKER_USER and BROKER_PASSWORD"
    return f"the connection to the broker at {address} ended: {text}"


class BrokerConnection:
    """One peer's connection, made again for ever. `on_message`, `on_found`, `on_lost` are called from its thread."""

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
        self._on_message = on_message
        self._on_found = on_found
        self._on_lost = on_lost
        self._will = will
        self._client: mqtt.Client | None = None
        self._connected = False
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._supervise, name="broker", daemon=True)
        self._reason = ""

    @property
    def is_connected(self) -> bool:
        """Whether messages can be sent now."""
        return self._connected

    def start(self) -> None:
        """Connect, now and whenever the connection ends."""
        self._thread.start()

    def publish(self, topic: str, payload: bytes) -> bool:
        """Hand a message to the broker; False (and dropped: the protocol heals) where there is no connection."""
        client = self._client
        if client is None or not self._connected:
            return False
        return client.publish(topic, payload, qos=QOS).rc == mqtt.MQTT_ERR_SUCCESS

    def subscribe(self, topic: str) -> None:
        """Also listen to `topic`, now and after each reconnection."""
        self._subscriptions.add(topic)
        client = self._client
        if client is not None and self._connected:
            client.subscribe(topic, qos=QOS)

    def unsubscribe(self, topic: str) -> None:
        """Listen to `topic` no more."""
        self._subscriptions.discard(topic)
        client = self._client
        if client is not None and self._connected:
            client.unsubscribe(topic)

    def stop(self, wait_s: float = 2.0) -> None:
        """Disconnect (after what was handed over) and end the thread."""
        client = self._client
        self._stopping.set()
        if client is not None:
            client.disconnect()
        self._ended.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(wait_s)

    # --- the thread ---------------------------------------------------------------------------------

    def _supervise(self) -> None:
        wait_s = FIRST_WAIT_S
        while not self._stopping.is_set():
            was_connected = self._connect_and_loop()
            if self._stopping.is_set():
                return
            wait_s = FIRST_WAIT_S if was_connected else min(LAST_WAIT_S, wait_s * 2)
            self._stopping.wait(wait_s * random.uniform(0.5, 1.0))

    def _connect_and_loop(self) -> bool:
        client = _make_client(self.address, self._client_id)
        client.on_connect = self._connected_callback
        client.on_message = self._message_callback
        client.on_disconnect = self._disconnected_callback
        client.suppress_exceptions = True  # an exception in a callback would end paho's thread without a word
        if self._will is not None:
            client.will_set(*self._will, qos=0)
        self._reason = ""
        self._ended.clear()
        try:
            client.connect(self.address.host, self.address.port, keepalive=KEEPALIVE_S)
        except Exception as error:
            self._on_lost(describe_failure(self.address, error))
            return False
        self._client = client
        client.loop_start()
        while not self._ended.wait(1.0) and not self._stopping.is_set():
            pass
        found, self._connected, self._client = self._connected, False, None
        client.loop_stop()
        if not self._stopping.is_set():
            self._on_lost(self._reason or f"the connection to the broker at {self.address} ended")
        return found

    def _connected_callback(
        self,
        client: mqtt.Client,
        userdata: object,
        flags: mqtt.ConnectFlags,
        reason: ReasonCode,
        properties: object,
    ) -> None:
        if reason.is_failure:
            self._reason = describe_failure(self.address, reason)
            client.disconnect()
            return
        if self._subscriptions:
            client.subscribe([(topic, QOS) for topic in sorted(self._subscriptions)])
        self._connected = True
        self._on_found()

    def _disconnected_callback(
        self,
        client: mqtt.Client,
        userdata: object,
        flags: mqtt.DisconnectFlags,
        reason: ReasonCode,
        properties: object,
    ) -> None:
        client.disconnect()  # tells paho's thread to end: the next connection gets a client of its own
        self._ended.set()

    def _message_callback(self, client: mqtt.Client, userdata: object, message: mqtt.MQTTMessage) -> None:
        self._on_message(message.topic, message.payload)


def probe(address: BrokerAddress, timeout_s: float = 5.0) -> str | None:
    """None when the broker lets us in; else why not, in one sentence."""
    outcome: list[str | None] = []
    done = threading.Event()

    def found() -> None:
        outcome.append(None)
        done.set()

    def lost(reason: str) -> None:
        outcome.append(reason)
        done.set()

    connection = BrokerConnection(address, f"probe-{random.getrandbits(40):x}", [], lambda t, p: None, found, lost)
    connection.start()
    if not done.wait(timeout_s):
        outcome.append(f"the broker at {address} does not answer within {timeout_s:g} s")
    connection.stop(0.5)
    return outcome[0]


def measure_round_trip(address: BrokerAddress, topic: str, payload_bytes: int = 100, timeout_s: float = 5.0) -> float | None:
    """Seconds for a message to come back to its sender through `topic` + "/+", a wildcard; None when it does not."""
    connected, arrived = threading.Event(), threading.Event()
    connection = BrokerConnection(
        address,
        f"probe-{random.getrandbits(40):x}",
        [f"{topic}/+"],
        lambda t, p: arrived.set(),
        connected.set,
        lambda reason: None,
    )
    connection.start()
    best: float | None = None
    try:
        if connected.wait(timeout_s):
            for _ in range(5):
                arrived.clear()
                began = time.monotonic()
                connection.publish(f"{topic}/probe", b"x" * payload_bytes)
                if arrived.wait(timeout_s):
                    took = time.monotonic() - began
                    best = took if best is None else min(best, took)
    finally:
        connection.stop(0.5)
    return best
