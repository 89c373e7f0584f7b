"""`admin.py doctor`: checks every part and prints ok, or what to do. Changes nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import sqlalchemy as sa
from rich.text import Text
from sqlalchemy.engine import Engine

from datastore.keys import fingerprint
from datastore.port import DatastoreAway
from datastore.problem import DONE, PART_AWAY, Problem
from datastore.ssh.datastore import SshDatastore
from datastore.ssh.sshd_limits import Limits
from ecloud.cli import app, cloud_probe
from ecloud.cli.doctor_trust import database_encryption, task_accounts
from ecloud.cli.files import datastore_address, open_datastore
from ecloud.cli.tables import print_json, print_text
from ecloud.client.broker import BrokerAddress, check_will, external_broker, measure_round_trip, probe
from ecloud.config.datastore_address import directory_of, is_ssh
from ecloud.config.secrets import AccessWrong, read_access
from ecloud.config.settings import Settings, SettingsWrong, load_settings, settings_path
from ecloud.db.database import (
    DatabaseAway,
    SchemaWrong,
    database_away,
    database_url,
    make_engine,
    require_schema,
    where,
)
from ecloud.model.finding import Finding
from ecloud.model.machine_needs import MachineFacts, lacks
from ecloud.model.text import duration, megabytes, visible
from ecloud.model.wire import MAX_MESSAGE_BYTES
from ecloud.queries import status as queries

MIN_FREE_MB = 1_000.0
MIN_OPEN_FILES = 1_024
RESERVED_STARTUPS = 2
"""Connections to a datastore in addition to those of the workers: the boss's and a user's."""
RESTORED_TOLD_S = 7 * 86_400.0
MIN_PACKET_BYTES = 16 * 2**20
NO_DELAY_S = 0.02
"""Limit of a round trip. On one machine it takes 0.5 ms; with Nagle's algorithm in the broker 44 ms and more."""
NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "glusterfs", "ceph", "fuse.sshfs", "lustre", "9p")
_ANOTHER = "python admin.py set_datastore DIR, or DATASTORE in settings.py"
_MACHINE = "python admin.py start finds it; start --create makes it if none runs"
PACKAGES = ("paho-mqtt", "sqlalchemy", "pymysql", "alembic", "msgspec", "click", "rich", "psutil", "networkx")


def examine(as_json: bool, boot: bool = False) -> int:
    """Check everything; returns 0 if all checks pass, 3 if any needs action. `boot`: also start a VM of each pool, wait
    for its worker and end the VM."""
    findings = []
    console = app.console()
    for finding in chain(look(), _boots() if boot else ()):
        findings.append(finding)
        if not as_json:
            mark, style = ("ok", "green") if finding.is_ok else ("!!", "red")
            remedy = f"; {finding.remedy}" if finding.remedy else ""
            text = Text(f"{finding.part:<10} {visible(finding.text + remedy)}", "not bold")
            print_text(console, Text(f"{mark:<3}", style).append(text))
    well = all(finding.is_ok for finding in findings)
    if as_json:
        print_json({"ok": well, "findings": findings})
    return DONE if well else PART_AWAY


def look() -> Iterator[Finding]:
    """Run all checks; yield each finding as it is made."""
    yield from _versions()
    try:
        settings = load_settings()
    except SettingsWrong as error:
        for text in error.texts:
            yield Finding("settings", text, f"correct {settings_path()}; settings.example.py has every setting")
        return
    file = settings_path()
    yield Finding("settings", f"from {file}" if file.exists() else "no file: all defaults")
    yield from _home(settings)
    for text, remedy in task_accounts(settings):
        yield Finding("tasks", text, remedy)
    yield from _limits()
    engine = None
    for finding, found in _database(settings):
        engine = found or engine
        yield finding
    yield from _boss(settings, engine)
    yield from _broker(settings)
    yield from _clouds(settings)
    yield from _datastore(settings, engine)


def _versions() -> Iterator[Finding]:
    version = platform.python_version()
    remedy = "".join(lack.text for lack in lacks(MachineFacts(version)))
    missing, found = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    yield Finding("versions", f"Python {version}, {', '.join(found[:4])}", remedy)
    if missing:
        yield Finding("versions", f"missing: {', '.join(missing)}", "run `make install`")
    mosquitto = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    text = f"Mosquitto at {mosquitto}" if mosquitto else "no Mosquitto here: the embedded broker is iotcore"
    yield Finding("versions", text)


