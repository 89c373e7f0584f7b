"""`python -m worker.debug [ACCESS_FILE]`: checks whether a worker could work here. Prints one line per requirement,
then a verdict.

Takes the arguments of `python -m worker` and changes nothing: no worker joins, the boss's state stays as it
is, and what the check stages in the datastore is removed again. Ends in less than 30 s and prints no secret. Imports
only the standard library until it knows that the packages are installed.
"""

from __future__ import annotations

import importlib
import logging
import os
import queue
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from datastore.problem import Problem
from ecloud.model.machine_needs import MachineFacts, lacks

if TYPE_CHECKING:
    from ecloud.client.broker import BrokerAddress
    from ecloud.config.secrets import AccessFile
    from ecloud.model.wire import DatastoreAccess, Refused, Welcome

ROOT = Path(__file__).resolve().parent.parent
DNS_S = 4.0
BROKER_S = 5.0
BOSS_S = 5.0
LISTEN_S = 5.5
"""While workers are on duty, a boss sends something at least this often: heartbeats come every 5 s."""
DATASTORE_S = 5.0
"""Together, these limits stay below the promised 30 s."""
PACKAGES = {"click": "click", "msgspec": "msgspec", "paho.mqtt.client": "paho-mqtt", "psutil": "psutil"}
"""Modules that a worker imports, and their names for pip."""
BROUGHT = (ROOT / "packages").is_dir()
"""Whether the boss installed this code by SSH, with packages for the Python that it found then."""
INSTALL = (
    "end this VM (python admin.py kill_worker); the boss installs the packages on the next one"
    if BROUGHT
    else f"in {ROOT}: python3 -m venv .venv && .venv/bin/pip install -r requirements.lock"
)
_Answer = TypeVar("_Answer")


class NotTried(Exception):
    """A check depends on another one that failed; the text names it."""


@dataclass
class Found:
    """Results of the checks that later checks use."""

    access: AccessFile | None = None
    home: Path | None = None
    welcome: Welcome | None = None
    broker_answers: bool = False
    arguments: Sequence[str] = ()


# --- the checks, in the order of their lines ------------------------------------------------------------


def check_python(found: Found) -> str:
    """Check version and packages."""
    version = ".".join(map(str, sys.version_info[:3]))
    for lack in lacks(MachineFacts(version)):
        raise Problem(f"{lack.text} ({sys.executable}): install one, then {INSTALL}")
    missing = []
    for module, package in PACKAGES.items():
        try:
            importlib.import_module(module)
        except ImportError:
            missing.append(package)
    if missing:
        raise Problem(f"{sys.executable} lacks {', '.join(missing)}: {INSTALL}")
    return f"{version} at {sys.executable}, with {', '.join(PACKAGES.values())}"


def check_access(found: Found) -> str:
    """Check the arguments and the access file."""
    _need_packages()
    import click

    from ecloud.config.home import Home
    from worker.__main__ import find_access, main

    try:
        given = main.make_context("worker", list(found.arguments)).params
    except click.exceptions.Exit:
        raise NotTried("only --help was requested") from None
    except click.ClickException as error:
        raise Problem(f"{error.format_message()}: see python -m worker --help") from None
    found.home = Path(given["home"] or Home(os.environ.get("ECLOUD_HOME", "~/.ecloud")).path / "worker").absolute()
    found.access = access = find_access(given["access_file"], given["boss"])
    return f"key {access.key_name} of cluster {access.cluster_id}, broker {access.host}:{access.port}"


def check_address(found: Found) -> str:
    """Report this machine's name and addresses, and the address of the broker."""
    _need_packages()
    from ecloud.config import this_host

    own = ", ".join(this_host.addresses())
    access = _need_access(found)
    if own == "127.0.0.1" and access.host not in ("127.0.0.1", "::1", "localhost"):
        raise Problem(f"this machine has only the address 127.0.0.1: connect it to the network of {access.host}")
    return f"this machine {socket.gethostname()} has {own}; the broker is at {access.host}:{access.port}"