def _home(settings: Settings) -> Iterator[Finding]:
    home = settings.home_directory
    if not home.path.exists():
        yield Finding("home", f"{home.path} does not exist yet; the first start creates it")
        return
    if not os.access(home.path, os.W_OK):
        yield Finding("home", f"{home.path} cannot be written", "set HOME in settings.py, or its owner")
        return
    open_to_others = [
        path
        for path in (home.cluster_key, home.client_access)
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077
    ]
    for path in open_to_others:
        yield Finding("home", f"others can read {path}", f"chmod 600 {path}")
    free_mb = shutil.disk_usage(home.path).free / 1e6
    yield Finding("home", f"{home.path}, {megabytes(free_mb)} free", _more_room(free_mb))


def _limits() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    remedy = "" if soft >= MIN_OPEN_FILES else f"ulimit -n {MIN_OPEN_FILES}"
    yield Finding("limits", f"{soft:,} open files (at most {hard:,})", remedy)


# --- database -----------------------------------------------------------------------------------------


def _database(settings: Settings) -> Iterator[tuple[Finding, Engine | None]]:
    try:
        url = database_url(settings)
    except SettingsWrong as error:
        yield Finding("database", error.text, "correct DATABASE_URL"), None
        return
    is_file = url.get_backend_name() == "sqlite"
    if is_file and not Path(str(url.database)).exists():
        yield Finding("database", f"{where(url)} does not exist yet; the first start creates it"), None
        return
    engine = make_engine(url, app.ANSWER_S)
    try:
        require_schema(engine)
        with engine.connect() as connection:
            yield from (
                (finding, engine) for finding in (_sqlite if is_file else _server)(connection, Path(str(url.database)))
            )
    except (SchemaWrong, DatabaseAway) as error:
        yield Finding("database", error.text, error.remedy or "see its log"), None
    except sa.exc.SQLAlchemyError as error:
        away = database_away(error, engine.url)
        yield Finding("database", away.text, away.remedy or "see its log"), None


def _sqlite(connection: sa.Connection, file: Path) -> Iterator[Finding]:
    version = connection.exec_driver_sql("SELECT sqlite_version()").scalar()
    mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
    remedy = "" if mode == "wal" else "WAL does not work there: move HOME to a local disk"
    yield Finding("database", f"SQLite {version} in {file}, journal {mode}", remedy)
    kind = file_system_of(file)
    if kind in NETWORK_FILE_SYSTEMS:
        yield Finding(
            "database", f"{file} is on {kind}", "SQLite needs a local disk: move HOME, or use MySQL or MariaDB"
        )


def _server(connection: sa.Connection, _: Path) -> Iterator[Finding]:
    version = connection.exec_driver_sql("SELECT VERSION()").scalar()
    began = time.monotonic()
    connection.exec_driver_sql("SELECT 1").scalar()
    yield Finding("database", f"{version}, answers in {(time.monotonic() - began) * 1000:.1f} ms")
    isolation = connection.get_isolation_level()
    remedy = (
        "" if isolation in ("REPEATABLE READ", "READ COMMITTED") else "set transaction_isolation to REPEATABLE-READ"
    )
    yield Finding("database", f"isolation {isolation}", remedy)
    packet = int(connection.exec_driver_sql("SELECT @@max_allowed_packet").scalar() or 0)
    remedy = "" if packet >= MIN_PACKET_BYTES else f"set max_allowed_packet = {MIN_PACKET_BYTES}"
    yield Finding("database", f"max_allowed_packet {megabytes(packet / 1e6)}", remedy)
    yield Finding("database", *database_encryption(connection))


def file_system_of(path: Path) -> str:
    """Return the type of the file system that holds `path`, as in /proc/mounts."""
    real = os.path.realpath(path)
    best, kind = "", ""
    try:
        for line in Path("/proc/mounts").read_text().splitlines():
            _, mount, name, *_ = line.split()
            mount = mount.encode().decode("unicode_escape")
            if (real == mount or real.startswith(mount.rstrip("/") + "/")) and len(mount) >= len(best):
                best, kind = mount, name
    except (OSError, ValueError):
        return ""
    return kind


def _restored(context: Mapping[str, str]) -> Iterator[Finding]:
    """Report whether a peer recently knew of work that the database lacks (the boss records it, see
    `boss.core.boss`)."""
    at, _, peer = context.get("database/restored", "").partition(" ")
    if peer and time.time() - float(at) < RESTORED_TOLD_S:
        ago = duration(time.time() - float(at))
        yield Finding(
            "database",
            f"{peer} knew {ago} ago of work that the database lacks: it was restored from a backup",
            "push the missing tasks again; workers dropped their tasks and joined again",
        )


# --- boss, broker, datastore --------------------------------------------------------------------------


def _boss(settings: Settings, engine: Engine | None) -> Iterator[Finding]:
    about = app.running_boss(settings.home_directory)
    here = f"pid {about.get('pid')} in {settings.home_directory.path}" if about is not None else ""
    if engine is None:
        if here:
            yield Finding("boss", f"runs ({here}), but its database does not answer", "see database")
        else:
            yield Finding("boss", "does not run", "python admin.py start")
        return
    status = queries.status(engine)
    if status.boss.leads:
        yield Finding("boss", f"leads ({status.boss.holder}), last wrote {duration(status.boss.silent_s or 0)} ago")
    elif here:
        yield Finding("boss", f"runs ({here}) but does not write", f"see {settings.home_directory.log}")
    else:
        yield Finding("boss", "does not run", "python admin.py start")
    yield from _restored(queries.context(engine))
    for trouble in status.troubles:
        yield Finding("workers", trouble, "resumes automatically")
    for suspect in status.suspects:
        yield Finding("tasks", suspect, "check its output (admin.py logs); then cancel or retry_failed")
    for trouble in status.cloud_troubles:
        yield Finding("VMs", trouble, "see python admin.py plan and show_vms")


def _broker(settings: Settings) -> Iterator[Finding]:
    try:
        address = external_broker(settings)
    except SettingsWrong as error:
        yield Finding("broker", error.text, "correct BROKER_CA")
        return
    topic = f"ecloud/doctor/{secrets.token_hex(4)}"
    if address is None:
        try:
            access = read_access(settings.home_directory.client_access)
        except AccessWrong:
            if settings.boss_template:
                yield Finding("broker", f"the machine of BOSS_TEMPLATE ({settings.boss_template}) is not set", _MACHINE)
            else:
                yield Finding("broker", "embedded: starts with the boss")
            return
        address = BrokerAddress.of(access)
        topic = f"ecloud/{access.cluster_id}/{topic.partition('/')[2]}"
    problem = probe(address)
    if problem is not None:
        remedy = problem.remedy
        if settings.boss_template and not settings.broker_host:
            remedy = "start it there; if its machine has a new address, set BROKER_HOST to it"
        elif not settings.broker_host:
            remedy = "python admin.py start"
        yield Finding("broker", problem.text, remedy or "see its log")
        return
    yield from _broker_rules(address, topic)


def _broker_rules(address: BrokerAddress, topic: str) -> Iterator[Finding]:
    small = measure_round_trip(address, topic)
    if small is None:
        yield Finding("broker", f"{address} delivers nothing on {topic}/+", "allow ecloud/# to this user (ACL)")
        return
    is_near = address.host in ("127.0.0.1", "localhost", "::1", socket.gethostname())
    remedy = "set_tcp_nodelay true in mosquitto.conf" if is_near and small > NO_DELAY_S else ""
    yield Finding("broker", f"{address}, round trip of a message {small * 1000:.1f} ms", remedy)
    large = measure_round_trip(address, topic, MAX_MESSAGE_BYTES)
    remedy = "" if large is not None else f"allow messages of {MAX_MESSAGE_BYTES:,} bytes (message_size_limit)"
    yield Finding("broker", f"the largest message {'passes' if large is not None else 'does not pass'}", remedy)
    will = check_will(address, f"{topic}/will")
    yield Finding("broker", f"last wills are {'' if will else 'not '}published", "" if will else "allow ecloud/# (ACL)")