def check_dns(found: Found) -> str:
    """Resolve the broker's name."""
    host = _need_access(found).host
    try:
        answers = _within(DNS_S, lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    except TimeoutError:
        raise Problem(f"no name server answers for {host}: check /etc/resolv.conf, or --boss with an address") from None
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Problem(
            f"{host} cannot be resolved ({reason}): check the name and DNS, or --boss with an address"
        ) from None
    found_addresses = ", ".join(dict.fromkeys(str(answer[4][0]) for answer in answers))
    return (
        "not needed: the broker is named by its address" if found_addresses == host else f"{host} is {found_addresses}"
    )


def check_clock(found: Found) -> str:
    """Check that the clock is later than this software's installation; an earlier clock makes every certificate
    invalid."""
    now = time.time()
    installed = Path(__file__).stat().st_mtime
    told = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < installed - 86_400:
        since = time.strftime("%Y-%m-%d", time.gmtime(installed))
        raise Problem(
            f"it shows {told}, before this software was installed ({since}): set it (timedatectl set-ntp true)"
        )
    return told


def check_broker(found: Found) -> str:
    """Check TCP, TLS, user and password."""
    from ecloud.client.broker import probe

    access = _need_access(found)
    trouble = probe(_address(access), BROKER_S)
    if trouble is not None:
        # The probe's remedy names settings of the boss; on a worker's machine their values are in the access file.
        remedy = "check that the boss runs (python admin.py status there) and that the access file is its newest"
        raise Problem(trouble.texts, f"{remedy}: host, port, user, password, ca and tls in it must be the broker's")
    found.broker_answers = True
    return f"{access.host}:{access.port} accepts the connection" + (" through TLS" if access.tls else "")


def check_boss(found: Found) -> str:
    """Check that the boss answers Hello with a Welcome that our key signs. A Hello without further messages changes
    nothing."""
    from ecloud.model.wire import Refused

    access = _need_broker(found)
    answer = say_hello(access, BOSS_S)
    if answer is None:
        if boss_is_heard(access, LISTEN_S):
            return "it answers others (see key)"
        raise Problem(
            f"no answer within {BOSS_S:g} s, and it was not heard speaking with others: start it"
            " (python admin.py start), or see key"
        )
    if isinstance(answer, Refused):
        raise Problem(f"it refuses: {answer.reason}")
    found.welcome = answer
    return f"it accepts this worker; heartbeats every {answer.heartbeat_s:g} s, lease {answer.lease_s:g} s"


def check_key(found: Found) -> str:
    """Check that boss and access file have the same key: a boss does not answer messages of an unknown key."""
    access = _need_broker(found)
    if found.welcome is None:
        raise Problem(
            f"nothing that is signed with {access.key_name} was answered: where the boss runs, this key is not"
            " (or no longer) one of its cluster: make a new access file (python admin.py invite)"
        )
    return f"the boss accepts the signature of {access.key_name}; its own signature is valid"


def check_datastore(found: Found) -> str:
    """Check that this worker can read the datastore and write to a stage of its own, which is then removed."""
    if found.welcome is None:
        raise NotTried("the boss did not answer")
    access = found.welcome.datastore
    try:
        _within(DATASTORE_S, lambda: _try_datastore(access))
    except TimeoutError:
        raise Problem(f"{access.address} does not answer within {DATASTORE_S:g} s: check its mount") from None
    return f"{access.address} " + ("shows its pinned key" if access.host_key else "is readable and writable")


def check_disk(found: Found) -> str:
    """Check the free space in the home."""
    _need_packages()
    from worker.shell.files import MIN_FREE_MB, free_disk_mb

    home = found.home or Path("~/.ecloud/worker").expanduser()
    there = next((path for path in (home, *home.parents) if path.is_dir()), Path("/"))
    free_mb = free_disk_mb(there)
    shut = "" if os.access(there, os.W_OK | os.X_OK) else f"{there} cannot be written by this user"
    # ECLOUD is installed here, so what a worker keeps free is enough.
    for lack in lacks(MachineFacts(disk_mb=free_mb, home=shut), MIN_FREE_MB):
        raise Problem(f"{lack.text}: free some disk space for {home}, or set --home to another directory")
    return f"{free_mb:,.0f} MB are free for {home}"


CHECKS: tuple[tuple[str, Callable[[Found], str]], ...] = (
    ("Python", check_python),
    ("access file", check_access),
    ("address", check_address),
    ("DNS", check_dns),
    ("clock", check_clock),
    ("disk", check_disk),
    ("broker", check_broker),
    ("boss", check_boss),
    ("key", check_key),
    ("datastore", check_datastore),
)


# --- what the checks ask --------------------------------------------------------------------------------


def say_hello(access: AccessFile, wait_s: float) -> Welcome | Refused | None:
    """Send `Hello` under a temporary peer name and return the boss's answer."""
    from ecloud.client.broker import BrokerConnection
    from ecloud.model import wire
    from ecloud.model.topics import boss_topic, peer_topic
    from worker.__main__ import new_peer_name

    peer, key = new_peer_name(), access.key_bytes
    nonce, own_topic = f"{peer}-1", peer_topic(access.cluster_id, peer)
    topic_to_boss = boss_topic(access.cluster_id, peer)
    answers: queue.SimpleQueue[Welcome | Refused] = queue.SimpleQueue()
    connected = threading.Event()

    def on_message(topic: str, payload: bytes) -> None:
        try:
            envelope, _ = wire.decode(payload, topic, lambda name: key if name == access.key_name else None)
        except wire.Unreadable as error:
            if error.why == "version" and error.key_name:
                answers.put(wire.Refused("version", f"the boss speaks {error}: install the same ECLOUD on both sides"))
            return
        message = envelope.message
        if isinstance(message, wire.Refused) or (isinstance(message, wire.Welcome) and message.nonce == nonce):
            answers.put(message)

    connection = BrokerConnection(_address(access), peer, [own_topic], on_message, connected.set, lambda reason: None)
    connection.start()
    try:
        deadline = time.monotonic() + wait_s
        if not connected.wait(wait_s):
            return None
        hello = wire.Hello(nonce=nonce, kind="worker", host=socket.gethostname())
        envelope = wire.Envelope(wire.PROTOCOL_VERSION, peer, "", 0, hello)
        while (left_s := deadline - time.monotonic()) > 0:
            connection.publish(topic_to_boss, wire.encode(envelope, topic_to_boss, access.key_name, key))
            try:
                return answers.get(timeout=min(1.0, left_s))
            except queue.Empty:
                continue
        return None
    finally:
        connection.stop(0.5)


def boss_is_heard(access: AccessFile, wait_s: float) -> bool:
    """Return whether a boss sends any message in this cluster."""
    from ecloud.client.broker import BrokerConnection
    from ecloud.model.topics import peer_topic

    heard = threading.Event()
    everybody = peer_topic(access.cluster_id, "+")
    listener = BrokerConnection(
        _address(access), "debug-" + os.urandom(5).hex(), [everybody], lambda topic, payload: heard.set(),
        lambda: None, lambda reason: None,
    )  # fmt: skip
    listener.start()
    try:
        return heard.wait(wait_s)
    finally:
        listener.stop(0.5)


def _try_datastore(access: DatastoreAccess) -> None:
    if access.host_key:
        _try_host(access)
    else:
        _try_directory(access)


def _try_host(access: DatastoreAccess) -> None:
    """Check the host key. The boss gives a certificate only to a worker on duty, so more cannot be checked before."""
    from datastore.keys import read_host_key
    from datastore.ssh.access import SshAddress

    address = SshAddress.parse(access.address)
    if read_host_key(address.host, address.port) != access.host_key:
        raise Problem(
            f"{address.host} shows another host key than the boss pinned: python admin.py set_datastore there"
        )


def _try_directory(access: DatastoreAccess) -> None:
    from worker.shell.files import open_datastore

    stage = f"debug-{os.urandom(5).hex()}/0-0"
    with tempfile.TemporaryDirectory() as directory:
        store = open_datastore(access, Path(directory))
        store.stat(["probe"])
        local = Path(directory) / "probe"
        local.write_bytes(b"x" * 65_536)
        try:
            store.store(stage, local, "probe")
        finally:
            store.drop_stage(stage)


def _address(access: AccessFile) -> BrokerAddress:
    from ecloud.client.broker import BrokerAddress

    return BrokerAddress.of(access)


def _need_packages() -> None:
    if any(module not in sys.modules for module in PACKAGES):
        raise NotTried("it needs the missing packages")


def _need_access(found: Found) -> AccessFile:
    if found.access is None:
        raise NotTried("it needs an access file")
    return found.access


def _need_broker(found: Found) -> AccessFile:
    access = _need_access(found)
    if not found.broker_answers:
        raise NotTried("it needs the broker")
    return access


def _within(seconds: float, call: Callable[[], _Answer]) -> _Answer:
    """Return or raise what `call` returns or raises; raises `TimeoutError` when it takes longer, and leaves its thread
    running."""
    answer: queue.SimpleQueue[Callable[[], _Answer]] = queue.SimpleQueue()

    def run() -> None:
        try:
            value = call()
        except BaseException as error:
            answer.put(partial(_raise, error))
        else:
            answer.put(lambda: value)

    threading.Thread(target=run, daemon=True).start()
    try:
        given = answer.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    return given()


def _raise(error: BaseException) -> NoReturn:
    raise error


# --- the verdict ----------------------------------------------------------------------------------------


def examine(arguments: Sequence[str]) -> int:
    """Print a line per check and the verdict; return the exit code."""
    found = Found(arguments=arguments)
    wrong = []
    for name, check in CHECKS:
        try:
            mark, text = "ok", check(found)
        except NotTried as reason:
            mark, text = "not tried", str(reason)
        except Problem as problem:
            mark, text = "WRONG", str(problem)
        except Exception as error:
            mark, text = "WRONG", f"it cannot be checked: {type(error).__name__}: {error}"
        if mark == "WRONG":
            wrong.append(name)
        print(f"{name + ':':<12} {mark}: {text}", flush=True)
    if wrong:
        print(f"verdict: a worker cannot work here; wrong: {', '.join(wrong)}", flush=True)
        return 1
    print("verdict: ok, a worker can work here", flush=True)
    return 0


def main() -> None:
    """Run the command."""
    logging.disable()
    try:
        code = examine(sys.argv[1:])
    except (KeyboardInterrupt, BrokenPipeError):
        code = 130
    sys.stderr.flush()
    # A call that hangs (a dead mount, a name server) must not keep this process alive.
    os._exit(code)


if __name__ == "__main__":
    main()