def _clouds(settings: Settings) -> Iterator[Finding]:
    if not cloud_probe.has_clouds(settings):
        return
    try:
        said = cloud_probe.ask()
    except cloud_probe.CloudsAway as error:
        yield Finding("cloud", error.text, error.remedy)
        return
    for item in said:
        yield Finding("cloud", f"pool {item['pool']}: {item['text']}", item.get("remedy", ""))


def _boots() -> Iterator[Finding]:
    """Start and end a VM of each pool."""
    from ecloud.cli import boot_check

    try:
        for booted in boot_check.boot(load_settings()):
            yield Finding("boot", f"pool {booted.pool}: {booted.text}", booted.remedy)
    except Exception as error:
        problem = app.problem_of(error)
        if problem is None:
            raise
        yield Finding("boot", problem.text, problem.remedy or "only a boss starts VMs: python admin.py start")


def _datastore(settings: Settings, engine: Engine | None) -> Iterator[Finding]:
    try:
        context = queries.context(engine) if engine is not None else {}
        if settings.datastore_template and not settings.datastore and not context.get("datastore_address"):
            text = f"the machine of DATASTORE_TEMPLATE ({settings.datastore_template}) is not set"
            yield Finding("datastore", text, _MACHINE)
            return
        address = datastore_address(settings, context)
        if not is_ssh(address):
            yield _directory(address)
            return
        datastore = open_datastore(settings, address)
        text = f"over SSH, host key {fingerprint(context.get('datastore_host_key', ''))}"
        free_mb = datastore.free_mb()
    except Exception as error:
        if app.problem_of(error) is None and not isinstance(error, OSError):
            raise
        text, remedy = (error.text, error.remedy) if isinstance(error, Problem) else (str(error), "")
        away = isinstance(error, DatastoreAway) and is_ssh(address)
        yield Finding("datastore", text, remedy or ("work resumes when it is back" if away else _ANOTHER))
        return
    yield _roomy(f"{address}, {text}", free_mb)
    if isinstance(datastore, SshDatastore):
        yield _lanes(settings.transfer_lanes, datastore.limits())
        datastore.close()


def _lanes(lanes: int, limits: Limits | None) -> Finding:
    """Check that workers, the boss and a user can all connect at the same time."""
    text = f"TRANSFER_LANES {lanes}"
    if limits is None:
        return Finding(
            "datastore", f"{text}; how many connections its sshd accepts in parallel (MaxStartups) is unknown"
        )
    text += f"; MaxStartups {limits.startups}, {limits.source}"
    wanted = lanes + RESERVED_STARTUPS
    if wanted <= limits.startups:
        return Finding("datastore", text)
    most = limits.startups - RESERVED_STARTUPS
    lower = f"TRANSFER_LANES = {most} in settings.py, or " if most > 0 else ""
    return Finding("datastore", text, f"{lower}MaxStartups {wanted}:30:{10 * wanted} in its sshd_config")


def _roomy(text: str, free_mb: float) -> Finding:
    return Finding("datastore", f"{text}, {megabytes(free_mb)} free", _more_room(free_mb))


def _more_room(free_mb: float) -> str:
    """Return the remedy for too little free space; empty if there is enough."""
    too_little = any(lacks(MachineFacts(disk_mb=free_mb), MIN_FREE_MB))
    return f"free some disk space: at least {megabytes(MIN_FREE_MB)} are needed" if too_little else ""


def _directory(address: str) -> Finding:
    """Check a datastore that is a directory. The boss creates it; this check leaves no file in it."""
    directory = directory_of(address)
    try:
        if not directory.exists():
            above = next(place for place in directory.absolute().parents if place.exists())
            if not os.access(above, os.W_OK | os.X_OK):
                return Finding("datastore", f"{address} does not exist and cannot be created in {above}", _ANOTHER)
            return _roomy(f"{address}: the boss will create it", shutil.disk_usage(above).free / 1e6)
        with tempfile.TemporaryFile(dir=directory) as probe_file:
            probe_file.write(b"probe")
        return _roomy(f"{address}, can be written", shutil.disk_usage(directory).free / 1e6)
    except OSError as error:
        return Finding("datastore", f"the datastore {directory} cannot be used: {error.strerror}", _ANOTHER)
